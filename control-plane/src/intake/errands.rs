//! Turns that nobody writes a message for: an agent merges skills of its own that overlap.
//!
//! Called by the workers' service, for the curator of an agent. Always true: such a turn takes the way of every message, with its bounds and its
//! commit; its conversation is nobody's chat, so nobody else speaks there and its answer goes nowhere; for runs that come by themselves there is none
//! before three quarters of their interval are over, however many workers of the agent have a copy of its home and ask.

use std::time::Instant;

use hermes_core::busy::{BusyMode, BusyPolicy};
use hermes_core::session_key::{Isolation, namespace, no_aliases, session_key};
use hermes_core::source::CURATOR;
use hermes_core::turn::TurnInput;
use hermes_core::{AgentId, Source};

use super::{Accepted, Decided, Dedupe, Error, Intake, batch, dedupe_bytes, known_platform};
use crate::registry::AgentEntry;
use crate::store::{Ingest, TurnId};

/// What people see of the turn's message; its worker tells the model what it is about. One that is too old to tells it this.
const TEXT: &str = "Merge the skills that overlap. (Whoever reads this as a message is told it by a worker that is too old to have it done: then do \
    nothing, use no tool, and answer just that.)";
const SECONDS_PER_HOUR: u64 = 60 * 60;

/// Who wants an agent to merge its skills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A run that comes by itself every so many hours.
    Every(u64),
    /// An operator, by that order.
    Order(u64),
}

impl Intake {
    /// Has an agent merge those of these skills that overlap. The turn; the one that there was already where it is not time yet, or the order is known.
    ///
    /// # Errors
    /// [`Error`]; only [`Error::Unavailable`] leaves in doubt whether there is a turn.
    pub async fn consolidate(&self, agent: &AgentEntry, skills: Vec<String>, wanted: Wanted) -> Result<TurnId, Error> {
        let source = Source {
            platform: CURATOR.to_owned(),
            chat_id: "skills".to_owned(),
            chat_name: Some("Skills".to_owned()),
            chat_type: "dm".to_owned(),
            ..Source::default()
        };
        let key = session_key(namespace(Some(agent.id.as_str()), None), &source, Isolation::default(), &no_aliases);
        let known = match wanted {
            Wanted::Order(order) => format!("curator:{}:order:{order}", agent.no),
            Wanted::Every(hours) => {
                let store = self.dispatcher.store();
                // The last one ended later than the run that led to it.
                let lately = hours.saturating_mul(SECONDS_PER_HOUR) / 4 * 3;
                let lately = store.last_turn_within(agent.no, &key, lately).await;
                if let Some(turn) = lately.map_err(|error| Error::Unavailable(error.to_string()))? {
                    return Ok(turn);
                }
                let now = u64::try_from(self.now().as_second()).unwrap_or(0);
                let interval = now / hours.saturating_mul(SECONDS_PER_HOUR).max(1);
                format!("curator:{}:{interval}", agent.no)
            }
        };
        let dedupe = Dedupe::Key { key: known, event_time: None, body_hash: None };
        let input =
            TurnInput { text: TEXT.to_owned(), source: Some(source), consolidates: skills, ..TurnInput::default() };
        self.errand(agent, key, &input, dedupe).await.map(|accepted| accepted.turn)
    }

    async fn errand(
        &self,
        agent: &AgentEntry,
        session_key: String,
        input: &TurnInput,
        dedupe: Dedupe,
    ) -> Result<Accepted, Error> {
        let limits = self.registry.current().document.limits.clone();
        let on_the_way = self.admit(agent.no, &limits, (true, false), input.text.len())?;
        let payload = serde_json::to_vec(input)
            .map_err(|error| Error::Invalid { field: "text", message: format!("it cannot be stored: {error}") })?;
        let policy = BusyPolicy { mode: BusyMode::Queue, notice: false };
        let (dedupe_key, body_hash) = dedupe_bytes(dedupe);
        let row = Ingest {
            dedupe_key,
            body_hash,
            agent_no: agent.no,
            session_key: session_key.clone(),
            lane: None,
            payload,
            traceparent: None,
            submitter: None,
            reserved: None,
            idle_before: None,
            daily_before: None,
            busy: policy.mode,
        };
        let agent: AgentId = agent.id.clone();
        let decided = Decided { work: batch::Work::Turn(row), agent, session_key, lane: None, policy, on_the_way };
        let offered = self.hand_over(decided, (known_platform(CURATOR), Instant::now()), &batch::Group::default())?;
        self.settle(offered).await
    }
}
