//! `process`: commands that run in the background, looked after by the session that started them.
//!
//! Each has a task that reads its output as it comes, so that it never waits for being looked at. They live as long as the worker;
//! after its end an id is answered as unknown, in words that say why.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdin;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::ToolResult;
use super::output::{Captured, receiver};
use super::terminal::{LONGEST_WAIT, MAX_OUTPUT, with_end};
use crate::sandbox::Running;

/// Background commands of one session, at most.
const MAX_OF_SESSION: usize = 16;
/// Background commands of one worker, at most, ended ones that nobody asked for included.
const MAX: usize = 256;
/// Longest command that is shown, characters.
const SHOWN_CHARS: usize = 120;

/// The arguments.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    action: Action,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    timeout: Option<u64>,
    #[serde(default)]
    data: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    List,
    Poll,
    Wait,
    Write,
    Kill,
}

/// One of them.
#[derive(Clone, Debug)]
struct Process {
    session: u64,
    command: String,
    captured: Arc<Mutex<Captured>>,
    /// Its exit code once it has ended; closed without one when it was killed.
    ended: watch::Receiver<Option<i32>>,
    #[expect(clippy::disallowed_types, reason = "writing waits for the command, and one writes at a time")]
    input: Arc<tokio::sync::Mutex<Option<ChildStdin>>>,
    kill: AbortHandle,
}

/// All of a worker.
#[derive(Debug, Default)]
pub(super) struct Processes {
    table: Mutex<BTreeMap<String, Process>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Processes {
    /// Takes over a command that runs, until it ends or `full` does, with how much too much it takes of the disk.
    pub(super) fn keep(
        &self,
        session: u64,
        command: &str,
        mut running: Running,
        full: impl Future<Output = String> + Send + 'static,
    ) -> ToolResult {
        let mut table = lock(&self.table);
        let runs = |process: &Process| process.ended.borrow().is_none() && process.ended.has_changed().is_ok();
        if table.values().filter(|process| process.session == session && runs(process)).count() >= MAX_OF_SESSION {
            return Err(format!("{MAX_OF_SESSION} commands run in the background already; end one with process"));
        }
        if table.len() >= MAX {
            table.retain(|_, process| runs(process));
            if table.len() >= MAX {
                return Err("this agent runs too many commands in the background; end one with process".to_owned());
            }
        }
        let input = running.input.take();
        let mut pipe = receiver(&mut running).map_err(|error| error.to_string())?;
        let captured = Arc::new(Mutex::new(Captured::new(MAX_OUTPUT)));
        let (end, ended) = watch::channel(None);
        let kept = Arc::clone(&captured);
        let reading = async move {
            let mut buffer = vec![0; 16 << 10];
            let reading = async {
                while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
                    lock(&kept).push(&buffer[..read]);
                }
            };
            tokio::select! {
                () = reading => {}
                taken = full => {
                    lock(&kept).push(format!("\n[ended because the disk is full: {taken}]\n").as_bytes());
                    running.end().await;
                }
            }
            if let Ok(code) = running.wait().await {
                end.send_replace(Some(code));
            }
        };
        let kill = {
            let mut tasks = lock(&self.tasks);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(reading)
        };
        let id = loop {
            let id = format!("bg-{:06x}", rand::random_range(0..0x0100_0000_u32));
            if !table.contains_key(&id) {
                break id;
            }
        };
        let shown: String = command.chars().take(SHOWN_CHARS).collect();
        #[expect(clippy::disallowed_types, reason = "as the field says")]
        let input = Arc::new(tokio::sync::Mutex::new(input));
        table.insert(id.clone(), Process { session, command: shown, captured, ended, input, kill });
        Ok(format!("Started in the background as {id}. Look after it with process; it ends when this worker does."))
    }

    /// Runs a call of the tool.
    pub(super) async fn call(&self, session: u64, arguments: Arguments, cancel: &CancellationToken) -> ToolResult {
        let Arguments { action, id, timeout, data } = arguments;
        if let Action::List = action {
            return Ok(self.list(session));
        }
        let id = id.ok_or("id is missing: which one?")?;
        let found = lock(&self.table).get(&id).filter(|process| process.session == session).cloned();
        let Some(mut process) = found else {
            return Err(format!(
                "no command runs as {id} (any more): they end when their worker does; process list shows those that are there"
            ));
        };
        match action {
            Action::List | Action::Poll => {}
            Action::Wait => {
                let wait = timeout.map_or(LONGEST_WAIT, |s| Duration::from_secs(s.max(1)).min(LONGEST_WAIT));
                tokio::select! {
                    // An error: it was killed, which is an end too.
                    _ = process.ended.wait_for(Option::is_some) => {}
                    () = tokio::time::sleep(wait) => {}
                    () = cancel.cancelled() => {}
                }
            }
            Action::Write => {
                let data = data.ok_or("data is missing")?;
                let mut input = process.input.lock().await;
                let pipe = input.as_mut().ok_or("its stdin is closed")?;
                let written = tokio::time::timeout(Duration::from_secs(5), pipe.write_all(data.as_bytes())).await;
                match written {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        *input = None;
                        return Err(format!("it does not read any more: {error}"));
                    }
                    Err(_) => return Err("it does not read its stdin".to_owned()),
                }
            }
            Action::Kill => {
                // Dropping what runs ends it and all that it started.
                process.kill.abort();
                lock(&self.table).remove(&id);
                return Ok(with_end(&lock(&process.captured).text(), "[killed]"));
            }
        }
        let captured = lock(&process.captured);
        Ok(with_end(&captured.text(), &format!("[{}; {} bytes written]", state(&process), captured.total())))
    }

    fn list(&self, session: u64) -> String {
        let table = lock(&self.table);
        let lines: Vec<String> = table
            .iter()
            .filter(|(_, process)| process.session == session)
            .map(|(id, process)| format!("{id}  {}  {}", state(process), process.command))
            .collect();
        if lines.is_empty() { "Nothing runs in the background.".to_owned() } else { lines.join("\n") }
    }
}

fn state(process: &Process) -> String {
    match *process.ended.borrow() {
        Some(code) => format!("ended with exit code {code}"),
        None if process.ended.has_changed().is_err() => "ended".to_owned(),
        None => "running".to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
