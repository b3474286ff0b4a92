//! Slash commands of chats: what one does, and what is said about it.
//!
//! Called by [`super::Intake`] for a message that is a command. It owns nothing. Always true: who may not give a command gets one
//! sentence and no effect; what a command does and what its chat is told are one commit (`store::commands`). A command is added as a row
//! of the table in `hermes_core::command`, an arm of [`order`], and, where it does something new, an [`Effect`] with its answer.

use std::sync::Arc;

use hermes_core::Source;
use hermes_core::approvals::{self, Verdict};
use hermes_core::busy::{BusyMode, BusyPolicy};
use hermes_core::command::{self, Access, AccessLists, Action, Given, Spec};
use hermes_core::config::{Resolved, check_spec, resolve_model, unserved_message, with_own_model};
use hermes_core::turn::Compress;
use jiff::Zoned;

use super::{answers, keepings};
use crate::registry::{AgentEntry, Snapshot};
use crate::store::{Again, Answer, ApprovalAnswer, Effect, Outcome};

/// Most turns that one command leaves out of the history.
const MOST_UNDONE: i64 = 1000;
/// Longest title, in characters.
const MAX_TITLE: usize = 80;
/// Sessions in a list.
pub(super) const LISTED: i64 = 20;

/// What is said about an outcome, decided before it is known.
pub(super) type Telling = Box<dyn Fn(&Outcome) -> Answer + Send + Sync>;

/// What a command comes to at intake.
pub(super) enum Order {
    /// A turn with this text.
    Turn {
        text: String,
        policy: BusyPolicy,
        /// In a session of its own.
        aside: bool,
        /// It changes its session's history instead of answering.
        compress: Option<Compress>,
    },
    /// An effect in the session, and what is said about it.
    Effect(Effect, Telling),
}

/// Who gave a command, and where.
pub(super) struct Giver<'a> {
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) agent: &'a Arc<AgentEntry>,
    pub(super) source: &'a Source,
    pub(super) session_key: &'a str,
    /// In the document's zone.
    pub(super) now: &'a Zoned,
    /// As questions name whom they ask; `None`: the platform does not say who it is.
    pub(super) asker: Option<String>,
    /// For a turn that is accepted again.
    pub(super) again: Again,
}

impl Giver<'_> {
    fn lists(&self) -> AccessLists {
        let account = self.source.account.as_deref().unwrap_or_default();
        self.snapshot.document.platforms.access(&self.source.platform, account).cloned().unwrap_or_default()
    }
}

/// What a command comes to.
pub(super) fn order(given: Given<'_>, giver: Giver<'_>) -> Order {
    let (spec, arguments) = match given {
        Given::Known(spec, arguments) => (spec, arguments),
        Given::Unknown(name) => return said(command::unknown(name)),
    };
    let lists = giver.lists();
    let (chat_type, user) = (giver.source.chat_type.as_str(), giver.source.user_id.as_deref());
    let access = Access::decide(chat_type, user, spec.name, &lists);
    let may = |spec: &Spec| Access::may(chat_type, user, spec, &lists);
    let turn = |mode, notice, aside| {
        if arguments.is_empty() {
            return said(format!("Write the message behind the command: {}", spec.usage()));
        }
        Order::Turn { text: arguments.to_owned(), policy: BusyPolicy { mode, notice }, aside, compress: None }
    };
    if spec.action == Action::Start {
        return Order::Effect(Effect::Nothing, Box::new(|_| Answer::default()));
    }
    if !access.allowed {
        return said(format!("You may not use /{} here. /help says what you may.", spec.name));
    }
    if giver.agent.spec.acp().is_some()
        && let Some(sentence) = by_itself(spec.action)
    {
        return said(sentence.to_owned());
    }
    match spec.action {
        Action::Start => said(String::new()),
        Action::Help => said(command::help(may)),
        Action::Commands => said(command::page(arguments, may)),
        Action::WhoAmI => said(answers::whoami(giver.source, access, may)),
        Action::Agents => said(answers::agents(giver.snapshot, giver.agent)),
        Action::Stop => effect(Effect::Stop, |outcome| match outcome {
            Outcome::Stopped(stopped) => answers::stopped(*stopped),
            _ => Answer::default(),
        }),
        Action::Approve => match approvals::approve(arguments) {
            Ok(given) => answer(given, access, &giver),
            Err(sentence) => said(sentence),
        },
        Action::Deny => answer(approvals::deny(arguments), access, &giver),
        Action::Status => {
            let model = giver.snapshot.model_of(&giver.agent.spec).to_owned();
            let (agent, key) = (giver.agent.id.clone(), giver.session_key.to_owned());
            effect(Effect::Look, move |outcome| told(answers::status(outcome, &agent, &key, &model)))
        }
        Action::New => effect(Effect::Renew(title_of(arguments)), |outcome| told(answers::renewed(outcome))),
        Action::Title => match title_of(arguments) {
            None => effect(Effect::Look, |outcome| told(answers::title(outcome))),
            Some(title) => effect(Effect::Title(title), |outcome| told(answers::title(outcome))),
        },
        Action::Sessions => {
            let now = giver.now.clone();
            effect(Effect::List(LISTED), move |outcome| told(answers::sessions(outcome, &now)))
        }
        Action::Resume if arguments.is_empty() => said(format!("Say which: {}. /sessions lists them.", spec.usage())),
        Action::Resume => effect(Effect::Resume(arguments.to_owned()), |outcome| told(answers::resumed(outcome))),
        Action::Compress => match Compress::parse(arguments) {
            Ok(compress) => Order::Turn {
                text: format!("/{} {arguments}", spec.name).trim_end().to_owned(),
                policy: BusyPolicy { mode: BusyMode::Queue, notice: true },
                aside: false,
                compress: Some(compress),
            },
            Err(sentence) => said(sentence),
        },
        Action::Retry => effect(Effect::Retry(giver.again), |outcome| told(answers::retried(outcome))),
        Action::Undo => match (arguments.is_empty(), arguments.parse::<i64>()) {
            (true, _) => effect(Effect::Undo(1), |outcome| told(answers::undone(outcome))),
            (false, Ok(most @ 1..)) => {
                effect(Effect::Undo(most.min(MOST_UNDONE)), |outcome| told(answers::undone(outcome)))
            }
            (false, _) => said("Say how many exchanges to forget, as a number: /undo 2".to_owned()),
        },
        Action::Usage => {
            let today = giver.now.start_of_day().map_or_else(|_| giver.now.timestamp(), |day| day.timestamp());
            effect(Effect::Usage(today), |outcome| told(answers::usage(outcome)))
        }
        Action::Memory if !arguments.is_empty() => said(
            "/memory only shows what I keep in mind. Ask me to note something, to change a note or to forget it."
                .to_owned(),
        ),
        Action::Memory => effect(Effect::Notes, |outcome| told(keepings::notes(outcome))),
        Action::Skills => {
            let which = arguments.to_owned();
            effect(Effect::Skills(keepings::MOST_SKILLS), move |outcome| told(keepings::skills(outcome, &which)))
        }
        Action::Model => model(arguments, &giver),
        Action::Queue => turn(BusyMode::Queue, true, false),
        Action::Steer => turn(BusyMode::Steer, true, false),
        Action::Background => turn(BusyMode::Queue, false, true),
        Action::SetHome => {
            let source = giver.source;
            let home = Effect::Home {
                platform: source.platform.clone(),
                account: source.account.clone().unwrap_or_default(),
                by: source.user_id.clone().unwrap_or_default(),
            };
            let agent = giver.agent.id.clone();
            effect(home, move |outcome| told(answers::home(outcome, &agent)))
        }
    }
}

/// What is said of a command that a program which answers an agent's turns sees to itself.
fn by_itself(action: Action) -> Option<&'static str> {
    match action {
        Action::Compress => {
            Some("This agent is a program of its own and sums up its conversation by itself. /new begins another one.")
        }
        Action::Model => Some("This agent is a program of its own and chooses its model by itself."),
        _ => None,
    }
}

/// An answer to a question that a turn waits for. Admins are whom the account's lists name; where there are none, nobody is one.
fn answer(given: approvals::Answer, access: Access, giver: &Giver<'_>) -> Order {
    let answer = ApprovalAnswer {
        id: given.id,
        verdict: given.verdict,
        asker: giver.asker.clone(),
        admin: access.gated && access.admin,
        by: giver.asker.as_deref().unwrap_or(&giver.source.platform).trim_start_matches('\t').replace('\t', "/"),
    };
    effect(Effect::Answer(answer), move |outcome| told(answers::answered(outcome, given.verdict)))
}

/// The answer that a message which is nothing else gives to the question `id`, asked of its sender.
pub(super) fn bare(id: i64, verdict: Verdict, giver: &Giver<'_>) -> Order {
    let lists = giver.lists();
    let access = Access::decide(&giver.source.chat_type, giver.source.user_id.as_deref(), "approve", &lists);
    answer(approvals::Answer { id: Some(id), verdict }, access, giver)
}

fn model(arguments: &str, giver: &Giver<'_>) -> Order {
    let default = giver.snapshot.model_of(&giver.agent.spec).to_owned();
    let telling = move |outcome: &Outcome| told(answers::model(outcome, &default));
    if arguments.is_empty() {
        return effect(Effect::Look, telling);
    }
    if arguments == "--reset" {
        return effect(Effect::Model(None), telling);
    }
    let spec = with_own_model(&giver.snapshot.models, &giver.agent.spec, Some(arguments));
    if let Some(fault) = check_spec(&giver.agent.id, &spec).first() {
        return said(format!("That is no model: {}.", fault.message));
    }
    if resolve_model(&giver.snapshot.models, &spec) == Resolved::Unserved {
        return said(format!("I cannot use that model: {}.", unserved_message(arguments)));
    }
    effect(Effect::Model(Some(arguments.to_owned())), telling)
}

fn effect(effect: Effect, telling: impl Fn(&Outcome) -> Answer + Send + Sync + 'static) -> Order {
    Order::Effect(effect, Box::new(telling))
}

/// Only an answer.
fn said(text: String) -> Order {
    effect(Effect::Nothing, move |_| told(text.clone()))
}

fn told(text: String) -> Answer {
    Answer { text, told: true }
}

/// A title as one short line; `None`: nothing was written.
fn title_of(arguments: &str) -> Option<String> {
    let words: Vec<&str> =
        arguments.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    let title: String = words.join(" ").chars().take(MAX_TITLE).collect();
    let title = title.trim_end();
    (!title.is_empty()).then(|| title.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_one_short_line() {
        assert_eq!(title_of(" my\n\tplan \u{7}for\u{0} today "), Some("my plan for today".to_owned()));
        assert_eq!(title_of(&"ä".repeat(200)).map(|title| title.chars().count()), Some(MAX_TITLE));
        assert_eq!(title_of(" \n"), None);
    }
}
