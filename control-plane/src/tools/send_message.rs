//! `send_message`: a text to a chat, beside the reply of the turn.
//!
//! Which chats an agent may write to decides the store (`store::reach`): the one that the turn came from, those that people made its
//! home, and those that have written to this agent; nobody else hears of it, whatever a model wants. Always true: a text is on
//! its way exactly when its call is journaled, once; a turn sends a bounded number of bounded texts. It deliberately does not know
//! whether a text arrived: that takes as long as the platform wants, and ends as any delivery does.

use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_core::target::Target;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Plan, Spec, Tool};
use crate::outbox::by_id;
use crate::store::{self, CallEffect, CallScope, LaneKey, ReachedChat};

/// The tool.
pub(super) struct SendMessage;

const DESCRIPTION: &str = "Send a message to a chat, beside your answer: to another chat that knows you, or an interim word to \
    this one. Your answer itself is delivered without this tool. A file of your workspace goes along where you write MEDIA:path in the \
    message, or in your answer; the user sees the file instead. Target: 'origin' (this chat), a platform such as 'telegram' (your home \
    chat there), or platform:chat_id or platform:chat_id:thread_id. Only chats that have written to you, and your home chats, can be \
    reached; action 'list' says which.";

const PARAMETERS: &str = r#"{"type":"object","properties":{
"action":{"type":"string","enum":["send","list"],"description":"Default: send."},
"target":{"type":"string","description":"Where to, for send. Default: origin."},
"message":{"type":"string","description":"The text, for send."}}}"#;

/// Longest text, characters.
const MAX_MESSAGE: usize = 16_000;
/// Longest target, bytes.
const MAX_TARGET: usize = 1024;
/// Most texts of one turn.
const MAX_SENT: u32 = 20;
/// Chats in a list.
const LISTED: i64 = 50;
/// Chats that a refusal names.
const NAMED: i64 = 8;
/// Under which the session keeps how many its turn has sent.
const NOTE: &str = "send_message";

impl Tool for SendMessage {
    fn spec(&self) -> Spec {
        Spec {
            name: "send_message",
            description: DESCRIPTION,
            parameters: PARAMETERS,
            toolset: "messaging",
            time_limit: Duration::from_secs(30),
            max_output: 32 << 10,
        }
    }

    fn plan(&self, arguments: Map<String, Value>) -> Result<Plan, String> {
        wish(arguments).map(|wish| Plan::Effect(Box::new(wish) as Box<dyn CallEffect>))
    }
}

#[derive(Deserialize)]
struct Arguments {
    action: Option<String>,
    target: Option<String>,
    message: Option<String>,
}

/// A judged call.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    List,
    Send { target: Target, message: String },
}

fn wish(arguments: Map<String, Value>) -> Result<Wish, String> {
    let Arguments { action, target, message } = serde_json::from_value(Value::Object(arguments))
        .map_err(|error| format!("Error: the arguments do not fit: {error}"))?;
    match action.as_deref() {
        Some("list") => return Ok(Wish::List),
        None | Some("send") => {}
        Some(other) => return Err(format!("Error: there is no action {}. Use send or list.", other.escape_debug())),
    }
    let message = message.unwrap_or_default().replace('\0', "\u{fffd}");
    if message.trim().is_empty() {
        return Err("Error: say the text in message.".to_owned());
    }
    if message.chars().count() > MAX_MESSAGE {
        return Err(format!("Error: a message has at most {MAX_MESSAGE} characters. Send less, or in parts."));
    }
    let target = target.unwrap_or_else(|| "origin".to_owned());
    if target.len() > MAX_TARGET || target.chars().any(char::is_control) {
        return Err(format!("Error: a target is one line of at most {MAX_TARGET} bytes."));
    }
    Ok(Wish::Send { target: Target::parse(&target, |_| true), message })
}

/// What ids and threads a target may mean, likelier ones first: an id may itself hold colons.
fn readings(chat_id: &str, thread_id: Option<&str>) -> Vec<(String, String)> {
    let Some(thread) = thread_id else { return vec![(chat_id.to_owned(), String::new())] };
    let whole = format!("{chat_id}:{thread}");
    let mut all: Vec<_> = whole
        .match_indices(':')
        .filter(|(at, _)| *at >= chat_id.len())
        .filter_map(|(at, _)| Some((whole.get(..at)?.to_owned(), whole.get(at + 1..)?.to_owned())))
        .collect();
    all.push((whole, String::new()));
    all
}

/// How many the session's turn has sent.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Sent {
    turn: i64,
    count: u32,
}

/// A chat as a target.
pub(super) fn written(key: &LaneKey) -> String {
    let thread_id = Some(key.thread_id.clone()).filter(|thread| !thread.is_empty());
    Target::Chat { platform: key.platform.clone(), chat_id: key.chat_id.clone(), thread_id }.to_string()
}

fn listed(chats: &[ReachedChat]) -> String {
    let one = |chat: &ReachedChat| {
        let mut shown = json!({"target": written(&chat.key), "account": chat.key.account});
        for (name, holds) in [("origin", chat.origin), ("home", chat.home)] {
            if holds {
                shown[name] = true.into();
            }
        }
        shown
    };
    json!({"success": true, "targets": chats.iter().map(one).collect::<Vec<_>>()}).to_string()
}

fn refused(error: &str) -> String {
    json!({"success": false, "error": error}).to_string()
}

/// What a target that leads nowhere is answered, with some that lead somewhere.
fn unreached(target: &Target, reached: &[ReachedChat]) -> String {
    let error = match target {
        Target::Origin => "This turn came from no chat. Name a target.".to_owned(),
        Target::Home { platform } => {
            format!(
                "You have no home chat on {platform}. Somebody makes a chat your home by writing /sethome in it, or names it in the configuration, under homes of an account."
            )
        }
        Target::Local | Target::Chat { .. } => format!(
            "You may not write to {target}: only to this chat, your home chats, and chats that have written to you."
        ),
    };
    let targets: Vec<String> = reached.iter().map(|chat| written(&chat.key)).collect();
    json!({"success": false, "error": error, "targets": targets}).to_string()
}

impl Wish {
    async fn run(&self, scope: &mut CallScope<'_>) -> store::Result<String> {
        let (target, message) = match self {
            Self::List => return Ok(listed(&scope.chats(LISTED).await?)),
            Self::Send { target, message } => (target, message),
        };
        let chat = match target {
            Target::Origin => scope.origin().await?,
            Target::Home { platform } => scope.home(platform).await?,
            Target::Chat { platform, chat_id, thread_id } => {
                scope.chat(platform, &readings(chat_id, thread_id.as_deref())).await?
            }
            Target::Local => None,
        };
        let Some(chat) = chat else { return Ok(unreached(target, &scope.chats(NAMED).await?)) };
        let turn = scope.caller().turn.seq;
        let before = scope.note(NOTE).await?.and_then(|body| serde_json::from_slice::<Sent>(&body).ok());
        let count = before.filter(|sent| sent.turn == turn).map_or(0, |sent| sent.count);
        if count >= MAX_SENT {
            return Ok(refused(&format!(
                "This turn has sent {MAX_SENT} messages, and more are not allowed. Say the rest in your answer."
            )));
        }
        let turn_id = scope.caller().turn;
        scope.send(&chat, &by_id(turn_id, message)).await?;
        scope.set_note(NOTE, &serde_json::to_vec(&Sent { turn, count: count + 1 }).unwrap_or_default()).await?;
        Ok(json!({"success": true, "target": written(&chat.key), "state": "on its way"}).to_string())
    }
}

impl CallEffect for Wish {
    fn run<'a>(&'a self, scope: &'a mut CallScope<'_>) -> BoxFuture<'a, store::Result<String>> {
        Box::pin(self.run(scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(arguments: Value) -> Result<Wish, String> {
        wish(arguments.as_object().unwrap().clone())
    }

    #[test]
    fn a_call_is_judged_before_anything_is_sent() {
        assert_eq!(judged(json!({"action": "list", "target": 7.to_string()})), Ok(Wish::List));
        let sent = Wish::Send { target: Target::Origin, message: "a\u{fffd}b".to_owned() };
        assert_eq!(judged(json!({"message": "a\0b"})), Ok(sent));
        for wrong in [
            json!({}),
            json!({"message": " \n"}),
            json!({"message": 7}),
            json!({"action": "shout", "message": "x"}),
            json!({"target": "telegram:1\u{0}", "message": "x"}),
            json!({"target": "x".repeat(MAX_TARGET + 1), "message": "x"}),
            json!({"message": "x".repeat(MAX_MESSAGE + 1)}),
        ] {
            assert!(judged(wrong.clone()).is_err_and(|sentence| sentence.starts_with("Error: ")), "{wrong}");
        }
    }

    #[test]
    fn an_id_with_colons_is_found_too() {
        let texts = |chat, thread| {
            readings(chat, thread).into_iter().map(|(id, thread)| format!("{id}|{thread}")).collect::<Vec<_>>()
        };
        assert_eq!(texts("1", None), ["1|"]);
        assert_eq!(
            texts("!Room", Some("example.org:$t")),
            ["!Room|example.org:$t", "!Room:example.org|$t", "!Room:example.org:$t|"]
        );
    }
}
