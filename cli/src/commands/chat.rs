//! `chat`: talking to an agent from a terminal or a pipe. It owns the prompt and the dialogue's place (platform `local`, a
//! direct message per login name), so that the next `chat` goes on where this one stopped. Always true: text is printed as
//! it comes; stopping to wait never stops the turn.

use std::io::{self, BufRead as _, IsTerminal as _};

use hermes_proto::v1::{Source, SubmitRequest};
use nix::unistd::{User, getuid};
use tokio::sync::mpsc;

use super::Invocation;
use super::turn::{self, Heard, TurnView};
use crate::args::{ChatArgs, Format};
use crate::connect::Connection;
use crate::error::{ExitStatus, report};
use crate::output::Printer;

/// Sends TEXT, or holds a dialogue.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(args: ChatArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let text = (!args.text.is_empty()).then(|| args.text.join(" "));
    let place = Place::new(args.agent, args.chat_id);
    match text {
        Some(text) => say(&connection, &place, text, &mut inv.printer).await,
        None => dialogue(&connection, &place, &mut inv.printer).await,
    }
}

/// Whom the messages go to and from where.
struct Place {
    agent: String,
    chat_id: String,
    login: String,
}

impl Place {
    fn new(agent: String, chat_id: Option<String>) -> Self {
        let uid = getuid();
        let known = User::from_uid(uid).ok().flatten();
        let login = known.map_or_else(|| format!("uid-{uid}"), |user| user.name);
        Self { agent, chat_id: chat_id.unwrap_or_else(|| login.clone()), login }
    }

    fn request(&self, text: String) -> SubmitRequest {
        let source = Source {
            platform: "local".to_owned(),
            chat_id: self.chat_id.clone(),
            chat_type: "dm".to_owned(),
            user_id: Some(self.login.clone()),
            user_name: Some(self.login.clone()),
            ..Source::default()
        };
        SubmitRequest {
            source: Some(source),
            text,
            dedupe_key: Some(turn::dedupe_key()),
            agent: Some(self.agent.clone()),
            deliver: false,
            attachments: Vec::new(),
        }
    }
}

/// One message and its answer.
async fn say(
    connection: &Connection,
    place: &Place,
    text: String,
    printer: &mut Printer,
) -> anyhow::Result<ExitStatus> {
    let request = place.request(text);
    let streamed = printer.format() == Format::Table;
    let mut shown = String::new();
    let turn = turn::submit_and_wait(connection, &request, |heard| {
        match heard {
            Heard::Text(text) if streamed => {
                shown.push_str(text);
                printer.flow(text)?;
            }
            Heard::Text(_) => {}
            Heard::Question(question) => printer.question(question),
        }
        Ok(())
    })
    .await?;
    if streamed {
        finish(&turn, &shown, printer)?
    } else {
        show(&turn, printer)?
    }
    if turn.succeeded {
        return Ok(ExitStatus::Done);
    }
    printer.error(&turn.complaint());
    Ok(ExitStatus::Failed)
}

fn show(turn: &TurnView, printer: &mut Printer) -> anyhow::Result<()> {
    if printer.format() == Format::Json { printer.json_line(turn) } else { printer.show(turn) }
}

/// Prints what the stream left out: progress may be lossy, the reply is whole.
fn finish(turn: &TurnView, shown: &str, printer: &mut Printer) -> anyhow::Result<()> {
    let reply = turn.reply.as_deref().unwrap_or_default();
    printer.flow(&remainder(reply, shown))
}

fn remainder(reply: &str, shown: &str) -> String {
    let (rest, before) = match reply.strip_prefix(shown) {
        Some(rest) => (rest, shown),
        None if shown.trim() == reply.trim() => ("", shown),
        None => (reply, "\n"),
    };
    let lead = if before == "\n" && !shown.ends_with('\n') { "\n" } else { "" };
    let all_ends = if rest.is_empty() { before.ends_with('\n') } else { rest.ends_with('\n') };
    let end = if all_ends { "" } else { "\n" };
    format!("{lead}{rest}{end}")
}

/// One line, one message.
async fn dialogue(connection: &Connection, place: &Place, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    let terminal = io::stdin().is_terminal();
    if terminal {
        printer.note(&format!("talking to {}; Ctrl-C stops waiting, Ctrl-D or `exit` leaves", place.agent));
    }
    let mut lines = stdin_lines()?;
    let mut status = ExitStatus::Done;
    loop {
        if terminal {
            printer.flow(&format!("{}> ", place.agent))?;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            () = interrupt(terminal) => {
                printer.flow("\n")?;
                printer.note("Ctrl-D or `exit` leaves");
                continue;
            }
        };
        let Some(line) = line.transpose()? else { break };
        let text = line.trim_end_matches('\r');
        match text.trim() {
            "" => continue,
            "exit" | "quit" => return Ok(status),
            _ => {}
        }
        let said = tokio::select! {
            said = say(connection, place, text.to_owned(), printer) => Some(said),
            () = interrupt(terminal) => None,
        };
        match said {
            Some(Ok(ended)) if terminal || ended == ExitStatus::Done => {}
            Some(Ok(ended)) => status = ended,
            Some(Err(error)) => match report(&error).1 {
                Some(text) if terminal => printer.error(&text),
                _ => return Err(error),
            },
            None => {
                printer.flow("\n")?;
                printer.note("not waiting any more; the agent goes on and its answer stays in the session");
            }
        }
    }
    if terminal {
        printer.flow("\n")?;
    }
    Ok(status)
}

/// Ctrl-C, where somebody types; elsewhere it ends the process as usual.
async fn interrupt(terminal: bool) {
    if terminal && tokio::signal::ctrl_c().await.is_ok() {
        return;
    }
    std::future::pending::<()>().await;
}

/// Lines of stdin. They are read by a thread of their own, which ends with the process: a blocking read cannot be given up.
fn stdin_lines() -> io::Result<mpsc::Receiver<io::Result<String>>> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        for line in io::stdin().lock().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_stream_left_out_is_printed_once() {
        assert_eq!(remainder("hello you", "hello"), " you\n");
        assert_eq!(remainder("hello", "hello"), "\n");
        assert_eq!(remainder("hello\n", "hello\n"), "");
        assert_eq!(remainder("hello", ""), "hello\n");
        assert_eq!(remainder("", ""), "\n");
        assert_eq!(remainder("whole answer", "half of ano"), "\nwhole answer\n");
        assert_eq!(remainder("x", "x "), "\n");
    }

    #[test]
    fn a_dialogue_has_its_place_and_every_line_its_key() {
        let place = Place::new("coder".into(), Some("-5".into()));
        let (one, two) = (place.request("a".into()), place.request("a".into()));
        assert_ne!(one.dedupe_key, two.dedupe_key);
        let source = one.source.unwrap();
        assert_eq!(
            (source.platform.as_str(), source.chat_id.as_str(), source.chat_type.as_str()),
            ("local", "-5", "dm")
        );
        assert!(!Place::new("coder".into(), None).chat_id.is_empty());
    }
}
