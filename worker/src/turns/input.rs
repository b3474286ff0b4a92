//! What a turn is given: the text, and where it brings one, a whole history.

use hermes_proto::v1::ModelRole;
use serde::Deserialize;

use crate::cron::Run;
use crate::inbox::Attachment;
use crate::model::Message;
use crate::prompt::Source;

/// The body of a turn as the control plane stores it. Unknown fields are for other readers.
#[derive(Debug, Deserialize)]
pub(super) struct Input {
    pub(super) text: String,
    /// When present: the whole history, the session's own is not used.
    #[serde(default)]
    pub(super) history: Option<Vec<HistoryMessage>>,
    #[serde(default)]
    pub(super) attachments: Vec<Attachment>,
    #[serde(default)]
    pub(super) source: Option<Source>,
    /// When present: the turn sums up its session's history instead of answering.
    #[serde(default)]
    pub(super) compress: Option<Compress>,
    /// When present: the turn is a run of a scheduled job, and `text` its prompt.
    #[serde(default)]
    pub(super) cron: Option<Run>,
    /// The turn merges those of these skills that overlap.
    #[serde(default)]
    pub(super) consolidates: Vec<String>,
}

/// How the history is to be summed up.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Compress {
    /// What to dwell on.
    pub(super) focus: String,
    /// How many of the newest turns stay as they are.
    pub(super) keep: Option<usize>,
    /// Only say what it would come to.
    pub(super) preview: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct HistoryMessage {
    role: Role,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    User,
    Assistant,
}

/// The history that came with the input, cut to the budget in whole exchanges from the old end, and its system text.
pub(super) fn given_history(history: &[HistoryMessage], budget: usize) -> (Vec<Message>, String) {
    let system: Vec<&str> =
        history.iter().filter(|message| message.role == Role::System).map(|message| message.text.as_str()).collect();
    let mut kept = Vec::new();
    let mut left = budget;
    let mut exchange_start = 0;
    for message in history.iter().rev().filter(|message| message.role != Role::System) {
        let Some(rest) = left.checked_sub(message.text.len()) else {
            break;
        };
        left = rest;
        let role = if message.role == Role::User { ModelRole::User } else { ModelRole::Assistant };
        kept.push(Message::new(role, message.text.as_str()));
        if message.role == Role::User {
            exchange_start = kept.len();
        }
    }
    let complete = kept.len() == history.len() - system.len();
    if !complete {
        kept.truncate(exchange_start);
    }
    kept.reverse();
    (kept, system.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(role: Role, text: &str) -> HistoryMessage {
        HistoryMessage { role, text: text.to_owned() }
    }

    #[test]
    fn given_history_is_cut_in_whole_exchanges() {
        let history = [
            said(Role::System, "sys"),
            said(Role::User, "u1"),
            said(Role::Assistant, "a1"),
            said(Role::User, "u2"),
            said(Role::Assistant, "a2"),
        ];
        let texts = |budget| {
            let (kept, system) = given_history(&history, budget);
            assert_eq!(system, "sys");
            kept.iter().map(|message| message.text.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(texts(8), ["u1", "a1", "u2", "a2"]);
        assert_eq!(texts(7), ["u2", "a2"]);
        assert_eq!(texts(4), ["u2", "a2"]);
        assert_eq!(texts(3), Vec::<String>::new());
        assert_eq!(given_history(&[said(Role::Assistant, "hello")], 5).0.len(), 1);
    }
}
