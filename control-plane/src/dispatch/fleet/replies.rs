//! What this replica knows of a running turn's model replies: whether the journal may hold one, and which are counted.
//!
//! Asked by [`super::Fleet`]'s callers around each model call. Always true: a reply of the journal is counted once here,
//! however often it is replayed; a step whose reply the journal may hold is looked up before a provider is asked.

use std::collections::BTreeSet;

use hermes_core::turn::Usage;

use super::Fleet;
use crate::store::TurnId;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Replies {
    /// Another attempt or another replica may have journaled something.
    resumed: bool,
    /// What that was is counted here.
    recalled: bool,
    /// Steps for which a model was asked here.
    asked: BTreeSet<u32>,
    /// Steps whose journaled reply is counted.
    counted: BTreeSet<u32>,
}

impl Replies {
    /// Of a turn that begins here; `resumed`: it may have a journal already.
    pub fn new(resumed: bool) -> Self {
        Self { resumed, ..Self::default() }
    }

    /// Takes over what an older connection of the same worker knew.
    pub(super) fn inherit(&mut self, old: &Self) {
        self.asked.clone_from(&old.asked);
        self.counted.clone_from(&old.counted);
    }

    /// Whether replies that were journaled elsewhere are still to be counted.
    pub fn to_recall(&self) -> bool {
        self.resumed && !self.recalled
    }
}

impl Fleet {
    /// A model is asked for a step of a running turn. True when the journal may hold its reply.
    pub fn asked(&self, turn: TurnId, epoch: i64, step: u32) -> bool {
        let mut may = false;
        self.each_running(turn, epoch, |replies, _| may |= !replies.asked.insert(step) || replies.resumed);
        may
    }

    /// Adds what a model call of a running turn used; `journaled`: the step whose reply in the journal says the same.
    pub fn note_usage(&self, turn: TurnId, epoch: i64, used: &Usage, journaled: Option<u32>) {
        self.each_running(turn, epoch, |replies, usage| {
            if let Some(step) = journaled {
                replies.counted.insert(step);
            }
            add(usage.get_or_insert_default(), used);
        });
    }

    /// Adds what a reply of the journal used, unless it is counted already.
    pub fn note_replayed(&self, turn: TurnId, epoch: i64, step: u32, used: &Usage) {
        self.each_running(turn, epoch, |replies, usage| {
            if replies.counted.insert(step) {
                add(usage.get_or_insert_default(), used);
            }
        });
    }

    /// Whether replies that another attempt or replica journaled are still to be counted.
    pub fn to_recall(&self, turn: TurnId, epoch: i64) -> bool {
        let mut is = false;
        self.each_running(turn, epoch, |replies, _| is |= replies.to_recall());
        is
    }

    /// All replies that were journaled before are counted.
    pub fn recalled(&self, turn: TurnId, epoch: i64) {
        self.each_running(turn, epoch, |replies, _| replies.recalled = true);
    }

    /// Applies `change` to the turn in each connection of its worker: for a moment there may be two.
    fn each_running(&self, turn: TurnId, epoch: i64, mut change: impl FnMut(&mut Replies, &mut Option<Usage>)) {
        let mut state = self.state();
        for running in state.members.values_mut().filter_map(|member| member.slots.running_mut(turn, epoch)) {
            change(&mut running.replies, &mut running.usage);
        }
    }
}

/// Adds `used` to `sum`; the model named is the last one.
pub(crate) fn add(sum: &mut Usage, used: &Usage) {
    sum.input_tokens = sum.input_tokens.saturating_add(used.input_tokens);
    sum.output_tokens = sum.output_tokens.saturating_add(used.output_tokens);
    sum.cached_tokens = sum.cached_tokens.saturating_add(used.cached_tokens);
    sum.cost_usd = match (sum.cost_usd, used.cost_usd) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    };
    sum.model.clone_from(&used.model);
}
