//! How a command ends: exit codes, and the one place that turns an error into what a person reads on stderr.
//!
//! Called by `main`. Always true: 0 is done, 1 refused or failed, 2 wrong usage; a closed stdout (`| head`) is no failure;
//! every message says what to do; no message holds a token.

use std::fmt;
use std::io;
use std::process::ExitCode;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::connect::innermost;
use crate::output::plain;

/// The exit code of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// 0: done.
    Done,
    /// 1: refused or failed.
    Failed,
    /// 2: wrong usage.
    Usage,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Done => Self::SUCCESS,
            ExitStatus::Failed => Self::from(1),
            ExitStatus::Usage => Self::from(2),
        }
    }
}

/// The caller wrote something that cannot mean anything; exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A failure with several lines, such as the faults of a document; each line stands for itself.
#[derive(Debug)]
pub(crate) struct Lines(pub Vec<String>);

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Lines {}

/// The exit code and stderr text of an error; no text when there is nothing to say.
pub(crate) fn report(error: &anyhow::Error) -> (ExitStatus, Option<String>) {
    for cause in error.chain() {
        if let Some(io) = cause.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::BrokenPipe
        {
            return (ExitStatus::Done, None);
        }
        if let Some(status) = cause.downcast_ref::<Status>() {
            return (ExitStatus::Failed, Some(status_text(status)));
        }
        if let Some(usage) = cause.downcast_ref::<Usage>() {
            return (ExitStatus::Usage, Some(format!("error: {}", plain(&usage.0))));
        }
        if let Some(lines) = cause.downcast_ref::<Lines>() {
            let shown: Vec<_> = lines.0.iter().map(|line| plain(line).into_owned()).collect();
            return (ExitStatus::Failed, Some(shown.join("\n")));
        }
    }
    (ExitStatus::Failed, Some(format!("error: {}", plain(&format!("{error:#}")))))
}

/// One line for a gRPC error, and one more for each field it complains about.
pub(crate) fn status_text(status: &Status) -> String {
    let said = plain(status.message());
    let said = if said.is_empty() { "it gave no reason" } else { said.as_ref() };
    // Only a status made on this side has a source: the other side's words never came.
    if let Some(cause) = std::error::Error::source(status) {
        let cause = innermost(cause);
        return format!(
            "error: the connection to the control plane broke ({}); is that its gRPC address, and does it still run?",
            plain(&cause)
        );
    }
    if said.contains("grpc-status header missing") {
        return format!("error: what answers there is no control plane ({said}); name its gRPC address");
    }
    let mut text = match status.code() {
        Code::Unauthenticated => format!(
            "error: {said}; give a token with --token-file or HERMES_TOKEN, or name the data directory of that `hermesctl up`"
        ),
        Code::Unimplemented => {
            format!("error: this control plane does not know that call ({said}); is it older than this hermesctl?")
        }
        Code::Unavailable => {
            format!("error: the control plane cannot answer now ({said}); see `hermesctl status`, then try again")
        }
        Code::Internal | Code::Unknown | Code::DataLoss => format!("error: the control plane failed: {said}"),
        Code::ResourceExhausted => format!("error: the control plane refused this for its size or its load: {said}"),
        Code::DeadlineExceeded => format!("error: no answer in time: {said}"),
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange => format!("error: {said}"),
    };
    if let Some(request) = status.get_details_bad_request() {
        for violation in request.field_violations {
            let line = format!("{}: {}", plain(&violation.field), plain(&violation.description));
            // A single one is what the message says.
            if line != said {
                text.push_str(&format!("\n  {line}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_closed_stdout_is_no_failure() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("print the list");
        assert_eq!(report(&error), (ExitStatus::Done, None));
    }

    #[test]
    fn wrong_usage_is_2_even_below_a_context() {
        let error = Err::<(), _>(Usage("write it differently".into())).context("read the flags").unwrap_err();
        assert_eq!(report(&error), (ExitStatus::Usage, Some("error: write it differently".into())));
    }

    #[test]
    fn a_status_is_one_line_with_what_to_do() {
        let (status, text) = report(&Status::unauthenticated("the token is not known").into());
        assert_eq!(status, ExitStatus::Failed);
        insta::assert_snapshot!(text.unwrap(), @"error: the token is not known; give a token with --token-file or HERMES_TOKEN, or name the data directory of that `hermesctl up`");
        let (_, text) = report(&Status::not_found("agent \u{1b}[31mx is not registered").into());
        insta::assert_snapshot!(text.unwrap(), @r"error: agent \u{1b}[31mx is not registered");
    }

    #[test]
    fn field_faults_of_a_status_are_listed() {
        let details = tonic_types::ErrorDetails::with_bad_request(vec![
            tonic_types::FieldViolation::new("route.match[0].key", "unknown key; write chat_id"),
            tonic_types::FieldViolation::new("route.agent", "coder is not registered"),
        ]);
        let status = Status::with_error_details(Code::InvalidArgument, "the route is refused", details);
        insta::assert_snapshot!(status_text(&status), @"
        error: the route is refused
          route.match[0].key: unknown key; write chat_id
          route.agent: coder is not registered
        ");
    }
}
