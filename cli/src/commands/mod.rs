//! One module per noun. Each turns its arguments into calls, and the answers into views for the printer.
//!
//! Called by `main`. Always true: Prost types stay in here (and in `connect`); a list is fetched page by page; an enum
//! value this build does not know is an error, never a guess.

mod agent;
mod approval;
mod budget;
mod chat;
mod completion;
mod cron;
mod curator;
mod dead;
mod delivery;
mod document;
mod explain;
mod input;
mod pairing;
mod route;
mod send;
mod session;
mod session_key;
mod source;
mod status;
mod steps;
mod token;
mod turn;
mod up;
mod worker;

use std::future::Future;

use anyhow::bail;
use hermes_proto::v1::{self, PageRequest};

use crate::args::{Command, Global, RouteCommand, SessionCommand, WorkerCommand};
use crate::connect::{self, Connection, Environment};
use crate::error::ExitStatus;
use crate::output::Printer;

/// The page size asked for where an entry is a line or two.
const LINES: u32 = 500;
/// The page size asked for where an entry may be long: an agent with its routes, a turn with its texts.
const TEXTS: u32 = 50;

/// What a command works with.
pub(crate) struct Invocation {
    /// Flags of every command.
    pub global: Global,
    /// The process's environment.
    pub env: Environment,
    /// stdout and stderr.
    pub printer: Printer,
}

impl Invocation {
    /// One run of hermesctl.
    pub(crate) fn new(global: Global, env: Environment, printer: Printer) -> Self {
        Self { global, env, printer }
    }

    /// Connects to the control plane the flags, variables or data directory name.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        let target = connect::discover(&self.global, &self.env)?;
        Connection::open(&target, &self.global).await
    }
}

/// Runs one command.
///
/// # Errors
/// Whatever made it fail; `error::report` turns it into words and an exit code.
pub(crate) async fn run(command: Command, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Up(args) => up::run(&args, inv),
        Command::Status => status::run(inv).await,
        Command::Agent(command) => Box::pin(agent::run(command, inv)).await,
        Command::Route(RouteCommand::Explain(args)) => explain::run(*args, inv).await,
        Command::Route(command) => route::run(command, inv).await,
        Command::Apply(args) => document::apply(&args, inv).await,
        Command::Diff(args) => document::diff(&args, inv).await,
        Command::Export => document::export(inv).await,
        Command::Chat(args) => Box::pin(chat::run(args, inv)).await,
        Command::Send(args) => Box::pin(send::run(args, inv)).await,
        Command::Session(SessionCommand::Key(args)) => session_key::run(*args, inv),
        Command::Session(command) => session::run(command, inv).await,
        Command::Turn(command) => steps::run(command, inv).await,
        Command::Delivery(command) => delivery::run(command, inv).await,
        Command::Dead(command) => dead::run(command, inv).await,
        Command::Approval(command) => approval::run(command, inv).await,
        Command::Pairing(command) => pairing::run(command, inv).await,
        Command::Cron(command) => Box::pin(cron::run(command, inv)).await,
        Command::Budget(command) => budget::run(command, inv).await,
        Command::Curator(command) => curator::run(command, inv).await,
        Command::Worker(WorkerCommand::List(limit)) => worker::list(limit, inv).await,
        Command::Worker(WorkerCommand::Drain(args)) => worker::drain(args, inv).await,
        Command::Token(command) => token::run(command, inv).await,
        Command::Completion { shell } => completion::run(shell, inv),
    }
}

/// Fetches pages of `size` entries until the list or the limit ends.
///
/// # Errors
/// What `page` failed with, or that the server's pages do not end.
async fn all_pages<T, F>(
    size: u32,
    limit: Option<u64>,
    mut page: impl FnMut(PageRequest) -> F,
) -> anyhow::Result<Vec<T>>
where
    F: Future<Output = anyhow::Result<(Vec<T>, String)>>,
{
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let missing = u32::try_from(limit - all.len()).unwrap_or(u32::MAX);
        let request = PageRequest { page_size: missing.min(size), page_token: page_token.clone() };
        let (mut items, next) = page(request).await?;
        items.truncate(limit - all.len());
        all.append(&mut items);
        if next.is_empty() || all.len() >= limit {
            return Ok(all);
        }
        if next == page_token {
            bail!(
                "the control plane answers the same page again and again; is it of another version than this hermesctl?"
            );
        }
        page_token = next;
    }
}

/// The part of an answer that must be there.
fn required<T>(part: Option<T>, name: &str) -> anyhow::Result<T> {
    match part {
        Some(part) => Ok(part),
        None => bail!("the control plane's answer lacks {name}; is it of another version than this hermesctl?"),
    }
}

/// An enum value this build does not know.
fn unknown(what: &str, value: i32) -> anyhow::Error {
    anyhow::anyhow!(
        "the control plane answered an unknown {what} ({value}); is it of another version than this hermesctl?"
    )
}

/// `LINE: PATH: message` with what is known of the place, after the name of the text.
fn place(name: Option<&str>, line: u32, path: &str, message: &str) -> String {
    let mut text = String::new();
    if let Some(name) = name {
        text.push_str(name);
        text.push(':');
        if line > 0 {
            text.push_str(&format!("{line}:"));
        }
        text.push(' ');
    }
    if !path.is_empty() {
        text.push_str(path);
        text.push_str(": ");
    }
    text.push_str(message);
    text
}

fn warning_text(name: Option<&str>, warning: &v1::Warning) -> String {
    place(name, warning.line, &warning.path, &warning.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn numbers(limit: Option<u64>) -> (Vec<u32>, Vec<u32>) {
        let asked = std::cell::RefCell::new(Vec::new());
        let all = all_pages(LINES, limit, |request| {
            asked.borrow_mut().push(request.page_size);
            let from: u32 = request.page_token.parse().unwrap_or(0);
            let to = (from + request.page_size).min(1_203);
            let next = if to == 1_203 { String::new() } else { to.to_string() };
            async move { Ok(((from..to).collect(), next)) }
        })
        .await
        .unwrap();
        (all, asked.into_inner())
    }

    #[tokio::test]
    async fn a_list_is_fetched_page_by_page_up_to_its_limit() {
        assert_eq!(numbers(None).await, ((0..1_203).collect(), vec![500, 500, 500]));
        assert_eq!(numbers(Some(501)).await, ((0..501).collect(), vec![500, 1]));
        assert_eq!(numbers(Some(3)).await, ((0..3).collect(), vec![3]));
    }

    #[tokio::test]
    async fn pages_that_do_not_end_are_refused() {
        let endless = all_pages(LINES, None, |_request| async { Ok((vec![1], "same".to_owned())) }).await;
        assert!(endless.unwrap_err().to_string().contains("again and again"));
    }

    #[test]
    fn a_place_says_what_is_known() {
        assert_eq!(place(Some("a.yaml"), 3, "routes[0].agent", "is missing"), "a.yaml:3: routes[0].agent: is missing");
        assert_eq!(place(Some("-"), 0, "", "is empty"), "-: is empty");
        assert_eq!(place(None, 7, "routes[0]", "can never win"), "routes[0]: can never win");
    }
}
