//! Slash commands: which messages are commands instead of words for the agent, which there are, and who may give them.
//!
//! Called by intake for every message of a chat, and by the configuration's check for the names in access lists. It owns the
//! table of commands and nothing else. Always true: a message is a command by its first word alone; a path (`/etc/hosts`) or
//! a lone slash is text. It deliberately does not know what a command does: that is intake's, with the store.

mod access;
mod text;

pub use access::{Access, AccessLists, Scope, listed};
pub use text::{help, page, unknown};

/// What a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Says what there is, in short.
    Help,
    /// Says what there is, page by page.
    Commands,
    /// Who the sender is and what they may do.
    WhoAmI,
    /// How the conversation stands.
    Status,
    /// A new conversation.
    New,
    /// Stop what runs.
    Stop,
    /// Name the conversation, or say its name.
    Title,
    /// The conversations of this chat.
    Sessions,
    /// Go back to an earlier conversation.
    Resume,
    /// Sum up what was said.
    Compress,
    /// The last message once more.
    Retry,
    /// Forget the last exchanges.
    Undo,
    /// What was used.
    Usage,
    /// The conversation's own model.
    Model,
    /// What the agent has noted.
    Memory,
    /// What the agent knows how to do.
    Skills,
    /// Which agents there are.
    Agents,
    /// A message that waits, whatever the busy mode.
    Queue,
    /// A message that is offered to the running turn, whatever the busy mode.
    Steer,
    /// Allow a call that waits for it.
    Approve,
    /// Refuse one.
    Deny,
    /// A message beside the conversation.
    Background,
    /// Remember this chat as the home of its account.
    SetHome,
    /// What a client sends when somebody opens a bot: nothing is done and nothing said.
    Start,
}

/// Who may give a command where commands are gated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everybody.
    Everyone,
    /// Admins, and everybody where it is listed.
    Listed,
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name, lower case, without the slash.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// Its arguments as people read them: `[optional]`, `<needed>`.
    pub arguments: &'static str,
    /// One line of help; empty: it is not shown.
    pub help: &'static str,
    /// Who may.
    pub who: Who,
    /// What it is about.
    pub action: Action,
}

const fn spec(
    name: &'static str,
    aliases: &'static [&'static str],
    arguments: &'static str,
    help: &'static str,
    action: Action,
) -> Spec {
    let who = match action {
        // Who may answer a question follows from whom it was asked.
        Action::Help | Action::WhoAmI | Action::Approve | Action::Deny => Who::Everyone,
        _ => Who::Listed,
    };
    Spec { name, aliases, arguments, help, who, action }
}

/// All commands, in the order people see them.
pub const TABLE: &[Spec] = &[
    spec("help", &[], "", "what you can say here", Action::Help),
    spec("commands", &[], "[page]", "all commands with their other names", Action::Commands),
    spec("whoami", &[], "", "who you are here and what you may do", Action::WhoAmI),
    spec("status", &[], "", "how this conversation stands", Action::Status),
    spec("new", &["reset"], "[title]", "begin a new conversation", Action::New),
    spec("stop", &[], "", "stop what is running", Action::Stop),
    spec("approve", &[], "[number] [once, session or always]", "allow what the agent asks to do", Action::Approve),
    spec("deny", &[], "[number]", "refuse what the agent asks to do", Action::Deny),
    spec("title", &[], "[name]", "name this conversation, or see its name", Action::Title),
    spec("sessions", &[], "", "your conversations in this chat", Action::Sessions),
    spec("resume", &[], "<id, name or number>", "go back to an earlier conversation", Action::Resume),
    spec(
        "compress",
        &["compact"],
        "[focus, here [number] or --preview]",
        "sum up what was said, to make room",
        Action::Compress,
    ),
    spec("retry", &[], "", "answer my last message again", Action::Retry),
    spec("undo", &[], "[number]", "forget the last exchange, or so many", Action::Undo),
    spec("usage", &[], "", "tokens and cost of this conversation and of today", Action::Usage),
    spec("model", &[], "[name or --reset]", "see or change the model of this conversation", Action::Model),
    spec("memory", &[], "", "what I keep in mind, of my work and of you", Action::Memory),
    spec("skills", &[], "[name]", "what I have learned to do, or one of it", Action::Skills),
    spec("agents", &[], "", "which agents there are", Action::Agents),
    spec("queue", &["q"], "<text>", "a message for after the running answer", Action::Queue),
    spec("steer", &[], "<text>", "a message for the running answer to take in", Action::Steer),
    spec("background", &["bg", "btw"], "<text>", "a message beside this conversation", Action::Background),
    spec("sethome", &[], "", "make this chat the home of this bot", Action::SetHome),
    spec("start", &[], "", "", Action::Start),
];

/// A message that is a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given<'a> {
    /// One of the table, and what follows its name, trimmed.
    Known(&'static Spec, &'a str),
    /// Written like a command, with this name; there is none of it.
    Unknown(&'a str),
}

impl Given<'_> {
    /// Whether it gives the agent something to do.
    pub fn adds_work(&self) -> bool {
        let actions = [Action::Retry, Action::Queue, Action::Steer, Action::Background];
        matches!(self, Self::Known(spec, _) if actions.contains(&spec.action))
    }
}

/// The longest name that is taken for a command's, in characters.
const MAX_NAME: usize = 64;

/// The command that a message is, if it is one: `/name` in any case, alone or before white space and arguments; `-` and `_` in a
/// name are the same. On Telegram also `/name@bot`, which clients add in groups (whose bot it is the platform has decided by
/// delivering it).
pub fn read<'a>(text: &'a str, platform: &str) -> Option<Given<'a>> {
    let rest = text.trim().strip_prefix('/')?;
    let (word, arguments) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let name = match word.split_once('@') {
        Some((name, bot)) if platform == "telegram" && is_bot_name(bot) => name,
        Some(_) => return None,
        None => word,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.len() > MAX_NAME || !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(plain) {
        return None;
    }
    Some(find(name).map_or(Given::Unknown(name), |spec| Given::Known(spec, arguments.trim())))
}

/// The command of this name or alias, in any case.
pub fn find(name: &str) -> Option<&'static Spec> {
    TABLE.iter().find(|spec| is_name(spec.name, name) || spec.aliases.iter().any(|alias| is_name(alias, name)))
}

/// Which of some sessions (id as people see it, title), listed in this order, `which` names: its number from 1, its id, or its title in
/// any case; of several with one title the first.
pub fn pick<'a>(which: &str, sessions: impl IntoIterator<Item = (String, Option<&'a str>)>) -> Option<usize> {
    let number = which.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    let title = which.to_lowercase();
    let mut titled = None;
    for (at, (id, name)) in sessions.into_iter().enumerate() {
        if number == Some(at) || id.eq_ignore_ascii_case(which) {
            return Some(at);
        }
        titled = titled.or_else(|| name.is_some_and(|name| name.to_lowercase() == title).then_some(at));
    }
    titled
}

/// Whether two names are one.
fn is_name(one: &str, other: &str) -> bool {
    let plain = |b: u8| if b == b'_' { b'-' } else { b.to_ascii_lowercase() };
    one.len() == other.len() && one.bytes().zip(other.bytes()).all(|(a, b)| plain(a) == plain(b))
}

fn is_bot_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str, platform: &str) -> Option<(Action, String)> {
        match read(text, platform) {
            Some(Given::Known(spec, arguments)) => Some((spec.action, arguments.to_owned())),
            _ => None,
        }
    }

    #[test]
    fn a_command_is_the_first_word_in_any_case() {
        for text in ["/stop", " /STOP\n", "/Stop", "/stop@hermes_bot"] {
            assert_eq!(known(text, "telegram"), Some((Action::Stop, String::new())), "{text:?}");
        }
        assert_eq!(known("/queue one\n two ", "slack"), Some((Action::Queue, "one\n two".to_owned())));
        assert_eq!(known("/BG  go", "slack"), Some((Action::Background, "go".to_owned())));
        assert_eq!(known("/Reset@hermes_bot my plan", "telegram"), Some((Action::New, "my plan".to_owned())));
    }

    #[test]
    fn what_only_looks_like_one_is_text() {
        let text =
            ["stop", "please /stop", "/", "/ stop", "//stop", "/etc/passwd is world readable", "/1", "/-x", "", "/ä"];
        for text in text.into_iter().chain(["/stop@", "/stop@a,b", "/stop.", "/a.b"]) {
            assert_eq!(read(text, "telegram"), None, "{text:?}");
        }
        assert_eq!(read("/stop@hermes_bot", "slack"), None);
        assert_eq!(read(&format!("/{}", "a".repeat(65)), "slack"), None);
    }

    #[test]
    fn other_names_are_unknown_commands() {
        for (text, name) in [("/stopp", "stopp"), ("/weather today", "weather"), ("/a_b-c", "a_b-c")] {
            assert_eq!(read(text, "slack"), Some(Given::Unknown(name)));
        }
    }

    #[test]
    fn a_session_is_picked_by_number_id_or_title() {
        let sessions =
            || [("s9".to_owned(), None), ("s4".to_owned(), Some("Äpfel")), ("s3".to_owned(), Some("s9 or 1"))];
        let picked = ["1", "3", "S4", "äPFEL", "s9 or 1", "0", "4", "s1", ""].map(|which| pick(which, sessions()));
        assert_eq!(picked, [Some(0), Some(2), Some(1), Some(1), Some(2), None, None, None, None]);
    }

    #[test]
    fn names_are_one_however_they_are_written() {
        assert!(is_name("set-home", "SET_home") && !is_name("set-home", "sethome"));
        let names = || TABLE.iter().flat_map(|spec| spec.aliases.iter().chain([&spec.name]));
        for name in names() {
            assert_eq!(names().filter(|other| is_name(name, other)).count(), 1, "{name} is there twice");
            assert!(matches!(read(&format!("/{name}"), "irc"), Some(Given::Known(..))), "{name} cannot be written");
        }
    }
}
