//! The platform accounts of this replica, by platform and account id.
//!
//! Filled by the composition root from the document and its secrets; read by deliveries and the HTTP surface.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use hermes_platforms::{AccountState, Adapter};
use tokio::sync::Notify;

use crate::accounts::Leases;

type Key = (String, String);

/// Handle to the accounts; cheap to clone.
#[derive(Clone, Default)]
pub struct Adapters {
    accounts: Arc<RwLock<HashMap<Key, Arc<dyn Adapter>>>>,
    states: Arc<RwLock<HashMap<Key, AccountState>>>,
    /// Replicas that send besides this one.
    others: Arc<AtomicU32>,
    leases: Leases,
    arrived: Arc<Notify>,
}

impl Adapters {
    /// The account, if it is configured here.
    pub fn get(&self, platform: &str, account: &str) -> Option<Arc<dyn Adapter>> {
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        accounts.get(&(platform.to_owned(), account.to_owned())).cloned()
    }

    /// Adds or replaces an account.
    pub fn insert(&self, adapter: Arc<dyn Adapter>) {
        let key = (adapter.platform().to_owned(), adapter.account().to_owned());
        adapter.share(self.others.load(Ordering::Relaxed).saturating_add(1));
        self.accounts.write().unwrap_or_else(PoisonError::into_inner).insert(key, adapter);
        self.arrived.notify_one();
    }

    /// Waits until an account was added.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// All accounts here, each as [`parking_key`].
    pub(super) fn keys(&self) -> Vec<String> {
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        accounts.keys().map(|(platform, account)| parking_key(platform, account)).collect()
    }

    /// Whether some account here shows answers while they are written.
    pub(super) fn any_streams(&self) -> bool {
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        accounts.values().any(|adapter| adapter.streams())
    }

    /// Which of the polled ones this replica receives for.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// This many replicas send for the accounts, this one included.
    pub fn share(&self, replicas: u32) {
        let others = replicas.saturating_sub(1);
        if self.others.swap(others, Ordering::Relaxed) != others {
            let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
            accounts.values().for_each(|adapter| adapter.share(replicas));
        }
    }

    /// Removes an account.
    pub fn remove(&self, platform: &str, account: &str) {
        let key = (platform.to_owned(), account.to_owned());
        self.accounts.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
        self.states.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// How an account stands.
    pub fn report(&self, platform: &str, account: &str, state: AccountState) {
        let key = (platform.to_owned(), account.to_owned());
        let mut states = self.states.write().unwrap_or_else(PoisonError::into_inner);
        if states.get(&key) != Some(&state) {
            match &state {
                AccountState::Up => tracing::info!(platform, account, "account is up"),
                AccountState::Down(why) => tracing::warn!(platform, account, why, "account is down"),
                AccountState::Failed(why) => tracing::error!(platform, account, why, "account needs a person"),
            }
            states.insert(key, state);
        }
    }

    /// All accounts and how they stand, in order.
    pub fn states(&self) -> Vec<(String, String, AccountState)> {
        let states = self.states.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = states.iter().map(|((p, a), state)| (p.clone(), a.clone(), state.clone())).collect();
        all.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        all
    }
}

/// What a delivery without an account waits for: `platform/account`.
pub(super) fn parking_key(platform: &str, account: &str) -> String {
    format!("{platform}/{account}")
}
