//! The whole other side for turns with steps: a control plane that answers by itself, tools that write down what they did,
//! and points at which a turn is held.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_proto::v1::*;
use hermes_worker::failpoint::{Failpoints, Verdict};
use hermes_worker::seams::{Seams, Without};
use hermes_worker::tools::{self, ToolResult, ToolSpec, Toolbox};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::Worker;
use crate::fake::{Fake, State, assignment, says, soon};
use crate::journal::Line;

/// What was done to the world, and what holds it up.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) effects: Mutex<Vec<String>>,
    pub(crate) begun: Notify,
    pub(crate) go_on: Notify,
    /// The point at which turns are held, after so many passed it; and every point they came to.
    hold: Mutex<Option<(String, usize)>>,
    pub(crate) held: Notify,
    pub(crate) release: Notify,
    points: Mutex<Vec<String>>,
    met: Meeting,
    /// What the script of a job comes to.
    pub(crate) script: Mutex<Option<ToolResult>>,
}

/// Where two calls wait for each other.
struct Meeting(tokio::sync::Barrier);

impl Default for Meeting {
    fn default() -> Self {
        Self(tokio::sync::Barrier::new(2))
    }
}

impl World {
    pub(crate) fn effects(&self) -> Vec<String> {
        self.effects.lock().unwrap().clone()
    }

    /// Holds the first turn that comes to the point for the `nth` time.
    pub(crate) fn hold_at(&self, point: &str, nth: usize) {
        self.points.lock().unwrap().clear();
        *self.hold.lock().unwrap() = Some((point.to_owned(), nth));
    }

    pub(crate) fn points(&self) -> Vec<String> {
        self.points.lock().unwrap().clone()
    }

    pub(crate) fn seams(self: &Arc<Self>, without: Without) -> Seams {
        let world = Arc::clone(self);
        let failpoints = Failpoints::new(move |point| {
            let (world, point) = (Arc::clone(&world), point.to_owned());
            Box::pin(async move {
                let held = {
                    let mut points = world.points.lock().unwrap();
                    points.push(point.clone());
                    let count = points.iter().filter(|passed| **passed == point).count();
                    world.hold.lock().unwrap().take_if(|(at, nth)| *at == point && *nth == count).is_some()
                };
                if held {
                    world.held.notify_one();
                    world.release.notified().await;
                }
                Verdict::GoOn
            })
        });
        let toolbox = Arc::new(Tools { world: Arc::clone(self), specs: specs() });
        Seams { toolbox: Some(toolbox), failpoints, without }
    }
}

struct Tools {
    world: Arc<World>,
    specs: Arc<[ToolSpec]>,
}

fn specs() -> Arc<[ToolSpec]> {
    let spec = |name: &str, effect| ToolSpec {
        name: name.to_owned(),
        description: format!("it does {name}"),
        parameters: r#"{"type":"object"}"#.to_owned(),
        toolset: "drill".to_owned(),
        effect,
        time_limit: Duration::from_secs(30),
        max_output: 1_000,
    };
    use tools::Effect::{AtMostOnce, Idempotent, Pure};
    [
        spec("look", Pure),
        spec("put", Idempotent),
        spec("send", AtMostOnce),
        // Waits until it is told to go on or to stop.
        spec("wait", AtMostOnce),
        // Waits until it is told to go on, whatever it is told otherwise.
        spec("stubborn", AtMostOnce),
        spec("panics", Pure),
        spec("long", Pure),
        // Waits until another one of them is there.
        spec("meet", Pure),
        // Judged by its command.
        spec("terminal", AtMostOnce),
    ]
    .into()
}

impl Toolbox for Tools {
    fn specs(&self) -> Arc<[ToolSpec]> {
        Arc::clone(&self.specs)
    }

    fn call(&self, call: tools::ToolCall) -> BoxFuture<'_, ToolResult> {
        Box::pin(async move {
            let key = call.idempotency_key.unwrap_or_default();
            self.world.effects.lock().unwrap().push(format!("{}{key}", call.name));
            self.world.begun.notify_one();
            match call.name.as_str() {
                "wait" => tokio::select! {
                    () = call.cancel.cancelled() => return Ok("stopped half way".to_owned()),
                    () = self.world.go_on.notified() => {}
                },
                "meet" => {
                    self.world.met.0.wait().await;
                }
                "stubborn" => self.world.go_on.notified().await,
                "panics" => panic!("inside a tool"),
                "long" => return Ok("x".repeat(2_000)),
                "cron_script" => return self.world.script.lock().unwrap().clone().expect("no script was expected"),
                _ => {}
            }
            Ok(format!("{} done", call.name))
        })
    }
}

/// A control plane whose stream answers by itself.
pub(crate) struct Plane {
    pub(crate) to_worker: mpsc::Sender<Result<ControlMessage, tonic::Status>>,
    /// Everything but steps and heartbeats, as it comes.
    ends: mpsc::Receiver<worker_message::Message>,
    _tasks: JoinSet<()>,
}

impl Plane {
    /// Takes the next stream, with a lease that no test outlives.
    pub(crate) async fn attach(fake: &mut Fake) -> Self {
        let mut link = fake.attached().await;
        link.welcome_speaking(2, 1_000, 60_000).await;
        let (to_test, ends) = mpsc::channel(64);
        let to_worker = link.to_worker.clone();
        let state = Arc::clone(&fake.state);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok(Some(message)) = link.from_worker.message().await {
                let message = message.message.expect("a known message");
                match &message {
                    worker_message::Message::Heartbeat(beat) => {
                        let ack =
                            HeartbeatAck { sequence: beat.sequence, lease_lost: false, ..HeartbeatAck::default() };
                        link.send(control_message::Message::HeartbeatAck(ack)).await;
                        continue;
                    }
                    worker_message::Message::Step(report) => {
                        let outcome = state.journal.lock().unwrap().record(report).into();
                        let ack = StepAck { turn: report.turn, step: report.step, phase: report.phase, outcome };
                        link.send(control_message::Message::StepAck(ack)).await;
                        continue;
                    }
                    worker_message::Message::Completed(Completed { turn, .. })
                    | worker_message::Message::HandBack(HandBack { turn }) => {
                        let stored = state.journal.lock().unwrap().runs(turn.as_ref());
                        let ack = CompletedAck { turn: *turn, stored };
                        link.send(control_message::Message::CompletedAck(ack)).await;
                    }
                    _ => {}
                }
                let _ = to_test.send(message).await;
            }
        });
        Self { to_worker, ends, _tasks: tasks }
    }

    pub(crate) async fn send(&self, message: control_message::Message) {
        self.to_worker.send(Ok(ControlMessage { message: Some(message) })).await.expect("the worker reads");
    }

    /// Leases the turn to that epoch and assigns it with what is journaled.
    pub(crate) async fn assign(&mut self, state: &State, turn: TurnRef, text: &str) {
        self.assign_input(state, turn, &says(text)).await;
    }

    /// As [`Plane::assign`], with all of the input.
    pub(crate) async fn assign_input(&mut self, state: &State, turn: TurnRef, input: &str) {
        let journal_entries = state.journal.lock().unwrap().lease(&turn);
        let assignment = Assignment { journal_entries, ..assignment(turn, input) };
        self.send(control_message::Message::Assignment(assignment)).await;
    }

    /// The next message beside steps, progress and heartbeats.
    pub(crate) async fn next(&mut self) -> worker_message::Message {
        loop {
            match self.next_any().await {
                worker_message::Message::Progress(_) => {}
                other => return other,
            }
        }
    }

    async fn next_any(&mut self) -> worker_message::Message {
        soon("a message of the worker", self.ends.recv()).await.expect("the stream goes on")
    }

    /// Waits until the turn has told of this text.
    pub(crate) async fn progress(&mut self, text: &str) {
        let mut told = String::new();
        while told != text {
            if let worker_message::Message::Progress(progress) = self.next_any().await {
                told.push_str(&progress.text_delta);
            }
        }
    }

    pub(crate) async fn end(&mut self) -> worker_message::Message {
        loop {
            match self.next().await {
                worker_message::Message::Accepted(_) | worker_message::Message::GoingAway(_) => {}
                end => return end,
            }
        }
    }

    pub(crate) async fn completed(&mut self) -> (Outcome, String) {
        match self.end().await {
            worker_message::Message::Completed(completed) => {
                (completed.outcome(), String::from_utf8(completed.reply).unwrap())
            }
            other => panic!("expected Completed, got {other:?}"),
        }
    }

    pub(crate) async fn cancel(&self, turn: TurnRef, kind: CancelKind, reason: &str) {
        let cancel = Cancel { turn: Some(turn), reason: reason.into(), kind: kind.into() };
        self.send(control_message::Message::Cancel(cancel)).await;
    }

    pub(crate) async fn steer(&self, turn: TurnRef, seq: u64, text: &str) {
        let input = says(text).into_bytes();
        self.send(control_message::Message::Steer(Steer { turn: Some(turn), seq, input })).await;
    }
}

/// A fake control plane with a model that follows the script, and a worker with tools.
pub(crate) struct Stage {
    pub(crate) fake: Fake,
    pub(crate) world: Arc<World>,
    pub(crate) worker: Worker,
    pub(crate) plane: Plane,
}

impl Stage {
    pub(crate) async fn new(script: impl IntoIterator<Item = (u32, Line)>) -> Self {
        Self::with(script, Without::default()).await
    }

    pub(crate) async fn with(script: impl IntoIterator<Item = (u32, Line)>, without: Without) -> Self {
        let mut fake = Fake::start().await;
        *fake.state.joins_left.lock().unwrap() = 2;
        *fake.state.script.lock().unwrap() = script.into_iter().collect();
        let world = Arc::new(World::default());
        let worker = Worker::new().serve_with(&fake, world.seams(without));
        let plane = Plane::attach(&mut fake).await;
        Self { fake, world, worker, plane }
    }

    pub(crate) async fn assign(&mut self, turn: TurnRef) {
        self.assign_text(turn, "hi").await;
    }

    pub(crate) async fn assign_text(&mut self, turn: TurnRef, text: &str) {
        self.plane.assign(&self.fake.state, turn, text).await;
    }

    /// What the model was asked at that step, each time.
    pub(crate) fn asked(&self, step: u32) -> Vec<Vec<String>> {
        self.fake.state.asked(step)
    }

    pub(crate) fn journal(&self, turn: &TurnRef) -> Vec<String> {
        self.fake.state.journal.lock().unwrap().lines(turn)
    }

    /// The worker dies on the spot, and another one comes.
    pub(crate) async fn replace_worker(&mut self) {
        self.worker.task.abort_all();
        while self.worker.task.join_next().await.is_some() {}
        self.worker = Worker::new().serve_with(&self.fake, self.world.seams(Without::default()));
        self.plane = Plane::attach(&mut self.fake).await;
    }
}
