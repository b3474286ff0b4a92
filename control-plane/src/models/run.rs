//! One call from its first attempt to its last event: time limits, retries, joining of tokens.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use hermes_core::budget::Amount;
use rand::Rng as _;
use tokio::time::Instant;

use super::failure::{CallError, FailureReason, ModelFailure};
use super::{Call, ChatModel, ModelEvent, Piece, Settings, retry, tools};

/// Tokens that are ready together are joined up to this many bytes.
const JOINED_BYTES: usize = 16 * 1024;
/// No event is longer; a longer piece is cut. Messages to workers are bounded.
const EVENT_BYTES: usize = 64 * 1024;

/// The state between two events.
pub(super) struct Run {
    model: Arc<dyn ChatModel>,
    call: Call,
    settings: Arc<Settings>,
    began: Option<Instant>,
    /// Attempts begun.
    attempt: u32,
    open: Option<BoxStream<'static, Result<Piece, CallError>>>,
    deadline: Instant,
    /// A token came in this attempt, shown or not.
    token_seen: bool,
    /// Bytes of text passed on: after the first nothing is tried again.
    passed: usize,
    /// A piece that was taken while joining and belongs to the next event.
    taken: Option<Result<Piece, CallError>>,
    next: Next,
}

enum Next {
    Poll,
    Fail(ModelFailure),
    Nothing,
}

impl Run {
    pub(super) fn new(model: Arc<dyn ChatModel>, call: Call, settings: Arc<Settings>) -> Self {
        Self {
            model,
            call,
            settings,
            began: None,
            attempt: 0,
            open: None,
            deadline: Instant::now(),
            token_seen: false,
            passed: 0,
            taken: None,
            next: Next::Poll,
        }
    }

    /// A call that cannot be made.
    pub(super) fn failed(
        failure: ModelFailure,
        model: &Arc<dyn ChatModel>,
        call: Call,
        settings: Arc<Settings>,
    ) -> Self {
        Self { next: Next::Fail(failure), ..Self::new(Arc::clone(model), call, settings) }
    }

    pub(super) fn into_stream(self) -> BoxStream<'static, ModelEvent> {
        stream::unfold(self, |mut run| async move {
            let event = run.next_event().await?;
            Some((event, run))
        })
        .boxed()
    }

    async fn next_event(&mut self) -> Option<ModelEvent> {
        match std::mem::replace(&mut self.next, Next::Poll) {
            Next::Poll => {}
            Next::Nothing => {
                self.next = Next::Nothing;
                return None;
            }
            Next::Fail(failure) => return Some(self.end(ModelEvent::Failed(failure))),
        }
        loop {
            let piece = match self.next_piece().await {
                Ok(piece) => piece,
                Err(failure) => return Some(self.end(ModelEvent::Failed(failure))),
            };
            match piece {
                Ok(Piece::Alive) => self.token(),
                Ok(Piece::Text(text)) if text.is_empty() => {}
                Ok(Piece::Text(text)) => return Some(self.passed_on(text)),
                Ok(Piece::End { mut usage, finish_reason, mut calls, reasoning }) => {
                    // What nobody offered cannot be called.
                    if self.call.tools.is_empty() {
                        calls.clear();
                    }
                    if self.passed == 0 && calls.is_empty() {
                        return Some(self.end(ModelEvent::Failed(ModelFailure::empty(&finish_reason))));
                    }
                    tools::settle(&mut calls, &self.call.messages);
                    if let Some(price) = self.call.provider.as_deref().and_then(|target| target.price.as_ref())
                        && usage.cost_usd.is_none()
                    {
                        usage.cost_usd = Amount::used(&usage, Some(price)).map(|used| used.usd.dollars());
                    }
                    return Some(self.end(ModelEvent::Done { usage, finish_reason, calls, reasoning }));
                }
                Err(error) if self.goes_on_without(&error) => {}
                Err(error) => match self.pause_for(&error) {
                    Some(pause) => self.wait(pause, &error).await,
                    None => {
                        let target = self.call.provider.as_deref();
                        let failure = ModelFailure::from_call(error, target, &self.settings);
                        return Some(self.end(ModelEvent::Failed(failure)));
                    }
                },
            }
        }
    }

    /// The next piece of the current attempt, which is begun if there is none.
    async fn next_piece(&mut self) -> Result<Result<Piece, CallError>, ModelFailure> {
        if let Some(piece) = self.taken.take() {
            return Ok(piece);
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let now = Instant::now();
                self.began.get_or_insert(now);
                self.attempt += 1;
                self.token_seen = false;
                self.deadline = now + self.settings.first_token;
                none.insert(self.model.open(&self.call))
            }
        };
        match tokio::time::timeout_at(self.deadline, open.next()).await {
            Ok(Some(piece)) => Ok(piece),
            Ok(None) => Ok(Err(CallError::broken("the stream ended without an end mark"))),
            Err(_) if self.token_seen => Err(ModelFailure::silence(self.settings.between_tokens)),
            Err(_) => Err(ModelFailure::no_first_token(self.settings.first_token)),
        }
    }

    fn token(&mut self) {
        self.token_seen = true;
        self.deadline = Instant::now() + self.settings.between_tokens;
    }

    fn passed_on(&mut self, mut text: String) -> ModelEvent {
        self.token();
        if text.len() > EVENT_BYTES {
            let rest = text.split_off(text.floor_char_boundary(EVENT_BYTES));
            self.taken = Some(Ok(Piece::Text(rest)));
        } else {
            text = self.joined(text);
        }
        self.passed = self.passed.saturating_add(text.len());
        if self.passed > self.settings.answer_bytes {
            return self.end(ModelEvent::Failed(ModelFailure::too_long(self.settings.answer_bytes)));
        }
        ModelEvent::Delta(text)
    }

    /// `text` and what else is there already, so that a burst of tokens costs one event.
    fn joined(&mut self, mut text: String) -> String {
        while text.len() < JOINED_BYTES {
            // Polled without interest: when nothing is ready, the next call polls again and registers for it.
            let ready = self.open.as_mut().and_then(|open| open.next().now_or_never());
            match ready {
                Some(Some(Ok(Piece::Text(more)))) if more.len() <= EVENT_BYTES - JOINED_BYTES => text.push_str(&more),
                Some(Some(Ok(Piece::Alive))) => {}
                Some(Some(other)) => {
                    self.taken = Some(other);
                    break;
                }
                Some(None) => {
                    self.taken = Some(Err(CallError::broken("the stream ended without an end mark")));
                    break;
                }
                None => break,
            }
        }
        text
    }

    /// Whether the request was refused, and files in it may be why: it is made again without them.
    fn goes_on_without(&mut self, error: &CallError) -> bool {
        if self.passed > 0 || error.reason != FailureReason::BadRequest {
            return false;
        }
        let Some(medium) = self.call.without_next() else { return false };
        self.open = None;
        tracing::info!(
            agent = %self.call.agent,
            provider = self.call.provider.as_deref().map_or("builtin", |target| target.provider.as_str()),
            ?medium,
            cause = %error.cause,
            "the model may not take such files, asking without them",
        );
        true
    }

    fn pause_for(&self, error: &CallError) -> Option<Duration> {
        if self.passed > 0 {
            return None;
        }
        let since = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        retry::pause_before_next(&self.settings, error, self.attempt, since, rand::rng().random())
    }

    async fn wait(&mut self, pause: Duration, error: &CallError) {
        self.open = None;
        tracing::info!(
            agent = %self.call.agent,
            provider = self.call.provider.as_deref().map_or("builtin", |target| target.provider.as_str()),
            attempt = self.attempt,
            reason = error.reason.as_str(),
            cause = %error.cause,
            pause_ms = pause.as_millis(),
            "model call failed before its first token, trying again",
        );
        tokio::time::sleep(pause).await;
    }

    fn end(&mut self, event: ModelEvent) -> ModelEvent {
        self.open = None;
        self.next = Next::Nothing;
        event
    }
}

#[cfg(test)]
mod tests {
    use hermes_core::AgentId;
    use hermes_core::turn::Usage;

    use super::super::Request;
    use super::*;

    /// Yields its pieces, all at once.
    struct Says(fn() -> Vec<Piece>);

    impl ChatModel for Says {
        fn open(&self, _: &Call) -> BoxStream<'static, Result<Piece, CallError>> {
            stream::iter((self.0)().into_iter().map(Ok)).boxed()
        }
    }

    async fn events(pieces: fn() -> Vec<Piece>) -> Vec<ModelEvent> {
        let call = Call::new(&AgentId::main(), Request::default());
        Run::new(Arc::new(Says(pieces)), call, Arc::new(Settings::default())).into_stream().collect().await
    }

    fn end() -> Piece {
        Piece::End {
            usage: Usage::default(),
            finish_reason: "stop".to_owned(),
            calls: Vec::new(),
            reasoning: String::new(),
        }
    }

    #[tokio::test]
    async fn pieces_are_joined_and_long_ones_cut_without_losing_or_reordering_text() {
        let events = events(|| {
            let long = "ä漢".repeat(40_000);
            vec![Piece::Text("a".to_owned()), Piece::Text(long), Piece::Alive, Piece::Text("z".to_owned()), end()]
        });
        let events = events.await;
        let (last, deltas) = events.split_last().unwrap();
        assert!(matches!(last, ModelEvent::Done { .. }), "{last:?}");
        let texts = deltas.iter().map(|event| match event {
            ModelEvent::Delta(text) => text.as_str(),
            other => panic!("{other:?}"),
        });
        let texts: Vec<_> = texts.collect();
        assert!(texts.iter().all(|text| !text.is_empty() && text.len() <= EVENT_BYTES));
        assert_eq!(texts.concat(), format!("a{}z", "ä漢".repeat(40_000)));
        assert_eq!(texts.len(), 5);
    }

    #[tokio::test]
    async fn an_answer_without_end_is_stopped() {
        let events = events(|| (0..1000).map(|_| Piece::Text("x".repeat(10_000))).chain([end()]).collect()).await;
        let passed: usize =
            events.iter().map(|event| if let ModelEvent::Delta(text) = event { text.len() } else { 0 }).sum();
        assert!(passed <= Settings::default().answer_bytes);
        assert!(
            matches!(events.last(), Some(ModelEvent::Failed(failure)) if failure.message.contains("longer than 2 MiB"))
        );
    }
}
