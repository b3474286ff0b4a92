//! Agents whose turns a program answers, in real processes behind the real boundary: what it does when it misbehaves is a sentence for the
//! chat and no more, it is never prompted twice for one message, and its secrets are in its environment and nowhere else.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use hermes_tests::system::{Options, Process, Up, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{SOON, agent_of};

/// A secret that looks like none.
const SECRET: &str = "quiet-little-words-of-mine";

struct Rig {
    up: Up,
    home: PathBuf,
    script: String,
}

impl Rig {
    /// A system whose agent `main` has such a program, and another one that has none.
    fn start(arguments: &[&str], more: Value) -> Self {
        let up = Up::start(Options::default());
        let home = PathBuf::from(agent_of(&up, "main")["home"].as_str().unwrap());
        fs::create_dir_all(home.join("scripts")).unwrap();
        let script = home.join("scripts/scripted.py");
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("acp/scripted.py"), &script).unwrap();
        let rig = Self { up, home, script: script.display().to_string() };
        rig.runs(arguments, more);
        rig
    }

    /// From its next turn on the program is started so. `more`: of the agent.
    fn runs(&self, arguments: &[&str], more: Value) {
        let key = self.up.file("key", SECRET);
        let mut command = vec!["python3", self.script.as_str()];
        command.extend(arguments);
        let mut agent = json!({"runtime": {
            "kind": "acp", "command": command, "env": {"GREETING": "ahoy"}, "secrets": {"THE_KEY": {"file": key}},
            "start_timeout_seconds": 5,
        }});
        for (key, value) in more.as_object().unwrap() {
            agent[key] = value.clone();
        }
        let file = self.up.file("acp.yaml", json!({"agents": {"main": agent, "other": {}}}).to_string());
        self.up.ctl(["apply".as_ref(), "-f".as_ref(), file.as_os_str()]).ok();
    }

    fn asked(&self, chat: &str, text: &str) -> Value {
        // Its exit code says how the turn ended, too.
        let sent =
            ["send", "--platform", "irc", "--chat-id", chat, "--user-id", "1", "--text", text, "--wait", "-o", "json"];
        self.up.ctl(sent).json()
    }

    /// What the program answered in a chat.
    fn says(&self, chat: &str, text: &str) -> String {
        let answer = self.asked(chat, text);
        assert_eq!(answer["state"], "succeeded", "{answer}");
        answer["reply"].as_str().unwrap().to_owned()
    }

    /// The sentence with which a turn fails.
    fn fails(&self, chat: &str, text: &str) -> String {
        let answer = self.asked(chat, text);
        assert_eq!(answer["state"], "failed", "{answer}");
        answer["reply"].as_str().unwrap().to_owned()
    }

    /// Tells, and does not wait.
    fn tells(&self, chat: &str, text: &str) {
        self.up.json(["send", "--platform", "irc", "--chat-id", chat, "--user-id", "1", "--text", text]);
    }

    fn worker(&self) -> i32 {
        let workers = self.up.json(["worker", "list"]);
        let of_main = workers.as_array().unwrap().iter().find(|worker| worker["agent"] == "main").unwrap();
        i32::try_from(of_main["pid"].as_i64().unwrap()).unwrap()
    }

    /// Waits until the program has written that file in its workspace.
    fn noted(&self, name: &str) {
        until(SOON, name, || {
            fs::read_to_string(self.home.join("workspace").join(name)).ok().filter(|text| !text.is_empty())
        });
    }

    /// The pids of the program's processes.
    fn programs(&self) -> Vec<String> {
        let is_one = |pid: &String| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(format!("python3\0{}\0", self.script).as_bytes()))
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(is_one).collect()
    }

    /// The question that waits.
    fn question(&self) -> Value {
        until(SOON, "a question", || self.up.json(["approval", "list"]).as_array().unwrap().first().cloned())
    }
}

fn open(more: Value) -> Value {
    let mut agent = json!({"sandbox": {"network": "open"}});
    for (key, value) in more.as_object().unwrap() {
        agent[key] = value.clone();
    }
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_answers_in_sessions_of_its_own_and_knows_who_it_is_and_what_was_said() {
    let rig = Rig::start(&["well"], json!({}));
    fs::write(rig.home.join("SOUL.md"), "You are Iris.").unwrap();
    let blocks: Vec<String> = serde_json::from_str(&rig.says("1", "blocks one")).unwrap();
    assert!(blocks[0].contains("Who you are") && blocks[0].contains("You are Iris."), "{blocks:?}");
    assert_eq!(blocks.last().unwrap(), "blocks one");
    assert_eq!(blocks.len(), 3);
    // The same session, and nothing is said again.
    assert_eq!(rig.says("1", "blocks two"), r#"["blocks two"]"#);
    let session = rig.says("1", "session");
    assert!(session.ends_with(" 3"), "{session}");
    // Another chat is another session, and so is /new.
    assert!(rig.says("2", "session").ends_with(" 1"));
    rig.asked("1", "/new");
    let fresh = rig.says("1", "session");
    assert!(fresh.ends_with(" 1") && fresh != session, "{fresh}");

    // An undone turn is not in what a new session is told, and what stays is.
    rig.says("1", "say second");
    rig.says("1", "say third");
    rig.asked("1", "/undo");
    let blocks: Vec<String> = serde_json::from_str(&rig.says("1", "blocks after")).unwrap();
    let before = blocks.iter().find(|block| block.contains("was said in this conversation before")).unwrap();
    assert!(before.contains("They: say second\n\nYou: second") && !before.contains("third"), "{before}");
    // An edited SOUL.md reaches the session with its next turn.
    fs::write(rig.home.join("SOUL.md"), "You are Vera.").unwrap();
    let edited = until(SOON, "the edited SOUL", || {
        let said = rig.says("1", "blocks soul");
        said.contains("Vera").then_some(said)
    });
    assert!(!edited.contains("was said in this conversation before"), "{edited}");

    // What the agent sees to by itself.
    let compress = rig.asked("1", "/compress").to_string();
    assert!(compress.contains("sums up its conversation by itself"), "{compress}");
    assert!(rig.asked("1", "/model x/y").to_string().contains("chooses its model by itself"));
    // Its directory, and what it used.
    let home = rig.says("1", "home");
    assert!(home.contains("workspace/.acp-home/mine") && home.ends_with("/workspace"), "{home}");
    assert_eq!(fs::read_to_string(rig.home.join("workspace/.acp-home/mine")).unwrap(), "here");
    let used = rig.asked("1", "used");
    let used = rig.up.json(["turn", "show", used["turn"].as_str().unwrap()]);
    assert_eq!((&used["input_tokens"], &used["output_tokens"]), (&json!(12), &json!(34)), "{used}");
    let shown = agent_of(&rig.up, "main");
    assert_eq!(shown["spec"]["runtime"]["kind"], "acp");
    let listed = rig.up.ctl(["agent", "list"]).ok().out;
    assert!(listed.contains("(acp python3"), "{listed}");
    assert_eq!(rig.says("1", "say a|b"), "ab");
    // Back to the worker's own loop, the program ends.
    assert_eq!(rig.programs().len(), 1);
    rig.up.ctl(["agent", "update", "main", "--runtime", "kind=native"]).ok();
    assert_eq!(rig.says("1", "hello"), "[main] hello");
    until(SOON, "the end of the program", || rig.programs().is_empty().then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_misbehaves_costs_its_turn_and_the_next_message_runs() {
    let rig = Rig::start(&["well"], open(json!({})));
    assert_eq!(rig.says("1", "garbage"), "fine");
    assert_eq!(rig.says("1", "calls"), "fine");
    assert_eq!(rig.says("1", "requests"), "refused refused refused cancelled");
    for (text, expected) in [
        (
            "die",
            "ended in the middle of this: it ended with exit code 3 (on stderr: I cannot go on with [REDACTED]). Nobody knows how far",
        ),
        ("line", "ended in the middle of this: it wrote a line longer than 4 MiB."),
        ("flood", "ended in the middle of this: it wrote more than 64 MiB without being asked."),
        ("error", "could not do this: the model cannot be reached."),
        ("refuse", "refuses to go on with this."),
    ] {
        let sentence = rig.fails("1", text);
        assert!(sentence.contains(expected), "{text}: {sentence}");
        assert!(!sentence.contains("has no network"), "{sentence}");
        let back = until(SOON, "the program again", || {
            let answer = rig.asked("1", "say back");
            (answer["state"] == "succeeded").then(|| answer["reply"].as_str().unwrap().to_owned())
        });
        assert_eq!(back, "back", "{text}");
    }
    assert_eq!(rig.says("1", "stderr"), "fine");
    assert_eq!(rig.says("1", "mute"), "The program that answers for me ended without a word.");
    // Without network it says what may be the matter.
    rig.runs(&["well"], json!({}));
    let sentence = rig.fails("1", "error");
    assert!(sentence.contains("It has no network") && sentence.contains("`network: proxy` or `open`"), "{sentence}");

    for (mode, expected) in [
        ("gone", "it ended with exit code 1 (on stderr: no licence found for [REDACTED])"),
        ("mute", "it was not ready within 5 s"),
        ("garbage", "it was not ready within 5 s (2 lines of its output were no messages)"),
        ("old", "it speaks version 0 of the protocol, and only 1 is spoken here"),
        ("endless", "it wrote more than 64 MiB without being asked"),
        ("login", "it wants to be logged in (Authentication required); give it what it needs with runtime.secrets"),
    ] {
        rig.runs(&[mode], json!({}));
        let sentence = rig.fails("1", "say x");
        assert!(
            sentence.contains(&format!("I could not start the program that answers for me: {expected}")),
            "{mode}: {sentence}"
        );
    }
    rig.runs(&["gone"], json!({"sandbox": {"network": "open"}}));
    rig.fails("1", "say x");
    let sentence = rig.fails("1", "say x");
    assert!(sentence.contains("it is started again in"), "{sentence}");
    assert!(!rig.up.log().contains(SECRET));
    rig.runs(&["well"], json!({}));
    assert_eq!(rig.says("1", "say well"), "well");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_asks_permission_for_is_asked_about_and_refused_where_nobody_can_allow_it() {
    let rig = Rig::start(&["well"], open(json!({})));
    // Another question for each, by its exact content.
    let reply = thread::scope(|scope| {
        let turn = scope.spawn(|| rig.says("1", "ask edit"));
        let question = rig.question();
        assert_eq!(question["tool"], "acp_tool_call", "{question}");
        assert!(
            question["call"].to_string().contains("Do edit (edit)") || question.to_string().contains("Do edit (edit)"),
            "{question}"
        );
        rig.up.ctl(["approval", "approve", &question["id"].to_string()]).ok();
        turn.join().unwrap()
    });
    assert_eq!(reply, "told: allow_once");
    let reply = thread::scope(|scope| {
        let turn = scope.spawn(|| rig.says("1", "ask execute git status"));
        let question = rig.question();
        assert!(question.to_string().contains("git status"), "{question}");
        rig.up.ctl(["approval", "deny", &question["id"].to_string()]).ok();
        turn.join().unwrap()
    });
    assert_eq!(reply, "told: reject_once");
    // Nobody is asked for these.
    assert_eq!(rig.says("1", "ask execute rm -rf /"), "told: reject_once");
    assert_eq!(rig.says("1", "large"), "told: reject_once");
    let seen = rig.up.json(["approval", "list", "--all"]);
    assert_eq!(seen.as_array().unwrap().len(), 2, "{seen}");
    // Nobody answers.
    rig.runs(&["well"], open(json!({"approvals": {"timeout_seconds": 1}})));
    assert_eq!(rig.says("1", "ask edit"), "told: reject_once");
    // Nobody has to.
    rig.runs(&["well"], open(json!({"approvals": {"mode": "off", "deny": ["git push*"]}})));
    assert_eq!(rig.says("1", "ask edit"), "told: allow_once");
    assert_eq!(rig.says("1", "ask execute git push --force"), "told: reject_once");
    assert_eq!(rig.says("1", "ask execute rm -rf /"), "told: reject_once");
    // Allowed for ever is more than anybody said.
    assert_eq!(rig.says("1", "always"), "told: cancelled");
    // What it says it did stands in the journal.
    let answer = rig.asked("1", "ask edit");
    let turn = rig.up.json(["turn", "show", answer["turn"].as_str().unwrap(), "--full"]).to_string();
    for part in ["acp_prompt", "Do edit", "completed", "allowed", "told: allow_once"] {
        assert!(turn.contains(part), "{part}: {turn}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_its_worker_is_killed_under_is_not_made_again() {
    let rig = Rig::start(&["well"], json!({}));
    assert_eq!(rig.says("2", "say before"), "before");
    let sentence = thread::scope(|scope| {
        let turn = scope.spawn(|| rig.fails("1", "hang"));
        rig.noted("hung");
        kill(Pid::from_raw(rig.worker()), Signal::SIGKILL).unwrap();
        turn.join().unwrap()
    });
    assert!(sentence.contains("nobody knows how far it came"), "{sentence}");
    assert_eq!(fs::read_to_string(rig.home.join("workspace/hung")).unwrap(), "once\n");
    assert_eq!(rig.says("1", "say after"), "after");
    // The session of the other chat is gone with its process: it is told what was said.
    let blocks = rig.says("2", "blocks");
    assert!(blocks.contains("They: say before") && blocks.contains("You: before"), "{blocks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_can_load_its_sessions_goes_on_with_them_in_another_process() {
    let rig = Rig::start(&["well", "--loads"], json!({}));
    let first = rig.says("1", "session");
    kill(Pid::from_raw(rig.worker()), Signal::SIGKILL).unwrap();
    let second = rig.says("1", "session");
    assert_eq!(second, first.replace(" 1", " 2"));
    // What it says of the past while it loads is nobody's answer; and one that it has lost is begun anew.
    kill(Pid::from_raw(rig.worker()), Signal::SIGKILL).unwrap();
    until(SOON, "the end of the program", || rig.programs().is_empty().then_some(()));
    fs::remove_file(rig.home.join("workspace/.acp-home/kept.json")).unwrap();
    let blocks = rig.says("1", "blocks");
    assert!(blocks.contains("They: session"), "{blocks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_turn_stops_the_program_and_one_that_does_not_stop_is_ended() {
    let rig = Rig::start(&["well"], json!({}));
    let answer = thread::scope(|scope| {
        let turn = scope.spawn(|| rig.asked("1", "wait"));
        rig.noted("waited");
        rig.tells("1", "/stop");
        turn.join().unwrap()
    });
    assert_eq!(answer["state"], "cancelled", "{answer}");
    rig.noted("cancelled");
    let process = rig.programs();
    assert_eq!(rig.says("1", "say on"), "on");
    assert_eq!(rig.programs(), process, "it is the same process");

    let begun = Instant::now();
    let answer = thread::scope(|scope| {
        let turn = scope.spawn(|| rig.asked("1", "hang"));
        rig.noted("hung");
        rig.tells("1", "/stop");
        turn.join().unwrap()
    });
    assert_eq!(answer["state"], "cancelled", "{answer}");
    assert!(begun.elapsed() >= Duration::from_secs(5), "it had its time");
    until(SOON, "the end of the process", || (rig.programs() != process).then_some(()));
    assert_eq!(rig.says("1", "say on"), "on");
}

#[tokio::test(flavor = "multi_thread")]
async fn its_secrets_are_in_its_environment_and_nowhere_else() {
    let rig = Rig::start(&["well"], json!({}));
    let names = rig.says("1", "env");
    assert!(names.contains("GREETING") && names.contains("THE_KEY") && !names.contains("HERMES"), "{names}");
    // What it says of it is masked.
    assert_eq!(rig.says("1", "tell THE_KEY"), "it is [REDACTED]");
    rig.up.json(["send", "--platform", "irc", "--chat-id", "1", "--text", "hello", "--agent", "other", "--wait"]);
    let program = rig.programs();
    assert_eq!(program.len(), 1);
    let holds = |pid: &str, file: &str| {
        fs::read(format!("/proc/{pid}/{file}"))
            .is_ok_and(|bytes| bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()))
    };
    assert!(holds(&program[0], "environ"));
    let others: Vec<Process> =
        rig.up.processes().into_iter().filter(|other| other.pid.to_string() != program[0]).collect();
    assert!(others.iter().any(|other| other.pid == rig.worker()) && others.len() >= 4, "{others:?}");
    for other in others {
        let pid = other.pid.to_string();
        assert!(!holds(&pid, "environ") && !holds(&pid, "cmdline"), "{other:?}");
    }
    assert!(!rig.up.log().contains(SECRET));
    for told in [rig.up.json(["agent", "show", "main"]).to_string(), rig.up.ctl(["export"]).ok().out] {
        assert!(!told.contains(SECRET) && told.contains("THE_KEY"), "{told}");
    }
    // Where it cannot be had, operators read which, and the chat that it is so.
    fs::remove_file(rig.up.root().join("key")).unwrap();
    rig.runs_without_key();
    let sentence = rig.fails("1", "say x");
    assert!(sentence.contains("a secret that it is to have cannot be had"), "{sentence}");
    let told = until(SOON, "the reason in the log", || {
        Some(rig.up.log()).filter(|log| log.contains("the secret THE_KEY of agent main"))
    });
    assert!(!told.contains(SECRET));
}

impl Rig {
    /// The program is another one, so that it is started anew, and its key is not there.
    fn runs_without_key(&self) {
        let missing = self.up.root().join("missing");
        let runtime = json!({"kind": "acp", "command": ["python3", self.script, "well"], "secrets": {"THE_KEY": {"file": missing}}});
        let file = self.up.file("acp.yaml", json!({"agents": {"main": {"runtime": runtime}}}).to_string());
        self.up.ctl(["apply".as_ref(), "-f".as_ref(), file.as_os_str()]).ok();
    }
}
