//! Where tokens are kept ([`TokenStore`], implemented by the store) and the short memory in front of it ([`Tokens`]).
//!
//! Called for every request on the operator listener and the HTTP API, so a look-up is remembered for one second: a
//! thousand requests a second with one token are one query a second, and requests that arrive while that query runs share
//! it. Always true: a revoked or expired token stops working at most one second later on every replica, at once on the
//! replica that revoked it; a failed query is not remembered; join tokens never pass through this memory.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use hermes_core::AgentId;
use jiff::Timestamp;
use uuid::Uuid;

use super::Principal;
use super::token::{Role, TokenHash, parse_bearer};

/// The store could not answer. Whether a write happened is unknown; reads may be repeated.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the token store did not answer")]
pub struct StoreError(#[source] pub Arc<dyn std::error::Error + Send + Sync>);

/// A token to be stored. Times are the store's: it adds `ttl` to its own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Its id.
    pub id: Uuid,
    /// What it is for.
    pub role: Role,
    /// The agent of a worker token, and of an API token that reaches one agent alone.
    pub agent: Option<AgentId>,
    /// How often a worker token can be used, else nothing.
    pub uses: Option<u32>,
    /// How long it lives; nothing: until revoked.
    pub ttl: Option<Duration>,
    /// For people; may be empty.
    pub name: String,
    /// The hash of its text.
    pub hash: TokenHash,
}

/// A stored token, without its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: Uuid,
    /// What it is for.
    pub role: Role,
    /// The agent of a worker token, and of an API token that reaches one agent alone.
    pub agent: Option<AgentId>,
    /// For people.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends, if it does.
    pub expires_at: Option<Timestamp>,
    /// When it was last seen, to about a minute.
    pub last_used_at: Option<Timestamp>,
    /// How often a worker token could be used when it was made; nothing when that was not noted.
    pub uses: Option<u32>,
    /// What is left of a worker token's uses.
    pub uses_left: Option<u32>,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// The rows of tokens. A *live* token is one that is neither revoked nor expired by the store's own clock.
pub trait TokenStore: Send + Sync + 'static {
    /// Stores a new token.
    fn create(&self, token: NewToken) -> BoxFuture<'_, Result<Token, StoreError>>;

    /// The live token of `hash`, of any role.
    fn find_by_hash(&self, hash: TokenHash) -> BoxFuture<'_, Result<Option<Token>, StoreError>>;

    /// Takes one use of the live worker token of `hash` and marks it used now, in one statement: of any number of
    /// concurrent calls, as many get the token as it had uses left. Nothing when there is none to take.
    fn spend(&self, hash: TokenHash) -> BoxFuture<'_, Result<Option<Token>, StoreError>>;

    /// At most `limit` tokens, live or not, in the order of their ids, starting behind `after`.
    fn list(&self, after: Option<Uuid>, limit: u32) -> BoxFuture<'_, Result<Vec<Token>, StoreError>>;

    /// Revokes a token; false when there is no such token. Revoking twice is true twice.
    fn revoke(&self, id: Uuid) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Marks tokens as used now; ids that do not exist are passed over.
    fn touch_last_used(&self, ids: Vec<Uuid>) -> BoxFuture<'_, Result<(), StoreError>>;
}

const REMEMBERED_FOR: Duration = Duration::from_secs(1);
/// Guessed tokens fill the memory too; beyond this many within a second new ones are asked for one by one.
const MAX_REMEMBERED: usize = 10_000;

type Lookup = Shared<BoxFuture<'static, Result<Option<Token>, StoreError>>>;

/// Bearer tokens as seen by one replica: cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    store: Arc<dyn TokenStore>,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Memory {
    lookups: HashMap<TokenHash, (Instant, Lookup)>,
    used: HashSet<Uuid>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// A memory in front of `store`.
    pub fn new(store: Arc<dyn TokenStore>) -> Self {
        Self { store, memory: Arc::default() }
    }

    /// The rows themselves.
    pub fn store(&self) -> &Arc<dyn TokenStore> {
        &self.store
    }

    /// Who `bearer` is, or nothing when it is no live token.
    ///
    /// # Errors
    /// [`StoreError`] when the store could not be asked: the caller is then unknown, not refused.
    pub async fn authenticate(&self, bearer: &str) -> Result<Option<Principal>, StoreError> {
        let Some((role, hash)) = parse_bearer(bearer) else { return Ok(None) };
        let found = self.lookup(hash).await;
        if found.is_err() {
            self.memory().lookups.remove(&hash);
        }
        // The role in the text is part of what is hashed; a row that says otherwise is not this token's.
        let Some(token) = found?.filter(|token| token.role == role) else { return Ok(None) };
        self.memory().used.insert(token.id);
        Ok(match role {
            Role::Operator => Some(Principal::Operator { token_id: token.id }),
            Role::Viewer => Some(Principal::Viewer { token_id: token.id }),
            Role::Api => Some(Principal::Api { token_id: token.id, agent: token.agent }),
            Role::Worker => None,
        })
    }

    /// Revokes a token and forgets what is remembered here; false when there is no such token.
    ///
    /// # Errors
    /// [`StoreError`]; repeat it.
    pub async fn revoke(&self, id: Uuid) -> Result<bool, StoreError> {
        let done = self.store.revoke(id).await;
        self.memory().lookups.clear();
        done
    }

    /// Writes down which tokens were used since the last call. Called about once a minute and at the stop; without it
    /// tokens work, but `last_used_at` stays behind.
    ///
    /// # Errors
    /// [`StoreError`]; the marks are kept for the next call.
    pub async fn touch(&self) -> Result<(), StoreError> {
        let used: Vec<Uuid> = self.memory().used.drain().collect();
        if used.is_empty() {
            return Ok(());
        }
        let written = self.store.touch_last_used(used.clone()).await;
        if written.is_err() {
            self.memory().used.extend(used);
        }
        written
    }

    fn lookup(&self, hash: TokenHash) -> Lookup {
        let now = Instant::now();
        let mut memory = self.memory();
        if let Some((since, lookup)) = memory.lookups.get(&hash)
            && now.duration_since(*since) < REMEMBERED_FOR
        {
            return lookup.clone();
        }
        if memory.lookups.len() >= MAX_REMEMBERED {
            memory.lookups.retain(|_, (since, _)| now.duration_since(*since) < REMEMBERED_FOR);
        }
        let store = Arc::clone(&self.store);
        let lookup = async move { store.find_by_hash(hash).await }.boxed().shared();
        if memory.lookups.len() < MAX_REMEMBERED {
            memory.lookups.insert(hash, (now, lookup.clone()));
        }
        lookup
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::identity::mint;

    /// Knows one token, counts queries and fails on demand.
    #[derive(Default)]
    struct One {
        hash: Mutex<Option<TokenHash>>,
        queries: AtomicUsize,
        down: AtomicBool,
        touched: Mutex<Vec<Uuid>>,
    }

    const ID: Uuid = Uuid::from_u128(7);

    impl TokenStore for One {
        fn create(&self, _: NewToken) -> BoxFuture<'_, Result<Token, StoreError>> {
            unreachable!("not called")
        }
        fn find_by_hash(&self, hash: TokenHash) -> BoxFuture<'_, Result<Option<Token>, StoreError>> {
            Box::pin(async move {
                self.queries.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                if self.down.load(Ordering::SeqCst) {
                    return Err(StoreError(Arc::new(std::io::Error::other("down"))));
                }
                Ok((*self.hash.lock().unwrap() == Some(hash)).then(|| Token {
                    id: ID,
                    role: Role::Api,
                    agent: None,
                    name: String::new(),
                    created_at: Timestamp::UNIX_EPOCH,
                    expires_at: None,
                    last_used_at: None,
                    uses: None,
                    uses_left: None,
                    revoked: false,
                }))
            })
        }
        fn spend(&self, _: TokenHash) -> BoxFuture<'_, Result<Option<Token>, StoreError>> {
            unreachable!("not called")
        }
        fn list(&self, _: Option<Uuid>, _: u32) -> BoxFuture<'_, Result<Vec<Token>, StoreError>> {
            unreachable!("not called")
        }
        fn revoke(&self, _: Uuid) -> BoxFuture<'_, Result<bool, StoreError>> {
            *self.hash.lock().unwrap() = None;
            Box::pin(async { Ok(true) })
        }
        fn touch_last_used(&self, ids: Vec<Uuid>) -> BoxFuture<'_, Result<(), StoreError>> {
            Box::pin(async move {
                if self.down.load(Ordering::SeqCst) {
                    return Err(StoreError(Arc::new(std::io::Error::other("down"))));
                }
                self.touched.lock().unwrap().extend(ids);
                Ok(())
            })
        }
    }

    #[tokio::test]
    async fn concurrent_requests_share_one_query_and_revocation_is_seen_at_once() {
        let token = mint(Role::Api).unwrap();
        let store = Arc::new(One::default());
        *store.hash.lock().unwrap() = Some(token.hash);
        let tokens = Tokens::new(store.clone());
        let asks = (0..1000).map(|_| tokens.authenticate(token.text.expose_secret()));
        for answer in futures_util::future::join_all(asks).await {
            assert_eq!(answer.unwrap(), Some(Principal::Api { token_id: ID, agent: None }));
        }
        assert_eq!(store.queries.load(Ordering::SeqCst), 1);
        assert!(tokens.revoke(ID).await.unwrap());
        assert_eq!(tokens.authenticate(token.text.expose_secret()).await.unwrap(), None);
        assert_eq!(store.queries.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_failed_query_is_asked_again_and_marks_of_use_are_kept() {
        let token = mint(Role::Api).unwrap();
        let store = Arc::new(One::default());
        *store.hash.lock().unwrap() = Some(token.hash);
        let tokens = Tokens::new(store.clone());
        store.down.store(true, Ordering::SeqCst);
        assert!(tokens.authenticate(token.text.expose_secret()).await.is_err());
        store.down.store(false, Ordering::SeqCst);
        assert!(tokens.authenticate(token.text.expose_secret()).await.unwrap().is_some());
        store.down.store(true, Ordering::SeqCst);
        assert!(tokens.touch().await.is_err());
        store.down.store(false, Ordering::SeqCst);
        tokens.touch().await.unwrap();
        tokens.touch().await.unwrap();
        assert_eq!(*store.touched.lock().unwrap(), [ID]);
    }

    #[tokio::test]
    async fn texts_that_are_no_tokens_cost_no_query_and_guesses_do_not_grow_the_memory() {
        let store = Arc::new(One::default());
        let tokens = Tokens::new(store.clone());
        assert_eq!(tokens.authenticate("hermes.v1.operator.x").await.unwrap(), None);
        assert_eq!(store.queries.load(Ordering::SeqCst), 0);
        for _ in 0..MAX_REMEMBERED + 50 {
            let guess = mint(Role::Operator).unwrap();
            assert_eq!(tokens.authenticate(guess.text.expose_secret()).await.unwrap(), None);
        }
        assert!(tokens.memory().lookups.len() <= MAX_REMEMBERED);
    }
}
