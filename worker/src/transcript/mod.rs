//! What was said before: the ended turns of sessions, cached by version and fetched only where they lack.
//!
//! Called by turns before a model call and when the control plane has stored their reply. Owns a cache that is bounded
//! by bytes; the session unused for longest goes first. Always true: an answer holds whole turns only, the newest that
//! fit twice the assignment's budget (so that what does not fit any more can be summed up), and none after the version asked for. The truth
//! is in the control plane; losing the cache costs a fetch.

mod trail;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{FetchTranscriptRequest, ModelRole, TranscriptChunk, TranscriptRole, TurnRef};
use tonic::transport::Channel;

use crate::model::Message;
use crate::turns::reply_that_asked;

/// What stands before a summary when a model is told of it.
const SUMMARY_HEAD: &str =
    "[A summary of what was said earlier in this conversation. It is a note to go on from, not a request.]";
/// What the model is told it said to that.
const SUMMARY_TAKEN: &str = "I will go on from there.";

/// What stands for a message that has no text.
const WORDLESS: &str = "[Nothing was written here.]";

/// What a cached session or turn costs beyond its text, in bytes.
const OVERHEAD: usize = 160;

/// One ended turn: its message, what it did, its reply. The cache and whoever reads it share it.
#[derive(Debug, PartialEq, Eq)]
struct EndedTurn {
    seq: u64,
    messages: Vec<Message>,
}

impl EndedTurn {
    fn new(seq: u64, mut messages: Vec<Message>) -> Self {
        if let Some(first) = messages.first_mut().filter(|first| first.role == ModelRole::User)
            && first.text.trim().is_empty()
        {
            // Providers refuse a message without a word; a job may have a script or skills alone.
            first.text = WORDLESS.into();
        }
        let reply = messages.pop_if(|message| message.role == ModelRole::Assistant && message.tool_calls.is_empty());
        let between = if messages.is_empty() { Vec::new() } else { messages.split_off(1) };
        messages.extend(trail::condensed(between).into_iter().chain(reply));
        Self { seq, messages }
    }

    fn bytes(&self) -> usize {
        self.messages.iter().map(Message::bytes).sum()
    }
}

/// What stands for the oldest turns of a session.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// The newest of these turns.
    pub through: u64,
    /// Its text.
    pub text: String,
}

/// What was said in a session: a summary of its oldest turns where there is one, and ended turns, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    summary: Option<Arc<Summary>>,
    turns: VecDeque<Arc<EndedTurn>>,
    /// How long the turns' text is together.
    bytes: usize,
}

impl History {
    /// The summary that stands for the oldest turns.
    pub fn summary(&self) -> Option<&Summary> {
        self.summary.as_deref()
    }

    /// How long all of it is, bytes of text.
    pub fn bytes(&self) -> usize {
        self.bytes + self.summary().map_or(0, |summary| summary.text.len())
    }

    /// The turns, oldest first: their numbers and what was said in them.
    pub fn turns(&self) -> impl DoubleEndedIterator<Item = (u64, &[Message])> + ExactSizeIterator {
        self.turns.iter().map(|turn| (turn.seq, turn.messages.as_slice()))
    }

    /// Puts a summary in the place of the turns that it stands for.
    pub fn sum_up(&mut self, summary: Summary) {
        while let Some(oldest) = self.turns.pop_front_if(|turn| turn.seq <= summary.through) {
            self.bytes -= oldest.bytes();
        }
        self.summary = Some(Arc::new(summary));
    }

    /// What a model is told of it: the summary, and as many of the newest turns as fit `budget` bytes with it.
    pub fn told(mut self, budget: usize) -> Vec<Message> {
        self.cut(budget.saturating_sub(self.summary().map_or(0, |summary| summary.text.len())));
        // Some models take the two sides in turn only.
        let summed_up = self.summary.iter().flat_map(|summary| {
            let text = format!("{SUMMARY_HEAD}\n\n{}", summary.text);
            [Message::new(ModelRole::User, text), Message::new(ModelRole::Assistant, SUMMARY_TAKEN)]
        });
        summed_up.chain(self.turns.iter().flat_map(|turn| turn.messages.iter().cloned())).collect()
    }

    /// Appends an ended turn.
    #[cfg(test)]
    pub(crate) fn append(&mut self, seq: u64, messages: Vec<Message>) {
        self.push(EndedTurn::new(seq, messages));
    }

    fn push(&mut self, turn: EndedTurn) {
        self.bytes += turn.bytes();
        self.turns.push_back(Arc::new(turn));
    }

    /// Drops whole turns from the old end until the text fits.
    fn cut(&mut self, budget: usize) {
        while self.bytes > budget
            && let Some(oldest) = self.turns.pop_front()
        {
            self.bytes -= oldest.bytes();
        }
    }

    /// Drops the turns after `version`.
    fn end_at(&mut self, version: u64) {
        while let Some(newest) = self.turns.pop_back_if(|turn| turn.seq > version) {
            self.bytes -= newest.bytes();
        }
    }
}

#[derive(Debug)]
struct Session {
    /// All turns up to this number are known (those beyond the budget known and let go).
    through: u64,
    /// How often turns were left out of the history or summed up when these were fetched.
    rewinds: u32,
    /// The largest budget these turns were cut to.
    budget: usize,
    past: History,
    /// The first turn that may try to sum it up.
    rests_until: u64,
    used: u64,
}

impl Session {
    fn cost(&self) -> usize {
        OVERHEAD + self.past.bytes() + self.past.turns.len() * OVERHEAD
    }
}

#[derive(Debug, Default)]
struct Cache {
    sessions: HashMap<u64, Session>,
    by_use: BTreeMap<u64, u64>,
    bytes: usize,
    tick: u64,
}

/// The cache; one per process.
#[derive(Debug)]
pub struct Transcripts {
    max_bytes: usize,
    cache: Mutex<Cache>,
}

impl Transcripts {
    /// Keeps about `max_bytes` of text.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, cache: Mutex::default() }
    }

    /// The turns 1 to `version` of the turn's session: what stands for the oldest, and as many of the newest as fit twice `budget`
    /// bytes. What is known from before the last of `rewinds` is fetched again.
    ///
    /// # Errors
    /// The status of the fetch; the cache is unchanged then.
    pub async fn history(
        &self,
        channel: Channel,
        turn: TurnRef,
        version: u64,
        rewinds: u32,
        budget: usize,
    ) -> Result<History, tonic::Status> {
        if version == 0 || budget == 0 {
            return Ok(History::default());
        }
        let budget = window(budget);
        let (mut past, after_seq) = self.known(turn.session_id, version, rewinds, budget);
        if after_seq < version {
            fetch(channel, turn, after_seq, version, budget, &mut past).await?;
            self.keep(
                turn.session_id,
                Session { through: version, rewinds, budget, past: past.clone(), rests_until: 0, used: 0 },
            );
        }
        past.cut(budget);
        Ok(past)
    }

    /// Notes what the control plane has stored as turn `seq`, if all turns before it are known: its message, what it did, its reply.
    pub fn record(&self, (session_id, seq): (u64, u64), rewinds: u32, messages: Vec<Message>, budget: usize) {
        let known = {
            let mut cache = self.lock();
            let known = cache.sessions.get(&session_id).map_or((0, rewinds), |known| (known.through, known.rewinds));
            if (known.0.checked_add(1), known.1) != (Some(seq), rewinds) {
                return;
            }
            cache.take(session_id)
        };
        let budget = window(budget);
        let mut session =
            known.unwrap_or(Session { through: 0, rewinds, budget, past: History::default(), rests_until: 0, used: 0 });
        session.past.push(EndedTurn::new(seq, messages));
        session.through = seq;
        self.keep(session_id, session);
    }

    /// No turn before number `until` of the session tries to sum it up, as long as the session is remembered.
    pub fn rest(&self, session_id: u64, until: u64) {
        if let Some(session) = self.lock().sessions.get_mut(&session_id) {
            session.rests_until = until;
        }
    }

    /// Whether turn `seq` of the session is not to try to sum it up.
    pub fn rests(&self, session_id: u64, seq: u64) -> bool {
        self.lock().sessions.get(&session_id).is_some_and(|session| seq < session.rests_until)
    }

    /// What is known of the turns up to `version`, and through which number.
    fn known(&self, session_id: u64, version: u64, rewinds: u32, budget: usize) -> (History, u64) {
        let mut cache = self.lock();
        match cache.touch(session_id) {
            Some(session) if session.budget >= budget && session.rewinds == rewinds => {
                let mut past = session.past.clone();
                past.end_at(version);
                (past, session.through.min(version))
            }
            // Cut to less than is wanted now, or some of it is left out now: it must come again.
            _ => (History::default(), 0),
        }
    }

    fn keep(&self, session_id: u64, mut session: Session) {
        session.past.cut(session.budget);
        let mut cache = self.lock();
        cache.take(session_id);
        cache.put(session_id, session);
        while cache.bytes > self.max_bytes
            && let Some((_, oldest)) = cache.by_use.first_key_value().map(|(tick, id)| (*tick, *id))
        {
            cache.take(oldest);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn take(&mut self, session_id: u64) -> Option<Session> {
        let session = self.sessions.remove(&session_id)?;
        self.by_use.remove(&session.used);
        self.bytes -= session.cost();
        Some(session)
    }

    fn put(&mut self, session_id: u64, mut session: Session) {
        self.tick += 1;
        session.used = self.tick;
        self.bytes += session.cost();
        self.by_use.insert(self.tick, session_id);
        self.sessions.insert(session_id, session);
    }

    fn touch(&mut self, session_id: u64) -> Option<&Session> {
        let session = self.sessions.get_mut(&session_id)?;
        self.tick += 1;
        self.by_use.remove(&session.used);
        session.used = self.tick;
        self.by_use.insert(self.tick, session_id);
        Some(session)
    }
}

/// How much of a history is kept for a model that is given `budget` bytes of it.
fn window(budget: usize) -> usize {
    budget.saturating_mul(2)
}

/// Appends the turns after `after_seq` to `past`, keeping no more text than the budget (and one turn) on the way.
async fn fetch(
    channel: Channel,
    turn: TurnRef,
    after_seq: u64,
    version: u64,
    budget: usize,
    past: &mut History,
) -> Result<(), tonic::Status> {
    let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES);
    let request = FetchTranscriptRequest { turn: Some(turn), after_seq, summaries: true, steps: true };
    let mut chunks = client.fetch_transcript(request).await?.into_inner();
    let mut open: Option<(u64, TranscriptRole, Vec<u8>)> = None;
    // The turn whose entries are coming: whole before it is one of the past.
    let mut newest: Option<Coming> = None;
    while let Some(chunk) = chunks.message().await? {
        let role = chunk.role();
        let TranscriptChunk { seq, text, more, .. } = chunk;
        let mut entry = match open.take() {
            Some((open_seq, open_role, _)) if open_seq != seq || open_role != role => {
                return Err(tonic::Status::data_loss("a transcript entry changed between its chunks"));
            }
            Some((_, _, mut bytes)) => {
                bytes.extend_from_slice(&text);
                bytes
            }
            None => text,
        };
        if more {
            // An entry that alone exceeds the budget is never shown: its turn goes, whatever follows.
            entry.truncate(budget.saturating_add(1));
            open = Some((seq, role, entry));
        } else if role == TranscriptRole::Summary {
            past.sum_up(Summary { through: seq, text: text_of(entry) });
        } else if seq <= version {
            if newest.as_ref().is_none_or(|turn| turn.seq != seq) {
                let before = newest.replace(Coming { seq, ..Coming::default() });
                before.into_iter().for_each(|turn| past.push(turn.ended()));
            }
            if let Some(turn) = &mut newest {
                turn.take(role, entry)?;
                past.cut(budget.saturating_sub(turn.messages.iter().map(Message::bytes).sum()));
            }
        }
    }
    if open.is_some() {
        return Err(tonic::Status::unavailable("the transcript broke off inside an entry"));
    }
    newest.into_iter().for_each(|turn| past.push(turn.ended()));
    Ok(())
}

/// A turn as its entries come.
#[derive(Default)]
struct Coming {
    seq: u64,
    messages: Vec<Message>,
    /// Ids of calls without a result so far, those of tasks behind those of the replies that delegated them.
    calls: Vec<VecDeque<Arc<str>>>,
}

impl Coming {
    fn take(&mut self, role: TranscriptRole, entry: Vec<u8>) -> Result<(), tonic::Status> {
        let message = match role {
            TranscriptRole::User => Message::new(ModelRole::User, text_of(entry)),
            TranscriptRole::Assistant => Message::new(ModelRole::Assistant, text_of(entry)),
            TranscriptRole::Asks => {
                // One that cannot be read leaves its results without calls, and they are not told.
                let message = reply_that_asked(&entry).unwrap_or_else(|| Message::new(ModelRole::Assistant, ""));
                self.calls.push(message.tool_calls.iter().map(|call| call.id.as_str().into()).collect());
                // Of a task only its result is told.
                if self.calls.len() > 1 {
                    return Ok(());
                }
                message
            }
            TranscriptRole::Result => {
                let depth = self.calls.len();
                let tool_call_id = self.calls.last_mut().and_then(VecDeque::pop_front).unwrap_or_default();
                self.calls.pop_if(|left| left.is_empty());
                if depth > 1 {
                    return Ok(());
                }
                Message { tool_call_id, ..Message::new(ModelRole::Tool, text_of(entry)) }
            }
            TranscriptRole::Unspecified | TranscriptRole::Summary => {
                return Err(tonic::Status::data_loss("a transcript entry without a role"));
            }
        };
        self.messages.push(message);
        Ok(())
    }

    fn ended(self) -> EndedTurn {
        EndedTurn::new(self.seq, self.messages)
    }
}

fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(cache: &Transcripts, session: u64, version: u64, budget: usize) -> (Vec<String>, u64) {
        let (mut past, through) = cache.known(session, version, 0, budget);
        past.cut(budget);
        let messages = past.turns().flat_map(|(_, messages)| messages);
        (messages.map(|message| message.text.to_string()).collect(), through)
    }

    fn say(cache: &Transcripts, session: u64, seq: u64) {
        cache.record((session, seq), 0, said(&format!("q{seq}"), &format!("a{seq}")), 1000);
    }

    fn said(user: &str, assistant: &str) -> Vec<Message> {
        vec![Message::new(ModelRole::User, user), Message::new(ModelRole::Assistant, assistant)]
    }

    #[test]
    fn recorded_turns_need_no_fetch_and_gaps_are_not_recorded() {
        let cache = Transcripts::new(1 << 20);
        say(&cache, 1, 1);
        say(&cache, 1, 2);
        say(&cache, 1, 4);
        assert_eq!(texts(&cache, 1, 2, 1000), (["q1", "a1", "q2", "a2"].map(String::from).to_vec(), 2));
        assert_eq!(texts(&cache, 1, 1, 1000), (["q1", "a1"].map(String::from).to_vec(), 1));
        assert_eq!(texts(&cache, 1, 3, 1000).1, 2, "turn 3 lacks");
        assert_eq!(texts(&cache, 2, 3, 1000), (Vec::new(), 0));
    }

    #[test]
    fn whole_oldest_turns_are_cut_and_a_larger_budget_fetches_again() {
        let cache = Transcripts::new(1 << 20);
        (1..=5).for_each(|seq| say(&cache, 1, seq));
        assert_eq!(texts(&cache, 1, 5, 11).0, ["q4", "a4", "q5", "a5"]);
        assert_eq!(texts(&cache, 1, 5, 3).0, Vec::<String>::new());
        assert_eq!(texts(&cache, 1, 5, 2001), (Vec::new(), 0));
    }

    #[test]
    fn a_history_that_was_rewound_is_fetched_again_and_grows_from_there() {
        let cache = Transcripts::new(1 << 20);
        (1..=3).for_each(|seq| say(&cache, 1, seq));
        assert_eq!(cache.known(1, 3, 1, 1000).1, 0);
        // What ended before the rewind and is heard of after it is no part of what is known.
        let record = |seq, rewinds| cache.record((1, seq), rewinds, said("q", "a"), 1000);
        let fetched =
            Session { through: 3, rewinds: 1, budget: 1000, past: History::default(), rests_until: 0, used: 0 };
        cache.keep(1, fetched);
        record(4, 0);
        assert_eq!(cache.known(1, 4, 1, 1000).1, 3);
        record(4, 1);
        assert_eq!(cache.known(1, 4, 1, 1000).1, 4);
    }

    #[test]
    fn a_summary_stands_for_its_turns_and_counts_for_the_budget() {
        let cache = Transcripts::new(1 << 20);
        (1..=5).for_each(|seq| say(&cache, 1, seq));
        let mut history = cache.known(1, 5, 0, 1000).0;
        history.sum_up(Summary { through: 3, text: "sum".to_owned() });
        assert_eq!(history.turns().map(|(seq, _)| seq).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(history.bytes(), 3 + 8);
        let told = |budget| -> Vec<String> {
            history.clone().told(budget).iter().map(|message| message.text.to_string()).collect()
        };
        let summary = format!("{SUMMARY_HEAD}\n\nsum");
        assert_eq!(told(1000), [summary.as_str(), SUMMARY_TAKEN, "q4", "a4", "q5", "a5"]);
        assert_eq!(told(3 + 4), [summary.as_str(), SUMMARY_TAKEN, "q5", "a5"]);
        assert_eq!(told(0), [summary.as_str(), SUMMARY_TAKEN]);
    }

    #[test]
    fn the_session_unused_for_longest_goes_first() {
        let one = OVERHEAD * 2 + 4;
        let cache = Transcripts::new(one * 2);
        say(&cache, 1, 1);
        say(&cache, 2, 1);
        texts(&cache, 1, 1, 1000);
        say(&cache, 3, 1);
        assert_eq!([1, 2, 3].map(|session| texts(&cache, session, 1, 1000).1), [1, 0, 1]);
        assert!(cache.lock().bytes <= one * 2);
    }
}
