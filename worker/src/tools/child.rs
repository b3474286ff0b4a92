//! A program that is spoken with over its stdin and stdout, a message in each line: started behind the boundary, read within bounds,
//! watched until it ends.
//!
//! Used by MCP servers (`tools::mcp`) and by programs that answer turns (`crate::acp`). Always true: a line, the values in it, and all
//! that comes between two questions are bounded, and what is beyond ends the program; one that does not read holds up nobody but its
//! own callers; its stderr is read slowly and kept in part; it ends with its [`Process`], with all that it started, and why it ended is
//! said to whoever waits; starts that follow each other come ever slower. It knows no protocol.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::ChildStdin;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::local::Captured;
use super::redact::redacted;
use crate::sandbox::{Boundary, Running, Sandbox, Task};

/// Messages that wait for a program to read them.
const QUEUE: usize = 16;
/// What is kept of stderr, bytes.
const MAX_ERRORS: usize = 2 << 10;
/// What is told of stderr, characters.
pub(crate) const SHOWN_ERRORS: usize = 500;
/// How long a program whose output has ended may take to end itself.
const ENDING: Duration = Duration::from_millis(500);
/// A program that ran for so long ended for a new reason.
const LASTING: Duration = Duration::from_secs(60);
/// The longest time between two starts.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How often stderr is read, a buffer each: what writes faster waits.
const ERRORS_PACE: Duration = Duration::from_millis(10);

/// What a program may write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest line, bytes.
    pub(crate) line: usize,
    /// Most values in a line: each takes a multiple of what it takes as text.
    pub(crate) values: usize,
    /// Most that is written between two calls of [`State::allow`], bytes.
    pub(crate) unasked: usize,
}

/// What is known of a program by those who do not hold its pipes.
#[derive(Debug)]
pub(crate) struct State {
    limits: Limits,
    /// What may still be written.
    allowance: AtomicUsize,
    /// Lines that were no messages.
    odd: AtomicUsize,
    /// Nothing comes any more.
    pub(crate) closed: CancellationToken,
    reason: OnceLock<String>,
}

impl State {
    /// Of a program that has written nothing yet.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            allowance: AtomicUsize::new(limits.unasked),
            odd: AtomicUsize::new(0),
            closed: CancellationToken::new(),
            reason: OnceLock::new(),
        }
    }

    /// Why nothing comes any more, where that is not for the program's own end.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Lines that were no messages.
    pub(crate) fn odd(&self) -> usize {
        self.odd.load(Ordering::Relaxed)
    }

    /// A line was no message. Programs print what they should not; it is none of our business until it is too much.
    pub(crate) fn was_odd(&self) {
        self.odd.fetch_add(1, Ordering::Relaxed);
    }

    /// It was asked something: what it may write counts anew.
    pub(crate) fn allow(&self) {
        self.allowance.store(self.limits.unasked, Ordering::Relaxed);
    }

    /// Ends it for that reason; the first one counts.
    pub(crate) fn broken(&self, reason: String) {
        let _ = self.reason.set(reason);
        self.closed.cancel();
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = |left: usize| left.checked_sub(bytes);
        self.allowance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }
}

/// What a program writes to its stdout.
#[derive(Debug)]
pub(crate) struct Lines {
    output: BufReader<Receiver>,
    line: Vec<u8>,
    state: Arc<State>,
}

impl Lines {
    /// The next line; none: there are no more. Dropped within a line it goes on there.
    ///
    /// # Errors
    /// Why the program has to be ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        let Limits { line: longest, values: most, unasked } = self.state.limits;
        loop {
            let read = self.output.fill_buf().await.map_err(|error| format!("its output cannot be read: {error}"))?;
            if read.is_empty() {
                return Ok(None);
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(read.len(), |end| end + 1);
            if self.line.len() + taken > longest {
                return Err(format!("it wrote a line longer than {} MiB", longest >> 20));
            }
            if !self.state.take(taken) {
                return Err(format!("it wrote more than {} MiB without being asked", unasked >> 20));
            }
            self.line.extend_from_slice(&read[..taken]);
            self.output.consume(taken);
            if end.is_some() {
                break;
            }
        }
        // Nothing of a long line stays behind.
        let line = std::mem::take(&mut self.line);
        if values(&line) > most {
            return Err(format!("it wrote a message of more than {most} values"));
        }
        Ok(Some(line))
    }
}

/// How many values a text of JSON has at most.
pub(crate) fn values(line: &[u8]) -> usize {
    let (mut count, mut quoted, mut escaped) = (1, false, false);
    for byte in line {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

/// Both pipes of a running program, with what is known of it; and what writes to it, to be run beside.
///
/// # Errors
/// What the system answers.
#[expect(clippy::type_complexity, reason = "four parts with four owners")]
pub(crate) fn pipes(
    output: OwnedFd,
    mut stdin: ChildStdin,
    limits: Limits,
) -> io::Result<(Lines, mpsc::Sender<Vec<u8>>, Arc<State>, impl Future<Output = ()> + use<>)> {
    let output = BufReader::with_capacity(16 << 10, Receiver::from_file(File::from(output))?);
    let (input, mut lines) = mpsc::channel::<Vec<u8>>(QUEUE);
    let state = Arc::new(State::new(limits));
    let writing = async move {
        while let Some(line) = lines.recv().await {
            // It ends, or has closed its stdin; its end or a time limit tells the caller.
            if stdin.write_all(&line).await.is_err() {
                break;
            }
        }
    };
    Ok((Lines { output, line: Vec::new(), state: Arc::clone(&state) }, input, state, writing))
}

/// A running program; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    state: Arc<State>,
    ended: watch::Receiver<Option<String>>,
    begun: Instant,
    /// Watch over it, and write to it.
    tasks: JoinSet<()>,
}

/// Starts a program; `hidden` are texts that nobody is to read in what is told of its end.
///
/// # Errors
/// Why it cannot be started.
pub(crate) async fn start(
    boundary: &Boundary,
    policy: &Sandbox,
    task: Task,
    limits: Limits,
    hidden: Vec<String>,
) -> Result<(Lines, mpsc::Sender<Vec<u8>>, Process), String> {
    let begun = Instant::now();
    let started = boundary.start_apart(policy, task).await;
    let mut running = started.map_err(|error| format!("it cannot be started: {error}"))?;
    let (Some(output), Some(errors), Some(input)) =
        (running.output.take(), running.errors.take(), running.input.take())
    else {
        return Err("it has no pipes".to_owned());
    };
    let (lines, input, state, writing) =
        pipes(output, input, limits).map_err(|error| format!("its pipes cannot be used: {error}"))?;
    let errors =
        Receiver::from_file(File::from(errors)).map_err(|error| format!("its stderr cannot be read: {error}"))?;
    let (end, ended) = watch::channel(None);
    let mut tasks = JoinSet::new();
    tasks.spawn(writing);
    let full = {
        let (boundary, policy) = (boundary.clone(), *policy);
        async move { boundary.overflow(&policy).await }
    };
    tasks.spawn(supervise(running, errors, hidden, Arc::clone(&state), full, end));
    Ok((lines, input, Process { state, ended, begun, tasks }))
}

impl Process {
    /// What runs elsewhere and is only spoken to: it ends when its connection does.
    pub(crate) fn elsewhere(state: Arc<State>) -> Self {
        let (end, ended) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let over = Arc::clone(&state);
        tasks.spawn(async move {
            over.closed.cancelled().await;
            end.send_replace(Some(over.reason().unwrap_or("its connection was closed").to_owned()));
        });
        Self { state, ended, begun: Instant::now(), tasks }
    }

    /// What is known of it.
    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Whether it ran for so long that its end has a new reason.
    pub(crate) fn lasted(&self) -> bool {
        self.begun.elapsed() >= LASTING
    }

    /// Does this beside, for as long as the program lives.
    pub(crate) fn beside(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Why it runs no more; none while it does.
    pub(crate) fn why_ended(&self) -> Option<String> {
        if !self.state.closed.is_cancelled() && self.ended.has_changed().is_ok() {
            return None;
        }
        let ended = self.ended.borrow().clone();
        ended.or_else(|| self.state.reason().map(str::to_owned)).or_else(|| Some("it closed its output".to_owned()))
    }

    /// Waits a little for what its supervisor says of its end; none where it says nothing.
    pub(crate) async fn told(&self) -> Option<String> {
        let mut ended = self.ended.clone();
        let end = timeout(ENDING * 2, ended.wait_for(Option::is_some)).await.ok().and_then(Result::ok);
        end.and_then(|end| end.clone())
    }

    /// Waits for why it ended.
    pub(crate) async fn end(&self) -> String {
        let told = self.told().await;
        told.or_else(|| self.why_ended()).unwrap_or_else(|| "its pipes broke".to_owned())
    }
}

/// When a program that ended, or did not start, may be started again.
#[derive(Debug, Default)]
pub(crate) struct Comeback {
    /// Ends and failed starts in a row.
    failures: u32,
    /// Why there is none, and when it may be started again.
    away: Option<(String, Instant)>,
}

impl Comeback {
    /// It ended; `lasted`: after it had run for long. The first time it is started again at once.
    pub(crate) fn ended(&mut self, why: String, lasted: bool) {
        let failures = if lasted { 0 } else { self.failures };
        self.failures = failures + 1;
        self.away = Some((why, Instant::now() + pause(failures)));
    }

    /// It did not start.
    pub(crate) fn failed(&mut self, why: String) {
        self.failures += 1;
        self.away = Some((why, Instant::now() + pause(self.failures)));
    }

    /// Why it is not started yet.
    pub(crate) fn waits(&self) -> Option<String> {
        let (why, from) = self.away.as_ref()?;
        let wait = from.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())?;
        Some(format!("{why}; it is started again in {} s at the earliest", wait.as_secs() + 1))
    }
}

/// How long after that many failures it is not started.
fn pause(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        _ => Duration::from_secs(1_u64 << (failures - 1).min(6)).min(MAX_PAUSE),
    }
}

/// The text, cut to so many characters.
pub(crate) fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some(_) => text.chars().take(chars - 1).chain(['…']).collect(),
    }
}

/// The text without these.
pub(crate) fn hide(hidden: &[String], text: &str) -> String {
    hidden.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "[REDACTED]"))
}

/// Reads stderr, and ends the process for what it has to be ended for; tells why it ended.
async fn supervise(
    mut running: Running,
    mut errors: Receiver,
    hidden: Vec<String>,
    state: Arc<State>,
    full: impl Future<Output = String>,
    end: watch::Sender<Option<String>>,
) {
    let mut captured = Captured::new(MAX_ERRORS);
    let mut buffer = vec![0; 16 << 10];
    let why = {
        let reading = async {
            while let Ok(read @ 1..) = errors.read(&mut buffer).await {
                captured.push(&buffer[..read]);
                tokio::time::sleep(ERRORS_PACE).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::pin!(reading, full);
        let ended = |code: io::Result<i32>| match code {
            Ok(code) => format!("it ended with exit code {code}"),
            Err(error) => format!("it ended: {error}"),
        };
        let why = tokio::select! {
            () = &mut reading => String::new(),
            code = running.wait() => ended(code),
            taken = &mut full => format!("it was ended because the disk is full: {taken}"),
            () = state.closed.cancelled() => match state.reason() {
                Some(reason) => {
                    running.kill();
                    end.send_replace(Some(reason.to_owned()));
                    return;
                }
                None => match timeout(ENDING, running.wait()).await {
                    Ok(code) => ended(code),
                    Err(_) => "it closed its output".to_owned(),
                },
            },
        };
        // What it said last, and nothing that others hold open.
        let _ = timeout(Duration::from_millis(100), &mut reading).await;
        why
    };
    running.kill();
    // Before it is cut: the beginning of a secret is one, too.
    let said = hide(&hidden, captured.text().trim());
    let said = cut(redacted(&said).as_ref(), SHOWN_ERRORS);
    let why = if said.is_empty() { why } else { format!("{why} (on stderr: {said})") };
    end.send_replace(Some(why));
    state.closed.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_texts_do_not_count() {
        assert_eq!(values(br#"{"a":[1,2,{"b":"x,y,[{\",\\"}]}"#), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn starts_that_follow_each_other_come_ever_slower() {
        let mut comeback = Comeback::default();
        comeback.ended("it fell".to_owned(), false);
        assert_eq!(comeback.waits(), None, "the first time at once");
        comeback.failed("it fell".to_owned());
        assert_eq!(comeback.waits().as_deref(), Some("it fell; it is started again in 3 s at the earliest"));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(comeback.waits(), None);
        (0..20).for_each(|_| comeback.failed("it fell".to_owned()));
        tokio::time::advance(MAX_PAUSE).await;
        assert_eq!(comeback.waits(), None);
        comeback.ended("it fell".to_owned(), true);
        assert_eq!(comeback.waits(), None, "it had run for long");
    }
}
