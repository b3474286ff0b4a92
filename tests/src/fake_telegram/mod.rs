//! A Bot API server in this process: Telegram as the adapter sees it, with its limits and its bad days.
//!
//! Used by adapter and system tests and by the benchmark (thousands of calls a second). Owns its listener and tasks: they end
//! when [`FakeTelegram`] is dropped. Always true: an update stays until a poll's offset confirms it, one poll at a time
//! (the older gets 409), a call that gets an error had no effect, the log of deliveries only grows, and an edit changes the text of
//! a message where it stands. It has no users:
//! the test plays them.

mod answer;
mod files;
mod server;
mod uploads;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// So many confirmed updates can come again.
const PAST_UPDATES: usize = 256;

/// What goes wrong with one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None: the call is carried out and answered, so that a script can strike a later one.
    Pass,
    /// An error envelope, without an effect.
    Answer {
        /// HTTP status and `error_code`.
        code: u16,
        /// `description`, for example `Forbidden: bot was blocked by the user`.
        description: String,
        /// `parameters.retry_after`, seconds.
        retry_after: Option<u64>,
    },
    /// A status with an HTML body, as a proxy in between answers; without an effect.
    Proxy(u16),
    /// The connection ends before the body is read; without an effect.
    CutBeforeReading,
    /// The connection ends when the first bytes of the body have come; without an effect.
    CutWhileReading,
    /// The call takes effect, then the connection ends without an answer.
    CutAfterApplying,
    /// The call takes effect, then the connection ends in the middle of the answer.
    CutMidResponse,
    /// The call takes effect, and the answer comes after this time.
    Late(Duration),
    /// No answer for as long as the client waits; without an effect.
    Hang,
}

impl Fault {
    /// 429 as Telegram says it.
    pub fn flood(retry_after: u64) -> Self {
        let description = format!("Too Many Requests: retry after {retry_after}");
        Self::Answer { code: 429, description, retry_after: Some(retry_after) }
    }

    /// An error envelope of `code`.
    pub fn answer(code: u16, description: &str) -> Self {
        Self::Answer { code, description: description.to_owned(), retry_after: None }
    }
}

/// A message that arrived in a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When.
    pub at: Instant,
    /// Into which chat, as the caller wrote it.
    pub chat_id: String,
    /// Into which topic.
    pub thread_id: Option<i64>,
    /// Its text, as sent or as last edited; the caption of its file.
    pub text: String,
    /// The file in it.
    pub file: Option<SentFile>,
    /// What it said before each edit.
    pub earlier: Vec<String>,
    /// The id it got; ids increase.
    pub message_id: i64,
    /// What its buttons send when they are pressed.
    pub buttons: Vec<String>,
}

/// A file that arrived in a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentFile {
    /// The method that brought it, for example `sendPhoto`.
    pub method: String,
    /// Its name, as the caller wrote it.
    pub name: String,
    /// Its media type, as the caller wrote it.
    pub media_type: String,
    /// Its size.
    pub bytes: usize,
    /// SHA-256 of its content, hexadecimal in lower case.
    pub sha256: String,
}

/// The server.
#[derive(Debug)]
pub struct FakeTelegram {
    address: SocketAddr,
    bots: Bots,
    stop: CancellationToken,
    tasks: TaskTracker,
}

type Bots = Arc<Mutex<HashMap<String, Bot>>>;

impl FakeTelegram {
    /// Listens on a free port of 127.0.0.1, on the current runtime.
    pub async fn start() -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let bots = Bots::default();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(server::serve(listener, Arc::clone(&bots), stop.clone(), tasks.clone()));
        Ok(Self { address, bots, stop, tasks })
    }

    /// What to write as `api_base`.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bot with `token` (`ID:SECRET`), made at the first call. Tokens that no test asked for are unauthorised.
    pub fn bot(&self, token: &str) -> Bot {
        let mut bots = self.bots.lock().unwrap_or_else(PoisonError::into_inner);
        bots.entry(token.to_owned()).or_insert_with(|| Bot::new(token)).clone()
    }

    /// Takes the token back, as @BotFather's /revoke does.
    pub fn revoke(&self, token: &str) {
        let bot = self.bots.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
        if let Some(bot) = bot {
            bot.end_poll();
        }
    }

    /// Ends the server and every connection, and waits for it.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for FakeTelegram {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One bot: the test's side of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bot(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: i64,
    state: Mutex<State>,
    /// New updates, or a newer poll.
    updates: Notify,
    /// A call was counted or a message delivered.
    happened: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Unconfirmed updates by ascending id, as JSON text.
    updates: VecDeque<(i64, String)>,
    /// Updates that are delivered once more whatever the offset says.
    again: Vec<String>,
    /// Confirmed updates, when and which; only grows.
    confirmed: Vec<(Instant, i64)>,
    /// The text of the last of them, for [`Bot::redeliver`].
    past: VecDeque<String>,
    last_update: i64,
    last_message: i64,
    /// Number of the newest poll; older ones are told 409.
    poll: u64,
    waiting_polls: usize,
    /// A poll is held to its end even if its receiver is gone, and no other is let in meanwhile.
    holds_polls: bool,
    /// A poll whose receiver is gone is held until then.
    lingers: Option<tokio::time::Instant>,
    /// Polls that came while another receiver's was waiting.
    overlaps: u64,
    deliveries: Vec<Delivery>,
    by_chat: HashMap<String, Vec<usize>>,
    chat_notify: HashMap<String, Arc<Notify>>,
    /// What users sent, by the id that messages name.
    files: HashMap<String, Vec<u8>>,
    faults: Vec<Scripted>,
    calls: HashMap<String, u64>,
    /// Confirmed by the newest poll.
    offset: i64,
    /// Calls a second that one chat takes before it says 429.
    chat_limit: Option<u32>,
    chat_windows: HashMap<String, (Instant, u32)>,
    dead_topics: HashSet<(String, i64)>,
    /// Messages that their readers deleted.
    deleted: HashSet<i64>,
    /// Groups that became supergroups, and their new ids.
    migrated: HashMap<String, i64>,
}

#[derive(Debug)]
struct Scripted {
    method: String,
    chat_id: Option<String>,
    left: u32,
    fault: Fault,
}

impl Bot {
    fn new(token: &str) -> Self {
        let id = token.split(':').next().and_then(|id| id.parse().ok()).unwrap_or(1);
        Self(Arc::new(Shared { id, state: Mutex::default(), updates: Notify::new(), happened: Notify::new() }))
    }

    /// The bot's user id: the number before the token's colon.
    pub fn id(&self) -> i64 {
        self.0.id
    }

    /// User `user_id` writes `text` in `chat_id` (positive: their private chat, negative: a supergroup); answers the update's id.
    pub fn push_text(&self, chat_id: i64, user_id: i64, text: &str) -> i64 {
        let chat = if chat_id > 0 {
            json!({"id": chat_id, "type": "private", "first_name": format!("User {user_id}")})
        } else {
            json!({"id": chat_id, "type": "supergroup", "title": format!("Group {chat_id}")})
        };
        self.push_message(json!({"chat": chat, "from": user(user_id), "text": text}))
    }

    /// User `user_id` presses the button of `delivery` that sends `data`; answers the update's id.
    pub fn press(&self, delivery: &Delivery, user_id: i64, data: &str) -> i64 {
        let message = json!({"message_id": delivery.message_id, "date": jiff::Timestamp::now().as_second(),
            "from": {"id": self.id(), "is_bot": true, "first_name": "Fake"}, "chat": answer::chat(&delivery.chat_id), "text": delivery.text});
        let pressed = json!({"id": format!("q{}", delivery.message_id), "from": user(user_id), "message": message,
            "chat_instance": "1", "data": data});
        self.push_update(json!({ "callback_query": pressed }))
    }

    /// As [`Bot::push_text`], in a topic of a forum.
    pub fn push_topic_text(&self, chat_id: i64, thread_id: i64, user_id: i64, text: &str) -> i64 {
        let chat = json!({"id": chat_id, "type": "supergroup", "title": "Forum", "is_forum": true});
        self.push_message(json!({"chat": chat, "from": user(user_id), "text": text,
            "message_thread_id": thread_id, "is_topic_message": true}))
    }

    /// A `message` update with these fields; `message_id` and `date` are filled in. Answers the update's id.
    pub fn push_message(&self, mut message: Value) -> i64 {
        let mut state = self.locked();
        state.last_message += 1;
        message["message_id"] = json!(state.last_message);
        message["date"] = json!(jiff::Timestamp::now().as_second());
        drop(state);
        self.push_update(json!({ "message": message }))
    }

    /// Any update; `update_id` is filled in and answered.
    pub fn push_update(&self, mut update: Value) -> i64 {
        let mut state = self.locked();
        state.last_update += 1;
        let id = state.last_update;
        update["update_id"] = json!(id);
        state.updates.push_back((id, update.to_string()));
        drop(state);
        self.0.updates.notify_waiters();
        id
    }

    /// Delivers `update` once more with the next poll although it may be confirmed, as Telegram does now and then.
    pub fn push_again(&self, mut update: Value, update_id: i64) {
        update["update_id"] = json!(update_id);
        self.locked().again.push(update.to_string());
        self.0.updates.notify_waiters();
    }

    /// The unconfirmed update `update_id` comes twice in the next answer.
    pub fn duplicate(&self, update_id: i64) {
        let mut state = self.locked();
        let copy = state.updates.iter().find(|(id, _)| *id == update_id).map(|(_, text)| text.clone());
        state.again.extend(copy);
        drop(state);
        self.0.updates.notify_waiters();
    }

    /// One of the last confirmed updates comes once more, the `nth` modulo their number; false when there is none.
    pub fn redeliver(&self, nth: usize) -> bool {
        let mut state = self.locked();
        let copy = nth.checked_rem(state.past.len()).and_then(|at| state.past.get(at).cloned());
        let known = copy.is_some();
        state.again.extend(copy);
        drop(state);
        self.0.updates.notify_waiters();
        known
    }

    /// The next `times` calls of `method` get `fault`, after those scripted before.
    pub fn fail(&self, method: &str, times: u32, fault: Fault) {
        self.script(method, None, times, fault);
    }

    /// As [`Bot::fail`], for calls that name `chat_id` alone. `u32::MAX` is for ever.
    pub fn fail_in(&self, chat_id: i64, method: &str, times: u32, fault: Fault) {
        self.script(method, Some(chat_id.to_string()), times, fault);
    }

    fn script(&self, method: &str, chat_id: Option<String>, left: u32, fault: Fault) {
        self.locked().faults.push(Scripted { method: method.to_owned(), chat_id, left, fault });
    }

    /// Scripted faults of `method` that have not struck yet.
    pub fn pending(&self, method: &str) -> u32 {
        self.locked().faults.iter().filter(|fault| fault.method == method).map(|fault| fault.left).sum()
    }

    /// Forgets every scripted fault.
    pub fn heal(&self) {
        self.locked().faults.clear();
    }

    /// From now on one chat takes `per_second` messages in any second, the rest get 429. `None` lifts it.
    pub fn limit_chats(&self, per_second: Option<u32>) {
        self.locked().chat_limit = per_second;
    }

    /// Closes a topic for good: sends to it get `message thread not found`.
    pub fn remove_topic(&self, chat_id: i64, thread_id: i64) {
        self.locked().dead_topics.insert((chat_id.to_string(), thread_id));
    }

    /// Somebody in the chat deletes a message: it cannot be edited any more. It stays in the log.
    pub fn delete(&self, message_id: i64) {
        self.locked().deleted.insert(message_id);
    }

    /// Group `old` becomes supergroup `new`: sends to the old id are told the new one.
    pub fn migrate(&self, old: i64, new: i64) {
        self.locked().migrated.insert(old.to_string(), new);
    }

    /// Everything that arrived, in order.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.locked().deliveries.clone()
    }

    /// What arrived in `chat_id`, in order.
    pub fn delivered(&self, chat_id: i64) -> Vec<Delivery> {
        self.locked().in_chat(&chat_id.to_string(), 0)
    }

    /// How often `method` was called, failed calls included.
    pub fn calls(&self, method: &str) -> u64 {
        self.locked().calls.get(method).copied().unwrap_or_default()
    }

    /// Polls that wait for an update right now.
    pub fn waiting_polls(&self) -> usize {
        self.locked().waiting_polls
    }

    /// From now on a poll is held until its own time is over even when its receiver is gone, and every other poll is refused with
    /// 409 meanwhile, as Telegram may do.
    pub fn hold_polls(&self) {
        self.locked().holds_polls = true;
    }

    /// Polls that came while another was waiting that its receiver had not ended.
    pub fn overlaps(&self) -> u64 {
        self.locked().overlaps
    }

    /// Updates no poll has confirmed yet.
    pub fn unconfirmed(&self) -> Vec<i64> {
        self.locked().updates.iter().map(|(id, _)| *id).collect()
    }

    /// Every update that a poll has confirmed, and when, in order.
    pub fn confirmed(&self) -> Vec<(Instant, i64)> {
        self.locked().confirmed.clone()
    }

    /// The offset of the newest poll.
    pub fn offset(&self) -> i64 {
        self.locked().offset
    }

    /// Waits until `chat_id` has `count` messages and answers them; what there is, as an error, when `limit` runs out.
    pub async fn wait_for(&self, chat_id: i64, count: usize, limit: Duration) -> Result<Vec<Delivery>, Vec<Delivery>> {
        let in_time = tokio::time::timeout(limit, self.delivered_from(chat_id, count.saturating_sub(1))).await;
        let all = self.delivered(chat_id);
        if count == 0 || in_time.is_ok() { Ok(all) } else { Err(all) }
    }

    /// Waits for the `index`-th message (from 0) of `chat_id` and answers all from there on. Cheap with many waiting chats.
    pub async fn delivered_from(&self, chat_id: i64, index: usize) -> Vec<Delivery> {
        let chat_id = chat_id.to_string();
        let notify = self.locked().chat_notify.entry(chat_id.clone()).or_default().clone();
        loop {
            let notified = notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let found = self.locked().in_chat(&chat_id, index);
            if !found.is_empty() {
                return found;
            }
            notified.await;
        }
    }

    /// Waits until `done` holds, looked at after every call and delivery; false when `limit` runs out first.
    pub async fn wait_until(&self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let wait = async {
            loop {
                let notified = self.0.happened.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if done(self) {
                    return;
                }
                notified.await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    fn end_poll(&self) {
        self.locked().poll += 1;
        self.0.updates.notify_waiters();
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the oldest `count` updates as confirmed.
    fn confirm(&mut self, count: usize) {
        let now = Instant::now();
        for (id, text) in self.updates.drain(..count) {
            self.confirmed.push((now, id));
            self.past.push_back(text);
        }
        let old = self.past.len().saturating_sub(PAST_UPDATES);
        self.past.drain(..old);
    }

    fn in_chat(&self, chat_id: &str, from: usize) -> Vec<Delivery> {
        let indexes = self.by_chat.get(chat_id).and_then(|all| all.get(from..)).unwrap_or_default();
        indexes.iter().filter_map(|at| self.deliveries.get(*at)).cloned().collect()
    }
}

fn user(id: i64) -> Value {
    json!({"id": id, "is_bot": false, "first_name": format!("User {id}"), "language_code": "en"})
}
