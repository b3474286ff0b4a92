//! The poll loop: updates in, receipts, offset on.
//!
//! Run by [`crate::Adapter::receive`] for as long as the account lives. Owns the offset, in memory: Telegram keeps the
//! confirmed one. Always true: an update is confirmed (by the next poll's offset) only after the sink has answered
//! Accepted, Refused or Busy for it and for all before it; else the loop waits and fetches the same updates
//! again. It restarts nothing and knows no session: order and duplicates are intake's matter.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Telegram;
use super::api::{CallError, Refusal};
use super::convert::{self, Ignored, PLATFORM};
use super::fetch;
use super::wire::{Me, Update};
use crate::backoff::Backoff;
use crate::{AccountState, ChatRef, InboundMessage, InboundSink, OutboundMessage, Receipt, SendError};

const POLL_SECONDS: u64 = 25;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Telegram is asked again, and the sink offered again, after at most this long.
const PLATFORM_BACKOFF: Duration = Duration::from_secs(30);
const SINK_BACKOFF: Duration = Duration::from_secs(3);
/// How long Telegram may hold the last poll of a receiver that is gone. Until then a 409 is waited out.
const HANDOVER: Duration = Duration::from_secs(40);
const HANDOVER_BACKOFF: Duration = Duration::from_secs(1);
const POLL_LIMIT: usize = 100;
/// An account that brings more than it may is asked again after at least this long: each of its polls brings what it may not, too.
const PACED_PAUSE: Duration = Duration::from_millis(50);
/// A long poll that ends empty sooner than this did not wait as asked.
const SHORT_POLL: Duration = Duration::from_millis(500);
/// Refused messages whose senders still have to be told.
const NOTICES: usize = 64;
const NOTICE_TRIES: usize = 3;
const NOTICE_WAIT: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct GetUpdates {
    offset: i64,
    limit: usize,
    timeout: u64,
    allowed_updates: [&'static str; 3],
}

#[derive(Serialize)]
struct Nothing {}

/// What the loop does after a failed call.
enum Next {
    /// Wait, then again.
    Again(Option<Duration>),
    /// End: a person is needed.
    End,
}

/// What became of a batch.
enum Offered {
    /// Every message was answered for good.
    All,
    /// The rest may come after this time; nothing is wrong.
    Later(Duration),
    /// The rest cannot be stored now.
    NotKept,
}

/// Tells the sink and the log how the account stands, once per change.
struct Reporter<'a> {
    sink: &'a dyn InboundSink,
    account: &'a str,
    last: Option<AccountState>,
}

impl Reporter<'_> {
    fn say(&mut self, state: AccountState) {
        if self.last.as_ref() != Some(&state) {
            let account = self.account;
            match &state {
                AccountState::Up => tracing::info!(account, "receiving"),
                AccountState::Down(why) => tracing::warn!(account, "not receiving, trying again: {why}"),
                AccountState::Failed(what) => tracing::error!(account, "not receiving: {what}"),
            }
            self.sink.report(PLATFORM, self.account, state.clone());
            self.last = Some(state);
        }
    }
}

impl Telegram {
    /// See [`crate::Adapter::receive`].
    pub(super) async fn run(&self, sink: &dyn InboundSink, stop: CancellationToken) {
        let (notices, told) = mpsc::channel(NOTICES);
        // Ends with the first: the stop, or a fault that needs a person. Notices never hold it up.
        let polled = async {
            tokio::select! {
                () = self.poll(sink, notices) => {}
                () = self.tell(told) => {}
            }
        };
        stop.run_until_cancelled(polled).await;
    }

    async fn poll(&self, sink: &dyn InboundSink, notices: mpsc::Sender<OutboundMessage>) {
        let mut reporter = Reporter { sink, account: &self.account, last: None };
        let mut backoff = Backoff::up_to(PLATFORM_BACKOFF);
        let mut sink_backoff = Backoff::up_to(SINK_BACKOFF);
        let (begun, mut handover) = (Instant::now(), Backoff::up_to(HANDOVER_BACKOFF));
        let Some(bot_id) = self.bot_id(&mut reporter, &mut backoff).await else { return };
        let (mut offset, mut heard) = (0, false);
        // The first poll after a fault does not wait, so that the account's state is known soon.
        let mut timeout = 0;
        loop {
            let started = Instant::now();
            let body = GetUpdates {
                offset,
                limit: POLL_LIMIT,
                timeout,
                allowed_updates: ["message", "channel_post", "callback_query"],
            };
            let limit = CALL_TIMEOUT + Duration::from_secs(timeout);
            let updates = match self.api.poll::<Vec<Value>>("getUpdates", &body, limit).await {
                Ok(updates) => updates,
                Err(CallError::Refused(Refusal { code: 409, .. })) if !heard && begun.elapsed() < HANDOVER => {
                    tracing::info!(
                        account = self.account,
                        "the bot's former receiver has not ended yet, waiting for it"
                    );
                    handover.wait(None).await;
                    continue;
                }
                Err(error) => {
                    timeout = 0;
                    match self.judge(error, &mut reporter) {
                        Next::Again(after) => backoff.wait(after).await,
                        Next::End => return,
                    }
                    continue;
                }
            };
            backoff.reset();
            heard = true;
            sink.heard(PLATFORM, &self.account);
            if updates.is_empty() {
                reporter.say(AccountState::Up);
                if timeout > 0 && started.elapsed() < SHORT_POLL {
                    tokio::time::sleep(SHORT_POLL).await;
                }
            } else {
                match self.offer(updates, bot_id, sink, &notices, &mut offset).await {
                    Offered::All => {
                        reporter.say(AccountState::Up);
                        sink_backoff.reset();
                    }
                    // What is not fetched waits at the platform.
                    Offered::Later(after) => {
                        reporter.say(AccountState::Up);
                        sink_backoff.reset();
                        tokio::time::sleep(after.max(PACED_PAUSE)).await;
                    }
                    Offered::NotKept => {
                        let why = "messages cannot be stored now, offering them again";
                        reporter.say(AccountState::Down(why.to_owned()));
                        sink_backoff.wait(None).await;
                    }
                }
            }
            timeout = POLL_SECONDS;
        }
    }

    /// Asks who the bot is until Telegram answers; `None` when the token is wrong.
    async fn bot_id(&self, reporter: &mut Reporter<'_>, backoff: &mut Backoff) -> Option<i64> {
        loop {
            let error = match self.api.poll::<Me>("getMe", &Nothing {}, CALL_TIMEOUT).await {
                Ok(me) => {
                    backoff.reset();
                    return Some(me.id);
                }
                Err(error) => error,
            };
            match self.judge(error, reporter) {
                Next::Again(after) => backoff.wait(after).await,
                Next::End => return None,
            }
        }
    }

    fn judge(&self, error: CallError, reporter: &mut Reporter<'_>) -> Next {
        if let CallError::Refused(Refusal { code: 401 | 404, .. }) = error {
            let what = format!(
                "{error}: the token is wrong or revoked; put the one from @BotFather where the account's token_env or \
                 token_file points, then apply again"
            );
            reporter.say(AccountState::Failed(what));
            return Next::End;
        }
        let (why, after) = match &error {
            CallError::Refused(Refusal { code: 409, description, .. }) => {
                (format!("another program receives for this bot: {description}"), None)
            }
            CallError::Refused(refusal) => (error.to_string(), refusal.retry_after),
            CallError::Fault(_) => (error.to_string(), None),
        };
        reporter.say(AccountState::Down(why));
        Next::Again(after)
    }

    /// Offers a batch and moves `offset` behind what was answered for good.
    async fn offer(
        &self,
        updates: Vec<Value>,
        bot_id: i64,
        sink: &dyn InboundSink,
        notices: &mpsc::Sender<OutboundMessage>,
        offset: &mut i64,
    ) -> Offered {
        let pressed: Vec<String> = updates
            .iter()
            .filter_map(|update| update.pointer("/callback_query/id")?.as_str().map(str::to_owned))
            .collect();
        let mut updates: Vec<fetch::Update> =
            updates.into_iter().filter_map(|update| self.read(update, bot_id)).collect();
        updates.sort_by_key(|(id, _)| *id);
        let (updates, not_kept) = self.with_files(updates, sink).await;
        let messages: Vec<InboundMessage> = updates.iter().filter_map(|(_, message)| message.clone()).collect();
        let receipts = if messages.is_empty() { Vec::new() } else { sink.accept(messages).await };
        join_all(pressed.iter().map(|id| self.stop_waiting(id))).await;
        let mut receipts = receipts.into_iter();
        for (id, message) in updates {
            if let Some(message) = message {
                match receipts.next() {
                    Some(Receipt::Accepted { .. }) => {}
                    Some(Receipt::Refused { reason } | Receipt::Busy { reason, .. }) => {
                        self.notice(notices, &message, reason);
                    }
                    Some(Receipt::Later(after)) => return Offered::Later(after),
                    Some(Receipt::Unavailable) | None => return Offered::NotKept,
                }
            }
            *offset = (*offset).max(id.saturating_add(1));
        }
        if not_kept {
            return Offered::NotKept;
        }
        Offered::All
    }

    /// One update's id and its message, if it has one for us. An update we cannot read must not stop those behind it.
    fn read(&self, update: Value, bot_id: i64) -> Option<fetch::Update> {
        let account = self.account.as_str();
        let id = update.get("update_id").and_then(Value::as_i64);
        let Some(id) = id else {
            tracing::warn!(account, "an update without update_id, ignored");
            return None;
        };
        let message = match serde_json::from_value::<Update>(update) {
            Ok(update) => convert::inbound(update, account, bot_id, &self.allow),
            Err(error) => {
                // The message of a type error may quote what a user wrote, its place does not.
                tracing::warn!(account, update = id, kind = ?error.classify(), "an update of unknown shape, ignored");
                Err(Ignored::Kind)
            }
        };
        Some((id, message.inspect_err(|why| tracing::debug!(account, update = id, ?why, "update ignored")).ok()))
    }

    /// Puts the reason of a refusal on its way to the sender.
    fn notice(&self, notices: &mpsc::Sender<OutboundMessage>, message: &InboundMessage, reason: String) {
        let chat = ChatRef { chat_id: message.source.chat_id.clone(), thread_id: message.source.thread_id.clone() };
        tracing::info!(account = self.account, chat_id = chat.chat_id, reason, "message refused");
        if reason.is_empty() {
            return;
        }
        let text = self.cut(&reason).into_iter().next().unwrap_or_default();
        let notice = OutboundMessage {
            chat,
            text,
            attachment: None,
            maybe_duplicate: false,
            idempotency_key: message.dedupe_key.clone(),
            not_after: None,
            buttons: Vec::new(),
        };
        if notices.try_send(notice).is_err() {
            tracing::warn!(account = self.account, "too many refused messages at once, a sender is not told why");
        }
    }

    /// Sends notices in order. Best effort: a notice is not worth a durable delivery.
    async fn tell(&self, mut notices: mpsc::Receiver<OutboundMessage>) {
        while let Some(notice) = notices.recv().await {
            for _ in 0..NOTICE_TRIES {
                let after = match self.send_part(notice.clone()).await {
                    Err(SendError::RetryAfter { after, .. }) if after <= NOTICE_WAIT => after,
                    Err(SendError::Retry(_)) => Duration::from_secs(1),
                    Ok(_) => break,
                    Err(error) => {
                        tracing::info!(account = self.account, %error, "a sender is not told why");
                        break;
                    }
                };
                tokio::time::sleep(after).await;
            }
        }
        // The poll loop holds the other end; it decides when both end.
        std::future::pending::<()>().await;
    }
}
