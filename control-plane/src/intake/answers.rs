//! What a chat is told about commands that were carried out. Words only.

use std::fmt::Write as _;

use hermes_core::approvals::Verdict;
use hermes_core::command::{Access, Spec, TABLE};
use hermes_core::{AgentId, Source};
use jiff::Zoned;

use crate::registry::{AgentEntry, Snapshot};
use crate::store::{Answer, Answered, ApprovalState, Homed, Listed, Outcome, Resumed, Stopped, Used};

/// Most of somebody's words that are repeated, in characters.
const REPEATED: usize = 60;

const NO_SESSION: &str = "There is no conversation here yet.";
const BUSY: &str = "I am still busy with your last message. /stop ends it; then try this again.";

/// A stopped turn tells its chat itself.
pub(super) fn stopped(stopped: Stopped) -> Answer {
    let (text, told) = match stopped {
        Stopped::Nothing => ("Nothing is running.", true),
        Stopped::Asked(_) => ("Stopping.", false),
        Stopped::Cancelled(_) => ("Stopped.", false),
        Stopped::Ended(_) | Stopped::Behind(_) | Stopped::Absorbed(_) => ("It had ended already.", false),
    };
    Answer { text: text.to_owned(), told }
}

/// What became of an answer to a question about a call.
pub(super) fn answered(outcome: &Outcome, verdict: Verdict) -> String {
    match outcome {
        Outcome::Answered(Answered::Done(id)) => match verdict {
            Verdict::Once => format!("Allowed ({id})."),
            Verdict::Session => format!("Allowed ({id}), and all of its kind in this conversation."),
            Verdict::Always => format!("Allowed ({id}), and all of its kind from now on."),
            Verdict::Deny => format!("Denied ({id})."),
        },
        Outcome::Answered(Answered::Over(id, ApprovalState::Expired)) => {
            format!("Question {id} is over: nobody answered before its time was, or its turn.")
        }
        Outcome::Answered(Answered::Over(id, state)) => format!("Question {id} is over already ({}).", state.as_str()),
        _ => "There is no question here that you can answer.".to_owned(),
    }
}

pub(super) fn whoami(source: &Source, access: Access, may: impl Fn(&Spec) -> bool) -> String {
    let id = source.user_id.as_deref().unwrap_or("unknown");
    let mut said = match &source.user_name {
        Some(name) => format!("You are {name} (id {id})"),
        None => format!("Your id is {id}"),
    };
    let _ = write!(said, " on {}, in chat {} ({}).", source.platform, source.chat_id, source.chat_type);
    if access.admin {
        said.push_str(" You may use every command here.");
    } else {
        let allowed: Vec<String> = TABLE
            .iter()
            .filter(|spec| !spec.help.is_empty() && may(spec))
            .map(|spec| format!("/{}", spec.name))
            .collect();
        let _ = write!(said, " You may use {}.", allowed.join(", "));
    }
    said
}

pub(super) fn agents(snapshot: &Snapshot, here: &AgentEntry) -> String {
    let mut said = "Agents:".to_owned();
    for (id, spec) in &snapshot.document.agents {
        let mark = if *id == here.id { " (answers here)" } else { "" };
        let _ = write!(said, "\n{id}: {}{mark}", snapshot.model_of(spec));
    }
    said
}

pub(super) fn status(outcome: &Outcome, agent: &AgentId, session_key: &str, default: &str) -> String {
    let Outcome::Session(Some(session), used) = outcome else {
        return format!("{NO_SESSION} Agent {agent}, model {default}.");
    };
    let mut said = format!("Conversation {} ({session_key})", session.id);
    if let Some(title) = &session.title {
        let _ = write!(said, "\nTitle: {title}");
    }
    let _ = write!(said, "\nAgent: {agent}\nModel: {}", session.model.as_deref().unwrap_or(default));
    let _ = write!(said, "\nMessages: {}", session.accepted);
    let waiting = session.open - i64::from(session.running);
    let now = match (session.running, waiting) {
        (true, 0) => "answering".to_owned(),
        (true, more) => format!("answering, and {more} more wait"),
        (false, 0) => "nothing to do".to_owned(),
        (false, more) => format!("{more} wait for a worker"),
    };
    let _ = write!(said, "\nNow: {now}\nTokens so far: {} in, {} out", used.input, used.output);
    said
}

pub(super) fn renewed(outcome: &Outcome) -> String {
    let mut said = "A new conversation begins.".to_owned();
    if let Outcome::Renewed(stopped) = outcome {
        said.push_str(stopping(*stopped));
    }
    said
}

pub(super) fn title(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Session(Some(session), _) => match &session.title {
            Some(title) => format!("This conversation is called: {title}"),
            None => "This conversation has no name. /title <name> gives it one.".to_owned(),
        },
        _ => NO_SESSION.to_owned(),
    }
}

pub(super) fn sessions(outcome: &Outcome, now: &Zoned) -> String {
    let Outcome::Sessions(sessions) = outcome else { return NO_SESSION.to_owned() };
    if sessions.is_empty() {
        return NO_SESSION.to_owned();
    }
    let mut said = "Conversations, the last used first:".to_owned();
    for (at, session) in sessions.iter().enumerate() {
        let when = session.updated_at.to_zoned(now.time_zone().clone()).strftime("%Y-%m-%d %H:%M");
        let _ = write!(said, "\n{}. {}, {when}", at + 1, name_of(session));
        if session.current {
            said.push_str(" (this one)");
        }
    }
    said.push_str("\n/resume <number> goes back to one.");
    said
}

pub(super) fn resumed(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Resumed(Resumed::Done(session, stopped)) => {
            format!("Back in {}.{}", name_of(session), stopping(*stopped))
        }
        Outcome::Resumed(Resumed::Current(session)) => format!("{} is this conversation.", name_of(session)),
        Outcome::Resumed(Resumed::Busy(session)) => {
            format!("{} is still being answered; try again in a moment.", name_of(session))
        }
        _ => "I find no such conversation. /sessions lists them.".to_owned(),
    }
}

pub(super) fn retried(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Busy => BUSY,
        _ => "There is nothing to answer again.",
    }
    .to_owned()
}

pub(super) fn undone(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Busy => BUSY.to_owned(),
        Outcome::Undone(0, _) => "There is nothing to forget.".to_owned(),
        Outcome::Undone(1, said) => format!("Forgotten: {}", short(said)),
        Outcome::Undone(turns, said) => format!("Forgotten: {turns} exchanges, from: {}", short(said)),
        _ => NO_SESSION.to_owned(),
    }
}

pub(super) fn usage(outcome: &Outcome) -> String {
    let Outcome::Used(session, today) = outcome else { return NO_SESSION.to_owned() };
    format!("This conversation: {}\nToday: {}", used(session), used(today))
}

pub(super) fn model(outcome: &Outcome, default: &str) -> String {
    let own = match outcome {
        Outcome::Session(Some(session), _) => session.model.as_deref(),
        _ => None,
    };
    match own {
        Some(own) => format!("The model of this conversation is {own}. /model --reset goes back to {default}."),
        None => format!("The model is {default}, as the agent has it."),
    }
}

pub(super) fn home(outcome: &Outcome, agent: &AgentId) -> String {
    match outcome {
        Outcome::Home(Homed::Here) => format!("This chat is the home of {agent} on this account now."),
        Outcome::Home(Homed::Already) => {
            format!("This chat is the home of {agent} on this account already: the configuration names it.")
        }
        Outcome::Home(Homed::Elsewhere) => format!(
            "Nothing was changed: the configuration names another chat as the home of {agent} on this account. Whoever runs this changes it there, under homes of the account."
        ),
        _ => "There is no chat here that could be a home.".to_owned(),
    }
}

fn stopping(stopped: Stopped) -> &'static str {
    if stopped.turn().is_some() { " I am stopping what I was doing." } else { "" }
}

fn used(used: &Used) -> String {
    let cost = used.cost.map_or_else(String::new, |cost| format!(", ${cost:.4}"));
    format!("{} answers, {} tokens in, {} out{cost}", used.turns, used.input, used.output)
}

fn name_of(session: &Listed) -> String {
    let name = session.title.as_deref().or(session.begins.as_deref()).map(short);
    match name.filter(|name| !name.is_empty()) {
        Some(name) => format!("{} ({})", name, session.id),
        None => format!("{}", session.id),
    }
}

/// Somebody's words on one short line.
fn short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = line.chars().take(REPEATED).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}
