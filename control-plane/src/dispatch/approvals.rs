//! Whether a dangerous call of a running turn may be made: asked in its chat, and waited for.
//!
//! Called by the worker's service with a call that the worker must not make unasked, and by whoever committed an answer. It owns no
//! state: what was asked and answered is in the store. Always true: the call is judged here again, so the question says what this side
//! sees in it; nothing is allowed but by an answer, an earlier grant, the configuration or, where that says so, a model's verdict, which is
//! stored with the question before it counts; a run of a scheduled job has nobody who could be asked, so what would be put to somebody is denied at
//! once, and stored as such; while a turn waits, it is not standing still.
//! It waits by a nudge where the answer came through this replica or another one rang, and looks every second all the same.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hermes_core::approvals::smart::{Opinion, Questioned};
use hermes_core::approvals::{self, Mode};
use hermes_core::turn::TurnInput;
use hermes_home::danger::{FOREIGN, Guard, Judgement, judge};
use hermes_home::sandbox::{Level, Network};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Dispatcher, Question};
use crate::doorbell::Word;
use crate::judge::{self, Case, Judge};
use crate::registry::Snapshot;
use crate::store::{self, ApprovalAsk, ApprovalAsked, ApprovalState, Judged, TurnId};

/// How long one call of the worker waits; it comes again.
const WAIT: Duration = Duration::from_secs(20);
/// How often the store is asked without a nudge.
const LOOK: Duration = Duration::from_secs(1);
/// How long a call is left to the model that judges it, beyond the time that its answer may take.
const JUDGED_WITHIN: Duration = Duration::from_secs(10);
/// Most of a call that is shown, in characters.
const MAX_SHOWN: usize = 2500;

/// A call that must not be made unasked.
#[derive(Clone, Debug)]
pub struct DangerousCall {
    /// The turn.
    pub turn: TurnId,
    /// Its fence.
    pub epoch: i64,
    /// The step that it would be.
    pub step: i32,
    /// Its id, as the model's reply has it.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The arguments, as written.
    pub arguments: String,
}

/// What may become of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Nobody has answered yet.
    Pending,
    /// It may be made.
    Allowed,
    /// It may not: somebody, or the configuration, said so; or a model, with why.
    Denied(Option<String>),
    /// It may not: nobody answered in time.
    Expired,
    /// Somebody else has the turn.
    Fenced,
    /// Another call was asked about at this step.
    OtherCall,
}

impl Dispatcher {
    /// An answer was committed: whoever waits for one looks, here and at the other replicas.
    pub fn approval_answered(&self) {
        self.inner.approvals.notify_waiters();
        self.inner.registry.bell().ring(Word::Look);
    }

    /// Whether the call may be made; asks where somebody has to say so, and waits a while for the answer. `worker` is the uuid of
    /// the worker that runs the turn, `own_model` the model that its session chose.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`]: repeat it.
    pub async fn permission(
        &self,
        worker: Uuid,
        agent_no: i32,
        own_model: Option<&str>,
        call: &DangerousCall,
        judge: &Judge,
    ) -> store::Result<Permission> {
        let Ruled { ask, review } = match self.ruled(agent_no, call).await? {
            Ruling::Fine => return Ok(Permission::Allowed),
            Ruling::Refused => return Ok(Permission::Denied(None)),
            Ruling::Ask(ruled) => *ruled,
        };
        let inner = &self.inner;
        let wait = tokio::time::sleep(WAIT);
        tokio::pin!(wait);
        loop {
            let mut answered = std::pin::pin!(inner.approvals.notified());
            answered.as_mut().enable();
            let (id, state, left, judging, why) = match inner.store.approval_ask(&ask).await? {
                ApprovalAsked::Fenced => return Ok(Permission::Fenced),
                ApprovalAsked::OtherCall => return Ok(Permission::OtherCall),
                ApprovalAsked::Stands { id, state: ApprovalState::Pending, judge: true, .. } => {
                    tracing::info!(turn = %call.turn, step = call.step, question = id, tool = call.name, "a model judges a call");
                    self.judged(own_model, call, &ask, &review, agent_no, judge).await?;
                    continue;
                }
                ApprovalAsked::Stands { id, state, asked, left, judging, why, .. } => {
                    if asked {
                        tracing::info!(turn = %call.turn, step = call.step, question = id, tool = call.name, "somebody is asked for a call");
                        inner.outbox.nudge();
                    }
                    (id, state, left, judging, why)
                }
            };
            match state {
                ApprovalState::Allowed => return Ok(Permission::Allowed),
                ApprovalState::Denied => return Ok(Permission::Denied(why)),
                ApprovalState::Expired => return Ok(Permission::Expired),
                ApprovalState::Pending => {}
            }
            if !judging {
                let text = format!("{}{id}{}", ask.text.0, ask.text.1);
                inner.live.ask(call.turn, Question { id, text, left });
            }
            if !inner.fleet.progressed(worker, call.turn, call.epoch) {
                return Ok(Permission::Fenced);
            }
            tokio::select! {
                () = &mut wait => return Ok(Permission::Pending),
                () = answered => {}
                () = tokio::time::sleep(LOOK.min(left)) => {}
            }
        }
    }

    /// Has a call judged by a model, and its verdict stored with the question.
    async fn judged(
        &self,
        own_model: Option<&str>,
        call: &DangerousCall,
        ask: &ApprovalAsk,
        review: &Review,
        agent_no: i32,
        judge: &Judge,
    ) -> store::Result<()> {
        let snapshot = &review.snapshot;
        let Some(agent) = snapshot.by_no(agent_no) else { return Ok(()) };
        let model = review.model.as_deref().or(own_model);
        let case = Case { snapshot, agent, model, turn: call.turn, epoch: call.epoch, step: call.step };
        let questioned = Questioned {
            tool: &call.name,
            arguments: &call.arguments,
            says: &ask.reason,
            boundary: review.boundary,
            request: &review.request,
        };
        let (opinion, usage) = judge.opinion(case, &questioned).await;
        if let Some(usage) = usage {
            self.inner.fleet.note_usage(call.turn, call.epoch, &usage, None);
        }
        let (judged, why) = match &opinion {
            Opinion::Approve(why) => (Judged::Allowed, why),
            Opinion::Deny(why) => (Judged::Denied, why),
            Opinion::Escalate(why) => (Judged::Open, why),
        };
        let counts = self.inner.store.approval_judged(ask, judged, why).await?;
        tracing::info!(turn = %call.turn, step = call.step, ?judged, why, counts, "a model has judged a call");
        if judged == Judged::Open {
            self.inner.outbox.nudge();
        }
        self.approval_answered();
        Ok(())
    }

    /// What the rules say of a call, and the question about it where they leave it to somebody.
    async fn ruled(&self, agent_no: i32, call: &DangerousCall) -> store::Result<Ruling> {
        let snapshot = self.inner.registry.current();
        let Some(agent) = snapshot.by_no(agent_no) else { return Ok(Ruling::Refused) };
        let approvals = snapshot.document.approvals_of(&agent.spec);
        let sandbox = snapshot.document.sandbox_of(&agent.spec);
        let guard = Guard {
            asks: approvals.mode != Mode::Off,
            contained: sandbox.level == Level::Strict && sandbox.network == Network::None,
            allow: &approvals.allow,
            deny: &approvals.deny,
        };
        let arguments: serde_json::Value = serde_json::from_str(&call.arguments).unwrap_or_default();
        let argument = |name: &str| arguments.get(name).and_then(serde_json::Value::as_str);
        let patterns = match judge(&call.name, argument, guard) {
            Judgement::Fine => return Ok(Ruling::Fine),
            Judgement::Hardline(_) | Judgement::Denied(_) => return Ok(Ruling::Refused),
            Judgement::Ask(patterns) => patterns,
        };
        let turn = self.inner.store.turn_get(call.turn).await?;
        let input = serde_json::from_slice::<TurnInput>(&turn.payload).unwrap_or_default();
        let source = input.source.unwrap_or_default();
        let says: Vec<&str> = patterns.iter().map(|pattern| pattern.says).collect();
        let keys: Vec<String> = patterns.iter().map(|pattern| pattern.key.to_owned()).collect();
        let shown = match call.name.as_str() {
            FOREIGN => shown(&foreign(&arguments)),
            _ => shown(argument("command").or_else(|| argument("data")).unwrap_or(&call.arguments)),
        };
        let timeout = Duration::from_secs(approvals.timeout_seconds);
        let text = question(&call.name, &shown, &says, timeout);
        let smart = approvals.mode == Mode::Smart;
        let ask = ApprovalAsk {
            turn: call.turn,
            epoch: call.epoch,
            step: call.step,
            hash: digest(call),
            asker: approvals::asker(&source, turn.submitter.as_deref()),
            tool: call.name.clone(),
            reason: says.join("; "),
            shown,
            patterns: keys,
            timeout,
            text,
            judge: if smart { judge::TIME + JUDGED_WITHIN } else { Duration::ZERO },
            // Nobody waits for what a job does.
            attended: input.cron.is_none() && input.consolidates.is_empty(),
        };
        let boundary = match (sandbox.level, sandbox.network) {
            (Level::Strict, Network::None) => "they see the agent's own files alone, and no network",
            (Level::Strict, Network::Open) => "they see the agent's own files alone, and reach the network",
            (Level::Home, Network::None) => "they see the agent's whole home, and no network",
            (Level::Home, Network::Open) => "they see the agent's whole home, and reach the network",
            (Level::Strict, Network::Proxy) => "they see the agent's own files alone, and reach the public web",
            (Level::Home, Network::Proxy) => "they see the agent's whole home, and reach the public web",
            (Level::Off, _) => "nothing keeps them from the machine that they run on",
        };
        let model = approvals.smart_model.clone();
        let review = Review { request: input.text, boundary, model, snapshot };
        Ok(Ruling::Ask(Box::new(Ruled { ask, review })))
    }
}

/// What the rules make of a call.
enum Ruling {
    /// It may be made.
    Fine,
    /// Nobody can allow it.
    Refused,
    /// Somebody has to allow it.
    Ask(Box<Ruled>),
}

/// A call that somebody has to allow.
struct Ruled {
    ask: ApprovalAsk,
    review: Review,
}

/// What a model that judges a call is told beside it.
struct Review {
    /// The message that led to it.
    request: String,
    boundary: &'static str,
    /// Who judges; nothing: the agent's own model.
    model: Option<String>,
    snapshot: Arc<Snapshot>,
}

/// The same for equal calls alone.
fn digest(call: &DangerousCall) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [&call.id, &call.name, &call.arguments] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// What a program that answers turns asks for: what it calls it, then all that it says of it.
fn foreign(arguments: &serde_json::Value) -> String {
    let title = arguments.get("title").and_then(serde_json::Value::as_str).unwrap_or_default();
    let kind = arguments.get("kind").and_then(serde_json::Value::as_str).unwrap_or_default();
    let mut text = format!("{title} ({kind})");
    let said = ["paths", "input", "content"].iter().filter_map(|key| arguments.get(key));
    for value in said.filter(|value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty())) {
        let _ = write!(text, "\n{value}");
    }
    text
}

/// A call without what would show as something else than it is.
fn shown(text: &str) -> String {
    let hidden = |c: char| c.is_control() && c != '\n' && c != '\t' || approvals::is_hidden(c);
    let mut chars = text.chars();
    let mut shown: String = chars.by_ref().take(MAX_SHOWN).map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect();
    let rest = chars.count();
    if rest > 0 {
        let _ = write!(shown, "\n[{rest} more characters are not shown]");
    }
    shown
}

/// What the chat reads, before and behind the number of the question.
fn question(tool: &str, shown: &str, says: &[&str], timeout: Duration) -> (String, String) {
    let time = match timeout.as_secs() {
        seconds @ 0..120 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", seconds / 60),
    };
    let behind = format!(
        ": may I do this?\n\n{tool}: {shown}\n\nI ask because {}.\n\nSay yes or no within {time}; no answer means no. /approve session \
         allows all of its kind in this conversation, /approve always in every one of yours.",
        says.join(", and ")
    );
    ("Question ".to_owned(), behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(arguments: &str) -> DangerousCall {
        let turn = TurnId { session: store::SessionId(1), seq: 1 };
        let (id, name, arguments) = ("a".to_owned(), "terminal".to_owned(), arguments.to_owned());
        DangerousCall { turn, epoch: 1, step: 1, id, name, arguments }
    }

    #[test]
    fn an_edited_call_has_another_digest() {
        assert_eq!(digest(&call("{}")), digest(&DangerousCall { epoch: 2, ..call("{}") }));
        assert_ne!(digest(&call("{}")), digest(&call("{ }")));
        assert_ne!(digest(&call("{}")), digest(&DangerousCall { name: "process".to_owned(), ..call("{}") }));
    }

    #[test]
    fn a_question_shows_what_would_be_done_and_hides_nothing() {
        assert_eq!(shown("rm\u{202e} -rf\u{0} \u{1b}[8mx\ny"), "rm\u{fffd} -rf\u{fffd} \u{fffd}[8mx\ny");
        assert!(shown(&"é".repeat(MAX_SHOWN + 7)).ends_with("é\n[7 more characters are not shown]"));
        let call =
            serde_json::json!({"title": "Tidy", "kind": "edit", "command": "ls", "paths": ["/a"], "input": {"b": 1}});
        assert_eq!(foreign(&call), "Tidy (edit)\n[\"/a\"]\n{\"b\":1}");
        let (before, behind) = question("terminal", "rm -rf x", &["it deletes x"], Duration::from_secs(300));
        let text = format!("{before}17{behind}");
        assert!(
            text.starts_with("Question 17: may I do this?\n\nterminal: rm -rf x\n\nI ask because it deletes x."),
            "{text}"
        );
        assert!(text.contains("within 5 minutes"), "{text}");
    }
}
