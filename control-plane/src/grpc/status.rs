//! The only place that builds a [`tonic::Status`].
//!
//! Called by the layers and every API. Always true: a refusal has one of a closed set of [`Reason`]s, which fixes its gRPC
//! code and says whether anything was done; the message is for people and holds no operator detail, no secret and no
//! source error (the caller logs those). Machines read `ErrorInfo` (`reason`, domain `hermes.v1`, metadata `effect`).

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

const DOMAIN: &str = "hermes.v1";

/// Why a call was refused. The names are part of the wire contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field of the request is wrong; the details name it.
    InvalidField,
    /// No credential, or one that is not known (any more).
    Unauthenticated,
    /// The credential is good, but not for this.
    NotAllowed,
    /// Join was refused; deliberately says no more.
    JoinRefused,
    /// This RPC is not served on this listener.
    WrongListener,
    /// What the request names does not exist.
    NotFound,
    /// It exists already, with another content.
    AlreadyExists,
    /// The state of things forbids it; repeating changes nothing.
    Conflict,
    /// The epoch is old: somebody else has the turn.
    StaleEpoch,
    /// Larger than a stated limit.
    TooLarge,
    /// Too many calls wait already.
    Overloaded,
    /// As many messages wait, for the agent or in the session, as may.
    QueueFull,
    /// The agent's messages wait for too long already.
    AgentLate,
    /// The call waited for its turn and did not get it in time.
    Busy,
    /// The call ran into its time limit.
    TimeLimit,
    /// The caller sends a file more slowly than is waited for.
    TooSlow,
    /// The database could not be reached before anything was done.
    StoreUnavailable,
    /// The database was lost while writing.
    StoreUncertain,
    /// The control plane is stopping.
    Stopping,
    /// A defect of ours; the log has the cause.
    Internal,
}

/// Whether the refused call did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing was done.
    None,
    /// It may have been done: repeat with the same id.
    Maybe,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 20] = [
        Self::InvalidField,
        Self::Unauthenticated,
        Self::NotAllowed,
        Self::JoinRefused,
        Self::WrongListener,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Conflict,
        Self::StaleEpoch,
        Self::TooLarge,
        Self::Overloaded,
        Self::QueueFull,
        Self::AgentLate,
        Self::Busy,
        Self::TimeLimit,
        Self::TooSlow,
        Self::StoreUnavailable,
        Self::StoreUncertain,
        Self::Stopping,
        Self::Internal,
    ];

    /// The gRPC code.
    pub fn code(self) -> Code {
        match self {
            Self::InvalidField | Self::TooLarge => Code::InvalidArgument,
            Self::Unauthenticated | Self::JoinRefused => Code::Unauthenticated,
            Self::NotAllowed | Self::StaleEpoch => Code::PermissionDenied,
            Self::WrongListener => Code::Unimplemented,
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::Conflict => Code::FailedPrecondition,
            Self::Overloaded | Self::QueueFull => Code::ResourceExhausted,
            Self::AgentLate | Self::Busy | Self::StoreUnavailable | Self::StoreUncertain | Self::Stopping => {
                Code::Unavailable
            }
            Self::TimeLimit | Self::TooSlow => Code::DeadlineExceeded,
            Self::Internal => Code::Internal,
        }
    }

    /// The word in `ErrorInfo.reason`, in metrics and in audit lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidField => "INVALID_FIELD",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::NotAllowed => "NOT_ALLOWED",
            Self::JoinRefused => "JOIN_REFUSED",
            Self::WrongListener => "WRONG_LISTENER",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::Conflict => "CONFLICT",
            Self::StaleEpoch => "STALE_EPOCH",
            Self::TooLarge => "TOO_LARGE",
            Self::Overloaded => "OVERLOADED",
            Self::QueueFull => "QUEUE_FULL",
            Self::AgentLate => "AGENT_LATE",
            Self::Busy => "BUSY",
            Self::TimeLimit => "TIME_LIMIT",
            Self::TooSlow => "TOO_SLOW",
            Self::StoreUnavailable => "STORE_UNAVAILABLE",
            Self::StoreUncertain => "STORE_UNCERTAIN",
            Self::Stopping => "STOPPING",
            Self::Internal => "INTERNAL",
        }
    }

    /// Whether something may have been done.
    pub fn effect(self) -> Effect {
        match self {
            Self::TimeLimit | Self::StoreUncertain | Self::Internal => Effect::Maybe,
            Self::InvalidField
            | Self::Unauthenticated
            | Self::NotAllowed
            | Self::JoinRefused
            | Self::WrongListener
            | Self::NotFound
            | Self::AlreadyExists
            | Self::Conflict
            | Self::StaleEpoch
            | Self::TooLarge
            | Self::Overloaded
            | Self::QueueFull
            | Self::AgentLate
            | Self::Busy
            | Self::TooSlow
            | Self::StoreUnavailable
            | Self::Stopping => Effect::None,
        }
    }

    /// When a client should try again by itself, if it should.
    fn retry_after(self) -> Option<Duration> {
        match self {
            Self::QueueFull | Self::AgentLate => Some(crate::dispatch::COME_BACK),
            Self::Overloaded | Self::Busy | Self::StoreUnavailable | Self::Stopping => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// A status for `reason` with a public `message`: one clause, what is wrong and what to do.
pub fn refuse(reason: Reason, message: impl Into<String>) -> Status {
    with_details(reason, message.into(), details(reason))
}

/// One wrong field: its path in the request, and what to write instead.
pub fn invalid(field: &str, message: impl Into<String>) -> Status {
    invalid_all(vec![(field.to_owned(), message.into())])
}

/// Several wrong fields; all of them are in the details, the first in the message too.
pub fn invalid_all(violations: Vec<(String, String)>) -> Status {
    let message = match violations.as_slice() {
        [] => "the request is not valid".to_owned(),
        [(field, what)] => format!("{field}: {what}"),
        [(field, what), rest @ ..] => format!("{field}: {what} (and {} more)", rest.len()),
    };
    let mut all = details(Reason::InvalidField);
    let violations: Vec<FieldViolation> =
        violations.into_iter().map(|(field, what)| FieldViolation::new(field, what)).collect();
    all.set_bad_request(violations);
    with_details(Reason::InvalidField, message, all)
}

/// The reason of a status that came from here, read from its details.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let details = status.get_error_details();
    let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
    Reason::ALL.into_iter().find(|reason| reason.as_str() == info.reason)
}

fn details(reason: Reason) -> ErrorDetails {
    let effect = match reason.effect() {
        Effect::None => "none",
        Effect::Maybe => "maybe",
    };
    let metadata = HashMap::from([("effect".to_owned(), effect.to_owned())]);
    let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata);
    if let Some(delay) = reason.retry_after() {
        details.set_retry_info(Some(delay));
    }
    details
}

fn with_details(reason: Reason, message: String, details: ErrorDetails) -> Status {
    Status::with_error_details(reason.code(), message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_keeps_its_code_and_can_be_read_back() {
        for reason in Reason::ALL {
            let status = refuse(reason, "because");
            assert_eq!((status.code(), status.message()), (reason.code(), "because"));
            assert_eq!(reason_of(&status), Some(reason));
        }
        let words: std::collections::HashSet<_> = Reason::ALL.map(Reason::as_str).into();
        assert_eq!(words.len(), Reason::ALL.len());
        assert_eq!(reason_of(&Status::new(Code::Internal, "")), None);
    }

    #[test]
    fn a_full_queue_is_safe_to_repeat_and_a_time_limit_is_not() {
        let shed = refuse(Reason::Overloaded, "too many calls");
        assert_eq!(shed.code(), Code::ResourceExhausted);
        assert!(shed.get_error_details().retry_info().is_some());
        assert_eq!(shed.get_error_details().error_info().unwrap().metadata["effect"], "none");
        let late = refuse(Reason::TimeLimit, "late");
        assert!(late.get_error_details().retry_info().is_none());
        assert_eq!(late.get_error_details().error_info().unwrap().metadata["effect"], "maybe");
    }

    #[test]
    fn all_wrong_fields_are_named() {
        let status = invalid_all(vec![("a".into(), "x".into()), ("b".into(), "y".into())]);
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "a: x (and 1 more)"));
        let details = status.get_error_details();
        let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["a", "b"]);
        assert_eq!(invalid("ttl_seconds", "at most 10").message(), "ttl_seconds: at most 10");
    }
}
