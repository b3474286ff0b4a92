use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use hermes_proto::v1::{CompletedAck, Outcome, control_message, worker_message};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::fake::{Attached, Fake, assignment, says, soon, turn};

/// A worker process; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    async fn exit(mut self) -> (Option<i32>, String) {
        use std::io::Read as _;
        let waited = tokio::task::spawn_blocking(move || {
            let status = self.0.wait().unwrap();
            let mut log = String::new();
            self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
            (status.code(), log)
        });
        soon("the process's exit", waited).await.unwrap()
    }
}

fn command(fake: &Fake, dir: &std::path::Path) -> Command {
    let token = dir.join("token");
    std::fs::File::create(&token).unwrap().write_all(fake.join_token.as_bytes()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hermes-worker"));
    command.args(["--server", &fake.url, "--log-format", "json"]);
    command.arg("--home").arg(dir.join("home")).arg("--join-token-file").arg(token);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn started(fake: &mut Fake, dir: &std::path::Path) -> (Process, Attached) {
    let process = Process(command(fake, dir).spawn().unwrap());
    let mut link = fake.attached().await;
    let register = link.welcome().await;
    assert_eq!(register.pid, i64::from(process.0.id()));
    (process, link)
}

#[tokio::test]
async fn sigterm_drains_and_exits_with_0() {
    let mut fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (process, mut link) = started(&mut fake, dir.path()).await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    process.signal(Signal::SIGTERM);
    assert!(matches!(link.next().await, worker_message::Message::GoingAway(_)));
    call.done().await;
    let completed = link.completed().await;
    link.acknowledge(&completed).await;
    assert!(link.ended().await);
    drop(link);
    let (code, log) = process.exit().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("hermes-join"), "{log}");
}

#[tokio::test]
async fn sigterm_hands_back_what_does_not_end_in_time_and_exits_with_0() {
    let mut fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(&fake, dir.path());
    let process = Process(command.args(["--drain-seconds", "0"]).spawn().unwrap());
    let mut link = fake.attached().await;
    link.welcome_speaking(2, 1_000, 60_000).await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    process.signal(Signal::SIGTERM);
    assert!(matches!(link.next().await, worker_message::Message::GoingAway(_)));
    let worker_message::Message::HandBack(back) = link.next().await else { panic!("no hand-back") };
    assert_eq!(back.turn, Some(turn(1, 1, 1)));
    soon("the end of the model call", call.events.closed()).await;
    let ack = CompletedAck { turn: back.turn, stored: true };
    link.send(control_message::Message::CompletedAck(ack)).await;
    assert!(link.ended().await);
    drop(link);
    let (code, log) = process.exit().await;
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test]
async fn a_second_signal_exits_at_once() {
    let mut fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (process, mut link) = started(&mut fake, dir.path()).await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let _call = fake.call().await;
    process.signal(Signal::SIGINT);
    assert!(matches!(link.next().await, worker_message::Message::GoingAway(_)));
    process.signal(Signal::SIGTERM);
    let (code, log) = process.exit().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("second time"), "{log}");
}

/// Collects exported spans.
#[derive(Clone)]
struct Collector(tokio::sync::mpsc::Sender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = &resource.resource.as_ref().unwrap().attributes;
            assert!(format!("{attributes:?}").contains("hermes-worker"), "{attributes:?}");
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.send(span).await.map_err(|_| tonic::Status::unavailable("the test is over"))?;
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn a_turn_and_its_model_call_are_spans_of_the_assignments_trace() {
    let mut fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("http://{}", incoming.local_addr().unwrap());
    let (spans_tx, mut spans) = tokio::sync::mpsc::channel(16);
    let collector = Server::builder().add_service(TraceServiceServer::new(Collector(spans_tx)));
    let mut server = tokio::task::JoinSet::new();
    server.spawn(collector.serve_with_incoming(incoming));
    let mut command = command(&fake, dir.path());
    let process = Process(command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).spawn().unwrap());
    let mut link = fake.attached().await;
    link.welcome().await;
    let mut first = assignment(turn(1, 1, 1), &says("hi"));
    first.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into();
    link.assign(first).await;
    let call = fake.call().await;
    let traceparent = call.header.traceparent.clone();
    call.done().await;
    let completed = link.completed().await;
    link.acknowledge(&completed).await;
    process.signal(Signal::SIGTERM);
    let mut found = std::collections::BTreeMap::new();
    while found.len() < 2 {
        let span = soon("an exported span", spans.recv()).await.unwrap();
        found.insert(span.name.clone(), span);
    }
    let (turn, model) = (&found["turn"], &found["model"]);
    let trace = hex::decode("0af7651916cd43dd8448eb211c80319c").unwrap();
    assert_eq!((&turn.trace_id, &model.trace_id), (&trace, &trace));
    assert_eq!(turn.parent_span_id, hex::decode("b7ad6b7169203331").unwrap());
    assert_eq!(model.parent_span_id, turn.span_id);
    assert_eq!(traceparent, format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", hex::encode(&model.span_id)));
}

#[tokio::test]
async fn hundreds_of_turns_leave_the_process_small_even_with_a_dead_collector() {
    let mut fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(&fake, dir.path());
    let process = Process(command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1").spawn().unwrap());
    let mut link = fake.attached().await;
    link.welcome().await;
    for seq in 1..=10 {
        for session in 1..=50 {
            link.assign(assignment(turn(session, seq, 1), &says(&"x".repeat(2_000)))).await;
        }
        for _ in 1..=50 {
            let call = fake.call().await;
            assert_eq!(call.messages.len() as u64, 2 * seq);
            call.say(&"y".repeat(2_000)).await;
            call.done().await;
            let completed = link.completed().await;
            assert_eq!(completed.outcome(), Outcome::Succeeded);
            link.acknowledge(&completed).await;
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    // Its own: how much of the program's file is resident says more about the build.
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().trim().trim_end_matches(" kB");
    let own: u64 = own.parse().unwrap();
    eprintln!("RssAnon after 500 turns: {own} kB");
    assert!(own <= 16 << 10, "{own} kB of its own");
}

#[tokio::test]
async fn a_second_worker_on_the_same_home_is_refused_naming_the_first() {
    let mut fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (first, _link) = started(&mut fake, dir.path()).await;
    let second = Process(command(&fake, dir.path()).spawn().unwrap());
    let (code, log) = second.exit().await;
    assert_eq!(code, Some(1));
    assert!(log.contains(&format!("pid {};", first.0.id())), "{log}");
    assert_eq!(*fake.state.joins.lock().unwrap(), 1, "refused before the token was used");
}

#[tokio::test]
async fn a_worker_whose_parent_is_another_does_not_stay() {
    let fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(&fake, dir.path());
    command.args(["--parent-pid", "1"]);
    let (code, log) = Process(command.spawn().unwrap()).exit().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("is gone"), "{log}");
}

#[tokio::test]
async fn a_worker_goes_when_its_parent_is_killed() {
    let mut fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let worker = command(&fake, dir.path());
    // A shell in between starts the worker and waits, so that it can be killed as the parent.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "\"$0\" \"$@\" --parent-pid $$ & wait"]).arg(worker.get_program()).args(worker.get_args());
    let shell = Process(shell.env_clear().stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let mut link = fake.attached().await;
    link.welcome().await;
    shell.signal(Signal::SIGKILL);
    let gone = soon("the end of the stream", async {
        loop {
            match link.from_worker.message().await {
                Ok(Some(_)) => {}
                other => return other.is_err() || matches!(other, Ok(None)),
            }
        }
    });
    assert!(gone.await);
}
