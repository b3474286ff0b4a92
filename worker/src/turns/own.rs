//! What a turn does for its model by itself: it asks the user, or works on a part of the task in a conversation apart.
//!
//! Called by `steps` with calls of these tools. Always true: a question ends the turn, so that nothing is held while somebody thinks, and the
//! answer is the next message; a delegated task has its own conversation and its own bound of model calls, takes steps of the same turn, so that it
//! is journaled and found again like all of it, and cannot ask, delegate, remember or write to anybody. Neither acts on anything itself.

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_proto::v1::{ModelRole, ToolCall as Asked};
use serde::Deserialize;

use super::flow::Course;
use super::orders::Halt;
use super::reply::Reply;
use crate::model::Message;
use crate::tools::{Effect, ToolSpec};

/// Model calls of a delegated task, at most.
const MAX_TASK_CALLS: u32 = 30;
/// Longest question, in characters.
const MAX_QUESTION_CHARS: usize = 2_000;
/// Most answers to choose from, and the longest, in characters.
const MAX_CHOICES: usize = 6;
const MAX_CHOICE_CHARS: usize = 200;
/// Longest result of a delegated task, bytes.
const MAX_RESULT_BYTES: usize = 60 << 10;
/// What a delegated task may not use.
const NOT_IN_TASKS: &[&str] = &["clarify", "delegate_task", "ask_agent", "send_message", "memory", "cronjob"];

const TASK_PROMPT: &str = "You work on one task, apart from the conversation that it came from, and cannot ask anybody. Use your tools. When you \
    are done, answer with what you did, what you found and where it is, briefly and completely: your answer is all that is seen of your work.";

/// One of these tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// Asks the user.
    Clarify,
    /// Works on a task apart.
    Delegate,
}

impl Own {
    /// The tool of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "clarify" => Some(Self::Clarify),
            "delegate_task" => Some(Self::Delegate),
            _ => None,
        }
    }
}

/// The tools, as they are offered.
pub(super) fn specs() -> &'static [ToolSpec] {
    static SPECS: LazyLock<[ToolSpec; 2]> = LazyLock::new(|| {
        let spec = |name: &str, toolset: &str, description: &str, parameters: &str| ToolSpec {
            name: name.to_owned(),
            description: description.to_owned(),
            parameters: parameters.to_owned(),
            toolset: toolset.to_owned(),
            effect: Effect::Pure,
            time_limit: Duration::from_secs(3600),
            max_output: MAX_RESULT_BYTES,
        };
        [
            spec(
                "clarify",
                "clarify",
                "Ask the user something that you cannot go on without. It ends your turn: their next message is the answer. Give choices where \
                 there are a few. Do not ask what you can find out or decide yourself.",
                r#"{"type":"object","properties":{"question":{"type":"string"},"choices":{"type":"array","items":{"type":"string"},"maxItems":6}},"required":["question"]}"#,
            ),
            spec(
                "delegate_task",
                "delegation",
                "Have a part of the work done in a conversation of its own, so that its details do not fill yours: a search through many \
                 files, say. It knows nothing but what you write, uses your tools but those for people and memory, and you are told its result.",
                r#"{"type":"object","properties":{"goal":{"type":"string","description":"What is to be done or found out, complete."},"context":{"type":"string","description":"What has to be known for it: paths, facts, constraints."}},"required":["goal"]}"#,
            ),
        ]
    });
    &*SPECS
}

#[derive(Deserialize)]
struct ClarifyArguments {
    #[serde(default)]
    question: String,
    #[serde(default)]
    choices: Vec<String>,
}

/// What the user is asked; else what is wrong with the call, for the model.
fn question(arguments: &str) -> Result<String, String> {
    let ClarifyArguments { question, choices } = read(arguments)?;
    let question = question.trim();
    if question.is_empty() || question.chars().count() > MAX_QUESTION_CHARS {
        return Err(format!("Error: write a question of at most {MAX_QUESTION_CHARS} characters."));
    }
    if choices.len() > MAX_CHOICES || choices.iter().any(|choice| choice.chars().count() > MAX_CHOICE_CHARS) {
        return Err(format!("Error: give at most {MAX_CHOICES} choices of at most {MAX_CHOICE_CHARS} characters."));
    }
    let mut asked = question.to_owned();
    for (number, choice) in choices.iter().map(|choice| choice.trim()).filter(|choice| !choice.is_empty()).enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(asked, "\n{}. {choice}", number + 1);
    }
    Ok(asked)
}

#[derive(Deserialize)]
struct Task {
    #[serde(default)]
    goal: String,
    #[serde(default)]
    context: String,
}

fn read<'a, T: Deserialize<'a>>(arguments: &'a str) -> Result<T, String> {
    serde_json::from_str(arguments).map_err(|error| format!("Error: the arguments do not fit: {error}"))
}

impl Course {
    /// Puts the question that ends the turn; the text for the model.
    pub(super) fn clarified(&mut self, call: &Asked) -> String {
        match question(&call.arguments) {
            Ok(question) => {
                self.question = Some(question);
                "The user was asked; the next message answers.".to_owned()
            }
            Err(sentence) => sentence,
        }
    }

    /// Works on a delegated task to its end; the text for the model. What an earlier attempt came to is read as the steps of the turn are.
    pub(super) async fn delegated(&mut self, call: &Asked) -> Result<String, Halt> {
        let Task { goal, context } = match read(&call.arguments) {
            Ok(task) => task,
            Err(sentence) => return Ok(sentence),
        };
        if goal.trim().is_empty() {
            return Ok("Error: say in goal what is to be done.".to_owned());
        }
        let told =
            if context.trim().is_empty() { goal } else { format!("{goal}\n\nWhat you have to know:\n{context}") };
        let apart = vec![Message::new(ModelRole::System, TASK_PROMPT), Message::new(ModelRole::User, told)];
        let messages = std::mem::replace(&mut self.messages, apart);
        let without = self.tools.without(NOT_IN_TASKS);
        let tools = std::mem::replace(&mut self.tools, without);
        let reply = std::mem::replace(&mut self.reply, Reply::aside(self.turn, self.connection.clone()));
        tracing::debug!(step = self.step, "a task is worked on apart");
        let ended = self.task().await;
        self.messages = messages;
        self.tools = tools;
        let said = std::mem::replace(&mut self.reply, reply).so_far();
        let mut text = match ended {
            Ok(Some(result)) if result.trim().is_empty() => "The task ended without a word.".to_owned(),
            Ok(Some(result)) => result,
            Ok(None) => format!("Error: the task was not done within {MAX_TASK_CALLS} model calls. Last said: {said}"),
            Err(Halt::Failed(sentence)) => format!("Error: the task ended early: {sentence}"),
            Err(halt) => return Err(halt),
        };
        text.truncate(text.floor_char_boundary(MAX_RESULT_BYTES));
        Ok(text)
    }

    /// Boxed, for the steps of a task are steps, too.
    fn task(&mut self) -> BoxFuture<'_, Result<Option<String>, Halt>> {
        Box::pin(self.converse(MAX_TASK_CALLS, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_has_its_choices_in_lines() {
        assert_eq!(
            question(r#"{"question":" Which? ","choices":["a"," ","b "]}"#),
            Ok("Which?\n1. a\n2. b".to_owned())
        );
        assert_eq!(question(r#"{"question":"Sure?"}"#), Ok("Sure?".to_owned()));
        for wrong in [r#"{"question":" "}"#, "{", "[]", r#"{"question":"q","choices":["1","2","3","4","5","6","7"]}"#] {
            assert!(question(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tools_have_schemas_and_names() {
        for spec in specs() {
            assert!(Own::named(&spec.name).is_some());
            assert!(serde_json::from_str::<serde_json::Value>(&spec.parameters).is_ok());
        }
    }
}
