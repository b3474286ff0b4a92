//! `send`: one message as if it came from a platform. Called by people, scripts and external gateways' tests.

use std::path::Path;

use hermes_proto::v1::SubmitRequest;

use super::turn::{self, Heard};
use super::{Invocation, input, source};
use crate::args::SendArgs;
use crate::error::{ExitStatus, Usage};

/// Largest file, bytes; the control plane's own limit.
const ATTACHMENT_BYTES: u64 = 20 << 20;

/// Sends it, and with `--wait` waits for the answer.
///
/// # Errors
/// What the control plane answered, or a text that cannot be read.
pub(crate) async fn run(args: SendArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    if args.source.chat_id.is_empty() {
        return Err(Usage("the chat is missing: give --chat-id ID".into()).into());
    }
    let wait = args.wait;
    let files = args.attach.iter().map(|path| Ok((file_name(path), input::bytes(path, ATTACHMENT_BYTES)?)));
    let files = files.collect::<anyhow::Result<Vec<_>>>()?;
    let mut request = request(args)?;
    let connection = inv.connect().await?;
    for (name, content) in files {
        request.attachments.push(turn::upload(&connection, name, &content).await?);
    }
    if !wait {
        let turn = turn::submit(&connection, &request).await?;
        inv.printer.show(&turn)?;
        return Ok(ExitStatus::Done);
    }
    let printer = &mut inv.printer;
    let turn = turn::submit_and_wait(&connection, &request, |heard| {
        if let Heard::Question(question) = heard {
            printer.question(question);
        }
        Ok(())
    })
    .await?;
    inv.printer.show(&turn)?;
    if turn.succeeded {
        return Ok(ExitStatus::Done);
    }
    inv.printer.error(&turn.complaint());
    Ok(ExitStatus::Failed)
}

fn request(args: SendArgs) -> anyhow::Result<SubmitRequest> {
    let text = match args.text {
        Some(text) if text == "-" => from_stdin()?,
        text => text.unwrap_or_default(),
    };
    let dedupe_key = args.message_id.is_none().then(turn::dedupe_key);
    let mut source = source::to_proto(args.source);
    source.user_name = args.user_name;
    source.chat_name = args.chat_name;
    source.message_id = args.message_id;
    Ok(SubmitRequest {
        source: Some(source),
        text,
        dedupe_key,
        agent: args.agent,
        deliver: args.deliver,
        attachments: Vec::new(),
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// All of stdin without the line break that ends it.
fn from_stdin() -> anyhow::Result<String> {
    let text = input::text(Path::new("-"), input::MESSAGE_BYTES)?;
    let stripped = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
    Ok(stripped.unwrap_or(&text).to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(flags: &[&str]) -> SubmitRequest {
        let line = ["hermesctl", "send", "--platform", "telegram", "--chat-id", "-1001234"];
        let cli = Cli::try_parse_from(line.iter().chain(flags)).unwrap();
        let Command::Send(args) = cli.command else { panic!("not send") };
        request(args).unwrap()
    }

    #[test]
    fn a_message_without_an_id_gets_a_key_of_its_own() {
        let (one, two) = (parsed(&["--text", "-x"]), parsed(&["--text", "-x"]));
        assert_eq!(one.text, "-x");
        assert_eq!(one.source.as_ref().unwrap().chat_id, "-1001234");
        assert_ne!(one.dedupe_key.unwrap(), two.dedupe_key.unwrap());
        let named = parsed(&["--text", "x", "--message-id", "77", "--deliver"]);
        assert_eq!((named.dedupe_key, named.deliver), (None, true));
        assert_eq!(named.source.unwrap().message_id.as_deref(), Some("77"));
    }
}
