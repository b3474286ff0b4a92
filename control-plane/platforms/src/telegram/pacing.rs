//! When the next call may go out: Telegram's published limits and its `retry_after`.
//!
//! Used by this adapter's sends, edits and typing signs; one per account. Chats wait for themselves alone: the account's bound is asked
//! for after the chat's turn has come, so a chat that is slow or paused holds up nobody. Always true: a pause that Telegram asked for holds for
//! the chat whatever the rate says, and for the whole account once a second chat is paused at the same time (Telegram does
//! not say which limit was hit). With several processes sending for one account each takes an even part of the account's rate; a
//! chat's is not divided, because one process at a time has a chat's deliveries in its hands. Time is a parameter. It keeps nothing
//! across a restart: Telegram will say 429 again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hermes_core::config::Rate;

/// Waits longer than this are handed back to the caller instead of slept through.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Telegram takes 20 messages a minute in one group.
const GROUP_MESSAGES: usize = 20;
const GROUP_WINDOW: Duration = Duration::from_secs(60);
/// Of these, passing edits leave the rest to messages.
const GROUP_EDITS: usize = 12;
/// Telegram shows the sign for 5 s.
const TYPING_EVERY: Duration = Duration::from_secs(4);
/// Idle chats are forgotten beyond this many.
const REMEMBERED_CHATS: usize = 4_096;

/// The pacing of one account.
#[derive(Debug)]
pub(super) struct Pacing {
    rate: Rate,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Other processes that send for the account.
    others: u32,
    account: Gate,
    /// The place of the last call that was sent back because the account has no room for long: the next one comes after it, so that
    /// a backlog comes back at the account's rate and not all at once.
    sent_back: Option<Instant>,
    chats: HashMap<String, Chat>,
}

#[derive(Debug, Default)]
struct Chat {
    gate: Gate,
    /// Times of the newest sends to a group, at most [`GROUP_MESSAGES`].
    sent: VecDeque<Instant>,
    typing_again: Option<Instant>,
}

impl Chat {
    /// Something goes out at `at`.
    fn take(&mut self, at: Instant, per_second: f64, is_group: bool) {
        self.gate.free = Some(at + gap(per_second));
        if is_group {
            if self.sent.len() == GROUP_MESSAGES {
                self.sent.pop_front();
            }
            self.sent.push_back(at);
        }
    }
}

/// `None` means at once.
#[derive(Debug, Default)]
struct Gate {
    free: Option<Instant>,
    paused: Option<Instant>,
}

impl Gate {
    fn opens(&self, now: Instant) -> Instant {
        [self.free, self.paused].into_iter().flatten().fold(now, Instant::max)
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.paused.is_some_and(|until| until > now)
    }

    fn pause(&mut self, until: Instant) {
        self.paused = self.paused.max(Some(until));
    }
}

impl Pacing {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, state: Mutex::default() }
    }

    /// This many processes send for the account.
    pub(super) fn share(&self, senders: u32) {
        self.locked().others = senders.saturating_sub(1);
    }

    /// Takes the next place in the chat; answers how long to wait for it, or, as an error, how long it would take when
    /// that is too long to wait here.
    pub(super) fn chat_turn(&self, chat_id: &str, now: Instant) -> Result<Duration, Duration> {
        let mut state = self.locked();
        state.forget_idle(now);
        let chat = state.chats.entry(chat_id.to_owned()).or_default();
        let mut at = chat.gate.opens(now);
        let Rate::Limited { per_chat_per_s, .. } = self.rate else { return wait(at, now) };
        let is_group = chat_id.starts_with('-');
        if is_group
            && chat.sent.len() == GROUP_MESSAGES
            && let Some(oldest) = chat.sent.front()
        {
            at = at.max(*oldest + GROUP_WINDOW);
        }
        let waiting = wait(at, now)?;
        chat.take(at, per_chat_per_s, is_group);
        Ok(waiting)
    }

    /// Takes the next place on the account, after the chat's turn has come; as [`Pacing::chat_turn`].
    pub(super) fn account_turn(&self, chat_id: &str, now: Instant) -> Result<Duration, Duration> {
        let mut state = self.locked();
        let paused = state.chats.get(chat_id).and_then(|chat| chat.gate.paused);
        let at = state.account.opens(now).max(paused.unwrap_or(now));
        let Rate::Limited { per_account_per_s, .. } = self.rate else { return wait(at, now) };
        let share = gap(per_account_per_s / f64::from(state.others.saturating_add(1)));
        let waiting = wait(at, now);
        if waiting.is_err() {
            let back = state.sent_back.map_or(at, |last| at.max(last + share));
            state.sent_back = Some(back);
            return Err(back.saturating_duration_since(now));
        }
        state.account.free = Some(at + share);
        waiting
    }

    /// Takes a place for a passing edit if there is one right now that no message needs.
    pub(super) fn edit_turn(&self, chat_id: &str, now: Instant) -> bool {
        let mut state = self.locked();
        state.forget_idle(now);
        if state.account.opens(now) > now {
            return false;
        }
        let others = state.others;
        let chat = state.chats.entry(chat_id.to_owned()).or_default();
        let is_group = chat_id.starts_with('-');
        let lately = chat.sent.iter().filter(|sent| **sent + GROUP_WINDOW > now).count();
        if chat.gate.opens(now) > now || (is_group && lately >= GROUP_EDITS && self.rate != Rate::Off) {
            return false;
        }
        if let Rate::Limited { per_chat_per_s, per_account_per_s } = self.rate {
            chat.take(now, per_chat_per_s, is_group);
            state.account.free = Some(now + gap(per_account_per_s / f64::from(others.saturating_add(1))));
        }
        true
    }

    /// Telegram asked to leave the chat alone for `after`.
    pub(super) fn pause(&self, chat_id: &str, after: Duration, now: Instant) {
        let mut state = self.locked();
        let until = now + after;
        let another = state.chats.iter().any(|(id, chat)| id != chat_id && chat.gate.is_paused(now));
        state.chats.entry(chat_id.to_owned()).or_default().gate.pause(until);
        if another {
            state.account.pause(until);
        }
    }

    /// Whether a typing sign would be seen and allowed now; counts as shown when so.
    pub(super) fn typing_turn(&self, chat_id: &str, now: Instant) -> bool {
        let mut state = self.locked();
        state.forget_idle(now);
        if state.account.is_paused(now) {
            return false;
        }
        let chat = state.chats.entry(chat_id.to_owned()).or_default();
        if chat.gate.is_paused(now) || chat.typing_again.is_some_and(|at| at > now) {
            return false;
        }
        chat.typing_again = Some(now + TYPING_EVERY);
        true
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        // Every section leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_idle(&mut self, now: Instant) {
        if self.chats.len() > REMEMBERED_CHATS {
            self.chats.retain(|_, chat| {
                chat.gate.opens(now) > now || chat.sent.back().is_some_and(|sent| *sent + GROUP_WINDOW > now)
            });
        }
    }
}

/// Seconds between two messages at `per_second`.
fn gap(per_second: f64) -> Duration {
    Duration::try_from_secs_f64(per_second.recip()).unwrap_or(GROUP_WINDOW)
}

fn wait(at: Instant, now: Instant) -> Result<Duration, Duration> {
    let waiting = at.saturating_duration_since(now);
    if waiting > LONGEST_WAIT { Err(waiting) } else { Ok(waiting) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn limited() -> Pacing {
        Pacing::new(Rate::Limited { per_chat_per_s: 1.0, per_account_per_s: 4.0 })
    }

    #[test]
    fn a_chat_takes_one_a_second_and_the_account_four() {
        let (pacing, now) = (limited(), Instant::now());
        assert_eq!(pacing.chat_turn("1", now), Ok(Duration::ZERO));
        assert_eq!(pacing.chat_turn("1", now), Ok(S));
        assert_eq!(pacing.chat_turn("2", now), Ok(Duration::ZERO));
        assert_eq!(pacing.account_turn("1", now), Ok(Duration::ZERO));
        assert_eq!(pacing.account_turn("2", now), Ok(S / 4));
        for _ in 0..4 {
            pacing.chat_turn("1", now).unwrap();
        }
        assert_eq!(pacing.chat_turn("1", now), Err(S * 6), "longer waits go back to the caller and take no place");
        assert_eq!(pacing.chat_turn("1", now), Err(S * 6));
    }

    #[test]
    fn two_senders_take_half_of_the_accounts_rate_each() {
        let (pacing, now) = (limited(), Instant::now());
        pacing.share(2);
        assert_eq!(pacing.account_turn("1", now), Ok(Duration::ZERO));
        assert_eq!(pacing.account_turn("2", now), Ok(S / 2));
        pacing.share(1);
        assert_eq!(pacing.account_turn("3", now), Ok(S));
        assert_eq!(pacing.account_turn("4", now), Ok(S + S / 4));
    }

    #[test]
    fn a_group_takes_twenty_a_minute() {
        let (pacing, mut now) = (limited(), Instant::now());
        let start = now;
        for _ in 0..20 {
            assert_eq!(pacing.chat_turn("-1", now), Ok(Duration::ZERO));
            now += S;
        }
        assert_eq!(pacing.chat_turn("-1", now), Err(S * 40));
        assert_eq!(pacing.chat_turn("-1", start + S * 60), Ok(Duration::ZERO));
        assert_eq!(pacing.chat_turn("-1", start + S * 60), Ok(S));
    }

    #[test]
    fn a_pause_holds_without_a_rate_and_a_second_chat_makes_it_the_accounts() {
        let (pacing, now) = (Pacing::new(Rate::Off), Instant::now());
        assert_eq!(pacing.chat_turn("1", now), Ok(Duration::ZERO));
        assert_eq!(pacing.chat_turn("1", now), Ok(Duration::ZERO));
        pacing.pause("1", S * 30, now);
        assert_eq!(pacing.chat_turn("1", now), Err(S * 30));
        assert_eq!(pacing.account_turn("1", now), Err(S * 30));
        assert_eq!(pacing.account_turn("2", now), Ok(Duration::ZERO));
        assert!(!pacing.typing_turn("1", now));
        pacing.pause("2", S * 3, now);
        assert_eq!(pacing.account_turn("3", now), Ok(S * 3));
        assert_eq!(pacing.chat_turn("1", now + S * 30), Ok(Duration::ZERO));
    }

    #[test]
    fn a_passing_edit_takes_only_what_no_message_needs() {
        let (pacing, mut now) = (limited(), Instant::now());
        assert!(pacing.edit_turn("1", now));
        assert!(!pacing.edit_turn("1", now), "the chat's second");
        assert!(!pacing.edit_turn("2", now), "the account's quarter of a second");
        assert!(pacing.edit_turn("2", now + S / 4));
        assert_eq!(pacing.chat_turn("1", now), Ok(S), "a message waits for the edit before it, no longer");
        pacing.pause("1", S * 30, now);
        assert!(!pacing.edit_turn("1", now + S * 10));
        for _ in 0..12 {
            now += S * 2;
            assert!(pacing.edit_turn("-1", now));
        }
        assert!(!pacing.edit_turn("-1", now + S * 2), "the rest of the group's minute is for messages");
        assert_eq!(pacing.chat_turn("-1", now + S * 2), Ok(Duration::ZERO));
        let unpaced = Pacing::new(Rate::Off);
        assert!(unpaced.edit_turn("-1", now) && unpaced.edit_turn("-1", now));
    }

    #[test]
    fn one_slow_chat_holds_up_nobody_and_a_backlog_comes_back_at_the_accounts_rate() {
        let (pacing, now) = (limited(), Instant::now());
        pacing.pause("1", S * 30, now);
        assert_eq!(pacing.chat_turn("1", now), Err(S * 30));
        assert_eq!(
            (pacing.chat_turn("2", now), pacing.account_turn("2", now)),
            (Ok(Duration::ZERO), Ok(Duration::ZERO))
        );
        let (mut waits, mut back) = (0, Vec::new());
        for chat in 3..103 {
            match pacing.account_turn(&chat.to_string(), now) {
                Ok(_) => waits += 1,
                Err(after) => back.push(after),
            }
        }
        assert_eq!(waits, 20, "five seconds of them wait here");
        assert!(back.windows(2).all(|two| two[1] == two[0] + S / 4), "{back:?}");
    }

    #[test]
    fn typing_is_shown_every_few_seconds() {
        let (pacing, now) = (limited(), Instant::now());
        assert!(pacing.typing_turn("1", now));
        assert!(!pacing.typing_turn("1", now + S * 3));
        assert!(pacing.typing_turn("1", now + S * 4));
        assert_eq!(pacing.chat_turn("1", now), Ok(Duration::ZERO), "a typing sign takes no place");
    }

    #[test]
    fn idle_chats_are_forgotten_and_paused_ones_are_not() {
        let (pacing, now) = (limited(), Instant::now());
        pacing.pause("kept", S * 90, now);
        for chat in 0..REMEMBERED_CHATS {
            pacing.chat_turn(&chat.to_string(), now).unwrap();
        }
        pacing.chat_turn("new", now + S * 10).unwrap();
        assert_eq!(pacing.locked().chats.len(), 2);
    }
}
