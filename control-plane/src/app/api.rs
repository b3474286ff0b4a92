//! The HTTP side's way into intake.

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use hermes_core::AgentId;
use hermes_core::attachment::Kind;
use hermes_core::turn::{TurnState, Usage};

use crate::attachments::{self, Attachments};
use crate::dispatch::{self};
use crate::http::{Key, Submit, SubmitError, Submitted, TurnEvent, Turns};
use crate::identity::{Principal, Tokens};
use crate::intake::{self, BusyReason, Dedupe, Intake, Message, Surface};
use crate::registry::Registry;
use crate::store::TurnId;

/// Joins the HTTP side and intake.
pub(super) struct Api {
    pub(super) intake: Intake,
    pub(super) attachments: Attachments,
    pub(super) registry: Registry,
    pub(super) tokens: Tokens,
}

impl Turns for Api {
    fn submit(&self, submit: Submit) -> BoxFuture<'_, Result<Submitted, SubmitError>> {
        Box::pin(async move {
            let dedupe = match submit.dedupe_key {
                Some(key) => Dedupe::Key { key, event_time: None, body_hash: submit.body_hash },
                None => Dedupe::New,
            };
            let mut attachments = Vec::with_capacity(submit.files.len());
            for file in submit.files {
                let kept = self.attachments.keep(Kind::Document, &file.name, &file.content).await;
                attachments.push(kept.map_err(|error| match error {
                    attachments::Error::Refused(why) | attachments::Error::Full(why) => SubmitError::Invalid(why),
                    attachments::Error::Store(error) => SubmitError::Unavailable(error.to_string()),
                })?);
            }
            let message = Message {
                source: submit.source,
                text: submit.text,
                attachments,
                history: submit.history,
                preset: submit.preset,
                dedupe,
                submitter: Some(submit.principal),
                reply_to: None,
                surface: Surface::Caller,
            };
            let accepted = self.intake.submit(message).await.map_err(error_of)?;
            Ok(Submitted {
                agent: accepted.agent,
                session_key: accepted.session_key,
                session_id: accepted.turn.session.to_string(),
                turn: accepted.turn.to_string(),
                duplicate: accepted.duplicate,
            })
        })
    }

    fn follow(&self, turn: &str) -> BoxStream<'static, TurnEvent> {
        let Ok(id) = turn.parse::<TurnId>() else {
            let ended = TurnEvent::Ended { state: TurnState::Failed, reply: String::new(), usage: Usage::default() };
            return futures_util::stream::once(async { ended }).boxed();
        };
        let events = self.intake.dispatcher().live().follow(self.registry.store().clone(), id);
        events
            .map(|event| match event {
                dispatch::TurnEvent::Delta(text) => TurnEvent::Delta(text),
                dispatch::TurnEvent::Asked(question) => TurnEvent::Asked(question.text),
                dispatch::TurnEvent::Ended(end) => {
                    TurnEvent::Ended { state: end.state, reply: end.reply, usage: end.usage }
                }
            })
            .boxed()
    }

    fn agents(&self) -> Vec<AgentId> {
        self.registry.current().agents().into_iter().map(|entry| entry.id.clone()).collect()
    }

    fn authorize<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, Option<Key>> {
        Box::pin(async move {
            match self.tokens.authenticate(bearer).await {
                Ok(Some(Principal::Operator { token_id })) => {
                    Some(Key { principal: token_id.to_string(), agent: None })
                }
                Ok(Some(Principal::Api { token_id, agent })) => Some(Key { principal: token_id.to_string(), agent }),
                Ok(_) => None,
                Err(error) => {
                    tracing::warn!(%error, "a key could not be checked");
                    None
                }
            }
        })
    }
}

fn error_of(error: intake::Error) -> SubmitError {
    match error {
        intake::Error::TooLarge { limit, .. } => SubmitError::TooLarge { limit },
        intake::Error::UnknownAgent(agent) => SubmitError::UnknownAgent(agent),
        intake::Error::Conflict => SubmitError::Conflict,
        intake::Error::Overloaded => SubmitError::Overloaded,
        intake::Error::Busy(BusyReason::Late) => SubmitError::Late(error.to_string()),
        intake::Error::Busy(BusyReason::Session | BusyReason::Agent) => SubmitError::Full(error.to_string()),
        intake::Error::Unavailable(cause) => {
            tracing::warn!(cause, "a message could not be stored");
            SubmitError::Unavailable("the message could not be stored; send it again".to_owned())
        }
        invalid @ intake::Error::Invalid { .. } => SubmitError::Invalid(invalid.to_string()),
    }
}
