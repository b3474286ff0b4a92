//! The boundary as a hostile model meets it: real commands behind real namespaces, rules and filters.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hermes_proto::v1::TurnRef;
use hermes_worker::home::Home;
use hermes_worker::sandbox::{Boundary, Level, Network, Sandbox, WayOut};
use hermes_worker::tools::local::LocalTools;
use hermes_worker::tools::{ToolCall, ToolResult, Toolbox as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

struct Agent {
    dir: tempfile::TempDir,
    home: PathBuf,
    tools: LocalTools,
    policy: Sandbox,
    workdir: Option<String>,
    _held: Home,
}

fn agent() -> Agent {
    agent_with(None)
}

fn agent_with(way_out: Option<WayOut>) -> Agent {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = Home::open(&dir.path().join("home")).expect("home");
    let home = held.path().to_owned();
    let boundary = Boundary::new(Path::new(env!("CARGO_BIN_EXE_hermes-worker")), home.clone());
    let boundary = match way_out {
        Some(way_out) => boundary.with_way_out(way_out),
        None => boundary,
    };
    let tools = LocalTools::new(boundary, &home, jiff::Timestamp::now);
    Agent { dir, home, tools, policy: Sandbox::default(), workdir: None, _held: held }
}

impl Agent {
    async fn call_as(&self, session_id: u64, name: &str, arguments: serde_json::Value) -> ToolResult {
        let call = ToolCall {
            turn: TurnRef { session_id, seq: 1, epoch: 1 },
            step: 1,
            name: name.to_owned(),
            arguments: arguments.as_object().cloned().expect("an object"),
            idempotency_key: None,
            policy: self.policy,
            workdir: self.workdir.clone(),
            author: hermes_worker::tools::Author::default(),
            cancel: CancellationToken::new(),
        };
        self.tools.call(call).await
    }

    async fn call(&self, name: &str, arguments: serde_json::Value) -> ToolResult {
        self.call_as(1, name, arguments).await
    }

    async fn sh(&self, command: &str) -> String {
        self.call("terminal", json!({"command": command, "timeout": 30})).await.expect("it ran")
    }
}

#[tokio::test]
async fn a_command_runs_in_the_workspace_with_nothing_of_the_workers_environment() {
    let agent = agent();
    let said = agent.sh("pwd; env | sort; id -u; false").await;
    let workspace = agent.home.join("workspace");
    assert!(said.starts_with(&format!("{}\n", workspace.display())), "{said}");
    assert!(said.ends_with("\n1000\n[exit code 1]"), "{said}");
    for name in said.lines().filter_map(|line| line.split_once('=').map(|(name, _)| name)) {
        let known = [
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "TERM",
            "LANG",
            "TMPDIR",
            "GIT_TERMINAL_PROMPT",
            "PAGER",
            "PWD",
            "SHLVL",
            "_",
        ];
        assert!(known.contains(&name), "{name} is in the environment");
    }
}

#[tokio::test]
async fn nothing_but_the_agents_own_entries_is_there_to_be_read_or_written() {
    let agent = agent();
    let canary = "canary-5f1d";
    let beside = agent.dir.path().join("other/.env");
    let plant = |path: &Path| {
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        std::fs::write(path, canary).expect("plant");
    };
    let inside =
        ["home/.env", "home/auth.json", "home/state.db", "home/profiles/coder/.env", "home/profiles/coder/SOUL.md"];
    plant(&beside);
    for path in inside {
        plant(&agent.dir.path().join(path));
    }
    std::os::unix::fs::symlink(&beside, agent.home.join("workspace/link")).expect("symlink");
    let root = agent.dir.path().display();
    for command in [
        format!("cat {}", beside.display()),
        format!("cat {root}/home/.env; cat {root}/home/auth.json {root}/home/state.db; cat ../.env"),
        format!("ls -laR {root}; grep -r canary {root}; find / -name '*.env' -o -name 'auth.json' | xargs cat"),
        "cat link; cat workspace/link".to_owned(),
        "cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n' | grep -a canary; ls /proc".to_owned(),
        "cat /etc/shadow /etc/ssl/private/* ~root/.ssh/* ~root/.bash_history".to_owned(),
        format!("ln -s {} l2; cat l2; cp -r {root} here; tar c {root} | cat", beside.display()),
        format!(
            "python3 -c 'import os; print(os.open(\"{}\", 0))'; mount --bind / /tmp; unshare -r cat {}",
            beside.display(),
            beside.display()
        ),
    ] {
        let said = agent.sh(&command).await;
        assert!(!said.contains(canary), "{command}: {said}");
        assert!(!said.contains("root:"), "{command}: {said}");
    }
    for path in inside.iter().map(|path| agent.dir.path().join(path)).chain([beside.clone()]) {
        agent.sh(&format!("echo spoiled > {0}; rm -f {0}; mv {0} x; chmod 777 {0}", path.display())).await;
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), canary);
        let read = agent.call("read_file", json!({"path": path})).await;
        assert!(read.is_err_and(|error| !error.contains(canary)));
    }
    let out = agent.sh("touch /x /usr/x /etc/x ../x ../../x; echo $?; ls / /dev").await;
    assert!(out.contains("\n1\n"), "{out}");
    assert!(!agent.home.join("x").try_exists().unwrap() && !Path::new("/usr/x").try_exists().unwrap());
    // What is its own stays writable.
    let own = agent
        .sh("echo a > a && echo b >> ../SOUL.md && mkdir ../skills/s && echo c > ../memories/n.md && echo fine")
        .await;
    assert_eq!(own, "fine\n[exit code 0]");
}

#[tokio::test]
async fn bombs_hogs_and_daemons_end_with_their_call() {
    let mut agent = agent();
    agent.policy = Sandbox { memory_mb: 128, pids: 64, ..agent.policy };
    let alone = agent.sh("echo $$; ps ax | wc -l").await;
    assert!(alone.starts_with("2\n"), "a process namespace of its own: {alone}");
    let begun = Instant::now();
    let bomb = agent.call("terminal", json!({"command": ":(){ :|:& };:; sleep 60", "timeout": 3})).await.expect("ran");
    assert!(bomb.contains("Resource temporarily unavailable"), "{bomb}");
    let hog =
        agent.sh("head -c 1G /dev/zero | tail -c 1G | wc -c; python3 -c 'x = b\"a\" * (1 << 30)'; echo over").await;
    assert!(!hog.contains("1073741824") && hog.contains("over"), "{hog}");
    let full = agent
        .sh("head -c 1G /dev/zero > /tmp/full; head -c 1G /dev/zero > /dev/shm/full; df /tmp | tail -1; echo over")
        .await;
    assert!(full.contains("No space left on device") || full.contains("Killed"), "{full}");
    let mark = agent.home.join("workspace/mark");
    agent.sh("setsid nohup sh -c 'sleep 1; touch mark' >/dev/null 2>&1 & disown; (setsid sleep 300 &) ; echo").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!mark.try_exists().unwrap(), "a daemon outlived its call");
    // It reaches nobody but itself: this very test would be gone.
    agent.sh("kill -9 -1; kill -9 1; echo still").await;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn powers_that_lead_out_are_refused() {
    let agent = agent();
    for (command, refused) in [
        ("unshare -U true", "Operation not permitted"),
        ("mount -t tmpfs none /tmp", "must be superuser"),
        ("chmod u+s /bin/bash", "Operation not permitted"),
        ("touch s; chmod 4755 s", "Operation not permitted"),
        ("mknod n c 1 3", "denied"),
        ("nsenter -t 1 -m true", "denied"),
        ("strace -p 1 2>&1 || gdb -p 1", "not"),
        (
            "python3 -c 'import ctypes; l=ctypes.CDLL(None, use_errno=True); print(l.ptrace(16,1,0,0), ctypes.get_errno())'",
            "-1 1",
        ),
        ("python3 -c 'import socket; socket.socket(17, 3, 3)'", "not permitted"),
        ("cat /proc/sys/kernel/core_pattern > /dev/null; echo x > /proc/sys/kernel/core_pattern", "denied"),
        ("dmesg", "not permitted"),
        ("ls /sys", "cannot access"),
    ] {
        let said = agent.sh(&format!("exec 2>&1; {command}")).await;
        assert!(said.to_lowercase().contains(&refused.to_lowercase()), "{command}: {said}");
    }
}

#[tokio::test]
async fn without_a_network_only_its_own_loopback_answers() {
    let mut agent = agent();
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("address").port();
    let reach = format!("exec 2>&1; (echo > /dev/tcp/127.0.0.1/{port}) && echo reached");
    let said = agent.sh(&reach).await;
    assert!(said.contains("refused") && !said.contains("reached"), "{said}");
    let own = "python3 -c \"import socket as s; l=s.create_server(('127.0.0.1',0)); c=s.create_connection(l.getsockname()); print('own')\"";
    assert_eq!(agent.sh(own).await, "own\n[exit code 0]");
    agent.policy.network = Network::Open;
    assert!(agent.sh(&reach).await.contains("reached"));
}

#[tokio::test]
async fn the_levels_differ_by_what_is_seen() {
    let mut agent = agent();
    std::fs::write(agent.home.join(".env"), "KEY=1").expect("write");
    std::fs::write(agent.dir.path().join("outside"), "far").expect("write");
    let look = format!("cat ../.env {}/outside 2>/dev/null", agent.dir.path().display());
    assert_eq!(agent.sh(&look).await, "[exit code 1]");
    agent.policy.level = Level::Home;
    assert_eq!(agent.sh(&look).await, "KEY=1\n[exit code 1]");
    agent.policy.level = Level::Off;
    assert_eq!(agent.sh(&look).await, "KEY=1far\n[exit code 0]");
    let read = agent.call("read_file", json!({"path": "../.env"})).await;
    assert_eq!(read, Ok("     1|KEY=1\n".to_owned()));
}

#[tokio::test]
async fn output_is_bounded_while_it_comes_and_time_ends_a_command() {
    let agent = agent();
    let flood = agent.sh("yes | head -c 300M; echo; echo the end").await;
    assert!(flood.len() < 52_000 && flood.contains("bytes left out") && flood.ends_with("the end\n[exit code 0]"));
    let begun = Instant::now();
    let slow = agent.call("terminal", json!({"command": "echo begun; sleep 60", "timeout": 1})).await.expect("ran");
    assert!(slow.starts_with("begun\n[ended after 1 s") && begun.elapsed() < Duration::from_secs(6), "{slow}");
}

#[tokio::test]
async fn background_commands_are_looked_after_by_their_own_session_alone() {
    let agent = agent();
    let start = json!({"command": "echo up; read line; echo got $line; sleep 300", "background": true});
    let started = agent.call("terminal", start).await.expect("started");
    let id = started.split_whitespace().find(|word| word.starts_with("bg-")).expect("an id").trim_end_matches('.');
    let process = |action: &str| json!({"action": action, "id": id, "data": "hello\n", "timeout": 5});
    let foreign = agent.call_as(2, "process", process("poll")).await.expect_err("not its own");
    assert!(foreign.contains("no command runs as"), "{foreign}");
    assert_eq!(
        agent.call_as(2, "process", json!({"action": "list"})).await.expect("list"),
        "Nothing runs in the background."
    );
    agent.call("process", process("write")).await.expect("written");
    let begun = Instant::now();
    loop {
        let polled = agent.call("process", process("poll")).await.expect("poll");
        if polled.starts_with("up\ngot hello\n[running") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{polled}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(agent.call("process", json!({"action": "list"})).await.expect("list").contains("running"));
    assert!(agent.call("process", process("kill")).await.expect("killed").ends_with("[killed]"));
    assert!(agent.call("process", process("poll")).await.is_err());
    let short = agent.call("terminal", json!({"command": "exit 7", "background": true})).await.expect("started");
    let id = short.split_whitespace().find(|word| word.starts_with("bg-")).expect("an id").trim_end_matches('.');
    let waited = agent.call("process", json!({"action": "wait", "id": id, "timeout": 20})).await.expect("waited");
    assert!(waited.contains("ended with exit code 7"), "{waited}");
}

#[tokio::test]
async fn files_are_written_read_changed_and_found() {
    let agent = agent();
    let text = |result: ToolResult| result.expect("done");
    let wrote = text(agent.call("write_file", json!({"path": "src/a.py", "content": "one\ntwo\n"})).await);
    assert_eq!(wrote, "Created src/a.py: 2 lines, 8 bytes.");
    assert_eq!(text(agent.call("read_file", json!({"path": "src/a.py", "offset": 2})).await), "     2|two\n");
    let patched = text(agent.call("patch", json!({"path": "src/a.py", "old_string": "two", "new_string": "2"})).await);
    assert!(patched.contains("-two\n+2"), "{patched}");
    let found = text(agent.call("search_files", json!({"pattern": "^2$"})).await);
    assert_eq!(found, "src/a.py:2:2\n");
    // A document whose directory is not the agent's is written in its place.
    text(agent.call("write_file", json!({"path": "../SOUL.md", "content": "You are new."})).await);
    assert_eq!(std::fs::read_to_string(agent.home.join("SOUL.md")).expect("soul"), "You are new.");
    for (name, arguments, part) in [
        ("read_file", json!({"path": "none"}), "does not exist"),
        ("read_file", json!({"path": "/etc/shadow"}), "does not exist"),
        ("read_file", json!({"path": "src"}), "is a directory"),
        ("read_file", json!({}), "missing field `path`"),
        ("read_file", json!({"path": "a", "pth": 1}), "unknown field"),
        ("write_file", json!({"path": "/usr/x", "content": ""}), "outside of what this agent may touch"),
        ("patch", json!({"path": "src/a.py", "old_string": "zzz", "new_string": ""}), "is not in the file"),
        ("search_files", json!({"pattern": "("}), "no regular expression"),
        ("process", json!({"action": "dance"}), "unknown variant"),
    ] {
        let error = agent.call(name, arguments).await.expect_err(part);
        assert!(error.contains(part), "{name}: {error}");
    }
}

/// The second stages of that agent's worker whose boundary is complete: both filters hold.
fn built(home: &Path) -> Vec<i32> {
    let home = format!(" {}", home.display());
    let shows = |pid: &i32| {
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        mounts.contains(&home)
    };
    let children = |of: i32| {
        let threads = std::fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
        let pids = threads.map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
        let pids = pids.collect::<String>();
        pids.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect::<Vec<i32>>()
    };
    let own = i32::try_from(std::process::id()).expect("a pid");
    let closed = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.split_whitespace().eq(["Seccomp_filters:", "2"]))
    };
    children(own).into_iter().flat_map(children).filter(closed).filter(shows).collect()
}

/// Waits until so many boundaries stand ready.
async fn ready(home: &Path, count: usize) {
    let begun = Instant::now();
    while built(home).len() != count {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?} instead of {count}", built(home));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The time as files have it, whose clock ticks slowly, once it has ticked.
async fn tick() -> jiff::Timestamp {
    let time = || {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let written = file.as_file().metadata().and_then(|it| it.modified()).expect("a time");
        jiff::Timestamp::try_from(written).expect("a time")
    };
    let before = time();
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let now = time();
        if now > before {
            return now;
        }
    }
}

/// When the boundary of a command was built: the time of a folder that it makes.
async fn built_at(agent: &Agent) -> jiff::Timestamp {
    let said = agent.sh("stat -c %.9Z /var").await;
    let time = said.lines().next().and_then(|line| line.split_once('.')).expect("a time");
    jiff::Timestamp::new(time.0.parse().expect("seconds"), time.1.parse().expect("nanoseconds")).expect("a time")
}

#[tokio::test]
async fn the_next_boundary_stands_ready_and_is_given_to_one_task_alone() {
    let agent = agent();
    let home = agent.home.clone();
    let begun = tick().await;
    assert!(built_at(&agent).await >= begun);
    ready(&home, 1).await;
    let now = tick().await;
    assert!(built_at(&agent).await < now, "it was there before");
    ready(&home, 1).await;
    let now = tick().await;
    let (one, other) = tokio::join!(built_at(&agent), built_at(&agent));
    assert!(one < now && other >= now, "{one} {other} {now}");
    // What one task left behind no other one finds.
    ready(&home, 1).await;
    agent.sh("echo secret > /tmp/x; (sleep 1000 &)").await;
    ready(&home, 1).await;
    let said = agent.sh("ls -d /tmp/x 2>/dev/null; pgrep sleep").await;
    assert_eq!(said, "[exit code 1]");
}

#[tokio::test]
async fn what_stands_ready_is_not_used_where_a_fresh_boundary_would_differ() {
    let mut agent = agent();
    let home = agent.home.clone();
    let replace = |name: &str, text: &str| {
        let (at, new) = (home.join(name), home.join("new"));
        std::fs::write(&new, text).expect("write");
        std::fs::rename(new, at).expect("replace");
    };
    replace("SOUL.md", "first");
    assert!(agent.sh("cat ../SOUL.md").await.starts_with("first\n"));
    ready(&home, 1).await;
    replace("SOUL.md", "second");
    assert!(agent.sh("cat ../SOUL.md").await.starts_with("second\n"), "the file was replaced");
    ready(&home, 1).await;
    std::fs::rename(agent.home.join("skills"), agent.home.join("before")).expect("rename");
    std::fs::create_dir(agent.home.join("skills")).expect("mkdir");
    assert!(agent.sh("touch ../skills/there").await.contains("code 0"));
    assert!(agent.home.join("skills/there").try_exists().expect("a look"), "the folder was replaced");
    ready(&home, 1).await;
    std::fs::write(agent.home.join("AGENTS.md"), "new").expect("write");
    assert!(agent.sh("cat ../AGENTS.md").await.starts_with("new\n"), "an entry came");
    ready(&home, 1).await;
    std::fs::remove_file(agent.home.join("AGENTS.md")).expect("remove");
    std::os::unix::fs::symlink("before", agent.home.join("AGENTS.md")).expect("symlink");
    assert!(agent.sh("ls ../AGENTS.md").await.contains("code 2"), "an entry leads elsewhere");
    ready(&home, 1).await;
    std::fs::create_dir(agent.home.join("before/rules")).expect("mkdir");
    std::os::unix::fs::symlink("before", agent.home.join(".cursor")).expect("symlink");
    // The one that stands ready is as good as a fresh one; it is used up, so that the next one is built around the link.
    assert!(agent.sh("true").await.contains("code 0"));
    ready(&home, 1).await;
    assert!(agent.sh("ls ../.cursor/rules").await.contains("code 2"), "the way to an entry leads elsewhere");
    ready(&home, 1).await;
    std::fs::write(agent.home.join("before/secret"), "x").expect("write");
    agent.policy.level = Level::Home;
    assert!(agent.sh("ls ../before").await.contains("secret"), "the policy changed");
    ready(&home, 1).await;
    agent.policy = Sandbox::default();
    assert!(agent.sh("ls ../before").await.contains("code 2"), "and back");
    ready(&home, 1).await;
    agent.policy.cpu_seconds = 77;
    assert!(agent.sh("ulimit -t").await.starts_with("77\n"), "a limit changed");
    // One that somebody has ended is no reason to fail.
    ready(&home, 1).await;
    let stage = nix::unistd::Pid::from_raw(built(&home)[0]);
    nix::sys::signal::kill(stage, nix::sys::signal::Signal::SIGKILL).expect("kill");
    ready(&home, 0).await;
    assert!(agent.sh("true").await.contains("code 0"));
}

#[tokio::test]
async fn what_stands_ready_ends_when_nobody_needs_it() {
    let agent = agent();
    let home = agent.home.clone();
    agent.sh("true").await;
    ready(&home, 1).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    ready(&home, 0).await;
    agent.sh("true").await;
    ready(&home, 1).await;
    drop(agent);
    ready(&home, 0).await;
    // With few processes, none is kept from a task.
    let mut agent = self::agent();
    agent.policy.pids = 8;
    agent.sh("true").await;
    let now = tick().await;
    assert!(built_at(&agent).await >= now);
}

#[tokio::test]
async fn without_the_program_of_the_stages_it_is_said_what_is_missing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = Home::open(&dir.path().join("home")).expect("home");
    let boundary = Boundary::new(&dir.path().join("hermes-worker"), held.path().to_owned());
    let said = boundary.works().await.expect_err("there is none").to_string();
    let path = dir.path().join("hermes-sandbox");
    assert!(said.starts_with(&format!("{} cannot be started", path.display())), "{said}");
    assert!(said.ends_with("install it there"), "{said}");
}

#[tokio::test]
async fn a_command_with_a_proxy_reaches_that_and_nothing_else_and_the_proxy_ends_with_it() {
    use tokio::io::AsyncWriteExt as _;
    let outside = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (alive, watched) = tokio::sync::watch::channel(());
    let way_out: WayOut = Arc::new(move |listener| {
        let watched = watched.clone();
        Box::pin(async move {
            let _held = watched;
            while let Ok((mut stream, _)) = listener.accept().await {
                let said = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\ncarried";
                stream.write_all(said).await.expect("it reads");
            }
        })
    });
    let mut agent = agent_with(Some(way_out));
    agent.policy = Sandbox { network: Network::Proxy, ..Sandbox::default() };
    let said = agent.sh("env | grep -i proxy | sort | tr '\\n' ' '; curl -sS http://example.org/").await;
    assert!(said.starts_with("ALL_PROXY=http://127.0.0.1:3128 HTTPS_PROXY=") && said.contains(" NO_PROXY= "), "{said}");
    assert!(said.ends_with("carried\n[exit code 0]"), "{said}");
    let direct = format!("curl -sS --noproxy '*' --max-time 5 http://{}/", outside.local_addr().expect("an address"));
    assert!(!agent.sh(&direct).await.contains("[exit code 0]"));
    // Two at once have a network, and a proxy, each.
    let both = futures_util::join!(agent.sh("curl -sS http://one/"), agent.sh("curl -sS http://two/"));
    assert!(both.0.starts_with("carried") && both.1.starts_with("carried"), "{both:?}");
    // Those who serve are gone with what they served; the one that waits here is the boundary's own.
    tokio::time::timeout(Duration::from_secs(10), async {
        while alive.receiver_count() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("their end");
}

#[tokio::test]
async fn without_what_serves_it_nothing_is_started_with_a_proxy() {
    let mut agent = agent();
    agent.policy = Sandbox { network: Network::Proxy, ..Sandbox::default() };
    let refused = agent.call("terminal", json!({"command": "true"})).await.expect_err("no weaker boundary");
    assert!(refused.contains("has no proxy for its tools"), "{refused}");
}

#[tokio::test]
async fn a_script_is_a_file_of_its_folder_and_only_its_output_is_told() {
    let mut agent = agent();
    let scripts = agent.home.join("scripts");
    std::fs::create_dir_all(scripts.join("deep")).expect("mkdir");
    let write = |name: &str, text: &str| std::fs::write(scripts.join(name), text).expect("write");
    write("a.sh", "echo \"from $(pwd)\"; echo noise >&2; [[ -t 0 ]] || read x; echo \"read:$x\"");
    write("deep/b", "import sys\nprint('py', sys.argv[1:])\n");
    write("fails.sh", "echo half; echo why >&2; exit 3");
    write("slow.sh", "echo begun; sleep 60");
    write("loud.sh", "yes | head -c 10M");
    std::fs::write(agent.home.join("outside.sh"), "echo out").expect("write");
    std::os::unix::fs::symlink("../outside.sh", scripts.join("link.sh")).expect("symlink");
    std::os::unix::fs::symlink(&agent.home, scripts.join("home")).expect("symlink");
    std::fs::create_dir_all(agent.home.join("workspace/site")).expect("mkdir");
    agent.workdir = Some("site".to_owned());
    let run = async |script: &str, timeout: u64| {
        agent.call("cron_script", json!({"script": script, "timeout": timeout})).await
    };
    let begin = agent.home.join("workspace/site");
    assert_eq!(run("a.sh", 30).await, Ok(format!("[exit code 0]\nfrom {}\nread:\n", begin.display())));
    assert_eq!(run("deep/b", 30).await, Ok("[exit code 0]\npy []\n".to_owned()));
    let failed = "the script fails.sh failed with exit code 3. On stderr: why";
    assert_eq!(run("fails.sh", 30).await, Err(failed.to_owned()));
    let begun = Instant::now();
    let slow = run("slow.sh", 1).await.expect_err("it is ended");
    assert!(slow.contains("was ended after its time limit of 1 s") && begun.elapsed() < Duration::from_secs(10));
    let loud = run("loud.sh", 30).await.expect("it ended well");
    assert!(loud.len() < 52_000 && loud.contains("bytes left out"));
    for (script, why) in [
        ("link.sh", "behind no link"),
        ("home/outside.sh", "behind no link"),
        ("../outside.sh", "behind no link"),
        ("/etc/passwd", "behind no link"),
        ("deep", "behind no link"),
        ("none.sh", "is not there"),
    ] {
        let refused = run(script, 30).await.expect_err(script);
        assert!(refused.contains(why), "{script}: {refused}");
    }
}

#[tokio::test]
async fn work_begins_in_the_folder_that_a_turn_names() {
    let mut agent = agent();
    std::fs::create_dir_all(agent.home.join("workspace/site")).expect("mkdir");
    agent.workdir = Some("site".to_owned());
    let site = agent.home.join("workspace/site");
    assert_eq!(agent.sh("pwd").await, format!("{}\n[exit code 0]", site.display()));
    agent.call("write_file", json!({"path": "a", "content": "one\n"})).await.expect("written");
    agent.call("write_file", json!({"path": "~/b", "content": "two\n"})).await.expect("written");
    assert_eq!(std::fs::read_to_string(site.join("a")).expect("read"), "one\n");
    assert_eq!(std::fs::read_to_string(agent.home.join("workspace/b")).expect("read"), "two\n");
    assert_eq!(agent.call("search_files", json!({"pattern": "one|two"})).await, Ok("a:1:one\n".to_owned()));
    // Skills are where they are.
    assert!(agent.call("skills_list", json!({})).await.is_ok());
}
