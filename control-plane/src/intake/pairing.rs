//! Messages of strangers: heard when their sender has paired, answered with a code in a direct chat where the account pairs, else passed
//! over in silence.
//!
//! Called by the sink. Always true: whether somebody has paired is read for each message; a stranger's text goes no
//! further than here; a group is told nothing.

use hermes_core::Source;
use hermes_core::pairing::{CODE_CHARS, Code};
use hermes_platforms::InboundMessage;
use rand::TryRngCore as _;

use super::{Error, Intake, MAX_ID_BYTES, batch};
use crate::store::{self, LaneKey, PairingAsk, PairingAsked};

impl Intake {
    /// Whether a stranger is heard; one who is not may have been sent a code.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: offer it again, and what follows in its group.
    pub(super) async fn stranger(&self, message: &InboundMessage, group: &batch::Group) -> Result<bool, Error> {
        if group.is_broken() {
            return Err(Error::Unavailable("a message before it was not stored".to_owned()));
        }
        self.judge(message).await.map_err(|error| {
            group.break_off();
            Error::Unavailable(error.to_string())
        })
    }

    /// Whether somebody whom the account does not name has paired; nobody has while the store cannot be asked.
    pub(super) async fn hears(&self, source: &Source) -> bool {
        let (Some(account), Some(user_id)) = (source.account.as_deref(), source.user_id.as_deref()) else {
            return false;
        };
        self.dispatcher.store().is_paired(&source.platform, account, user_id).await.unwrap_or(false)
    }

    async fn judge(&self, message: &InboundMessage) -> store::Result<bool> {
        let source = &message.source;
        let (Some(account), Some(user_id)) = (source.account.as_deref(), source.user_id.as_deref()) else {
            return Ok(false);
        };
        let ids = [user_id, source.chat_id.as_str(), source.thread_id.as_deref().unwrap_or_default()];
        if ids.iter().any(|id| id.len() > MAX_ID_BYTES) {
            return Ok(false);
        }
        let store = self.dispatcher.store();
        if store.is_paired(&source.platform, account, user_id).await? {
            return Ok(true);
        }
        if source.chat_type != "dm" || !self.registry.current().document.platforms.pairs(&source.platform, account) {
            return Ok(false);
        }
        let chat = LaneKey {
            platform: source.platform.clone(),
            account: account.to_owned(),
            chat_id: source.chat_id.clone(),
            thread_id: source.thread_id.clone().unwrap_or_default(),
        };
        let ask = PairingAsk {
            chat,
            user_id: user_id.to_owned(),
            user_name: source.user_name.as_deref().unwrap_or_default().chars().take(MAX_NAME_CHARS).collect(),
            event: message.dedupe_key.clone(),
            code: Code::from_random(random::<CODE_CHARS>()),
            salt: random(),
        };
        let asked = store.pairing_ask(&ask).await?;
        if asked == PairingAsked::Asked {
            tracing::info!(platform = source.platform, account, user_id, "a stranger was sent a pairing code");
            self.outbox.nudge();
        }
        Ok(asked == PairingAsked::Paired)
    }
}

/// Characters of a stranger's name that are kept.
const MAX_NAME_CHARS: usize = 128;

#[expect(clippy::expect_used, reason = "without random bytes nothing is safe")]
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the operating system gives random bytes, or nothing is safe");
    bytes
}
