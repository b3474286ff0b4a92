use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A worker that writes down how it was started, and lives or dies as a file beside its home says.
const WORKER: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in
    --server) server=$2;; --home) home=$2;; --parent-pid) parent=$2;; --join-token-fd) fd=$2;;
  esac
  shift 2
done
trap 'echo drained >> "$home.log"; exit 0' TERM
[ -e "$home.stubborn" ] && trap '' TERM
echo "start $$ $server $parent $(cat /proc/self/fd/$fd)" >> "$home.log"
echo "hello from $home" >&2
[ -e "$home.crash" ] && exit 3
while :; do read -r line < "$home.fifo" || exit 4; done
"#;

struct Setup {
    temp: tempfile::TempDir,
    launcher: Launcher,
    tasks: Tasks,
    exits: Arc<Mutex<Vec<Exit>>>,
}

fn quick() -> Timing {
    Timing {
        backoff_first: Duration::from_millis(10),
        backoff_most: Duration::from_millis(80),
        healthy_after: Duration::from_secs(60),
        served_after: Duration::from_secs(60),
        drain: Duration::from_millis(300),
        idle_spacing: Duration::from_millis(20),
    }
}

impl Setup {
    fn new(timing: Timing) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let worker = temp.path().join("worker.sh");
        std::fs::write(&worker, WORKER).unwrap();
        std::fs::set_permissions(&worker, std::fs::Permissions::from_mode(0o755)).unwrap();
        let exits: Arc<Mutex<Vec<Exit>>> = Arc::default();
        let told = Arc::clone(&exits);
        let minted = Arc::new(AtomicU32::new(0));
        let config = Config {
            worker_binary: worker,
            worker_addr: SocketAddr::from(([127, 0, 0, 1], 7443)),
            environment: environment(std::env::vars_os()),
            mint: Arc::new(move |agent| {
                let number = minted.fetch_add(1, Ordering::Relaxed);
                let start = Uuid::from_u128(number.into());
                Box::pin(async move { Ok((start, format!("token-{agent}-{number}").into())) })
            }),
            on_exit: Arc::new(move |exit| told.lock().unwrap().push(exit)),
            has_room: || true,
            timing,
        };
        let tasks = Tasks::default();
        let launcher = Launcher::new(config, Spawner::start().unwrap(), tasks.clone());
        Self { temp, launcher, tasks, exits }
    }

    fn spec(&self, agent: &str, generation: u64) -> LaunchSpec {
        let home = self.temp.path().join(agent);
        let fifo = home.with_extension("fifo");
        if !fifo.try_exists().unwrap() {
            nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        LaunchSpec { agent: AgentId::parse(agent).unwrap(), home, generation }
    }

    fn mark(&self, name: &str) -> PathBuf {
        let path = self.temp.path().join(name);
        std::fs::write(&path, "").unwrap();
        path
    }

    fn log(&self, agent: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.temp.path().join(format!("{agent}.log"))).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn starts(&self, agent: &str) -> Vec<Vec<String>> {
        let words = |line: &String| line.split(' ').map(str::to_owned).collect();
        self.log(agent).iter().filter(|line| line.starts_with("start ")).map(words).collect()
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn main_starts_at_once_others_on_demand_each_with_a_fresh_token() {
    let setup = Setup::new(quick());
    setup.launcher.set_agents(vec![setup.spec("main", 1), setup.spec("coder", 1)]);
    until("main runs", || setup.starts("main").len() == 1).await;
    assert!(setup.log("coder").is_empty());
    setup.launcher.demand(&AgentId::parse("coder").unwrap());
    until("coder runs", || setup.starts("coder").len() == 1).await;
    let parent = std::process::id().to_string();
    let tokens: BTreeSet<String> = ["main", "coder"]
        .iter()
        .map(|agent| {
            let start = setup.starts(agent).remove(0);
            assert_eq!((start[2].as_str(), &start[3]), ("https://127.0.0.1:7443", &parent));
            assert!(start[4].starts_with(&format!("token-{agent}-")), "{start:?}");
            start[4].clone()
        })
        .collect();
    assert_eq!(tokens.len(), 2);
    setup.launcher.stop(Duration::from_secs(5)).await;
    assert_eq!(
        (setup.log("main").last().unwrap().as_str(), setup.log("coder").last().unwrap().as_str()),
        ("drained", "drained")
    );
    assert_eq!(setup.exits.lock().unwrap().len(), 2);
    assert!(setup.tasks.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn one_crash_loop_leaves_the_other_agent_alone_and_ends_when_its_cause_does() {
    let setup = Setup::new(quick());
    let crash = setup.mark("bad.crash");
    setup.launcher.set_agents(vec![setup.spec("main", 1), setup.spec("bad", 1)]);
    setup.launcher.demand(&AgentId::parse("bad").unwrap());
    until("bad restarts", || setup.starts("bad").len() >= 4).await;
    assert_eq!(setup.starts("main").len(), 1);
    std::fs::remove_file(crash).unwrap();
    // main's never ends, so all are of the other.
    let bad_exits = || setup.exits.lock().unwrap().len();
    until("bad stays", || setup.starts("bad").len() == bad_exits() + 1).await;
    let tokens: BTreeSet<_> = setup.starts("bad").iter().map(|start| start[4].clone()).collect();
    assert_eq!(tokens.len(), setup.starts("bad").len(), "each start has its own token");
    setup.launcher.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_killed_worker_is_back_within_a_second() {
    let setup = Setup::new(Timing::default());
    setup.launcher.set_agents(vec![setup.spec("main", 1)]);
    until("main runs", || setup.starts("main").len() == 1).await;
    let pid: u32 = setup.starts("main")[0][1].parse().unwrap();
    let killed = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    until("main is back", || setup.starts("main").len() == 2).await;
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    let first = Exit { start: Uuid::from_u128(0), asked: false };
    assert_eq!(*setup.exits.lock().unwrap(), [first]);
    setup.launcher.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_new_generation_replaces_the_worker_and_a_removed_agent_is_drained_even_if_stubborn() {
    let setup = Setup::new(quick());
    let kept = setup.spec("main", 1);
    setup.launcher.set_agents(vec![kept.clone(), setup.spec("a", 1)]);
    setup.launcher.demand(&AgentId::parse("a").unwrap());
    until("both run", || setup.starts("main").len() == 1 && setup.starts("a").len() == 1).await;
    setup.launcher.set_agents(vec![kept.clone(), setup.spec("a", 2)]);
    until("a is replaced", || setup.starts("a").len() == 2).await;
    assert_eq!(setup.log("a")[1], "drained", "the old one ended before the new one began");

    setup.mark("a.stubborn");
    setup.launcher.set_agents(vec![kept.clone(), setup.spec("a", 3)]);
    until("a is replaced again", || setup.starts("a").len() == 3).await;
    setup.launcher.set_agents(vec![kept.clone()]);
    until("a is killed", || setup.exits.lock().unwrap().len() == 3).await;
    assert_eq!(setup.log("a").iter().filter(|line| *line == "drained").count(), 2);

    setup.launcher.set_agents(vec![kept, setup.spec("a", 3)]);
    setup.launcher.demand(&AgentId::parse("a").unwrap());
    until("a is back", || setup.starts("a").len() == 4).await;
    assert_eq!(setup.starts("main").len(), 1);
    setup.launcher.stop(Duration::from_millis(100)).await;
    assert_eq!(setup.exits.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn idle_starts_begin_when_opened_and_two_agents_never_share_a_home() {
    let setup = Setup::new(quick());
    let mut same = setup.spec("c", 1);
    same.home = setup.temp.path().join("b");
    let refused = setup.launcher.set_agents(vec![setup.spec("a", 1), setup.spec("b", 1), same]);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].to_string().starts_with("agents b and c share the home "), "{}", refused[0]);
    assert!(setup.log("a").is_empty() && setup.log("b").is_empty());
    setup.launcher.start_idle();
    until("a and b run", || setup.starts("a").len() == 1 && setup.starts("b").len() == 1).await;
    // A newcomer that is named first does not take a home that is in use.
    let mut first = setup.spec("0", 1);
    first.home = setup.temp.path().join("b");
    let refused = setup.launcher.set_agents(vec![first, setup.spec("a", 1), setup.spec("b", 1)]);
    assert!(refused[0].to_string().starts_with("agents b and 0 share the home "), "{}", refused[0]);
    setup.launcher.stop(Duration::from_secs(5)).await;
    assert_eq!((setup.starts("a").len(), setup.starts("b").len()), (1, 1));
}

#[tokio::test]
async fn stopping_all_kills_what_does_not_listen_within_the_grace() {
    let setup = Setup::new(Timing { drain: Duration::from_secs(600), ..quick() });
    setup.mark("main.stubborn");
    setup.launcher.set_agents(vec![setup.spec("main", 1)]);
    until("main runs", || setup.starts("main").len() == 1).await;
    setup.launcher.set_agents(vec![]);
    let began = Instant::now();
    setup.launcher.stop(Duration::from_millis(100)).await;
    assert!(began.elapsed() < Duration::from_secs(5), "a long drain is cut short");
    assert_eq!(setup.exits.lock().unwrap().len(), 1);
}

#[test]
fn the_pause_doubles_to_its_limit_and_the_environment_holds_no_secret() {
    let timing = Timing::default();
    assert!(backoff(&timing, 0) <= Duration::from_millis(200));
    let fourth = backoff(&timing, 3);
    assert!(fourth > Duration::from_secs(1) && fourth <= Duration::from_millis(1600), "{fourth:?}");
    assert!(backoff(&timing, u32::MAX) <= timing.backoff_most);
    let all = ["PATH", "ANTHROPIC_API_KEY", "HERMES_TOKEN", "HOME", "TELEGRAM_TOKEN", "RUST_LOG"];
    let kept = environment(all.map(|name| (name.into(), "x".into())));
    let names: Vec<_> = kept.iter().map(|(name, _)| name.to_str().unwrap()).collect();
    assert_eq!(names, ["PATH", "RUST_LOG"]);
}
