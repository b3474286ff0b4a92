//! Agents apart: what a hostile model finds, spoils or exhausts with the terminal tool, against the real `hermesctl up`.
//!
//! Canaries say where they were planted. Nothing is assumed of how the boundary works: with `sandbox: {level: off}` the same hunt
//! finds what it must not find.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::{Options, Up, until};
use serde_json::{Value, json};

/// How long something may take that a person waits for.
const SOON: Duration = Duration::from_secs(30);
/// Secrets of each agent.
const CANARIES: usize = 50;

/// A model that runs whatever a message of the form `run: …` says, and answers with what came of it.
async fn obedient() -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.respond(|body| {
        let last = body["messages"].as_array().and_then(|messages| messages.last()).cloned().unwrap_or_default();
        let text = last["content"].as_str().unwrap_or_default();
        match (last["role"].as_str(), text.strip_prefix("run: ")) {
            (Some("tool"), _) => Behaviour::Say(text.to_owned()),
            (_, Some(command)) => {
                let arguments = json!({"command": command, "timeout": 60}).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", "terminal", &arguments)])
            }
            _ => Behaviour::Say("noted".to_owned()),
        }
    });
    model
}

fn document(model: &MockModel, agents: Value, sandbox: Value) -> String {
    json!({
        "model": "mock/mock-1",
        "providers": {"mock": {"kind": "openai", "base_url": model.base_url()}},
        "agents": agents,
        "sandbox": sandbox,
        // Nobody is asked: the boundary alone has to hold.
        "approvals": {"mode": "off"},
    })
    .to_string()
}

#[track_caller]
fn say(up: &Up, agent: &str, text: &str) -> String {
    let chat = format!("chat-of-{agent}");
    let args = ["send", "--platform", "irc", "--chat-id", &chat, "--agent", agent, "--text", text, "--wait"];
    up.json(args)["reply"].as_str().unwrap().to_owned()
}

#[track_caller]
fn run(up: &Up, agent: &str, command: &str) -> String {
    say(up, agent, &format!("run: {command}"))
}

fn home(up: &Up, agent: &str) -> PathBuf {
    PathBuf::from(up.json(["agent", "show", agent])["home"].as_str().unwrap())
}

/// Canary `number` of `agent`, planted in `place`.
fn canary(agent: &str, place: &str, number: usize) -> String {
    format!("cnry-{agent}-{place}-{number}")
}

fn put(path: &Path, lines: impl IntoIterator<Item = String>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, lines.into_iter().collect::<Vec<_>>().join("\n")).unwrap();
}

/// An installation of these agents, all running, each with [`CANARIES`] secrets in every kind of place.
fn planted(model: &MockModel, names: &[String], sandbox: Value) -> (Up, tempfile::TempDir) {
    // The seed's own example: one agent's home lies in another's.
    let family = tempfile::tempdir().unwrap();
    let place = family.path().canonicalize().unwrap();
    let mut agents = serde_json::Map::new();
    let mut env = Vec::new();
    for name in names {
        let variable = format!("{}_KEY", name.to_uppercase());
        env.push((variable.clone(), canary(name, "key", 0).into()));
        let mut spec = json!({"base_url": model.base_url(), "api_key_env": variable});
        match name.as_str() {
            "main" => spec["home_dir"] = json!(place),
            "coder" => spec["home_dir"] = json!(place.join("profiles/coder")),
            _ => {}
        }
        agents.insert(name.clone(), spec);
    }
    let config = format!("# {}\n{}", canary("plane", "config", 0), document(model, agents.into(), sandbox));
    let up = Up::start(Options { config: Some(config), env, ..Options::default() });
    for name in names {
        // In its session, and its worker runs then.
        assert_eq!(say(&up, name, &canary(name, "session", 0)), "noted");
        let home = home(&up, name);
        let some = |place: &'static str, count| (0..count).map(move |number| canary(name, place, number));
        put(&home.join(".env"), some("env", 12).map(|secret| format!("SECRET={secret}")));
        put(&home.join("auth.json"), some("auth", 12));
        put(&home.join("state.db"), some("state", 12));
        put(&home.join("memories/MEMORY.md"), some("own", 6));
        put(&home.join("workspace/own.txt"), some("own", 6));
    }
    assert_eq!(12 * 3 + 6 * 2 + 2, CANARIES);
    (up, family)
}

/// What `agent` finds where `places` says.
#[track_caller]
fn found(up: &Up, agent: &str, places: &str) -> BTreeSet<String> {
    let hunt = format!(
        "{{ env; set; cat /proc/*/environ /proc/*/cmdline; \
         find {places} \\( -path /usr -o -path /proc -o -path '*/data/pg' \\) -prune -o -type f -size -4M -print0 \
         | xargs -0 -r grep -a -h cnry ; }} 2>/dev/null | tr '\\0' '\\n' | grep -a -o 'cnry-[a-z0-9][a-z0-9-]*' | sort -u"
    );
    let reply = run(up, agent, &hunt);
    assert!(reply.contains("[exit code"), "{agent}: {reply}");
    reply.lines().filter(|line| line.starts_with("cnry-")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_agents_side_by_side_find_nothing_but_their_own_notes() {
    let model = obedient().await;
    let names: Vec<String> =
        ["main", "coder"].map(str::to_owned).into_iter().chain((2..20).map(|n| format!("agent{n}"))).collect();
    let (up, family) = planted(&model, &names, json!({}));
    let places = format!("/ {} {} /etc /root /home /var /tmp /run", up.root().display(), family.path().display());
    for name in &names {
        let found = found(&up, name, &places);
        let own: BTreeSet<String> = (0..6).map(|number| canary(name, "own", number)).collect();
        assert_eq!(found, own, "{name}");
    }
    // Nor do they spoil anything.
    let coder = home(&up, "coder");
    let targets =
        [coder.join(".env"), coder.join("SOUL.md"), coder.join("workspace/own.txt"), home(&up, "main").join(".env")];
    let before: Vec<_> = targets.iter().map(|path| fs::read(path).unwrap()).collect();
    for name in ["main", "agent2"] {
        for path in &targets {
            run(
                &up,
                name,
                &format!(
                    "echo spoiled > {0}; rm -rf {0} {1}; ln -sf /etc/passwd {0}; touch /usr/bin/spoiled /spoiled",
                    path.display(),
                    coder.display()
                ),
            );
        }
    }
    let after: Vec<_> = targets.iter().map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(before, after);
    assert!(!Path::new("/usr/bin/spoiled").try_exists().unwrap() && !Path::new("/spoiled").try_exists().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_boundary_the_same_hunt_finds_the_secrets_of_others() {
    let model = obedient().await;
    let names = ["main", "coder", "agent2"].map(str::to_owned);
    let (up, family) = planted(&model, &names, json!({"level": "off"}));
    let listed = up.ctl(["agent", "list"]).ok().out;
    assert_eq!(listed.matches(" off ").count(), 3, "{listed}");
    let places = format!("{} {}", up.root().display(), family.path().display());
    let found = found(&up, "agent2", &places);
    for secret in [
        canary("coder", "env", 3),
        canary("main", "auth", 11),
        canary("coder", "own", 0),
        canary("main", "key", 0),
        canary("plane", "config", 0),
    ] {
        assert!(found.contains(&secret), "{secret} is not among {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exhausts_a_machine_ends_with_its_call_and_neighbours_answer_meanwhile() {
    let model = obedient().await;
    let sandbox = json!({"memory_mb": 256, "pids": 64, "disk_mb": 600});
    let up = Up::start(Options::config(document(&model, json!({"bad": {}, "good": {}}), sandbox)));
    assert_eq!(say(&up, "bad", "hello"), "noted");
    assert_eq!(say(&up, "good", "hello"), "noted");
    let log = |text: &str| text.chars().take(400).collect::<String>();
    // What would be refused as it stands is said in another language.
    let attacks: [(&str, &str); 7] = [
        (
            "python3 -c 'import os\nwhile True: os.fork()' 2>&1 | head -c 2000; sleep 3; echo over",
            "Resource temporarily unavailable",
        ),
        ("python3 -c 'x = bytearray(2 << 30)' 2>&1; head -c 2G /dev/zero | tail -c 2G | wc -c; echo over", "over"),
        ("for i in $(seq 40); do head -c 200M /dev/zero > fill.$i || break; done; echo filled", "the disk is full"),
        (
            "rm -f fill.*; mkdir many; cd many; for i in $(seq 100); do mkdir $i; (cd $i; seq 2000 | xargs touch); done; echo made",
            "the disk is full",
        ),
        ("rm -rf many; head -c 3G /dev/zero > /tmp/full; df -h /tmp | tail -1; echo over", "No space left on device"),
        (
            "setsid nohup sh -c 'while :; do echo alive > beat; sleep 0.2; done' >/dev/null 2>&1 & sleep 1; ls beat",
            "beat",
        ),
        (
            "python3 -c 'import os\nos.kill(-1, 9)'; python3 -c 'import os\nos.kill(1, 9)'; kill -9 $PPID; echo survived",
            "exit code",
        ),
    ];
    for (attack, answer) in attacks {
        let begun = Instant::now();
        thread::scope(|scope| {
            let attacking = scope.spawn(|| run(&up, "bad", attack));
            let mut answered = 0;
            while !attacking.is_finished() || answered == 0 {
                let asked = Instant::now();
                assert_eq!(run(&up, "good", "echo fine"), "fine\n[exit code 0]", "while: {attack}");
                assert!(asked.elapsed() < SOON, "{attack}: a neighbour waited {:?}", asked.elapsed());
                answered += 1;
            }
            let reply = attacking.join().unwrap();
            assert!(reply.contains(answer), "{attack}: {}", log(&reply));
        });
        assert!(begun.elapsed() < Duration::from_secs(75), "{attack}: {:?}", begun.elapsed());
    }
    // The daemon is gone with its call.
    let beat = home(&up, "bad").join("workspace/beat");
    fs::remove_file(&beat).unwrap();
    assert_eq!(run(&up, "bad", "sleep 1; ls beat 2>&1 | wc -l; pgrep -c sh"), "1\n0\n[exit code 1]");
    assert!(!beat.try_exists().unwrap());
    let groups = until(SOON, "the worker's processes", || {
        let workers = up.json(["worker", "list"]);
        let workers = workers.as_array().unwrap();
        (workers.len() == 3).then(|| workers.iter().map(|worker| worker["pid"].as_i64().unwrap()).collect::<Vec<_>>())
    });
    assert_eq!(groups.len(), 3, "nobody's worker died of it");
}
