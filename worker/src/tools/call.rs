//! Running one call to its end: time limit, early stop, panic, bounded output.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::redact::redacted;
use super::{Effect, MAX_OUTPUT_BYTES, ToolCall, ToolSpec, Toolbox};

/// How long a tool may take to stop when its turn must end.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// How a call left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// With this text for the model, bounded.
    Finished(String),
    /// It did not stop when asked to and was dropped: whatever it was doing, nobody knows how far it came.
    Dropped,
    /// With this text for the model, and nobody knows how far it came.
    Lost(String),
}

/// Runs the call. When `stopped` ends first, the tool is asked to stop and given [`CANCEL_GRACE`].
pub(crate) async fn run(
    toolbox: &dyn Toolbox,
    spec: &ToolSpec,
    call: ToolCall,
    stopped: impl Future<Output = ()>,
) -> Ran {
    let cancel = call.cancel.clone();
    // What a panic leaves behind inside the toolbox is the toolbox's; nothing of the turn is touched by a call.
    let running = AssertUnwindSafe(async { toolbox.call(call).await }).catch_unwind();
    let limited = tokio::time::timeout(spec.time_limit, running);
    tokio::pin!(limited);
    let ended = tokio::select! {
        biased;
        ended = &mut limited => ended,
        () = stopped => {
            cancel.cancel();
            match tokio::time::timeout(CANCEL_GRACE, &mut limited).await {
                Ok(ended) => ended,
                Err(_) => return Ran::Dropped,
            }
        }
    };
    let text = match ended {
        Ok(Ok(Ok(text))) => text,
        Ok(Ok(Err(sentence))) => format!("Error: {sentence}"),
        Ok(Err(_panic)) => {
            tracing::error!(tool = spec.name, "a tool panicked");
            format!("Error: {} broke down inside.{}", spec.name, doubt(spec.effect))
        }
        Err(_elapsed) => {
            cancel.cancel();
            let limit = spec.time_limit.as_secs_f64();
            format!("Error: {} was stopped after its time limit of {limit} s.{}", spec.name, doubt(spec.effect))
        }
    };
    Ran::Finished(bounded(redacted(&text).into_owned(), spec.max_output))
}

/// What to say of a call that did not come to its own end.
fn doubt(effect: Effect) -> &'static str {
    match effect {
        Effect::Pure | Effect::Journaled => "",
        Effect::Idempotent | Effect::AtMostOnce => " What it did until then may have had an effect.",
    }
}

/// The text, cut between characters to at most `limit` bytes, and saying so.
fn bounded(mut text: String, limit: usize) -> String {
    let limit = limit.min(MAX_OUTPUT_BYTES);
    if text.len() <= limit {
        return text;
    }
    let note = format!("\n[The output was {} bytes long and is cut here.]", text.len());
    text.truncate(text.floor_char_boundary(limit.saturating_sub(note.len())));
    text.push_str(&note);
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::future::BoxFuture;
    use hermes_proto::v1::TurnRef;
    use tokio_util::sync::CancellationToken;

    use super::super::ToolResult;
    use super::*;

    struct Odd(Vec<ToolSpec>);

    impl Toolbox for Odd {
        fn specs(&self) -> Arc<[ToolSpec]> {
            self.0.clone().into()
        }

        fn call(&self, call: ToolCall) -> BoxFuture<'_, ToolResult> {
            Box::pin(async move {
                match call.name.as_str() {
                    "panics" => panic!("inside"),
                    "fails" => Err("no such file".to_owned()),
                    "stops" => {
                        call.cancel.cancelled().await;
                        Ok("stopped early".to_owned())
                    }
                    "hangs" => std::future::pending().await,
                    _ => Ok("é".repeat(300_000)),
                }
            })
        }
    }

    async fn ran(name: &str, stopped: impl Future<Output = ()>) -> Ran {
        let spec = ToolSpec {
            name: name.to_owned(),
            description: String::new(),
            parameters: "{}".to_owned(),
            toolset: "odd".to_owned(),
            effect: Effect::AtMostOnce,
            time_limit: Duration::from_secs(60),
            max_output: usize::MAX,
        };
        let call = ToolCall {
            turn: TurnRef::default(),
            step: 1,
            name: name.to_owned(),
            arguments: serde_json::Map::new(),
            idempotency_key: None,
            policy: crate::sandbox::Sandbox::default(),
            workdir: None,
            author: crate::tools::Author::default(),
            cancel: CancellationToken::new(),
        };
        run(&Odd(vec![spec.clone()]), &spec, call, stopped).await
    }

    fn text(ran: Ran) -> String {
        match ran {
            Ran::Finished(text) => text,
            ran => panic!("{ran:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_odd_end_is_a_sentence_for_the_model() {
        let never = std::future::pending::<()>;
        assert_eq!(text(ran("fails", never()).await), "Error: no such file");
        let panicked = text(ran("panics", never()).await);
        assert!(panicked.contains("broke down inside. What it did until then may have had an effect"), "{panicked}");
        let hung = text(ran("hangs", never()).await);
        assert!(hung.contains("was stopped after its time limit of 60 s. What it did"), "{hung}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tool_is_asked_to_stop_and_dropped_when_it_does_not() {
        assert_eq!(text(ran("stops", async {}).await), "stopped early");
        let asked = tokio::time::Instant::now();
        assert_eq!(ran("hangs", async {}).await, Ran::Dropped);
        assert_eq!(asked.elapsed().as_secs(), 5);
    }

    #[tokio::test]
    async fn output_is_cut_between_characters_and_says_so() {
        let long = text(ran("long", std::future::pending()).await);
        assert!(long.len() <= MAX_OUTPUT_BYTES && long.len() > MAX_OUTPUT_BYTES - 4, "{}", long.len());
        assert!(long.ends_with("é\n[The output was 600000 bytes long and is cut here.]"));
        assert_eq!(bounded("short".to_owned(), 5), "short");
    }
}
