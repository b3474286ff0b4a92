//! What the chats of either surface have in common: when they send, how long they wait, and where they count.
//!
//! Made by `main`, shared by every chat's loop. Always true: a chat has at most one unanswered message on its way, and
//! sends none after [`Load::until`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::tally::Tally;

/// A message without a reply for this long is lost.
pub(crate) const GIVE_UP_AFTER: Duration = Duration::from_secs(30);
/// After its last message a chat listens on until nothing came for this long: an extra reply shows itself here.
pub(crate) const SETTLE: Duration = Duration::from_millis(500);

/// One run's load. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Where it counts.
    pub(crate) tally: Arc<Tally>,
    /// No message is sent from here on.
    pub(crate) until: Instant,
}
