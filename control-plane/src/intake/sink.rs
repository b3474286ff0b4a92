//! The way in for platform adapters.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hermes_core::Source;
use hermes_core::attachment::{Attachment, Kind};
use hermes_platforms::{AccountState, InboundMessage, InboundSink, NotKept, Receipt};

use super::batch::Group;
use super::pace::Pace;
use super::{Dedupe, Error, Intake, Message, Surface};
use crate::attachments::{self, Attachments};
use crate::dispatch::COME_BACK;
use crate::outbox::Adapters;
use crate::store::LaneKey;

/// Joins adapters and intake.
#[derive(Clone)]
pub struct Sink {
    intake: Intake,
    adapters: Adapters,
    attachments: Attachments,
    pace: Arc<Pace>,
}

impl Sink {
    /// The database's time.
    pub fn now(&self) -> jiff::Timestamp {
        self.intake.now()
    }

    /// The sink of this replica.
    pub fn new(intake: Intake, adapters: Adapters, attachments: Attachments) -> Self {
        Self { intake, adapters, attachments, pace: Arc::default() }
    }
}

impl Sink {
    /// How many of an account's messages its pace allows, and when the next one.
    fn taken(&self, messages: &[InboundMessage]) -> (usize, Duration) {
        let Some(first) = messages.first() else { return (0, Duration::ZERO) };
        let (platform, account) = (&first.source.platform, first.source.account.as_deref().unwrap_or_default());
        let rate = self.intake.inbound_per_second();
        self.pace.take(platform, account, messages.len(), rate, Instant::now())
    }
}

impl InboundSink for Sink {
    fn accept(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Vec<Receipt>> {
        async move {
            // Offered one after another, so that one session's messages keep their order; committed together.
            let mut offered = Vec::with_capacity(messages.len());
            let group = Group::default();
            let (taken, after) = self.taken(&messages);
            let late = messages.len() - taken;
            for message in messages.into_iter().take(taken) {
                let heard = if message.stranger { self.intake.stranger(&message, &group).await } else { Ok(true) };
                let (message, chat) = message_of(message);
                let offer = match heard {
                    Ok(true) => self.intake.offer(message, &group).await.map(Some),
                    Ok(false) => Ok(None),
                    Err(error) => Err(error),
                };
                offered.push((chat, offer));
            }
            let mut receipts = Vec::with_capacity(offered.len());
            for (chat, offer) in offered {
                let result = match offer {
                    // Done with: its sender is not heard.
                    Ok(None) => {
                        receipts.push(Receipt::Accepted { duplicate: false });
                        continue;
                    }
                    Ok(Some(offer)) => self.intake.settle(offer).await,
                    Err(error) => Err(error),
                };
                receipts.push(match result {
                    Ok(accepted) => Receipt::Accepted { duplicate: accepted.duplicate },
                    Err(Error::Overloaded | Error::Unavailable(_)) => Receipt::Unavailable,
                    Err(error @ Error::Busy(_)) => {
                        Receipt::Busy { reason: self.intake.refusal(&chat, &error), after: COME_BACK }
                    }
                    Err(error) => Receipt::Refused { reason: self.intake.refusal(&chat, &error) },
                });
            }
            // They are offered again behind the others.
            receipts.extend((0..late).map(|_| Receipt::Later(after)));
            receipts
        }
        .boxed()
    }

    fn hears<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, bool> {
        self.intake.hears(source).boxed()
    }

    fn keep<'a>(&'a self, kind: Kind, name: &'a str, content: &'a [u8]) -> BoxFuture<'a, Result<Attachment, NotKept>> {
        let kept = self.attachments.keep(kind, name, content);
        kept.map(|kept| {
            kept.map_err(|error| match error {
                attachments::Error::Refused(reason) | attachments::Error::Full(reason) => NotKept::Refused(reason),
                attachments::Error::Store(_) => NotKept::Unavailable,
            })
        })
        .boxed()
    }

    fn report(&self, platform: &str, account: &str, state: AccountState) {
        self.adapters.report(platform, account, state);
    }
}

/// The message, and the chat that is told when it is refused.
fn message_of(message: InboundMessage) -> (Message, LaneKey) {
    let InboundMessage { source, stranger: _, text, attachments, dedupe_key, event_time, reply_to } = message;
    let reply_to = match reply_to {
        Some(target) => LaneKey {
            platform: target.platform,
            account: target.account,
            chat_id: target.chat.chat_id,
            thread_id: target.chat.thread_id.unwrap_or_default(),
        },
        None => LaneKey {
            platform: source.platform.clone(),
            account: source.account.clone().unwrap_or_default(),
            chat_id: source.chat_id.clone(),
            thread_id: source.thread_id.clone().unwrap_or_default(),
        },
    };
    let chat = reply_to.clone();
    let message = Message {
        source,
        text,
        attachments,
        history: None,
        preset: None,
        dedupe: Dedupe::Key { key: dedupe_key, event_time, body_hash: None },
        submitter: None,
        reply_to: Some(reply_to),
        surface: Surface::Chat,
    };
    (message, chat)
}
