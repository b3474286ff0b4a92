//! One call from its first attempt to its last event: time limits, retries, joining of tokens.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use rand::Rng as _;
use tokio::time::Instant;

use super::failure::{CallError, ModelFailure};
use super::{Call, ChatModel, ModelEvent, Piece, Settings, retry};

/// Tokens that are ready together are joined up to this many bytes.
const JOINED_BYTES: usize = 16 * 1024;

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
    /// Text was passed on: from here on nothing is tried again.
    text_passed: bool,
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
            text_passed: false,
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
                Ok(Piece::Text(text)) => return Some(ModelEvent::Delta(self.joined(text))),
                Ok(Piece::End { finish_reason, .. }) if !self.text_passed => {
                    return Some(self.end(ModelEvent::Failed(ModelFailure::empty(&finish_reason))));
                }
                Ok(Piece::End { usage, finish_reason }) => {
                    return Some(self.end(ModelEvent::Done { usage, finish_reason }));
                }
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

    /// `text` and what else is there already, so that a burst of tokens costs one event.
    fn joined(&mut self, mut text: String) -> String {
        self.token();
        self.text_passed = true;
        while text.len() < JOINED_BYTES {
            // Polled without interest: when nothing is ready, the next call polls again and registers for it.
            let ready = self.open.as_mut().and_then(|open| open.next().now_or_never());
            match ready {
                Some(Some(Ok(Piece::Text(more)))) => text.push_str(&more),
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

    fn pause_for(&self, error: &CallError) -> Option<Duration> {
        if self.text_passed {
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
