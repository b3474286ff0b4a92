//! A worker's stream as the test holds it.

use super::*;

/// One worker's stream; the test plays the control plane on it.
pub(crate) struct Attached {
    pub(crate) from_worker: Streaming<WorkerMessage>,
    pub(crate) to_worker: mpsc::Sender<Result<ControlMessage, Status>>,
}

impl Attached {
    /// The next message that is neither a heartbeat (answered here) nor progress.
    pub(crate) async fn next(&mut self) -> worker_message::Message {
        loop {
            match self.next_any().await {
                worker_message::Message::Heartbeat(beat) => {
                    let ack = HeartbeatAck { sequence: beat.sequence, lease_lost: false, ..HeartbeatAck::default() };
                    self.send(control_message::Message::HeartbeatAck(ack)).await;
                }
                worker_message::Message::Progress(_) => {}
                other => return other,
            }
        }
    }

    pub(crate) async fn next_any(&mut self) -> worker_message::Message {
        self.next_if_any().await.expect("the worker ended the stream")
    }

    /// Nothing when the worker ended its side.
    pub(crate) async fn next_if_any(&mut self) -> Option<worker_message::Message> {
        let message = soon("a message of the worker", self.from_worker.message()).await.expect("stream");
        message.map(|message| message.message.expect("a known message"))
    }

    /// Whether the worker ended its side.
    pub(crate) async fn ended(&mut self) -> bool {
        soon("the end of the stream", self.from_worker.message()).await.is_ok_and(|message| message.is_none())
    }

    pub(crate) async fn send(&self, message: control_message::Message) {
        let message = ControlMessage { message: Some(message) };
        self.to_worker.send(Ok(message)).await.expect("the worker reads");
    }

    pub(crate) async fn register(&mut self) -> Register {
        match self.next().await {
            worker_message::Message::Register(register) => register,
            other => panic!("the first message is {other:?}"),
        }
    }

    /// Register and Welcome, with a lease that no test outlives.
    pub(crate) async fn welcome(&mut self) -> Register {
        self.welcome_with(1_000, 60_000).await
    }

    /// By a control plane of before steps and hand-backs.
    pub(crate) async fn welcome_with(&mut self, heartbeat_ms: u32, lease_ms: u32) -> Register {
        self.welcome_speaking(0, heartbeat_ms, lease_ms).await
    }

    pub(crate) async fn welcome_speaking(
        &mut self,
        protocol_version: u32,
        heartbeat_ms: u32,
        lease_ms: u32,
    ) -> Register {
        let register = self.register().await;
        let agent = AGENT.into();
        let welcome = Welcome { worker_id: 7, heartbeat_ms, lease_ms, agent, protocol_version, ..Welcome::default() };
        self.send(control_message::Message::Welcome(welcome)).await;
        register
    }

    pub(crate) async fn assign(&mut self, assignment: Assignment) {
        let turn = assignment.turn;
        self.send(control_message::Message::Assignment(assignment)).await;
        match self.next().await {
            worker_message::Message::Accepted(accepted) => assert_eq!(accepted.turn, turn),
            other => panic!("expected Accepted, got {other:?}"),
        }
    }

    pub(crate) async fn completed(&mut self) -> Completed {
        match self.next().await {
            worker_message::Message::Completed(completed) => completed,
            other => panic!("expected Completed, got {other:?}"),
        }
    }

    pub(crate) async fn acknowledge(&self, completed: &Completed) {
        let ack = CompletedAck { turn: completed.turn, stored: true };
        self.send(control_message::Message::CompletedAck(ack)).await;
    }
}
