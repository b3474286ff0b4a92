//! A turn: one input and its answer. What intake stores, what the worker is given, and how a turn can end.

use serde::{Deserialize, Serialize};

use crate::attachment::Attachment;

/// Who said a message of a history that came with the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the caller.
    System,
    /// The human side.
    User,
    /// The agent's side.
    Assistant,
}

/// One message of a history that came with the input (stateless API calls).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryMessage {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub text: String,
}

/// The body of a turn, stored as JSON bytes and handed to the worker as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnInput {
    /// What the user said; in a shared session it already carries the `[name] ` prefix.
    pub text: String,
    /// Messages before `text`. When present they are the whole history and the session's own transcript is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<HistoryMessage>>,
    /// What the agent may know of where this came from; absent for plain API calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<crate::Source>,
    /// The turn shortens its session's history instead of answering; then `text` is the command that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress: Option<Compress>,
    /// Files that came with it; `text` says where they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// Where an agent asks: whose message began it all, and who pays as a user. Not for the agent that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behalf: Option<crate::Source>,
    /// The turn is a run of a scheduled job; then `text` is the job's prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<CronInput>,
    /// The turn merges those of these skills of the agent that overlap; then `text` is for people, and for workers that do not know this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consolidates: Vec<String>,
}

/// What a turn is about that nobody asked for in a conversation: nobody is there meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// It is a run of a scheduled job.
    Job,
    /// It merges skills of the agent that overlap.
    Skills,
}

/// What a run of a scheduled job has beside its prompt. The worker makes the model's message of it: `before`, then what the script printed,
/// then the skills' texts, then the prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronInput {
    /// The job's id, 12 hexadecimal digits.
    pub job: String,
    /// Its name.
    pub name: String,
    /// The slot that it runs for, RFC 3339.
    pub slot: String,
    /// What stands before everything else: what such a run is, and what the jobs that it builds upon came to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub before: String,
    /// A file of the home's `scripts/`, run before the model is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// The script is all there is: what it prints is the answer, and no model is asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_agent: bool,
    /// Names of skills whose texts the model is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skills: Vec<String>,
    /// Where the script and the commands of the run begin, below `workspace/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
}

/// How a session's history is to be compressed: its older turns are summed up in a text that stands for them from then on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compress {
    /// What the summary is to dwell on; empty: nothing in particular.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub focus: String,
    /// How many of the newest turns stay as they are; absent: as many as the worker finds right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// Only says what it would come to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preview: bool,
}

/// Longest focus of a compression, in characters.
const MAX_FOCUS_CHARS: usize = 500;
/// Most turns that somebody may want to keep.
const MAX_KEPT: u32 = 1000;

impl Compress {
    /// Reads what stands behind the command: nothing, `--preview`, `here [turns to keep]`, or what to dwell on.
    ///
    /// # Errors
    /// What to write instead, for people.
    pub fn parse(arguments: &str) -> Result<Self, String> {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        match words.as_slice() {
            ["--preview"] => Ok(Self { preview: true, ..Self::default() }),
            [here] if here.eq_ignore_ascii_case("here") => Ok(Self { keep: Some(0), ..Self::default() }),
            [here, number] if here.eq_ignore_ascii_case("here") && number.bytes().all(|byte| byte.is_ascii_digit()) => {
                let keep = number.parse().ok().filter(|keep| *keep <= MAX_KEPT);
                let wrong =
                    || format!("Say how many exchanges to keep as they are, at most {MAX_KEPT}: /compress here 2");
                Ok(Self { keep: Some(keep.ok_or_else(wrong)?), ..Self::default() })
            }
            [flag, ..] if flag.starts_with("--") => {
                Err(format!("There is no {flag}. /compress [focus], /compress here [number] or /compress --preview"))
            }
            words => {
                let focus = words.join(" ");
                if focus.chars().count() > MAX_FOCUS_CHARS {
                    return Err(format!(
                        "Say in at most {MAX_FOCUS_CHARS} characters what the summary is to dwell on."
                    ));
                }
                Ok(Self { focus, ..Self::default() })
            }
        }
    }
}

/// How a stored input begins to say that it is an errand; in a text the quotes are escaped.
const CRON: &[u8] = b"\"cron\":";
const CONSOLIDATES: &[u8] = b"\"consolidates\":";

/// What of a stored input says that it is an errand.
#[derive(Deserialize)]
struct OfErrand {
    #[serde(default)]
    cron: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    consolidates: Vec<serde::de::IgnoredAny>,
}

impl TurnInput {
    /// What a stored input is about that nobody asked for in a conversation. Of others hardly more than the bytes are looked at.
    pub fn errand(stored: &[u8]) -> Option<Errand> {
        let holds = |key: &[u8]| stored.windows(key.len()).any(|part| part == key);
        if !holds(CRON) && !holds(CONSOLIDATES) {
            return None;
        }
        let OfErrand { cron, consolidates } = serde_json::from_slice(stored).ok()?;
        cron.map(|_| Errand::Job).or((!consolidates.is_empty()).then_some(Errand::Skills))
    }

    /// Several inputs as one: the first, with the texts and files of the others behind its own.
    pub fn joined(all: impl IntoIterator<Item = Self>) -> Option<Self> {
        all.into_iter().reduce(|mut one, next| {
            one.text.push_str("\n\n");
            one.text.push_str(&next.text);
            one.attachments.extend(next.attachments);
            one
        })
    }
}

/// How a turn stands. The first two follow from its session; the others are recorded when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TurnState {
    /// Accepted, not begun.
    Queued,
    /// A worker has it.
    Running,
    /// Answered.
    Succeeded,
    /// The agent or its model failed; the reply says so.
    Failed,
    /// Cancelled, with a notice.
    Cancelled,
    /// Given up after repeated crashes; the chat was told.
    Dead,
}

impl TurnState {
    /// Whether the turn has ended.
    pub fn is_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The stable name that surfaces show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Dead => "dead",
        }
    }
}

/// What a turn's model calls used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read, cached ones included.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Tokens read from the provider's cache.
    pub cached_tokens: u64,
    /// US dollars, where known.
    pub cost_usd: Option<f64>,
    /// The model that answered, as configured.
    pub model: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_compress_is_read_or_refused() {
        let read = |text| Compress::parse(text).map(|read| (read.focus, read.keep, read.preview));
        assert_eq!(read(" "), Ok((String::new(), None, false)));
        assert_eq!(read("--preview"), Ok((String::new(), None, true)));
        assert_eq!(read("Here"), Ok((String::new(), Some(0), false)));
        assert_eq!(read("here  12"), Ok((String::new(), Some(12), false)));
        assert_eq!(read("the\nplan here"), Ok(("the plan here".to_owned(), None, false)));
        assert_eq!(read("here and now"), Ok(("here and now".to_owned(), None, false)));
        for wrong in ["here 1001", "here 99999999999", "--force", &"x".repeat(501)] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_is_an_errand_is_taken_for_one() {
        let stored = |input: &TurnInput| serde_json::to_vec(input).expect("JSON");
        let text = r#"{"cron":{}} and "cron": and "consolidates":["a"]"#.to_owned();
        let said = TurnInput { text, ..TurnInput::default() };
        assert_eq!(TurnInput::errand(&stored(&said)), None);
        let merge = TurnInput { consolidates: vec!["a".to_owned()], ..said.clone() };
        assert_eq!(TurnInput::errand(&stored(&merge)), Some(Errand::Skills));
        let run = TurnInput { cron: Some(CronInput::default()), ..said };
        assert_eq!(TurnInput::errand(&stored(&run)), Some(Errand::Job));
        for other in [
            r#"{"text":"x","cron":null}"#,
            r#"{"text":"x","source":{"cron":1,"consolidates":["a"]}}"#,
            r#"{"text":"x","consolidates":[]}"#,
            r#""cron":"#,
        ] {
            assert_eq!(TurnInput::errand(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn an_input_without_compression_is_stored_as_before() {
        let input = TurnInput { text: "hi".to_owned(), ..TurnInput::default() };
        assert_eq!(serde_json::to_string(&input).expect("JSON"), r#"{"text":"hi"}"#);
        let input = TurnInput { compress: Some(Compress::default()), ..input };
        assert_eq!(serde_json::to_string(&input).expect("JSON"), r#"{"text":"hi","compress":{}}"#);
    }
}
