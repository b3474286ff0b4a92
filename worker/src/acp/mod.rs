//! Programs that answer turns: any agent that speaks the Agent Client Protocol over its stdin and stdout.
//!
//! Called by turns whose profile says so. Owns the running program and knows which of its sessions stands for which of ours. Always true:
//! a program is taken to be as hostile as what a model runs, and runs behind the same boundary, in the agent's workspace, with a HOME of its
//! own there; it is started by the first turn that wants it, with the secrets that the profile names in its environment and nowhere
//! else, shared by all turns, and ended with the worker or when the profile no longer names it as it is; what it is told it may do is said
//! by the turn; it is offered no files and no terminal of ours. It is spoken to in version 1 of the protocol, said explicitly.
//!
//! `wire` carries, `sessions` remembers, `calls` judges what it says that it does.

mod calls;
mod sessions;
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hermes_proto::v1::{self, TurnRef};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::beneath::Folder;
use crate::sandbox::{Boundary, Network, SCRATCH, Sandbox, Task};
use crate::tools::child::{self, Comeback, Limits, Process, SHOWN_ERRORS, cut, hide};
use crate::tools::{environment, redacted};
pub(crate) use calls::{Calls, Change, chosen};
use sessions::{Place, Sessions};
pub(crate) use wire::{Answer, Event, Fault};
use wire::{MAX_SESSION, Wire};

/// The version of the protocol that is spoken.
const VERSION: u64 = 1;
/// The directory that a program has as its HOME, in the workspace.
const HOME: &str = ".acp-home";
/// What a program may write: 64 MiB for one prompt, all that it says meanwhile included.
const LIMITS: Limits = Limits { line: 4 << 20, values: 100_000, unasked: 64 << 20 };
/// Secrets that are shorter are not looked for in what a program says: they would be found everywhere.
const MIN_MASKED: usize = 6;
/// What the protocol's errors of that number mean: it wants to be logged in.
const WANTS_LOGIN: i64 = -32000;

/// The programs of a worker: the one that its profile names, and before a change of it those that turns still use.
#[derive(Debug)]
pub struct Programs {
    boundary: Boundary,
    home: PathBuf,
    current: Mutex<Option<Arc<Program>>>,
    sessions: Arc<Mutex<Sessions>>,
    /// Counts processes.
    started: Arc<AtomicU64>,
}

/// One program, as a profile names it.
#[derive(Debug)]
pub(crate) struct Program {
    config: v1::Runtime,
    policy: Sandbox,
    boundary: Boundary,
    home: PathBuf,
    /// Tells programs apart, hex.
    fingerprint: String,
    sessions: Arc<Mutex<Sessions>>,
    started: Arc<AtomicU64>,
    #[expect(clippy::disallowed_types, reason = "one starts it, and the others wait for that")]
    slot: tokio::sync::Mutex<Slot>,
}

/// The process, and those before it.
#[derive(Debug, Default)]
struct Slot {
    link: Option<Arc<Link>>,
    comeback: Comeback,
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Link {
    wire: Wire,
    process: Process,
    /// Counts processes, from 1.
    number: u64,
    /// It can go on with sessions of processes before it.
    loads: bool,
    masks: Vec<String>,
}

/// Whether there is a process.
pub(crate) enum Reached {
    /// There is.
    Running(Arc<Link>),
    /// It has to be started, and its secrets are wanted for that.
    WantsSecrets,
    /// There is none; why, for people.
    Away(String),
}

/// A session of the program that a turn is in.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The program's name for it.
    pub(crate) id: String,
    /// It knows nothing of what was said before.
    pub(crate) is_new: bool,
    /// It has not been told who the agent is now.
    pub(crate) tell_persona: bool,
}

impl Programs {
    /// For `home` (absolute, symlinks resolved), behind `boundary`. Nothing is started.
    pub fn new(boundary: Boundary, home: &Path) -> Self {
        let sessions = Arc::new(Mutex::new(Sessions::read(home)));
        Self { boundary, home: home.to_owned(), current: Mutex::default(), sessions, started: Arc::default() }
    }

    /// No profile names one any more: it ends when no turn uses it.
    pub(crate) fn end(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The program that a profile names; another one ends when no turn uses it any more.
    pub(crate) fn of(&self, config: &v1::Runtime, policy: &Sandbox) -> Arc<Program> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = current.as_ref().filter(|program| program.config == *config && program.policy == *policy)
        {
            return Arc::clone(program);
        }
        let env: Vec<_> = config.env.iter().map(|variable| (&variable.name, &variable.value)).collect();
        let what = json!([config.command, env]).to_string();
        let program = Arc::new(Program {
            config: config.clone(),
            policy: *policy,
            boundary: self.boundary.clone(),
            home: self.home.clone(),
            fingerprint: hex(what.as_bytes()),
            sessions: Arc::clone(&self.sessions),
            started: Arc::clone(&self.started),
            slot: Default::default(),
        });
        *current = Some(Arc::clone(&program));
        program
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl Program {
    /// The running process; starts it where there is none. `secrets`: those of its profile, where they are at hand.
    pub(crate) async fn link(&self, secrets: Option<&BTreeMap<String, String>>) -> Reached {
        let mut slot = self.slot.lock().await;
        if let Some(link) = &slot.link {
            let Some(why) = link.process.why_ended() else {
                return Reached::Running(Arc::clone(link));
            };
            let (why, lasted) = (link.masked(&why), link.process.lasted());
            tracing::warn!(?why, "the program that answers turns has ended");
            slot.link = None;
            slot.comeback.ended(why, lasted);
        }
        if let Some(why) = slot.comeback.waits() {
            return Reached::Away(why);
        }
        let none = BTreeMap::new();
        let secrets = match secrets {
            Some(secrets) => secrets,
            None if self.config.secrets.is_empty() => &none,
            None => return Reached::WantsSecrets,
        };
        let masks = masks_of(secrets);
        match self.start(secrets, masks.clone()).await {
            Ok(link) => {
                let link = Arc::new(link);
                slot.link = Some(Arc::clone(&link));
                Reached::Running(link)
            }
            Err(why) => {
                let why = masked(&masks, &why);
                tracing::warn!(?why, "the program that answers turns cannot be started");
                slot.comeback.failed(why.clone());
                Reached::Away(why)
            }
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.config.start_timeout_seconds.max(1).into())
    }

    async fn start(&self, secrets: &BTreeMap<String, String>, masks: Vec<String>) -> Result<Link, String> {
        let scratch = self.home.join(SCRATCH);
        let (home, wanted) = (self.home.clone(), format!("{SCRATCH}/{HOME}"));
        let made = tokio::task::spawn_blocking(move || Folder::make(&home, &wanted)).await;
        made.map_err(std::io::Error::other).flatten().map_err(|error| format!("its HOME cannot be made: {error}"))?;
        let mut env = environment(&scratch, self.policy.level);
        env.insert("HOME".to_owned(), scratch.join(HOME).display().to_string());
        env.extend(self.config.env.iter().map(|variable| (variable.name.clone(), variable.value.clone())));
        env.extend(secrets.iter().map(|(name, value)| (name.clone(), value.clone())));
        let task = Task::Command { argv: self.config.command.clone(), cwd: scratch, env };
        let (lines, input, mut process) =
            child::start(&self.boundary, &self.policy, task, LIMITS, masks.clone()).await?;
        let state = Arc::clone(process.state());
        let (wire, driving) = Wire::new(lines, input, Arc::clone(&state));
        process.beside(driving);
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        let mut link = Link { wire, process, number, loads: false, masks };
        let hello = json!({
            "protocolVersion": VERSION,
            "clientCapabilities": {"fs": {"readTextFile": false, "writeTextFile": false}, "terminal": false},
            "clientInfo": {"name": "hermes-worker", "version": env!("CARGO_PKG_VERSION")},
        });
        let patience = self.patience();
        let asked = link.wire.ask("initialize", hello, None);
        let answer = match timeout(patience, link.answered(asked)).await {
            Ok(answer) => answer.map_err(|fault| match fault {
                Failed::Refused(fault) => format!("it does not want to be spoken to: {}", said(&fault)),
                Failed::Ended(why) => why,
            })?,
            Err(_) => {
                let odd = match state.odd() {
                    0 => String::new(),
                    odd => format!(" ({odd} lines of its output were no messages)"),
                };
                return Err(format!("it was not ready within {} s{odd}", patience.as_secs()));
            }
        };
        match answer.get("protocolVersion").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(other) => {
                return Err(format!("it speaks version {other} of the protocol, and only {VERSION} is spoken here"));
            }
            None => return Err("its answer to initialize is none of the protocol".to_owned()),
        }
        link.loads = answer["agentCapabilities"]["loadSession"] == true;
        Ok(link)
    }

    /// The session of the program in which the turn goes on, or a new one; `fresh`: in any case. What was noted of it counts once
    /// [`Program::prompted`] is called.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(crate) async fn open(
        &self,
        link: &Link,
        turn: TurnRef,
        rewinds: u32,
        persona: &str,
        fresh: bool,
    ) -> Result<Opened, String> {
        let known = match fresh {
            true => None,
            false => self.lock().of(self.place(turn, rewinds)),
        };
        let cwd = self.home.join(SCRATCH).display().to_string();
        if let Some(entry) = known {
            let tell_persona = entry.persona != hex(persona.as_bytes());
            if entry.process == link.number {
                return Ok(Opened { id: entry.id, is_new: false, tell_persona });
            }
            let what = json!({"sessionId": entry.id, "cwd": cwd, "mcpServers": []});
            if link.loads {
                match self.asked(link, "session/load", what).await {
                    Ok(_) => return Ok(Opened { id: entry.id, is_new: false, tell_persona }),
                    Err(Failed::Ended(why)) => return Err(why),
                    Err(Failed::Refused(fault)) => {
                        let fault = link.masked(&said(&fault));
                        tracing::info!(fault, "a session of the program that answers turns is not there any more");
                    }
                }
            }
        }
        let answer = self.asked(link, "session/new", json!({"cwd": cwd, "mcpServers": []})).await;
        let answer = answer.map_err(|failed| match failed {
            Failed::Refused(Fault { code: WANTS_LOGIN, message }) => format!(
                "it wants to be logged in ({}); give it what it needs with runtime.secrets",
                link.masked(&cut(&message, SHOWN_ERRORS))
            ),
            Failed::Refused(fault) => format!("it begins no session: {}", link.masked(&said(&fault))),
            Failed::Ended(why) => why,
        })?;
        match answer.get("sessionId").and_then(Value::as_str) {
            Some(id) if !id.is_empty() && id.len() <= MAX_SESSION => {
                Ok(Opened { id: id.to_owned(), is_new: true, tell_persona: true })
            }
            _ => Err("its answer to session/new is none of the protocol".to_owned()),
        }
    }

    /// Asks what has to be answered within the time for a start.
    async fn asked(&self, link: &Link, method: &'static str, params: Value) -> Result<Value, Failed> {
        let patience = self.patience();
        match timeout(patience, link.answered(link.wire.ask(method, params, None))).await {
            Ok(answer) => answer,
            Err(_) => {
                let why = format!("it did not answer {method} within {} s", patience.as_secs());
                link.process.state().broken(why.clone());
                Err(Failed::Ended(why))
            }
        }
    }

    /// The turn is prompted in that session: the next one goes on there.
    pub(crate) fn prompted(&self, link: &Link, turn: TurnRef, rewinds: u32, persona: &str, id: &str) {
        let persona = hex(persona.as_bytes());
        self.lock().prompted(self.place(turn, rewinds), id.to_owned(), persona, link.number, link.loads);
    }

    fn place(&self, turn: TurnRef, rewinds: u32) -> Place<'_> {
        Place { session: turn.session_id, seq: turn.seq, rewinds, program: &self.fingerprint }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may be the matter where it could not do something, for people; empty where nothing is known.
    pub(crate) fn hint(&self) -> &'static str {
        match self.policy.network {
            Network::None if self.policy.level != crate::sandbox::Level::Off => {
                " It has no network (`sandbox: {network: none}`): a program that asks a model of its own needs `network: proxy` or `open`."
            }
            Network::None | Network::Proxy | Network::Open => "",
        }
    }
}

/// Why an answer is none.
pub(crate) enum Failed {
    /// It answered so.
    Refused(Fault),
    /// It ended, or is ended; why, for people.
    Ended(String),
}

impl Link {
    async fn answered(&self, answer: Answer) -> Result<Value, Failed> {
        match answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(fault)) => Err(Failed::Refused(fault)),
            Err(_) => Err(Failed::Ended(self.end().await)),
        }
    }

    /// Waits for why it ended; for people.
    pub(crate) async fn end(&self) -> String {
        self.masked(&self.process.end().await)
    }

    /// The text without the secrets that the program was given, and otherwise as it is.
    pub(crate) fn hidden(&self, text: &str) -> String {
        hide(&self.masks, text)
    }

    /// The text without the secrets that the program was given, and without what looks like one.
    pub(crate) fn masked(&self, text: &str) -> String {
        masked(&self.masks, text)
    }

    /// Answers a request for permission.
    pub(crate) fn answer(&self, id: Value, outcome: Value) {
        self.wire.answer(id, outcome);
    }
}

fn masks_of(secrets: &BTreeMap<String, String>) -> Vec<String> {
    secrets.values().filter(|secret| secret.len() >= MIN_MASKED).cloned().collect()
}

fn masked(masks: &[String], text: &str) -> String {
    redacted(&hide(masks, text)).into_owned()
}

/// What a program says, with its secrets hidden although it comes in pieces: the last word is held back until it is whole.
#[derive(Debug, Default)]
pub(crate) struct Held(String);

/// A word that is longer is passed on in parts, bytes.
const LONGEST_WORD: usize = 8 << 10;

impl Held {
    /// What can be passed on with this piece.
    pub(crate) fn push(&mut self, link: &Link, piece: &str) -> String {
        masked(&link.masks, &self.whole(&link.masks, piece))
    }

    /// What was held back.
    pub(crate) fn rest(&mut self, link: &Link) -> String {
        masked(&link.masks, &std::mem::take(&mut self.0))
    }

    fn whole(&mut self, masks: &[String], piece: &str) -> String {
        self.0.push_str(piece);
        let longest = masks.iter().map(String::len).max().unwrap_or_default().max(LONGEST_WORD);
        let in_words = !masks.iter().any(|mask| mask.contains(char::is_whitespace));
        let end = match self.0.rfind(char::is_whitespace).filter(|_| in_words) {
            Some(at) => self.0.ceil_char_boundary(at + 1),
            None if self.0.len() > 2 * longest => self.0.floor_char_boundary(self.0.len() - longest),
            None => 0,
        };
        let rest = self.0.split_off(end);
        std::mem::replace(&mut self.0, rest)
    }
}

/// What a program answered instead of what it should.
pub(crate) fn said(fault: &Fault) -> String {
    match fault.message.trim() {
        "" => format!("error {}", fault.code),
        message => cut(message, SHOWN_ERRORS),
    }
}

/// A prompt that runs; dropped before its answer it is stopped.
#[derive(Debug)]
pub(crate) struct Prompt {
    link: Arc<Link>,
    session: String,
    /// What the program says meanwhile.
    pub(crate) events: mpsc::Receiver<Event>,
    /// Its end.
    pub(crate) answer: Answer,
}

impl Prompt {
    /// Prompts in a session.
    pub(crate) fn begin(link: &Arc<Link>, session: &str, texts: Vec<String>) -> Self {
        let events = link.wire.listen(session);
        let blocks: Vec<_> = texts.into_iter().map(|text| json!({"type": "text", "text": text})).collect();
        let what = json!({"sessionId": session, "prompt": blocks});
        let answer = link.wire.ask("session/prompt", what, Some(session.to_owned()));
        Self { link: Arc::clone(link), session: session.to_owned(), events, answer }
    }

    /// Tells it to stop; the answer, or the program's end, comes within a few seconds.
    pub(crate) fn stop(&self) {
        self.link.wire.stop(&self.session);
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        self.link.wire.leave(&self.session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_comes_in_pieces_is_hidden() {
        let masks = ["sesame-4711".to_owned()];
        let mut held = Held::default();
        let mut told = String::new();
        for piece in ["the key is ses", "ame-", "4711", ", I think", " so"] {
            told += &masked(&masks, &held.whole(&masks, piece));
        }
        assert!(!told.contains("ame-"), "{told}");
        told += &masked(&masks, &held.0);
        assert!(told.starts_with("the key is ") && told.ends_with(" I think so") && !told.contains("4711"), "{told}");
        // One with spaces in it is hidden, too.
        let masks = ["open sesame now".to_owned()];
        let mut held = Held::default();
        assert_eq!(held.whole(&masks, "say open ses"), "");
        assert_eq!(held.whole(&masks, "ame now"), "");
    }

    #[test]
    fn secrets_are_masked_in_what_a_program_says() {
        let secrets = [("A", "hunter2-hunter2"), ("B", "abc")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let masks = masks_of(&secrets.into());
        assert_eq!(masked(&masks, "it ended: hunter2-hunter2, abc"), "it ended: [REDACTED], abc");
    }
}
