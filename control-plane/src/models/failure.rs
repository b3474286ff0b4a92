//! Why a model call failed: one sentence for the chat, one word for machines, one cause for the log.

use std::time::Duration;

use hermes_core::AgentId;

use super::{ProviderTarget, Settings};

/// The closed set of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// No configured provider serves the model.
    NoProvider,
    /// The key is missing or was refused.
    Auth,
    /// The provider refuses for now because of too many requests or a used up quota.
    RateLimited,
    /// The provider cannot be reached or answers 5xx.
    Unavailable,
    /// A time limit passed.
    Timeout,
    /// The provider refuses this request for good (unknown model, too long …).
    BadRequest,
    /// The answer broke off or made no sense.
    BrokenStream,
    /// A budget does not allow the call.
    OverBudget,
    /// A budget in dollars and a model whose price nobody knows.
    Unpriced,
    /// An operator has paused the agent.
    Paused,
}

impl FailureReason {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoProvider => "no_provider",
            Self::Auth => "auth",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::BadRequest => "bad_request",
            Self::BrokenStream => "broken_stream",
            Self::OverBudget => "over_budget",
            Self::Unpriced => "unpriced",
            Self::Paused => "paused",
        }
    }
}

/// A call without a complete answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelFailure {
    /// One short, honest sentence for the chat, without a full stop.
    pub message: String,
    /// For machines.
    pub reason: FailureReason,
    /// For the log: what the provider or the network said, shortened, the key masked.
    pub cause: String,
    /// Another model may be able to answer.
    pub elsewhere: bool,
}

impl ModelFailure {
    fn new(reason: FailureReason, message: String, cause: impl Into<String>) -> Self {
        let elsewhere = match reason {
            FailureReason::NoProvider
            | FailureReason::Auth
            | FailureReason::RateLimited
            | FailureReason::Unavailable
            | FailureReason::Timeout => true,
            FailureReason::BadRequest
            | FailureReason::BrokenStream
            | FailureReason::OverBudget
            | FailureReason::Unpriced
            | FailureReason::Paused => false,
        };
        Self { message, reason, cause: cause.into(), elsewhere }
    }

    /// A budget does not allow the call; `sentence` says which and until when.
    pub fn over_budget(sentence: String) -> Self {
        Self::new(FailureReason::OverBudget, sentence, "the call does not fit the budget")
    }

    /// A budget in dollars, and no price of any of the models.
    pub fn unpriced(model: &str) -> Self {
        let message = format!(
            "there is a budget in dollars and no known price of {model}; an operator can add it under prices of its provider, \
             or say unpriced: allow"
        );
        Self::new(FailureReason::Unpriced, message, "the document has no price of this model")
    }

    /// An operator has paused the agent.
    pub fn paused(agent: &AgentId) -> Self {
        let message =
            format!("an operator has paused agent {agent}; it answers again after hermesctl budget resume {agent}");
        Self::new(FailureReason::Paused, message, "the agent is paused")
    }

    /// Whether the provider may want money for the call, of which `begun` tokens were passed on.
    pub fn may_be_billed(&self, begun: bool) -> bool {
        match self.reason {
            FailureReason::Timeout | FailureReason::BrokenStream => true,
            FailureReason::Unavailable | FailureReason::RateLimited => begun,
            FailureReason::NoProvider
            | FailureReason::Auth
            | FailureReason::BadRequest
            | FailureReason::OverBudget
            | FailureReason::Unpriced
            | FailureReason::Paused => false,
        }
    }

    /// No provider serves `model`.
    pub fn no_provider(model: &str) -> Self {
        let name = match model.split_once('/') {
            Some((prefix, _)) if !prefix.is_empty() => prefix,
            _ => "<name>",
        };
        let message = format!("no provider is configured for {model}; set providers.{name} or default_provider");
        Self::new(FailureReason::NoProvider, message, "the document names no provider for this model")
    }

    pub(super) fn key_missing(provider: &str, name: &str) -> Self {
        let message = format!("the key for provider {provider} is not set ({name})");
        Self::new(FailureReason::Auth, message, format!("secret {name} is not set in the control plane"))
    }

    pub(super) fn key_malformed(provider: &str, name: &str) -> Self {
        let message = format!("the key for provider {provider} holds characters that no key has ({name})");
        Self::new(FailureReason::Auth, message, format!("secret {name} cannot be sent in an HTTP header"))
    }

    pub(super) fn no_first_token(after: Duration) -> Self {
        let message = format!("the model did not begin to answer within {} s", seconds(after));
        Self::new(FailureReason::Timeout, message, "no token before the time limit")
    }

    pub(super) fn silence(after: Duration) -> Self {
        let message = format!("the model stopped in the middle of its answer and was silent for {} s", seconds(after));
        Self::new(FailureReason::Timeout, message, "no further token before the time limit")
    }

    pub(super) fn too_long(bytes: usize) -> Self {
        let message = format!("the model's answer was stopped because it is longer than {} MiB", bytes >> 20);
        Self::new(FailureReason::BrokenStream, message, "the answer exceeds the limit of one answer")
    }

    pub(super) fn calls_too_long() -> CallError {
        let cause = "the calls exceed the limits of one reply";
        let sentence = "the model asked for more tools at once, or with longer arguments, than one reply may hold";
        CallError { sentence: Some(sentence.to_owned()), ..CallError::new(FailureReason::BrokenStream, false, cause) }
    }

    pub(super) fn empty(finish_reason: &str) -> Self {
        let message = format!("the model gave an empty answer ({finish_reason})");
        Self::new(FailureReason::BrokenStream, message, "the answer ended properly but holds no text")
    }

    /// What `error` means to the one who waits for the answer.
    pub(super) fn from_call(error: CallError, target: Option<&ProviderTarget>, settings: &Settings) -> Self {
        if let Some(sentence) = error.sentence {
            return Self::new(error.reason, sentence, error.cause);
        }
        let provider = target.map_or("builtin", |target| target.provider.as_str());
        let model = target.map_or(super::ECHO, |target| target.configured.as_str());
        let status = error.status.map_or_else(String::new, |status| format!(" (HTTP {status})"));
        let message = match (error.reason, error.status) {
            (FailureReason::Auth, _) => format!("provider {provider} refused the key{status}"),
            (FailureReason::RateLimited, _) if error.quota_used_up => {
                format!("provider {provider} says that the quota of the key is used up{status}")
            }
            (FailureReason::RateLimited, _) => match error.pause.filter(|pause| *pause > settings.longest_pause) {
                Some(pause) => format!("provider {provider} asks to wait {} s{status}", seconds(pause)),
                None => format!("provider {provider} answers that there are too many requests{status}; try again soon"),
            },
            (FailureReason::Unavailable, Some(_)) => format!("provider {provider} has trouble right now{status}"),
            (FailureReason::Unavailable, None) => format!("provider {provider} cannot be reached right now"),
            (FailureReason::Timeout, _) => format!("provider {provider} did not answer in time{status}"),
            (FailureReason::BadRequest, Some(404)) => {
                format!("provider {provider} does not know the model {model}, or its base_url is wrong{status}")
            }
            (FailureReason::BadRequest, _) => format!("provider {provider} refused the request{status}"),
            (FailureReason::BrokenStream, _) => "the model's answer broke off before its end".to_owned(),
            (
                FailureReason::NoProvider | FailureReason::OverBudget | FailureReason::Unpriced | FailureReason::Paused,
                _,
            ) => return Self::no_provider(model),
        };
        let unknown = error.status == Some(404);
        let failure = Self::new(error.reason, message, error.cause);
        Self { elsewhere: failure.elsewhere || unknown, ..failure }
    }
}

/// Whole seconds, rounded up, so that short limits of tests do not read "0 s".
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// How one attempt failed.
#[derive(Clone, Debug)]
pub(super) struct CallError {
    pub(super) reason: FailureReason,
    /// HTTP status, where there was an answer.
    pub(super) status: Option<u16>,
    /// How long the provider asks to wait.
    pub(super) pause: Option<Duration>,
    /// Waiting does not help.
    pub(super) quota_used_up: bool,
    /// Another attempt may succeed.
    pub(super) retry: bool,
    pub(super) cause: String,
    /// What to say instead of the sentence that follows from the reason.
    pub(super) sentence: Option<String>,
}

impl CallError {
    pub(super) fn new(reason: FailureReason, retry: bool, cause: impl Into<String>) -> Self {
        Self { reason, status: None, pause: None, quota_used_up: false, retry, cause: cause.into(), sentence: None }
    }

    /// A fault of the document, told to the chat in its own words.
    pub(super) fn misconfigured(sentence: String, cause: String) -> Self {
        Self { sentence: Some(sentence), ..Self::new(FailureReason::BadRequest, false, cause) }
    }

    /// The stream ended without its end mark.
    pub(super) fn broken(cause: &str) -> Self {
        Self::new(FailureReason::BrokenStream, true, cause)
    }

    /// An HTTP status other than success.
    pub(super) fn status(status: u16, pause: Option<Duration>, body: &str) -> Self {
        let quota_used_up = status == 429 && body.contains("insufficient_quota");
        let (reason, retry) = match status {
            401 | 403 => (FailureReason::Auth, false),
            402 => (FailureReason::RateLimited, false),
            408 => (FailureReason::Timeout, true),
            429 => (FailureReason::RateLimited, !quota_used_up),
            500.. => (FailureReason::Unavailable, true),
            _ => (FailureReason::BadRequest, false),
        };
        Self {
            reason,
            status: Some(status),
            pause,
            quota_used_up: quota_used_up || status == 402,
            retry,
            cause: format!("HTTP {status}: {body}"),
            sentence: None,
        }
    }

    /// An error object inside an answer that began with HTTP 200: classified by the words that providers use.
    pub(super) fn in_stream(body: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| body.contains(word));
        let (reason, retry) = if has(&["rate_limit", "RESOURCE_EXHAUSTED", "429"]) {
            (FailureReason::RateLimited, true)
        } else if has(&["authentication_error", "permission_error", "PERMISSION_DENIED", "invalid_api_key"]) {
            (FailureReason::Auth, false)
        } else if has(&["invalid_request", "INVALID_ARGUMENT", "not_found_error"]) {
            (FailureReason::BadRequest, false)
        } else {
            (FailureReason::Unavailable, true)
        };
        Self::new(reason, retry, format!("error inside the answer: {body}"))
    }
}
