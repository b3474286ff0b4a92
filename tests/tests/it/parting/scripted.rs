//! A worker by hand: joins with a token and says on its stream what a test wants it to say.

use std::time::Duration;

use hermes_proto::v1::control_message::Message as FromPlane;
use hermes_proto::v1::identity_service_client::IdentityServiceClient;
use hermes_proto::v1::worker_message::Message as ToPlane;
use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{self};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{Plane, SOON};

/// A certificate and where it is good for.
pub(super) struct Joined {
    server: String,
    authority: String,
    identity: Identity,
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

async fn dial(server: &str, authority: &str, identity: Option<Identity>) -> Channel {
    let mut tls =
        ClientTlsConfig::new().domain_name("hermes-control-plane").ca_certificate(Certificate::from_pem(authority));
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    Endpoint::from_shared(server.to_owned()).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
}

impl Joined {
    /// Joins as a worker of the token's agent.
    pub(super) async fn with(server: &str, token: &str) -> Self {
        use base64::Engine as _;
        let der = token.rsplit('.').next().unwrap();
        let der = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(der).unwrap();
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let request = v1::JoinRequest { token: token.to_owned(), csr_der: csr.der().to_vec() };
        let mut client = IdentityServiceClient::new(dial(server, &pem(&der), None).await);
        let answer = client.join(request).await.unwrap().into_inner();
        let identity = Identity::from_pem(pem(&answer.certificate_der), key.serialize_pem());
        Self { server: server.to_owned(), authority: pem(&answer.ca_der), identity }
    }

    /// Joins as a worker of `main`.
    pub(super) async fn main(plane: &Plane) -> Self {
        Self::with(&format!("https://{}", plane.said("worker")), &plane.join_token("main")).await
    }

    /// The same process at another replica.
    pub(super) fn at(&self, plane: &Plane) -> Self {
        let server = format!("https://{}", plane.said("worker"));
        Self { server, authority: self.authority.clone(), identity: self.identity.clone() }
    }

    /// Registers with one slot, speaking this protocol, and answers the stream and what was said to that.
    pub(super) async fn register(&self, protocol_version: u32, pid: i64) -> (Scripted, FromPlane) {
        let channel = dial(&self.server, &self.authority, Some(self.identity.clone())).await;
        let (outgoing, messages) = mpsc::channel(64);
        let register = v1::Register {
            protocol_version,
            slots: 1,
            pid,
            home: "/nowhere".into(),
            build: "by hand".into(),
            curates: false,
        };
        let register = v1::WorkerMessage { message: Some(ToPlane::Register(register)) };
        outgoing.send(register).await.unwrap();
        let mut client = WorkerServiceClient::new(channel);
        let mut incoming = client.attach(ReceiverStream::new(messages)).await.unwrap().into_inner();
        let first = incoming.message().await.unwrap().unwrap().message.unwrap();
        (Scripted { outgoing, incoming, beats: tokio::time::interval(Duration::from_secs(1)), peeked: None }, first)
    }

    /// Registers as a worker of this release.
    pub(super) async fn attach(&self) -> Scripted {
        let (worker, first) = self.register(hermes_proto::WORKER_PROTOCOL_VERSION, 1).await;
        assert!(matches!(first, FromPlane::Welcome(_)), "{first:?}");
        worker
    }
}

/// An attached worker. It sends heartbeats while it listens.
pub(super) struct Scripted {
    outgoing: mpsc::Sender<v1::WorkerMessage>,
    incoming: tonic::Streaming<v1::ControlMessage>,
    beats: tokio::time::Interval,
    peeked: Option<v1::ControlMessage>,
}

impl Scripted {
    pub(super) async fn say(&self, message: ToPlane) {
        self.outgoing.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
    }

    /// The next message but answers to heartbeats; nothing when the stream has ended.
    pub(super) async fn hear(&mut self) -> Option<FromPlane> {
        if let Some(message) = self.peeked.take() {
            return message.message;
        }
        let Self { outgoing, incoming, beats, .. } = self;
        let next = async {
            loop {
                tokio::select! {
                    _ = beats.tick() => {
                        let beat = ToPlane::Heartbeat(v1::Heartbeat { sequence: 1 });
                        let _ = outgoing.send(v1::WorkerMessage { message: Some(beat) }).await;
                    }
                    message = incoming.message() => match message {
                        Ok(Some(v1::ControlMessage { message: Some(FromPlane::HeartbeatAck(_)) })) => {}
                        Ok(Some(message)) => return message.message,
                        Ok(None) | Err(_) => return None,
                    }
                }
            }
        };
        tokio::time::timeout(SOON, next).await.expect("something is said")
    }

    /// Whether something comes within a moment; it is kept for the next call.
    pub(super) async fn would_take(&mut self) -> bool {
        if let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(200), self.hear()).await {
            self.peeked = Some(v1::ControlMessage { message: Some(message) });
        }
        self.peeked.is_some()
    }

    /// Says goodbye and closes in order, whatever it still has.
    pub(super) async fn leave(self) {
        self.say(ToPlane::GoingAway(v1::GoingAway { reason: "stopped".into() })).await;
        let Self { outgoing, mut incoming, .. } = self;
        drop(outgoing);
        while let Ok(Some(_)) = incoming.message().await {}
    }

    /// Waits for an assignment and accepts it.
    pub(super) async fn take(&mut self) -> v1::Assignment {
        match self.hear().await {
            Some(FromPlane::Assignment(assignment)) => {
                self.say(ToPlane::Accepted(v1::Accepted { turn: assignment.turn })).await;
                assignment
            }
            other => panic!("{other:?}"),
        }
    }

    /// Reports the end of a turn.
    pub(super) async fn end(&self, turn: Option<v1::TurnRef>, outcome: i32, reply: &str) {
        let completed = v1::Completed { turn, outcome, reply: reply.into(), usage: None };
        self.say(ToPlane::Completed(completed)).await;
    }

    /// Waits for an acknowledgement; whether it was stored.
    pub(super) async fn acknowledged(&mut self) -> bool {
        match self.hear().await {
            Some(FromPlane::CompletedAck(ack)) => ack.stored,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the acknowledgement of a hand-back and for an assignment, whichever comes first, and accepts that.
    pub(super) async fn acknowledged_and_given_again(&mut self) -> v1::Assignment {
        let (mut stored, mut given) = (None, None);
        while stored.is_none() || given.is_none() {
            match self.hear().await {
                Some(FromPlane::CompletedAck(ack)) => stored = Some(ack.stored),
                Some(FromPlane::Assignment(assignment)) => {
                    self.say(ToPlane::Accepted(v1::Accepted { turn: assignment.turn })).await;
                    given = Some(assignment);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(stored, Some(true));
        given.unwrap()
    }

    /// Waits for a cancellation.
    pub(super) async fn cancelled(&mut self) -> (v1::CancelKind, String) {
        match self.hear().await {
            Some(FromPlane::Cancel(cancel)) => (cancel.kind(), cancel.reason),
            other => panic!("{other:?}"),
        }
    }
}
