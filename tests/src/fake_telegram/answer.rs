//! The methods: what a call asks and what Telegram answers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Limited};
use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::server::Cut;
use super::uploads::{self, Part};
use super::{Bot, Delivery, SentFile};

/// Telegram's own bound on a text, UTF-16 units.
const TEXT_LIMIT: usize = 4_096;
const MOST_UPDATES: usize = 100;
const LONGEST_POLL: u64 = 50;
const CONFLICT: &str =
    "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running";
/// The largest file, and some room for what stands around it.
const BODY_BYTES: usize = uploads::FILE_BYTES + 4 * 1024 * 1024;

/// One answer, ready to be written.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn html(status: u16) -> Self {
        let text = format!("<html><body><h1>{status}</h1><hr>proxy</body></html>");
        Self { status, content_type: "text/html", text }
    }

    pub(super) fn ok(result: &str) -> Self {
        Self { status: 200, content_type: "application/json", text: format!("{{\"ok\":true,\"result\":{result}}}") }
    }
}

/// The error envelope.
pub(super) fn error(code: u16, description: &str, retry_after: Option<u64>) -> Answer {
    envelope(code, description, retry_after.map(|seconds| json!({ "retry_after": seconds })))
}

fn envelope(code: u16, description: &str, parameters: Option<Value>) -> Answer {
    let mut body = json!({"ok": false, "error_code": code, "description": description});
    if let Some(parameters) = parameters {
        body["parameters"] = parameters;
    }
    Answer { status: code, content_type: "application/json", text: body.to_string() }
}

/// A call with its parameters, from the query, a form or JSON.
pub(super) struct Call {
    pub(super) method: String,
    parameters: HashMap<String, Value>,
    pub(super) files: HashMap<String, Part>,
}

impl Call {
    pub(super) async fn read(method: String, request: Request<Incoming>) -> Result<Self, Cut> {
        let mut parameters = request.uri().query().map(pairs).unwrap_or_default();
        let kind = request.headers().get(http::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or_default().to_owned();
        let mut files = HashMap::new();
        let body = Limited::new(request.into_body(), BODY_BYTES).collect().await.map_err(|_| Cut)?.to_bytes();
        if kind.starts_with("multipart/form-data") {
            let (texts, sent) = uploads::parts(&kind, &body);
            parameters.extend(texts);
            files = sent;
        } else if kind.starts_with("application/json") {
            parameters.extend(serde_json::from_slice::<HashMap<String, Value>>(&body).unwrap_or_default());
        } else if let Ok(form) = str::from_utf8(&body) {
            parameters.extend(pairs(form));
        }
        Ok(Self { method, parameters, files })
    }

    /// A parameter as text; a JSON number is its decimal text.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        self.text(name).map(Cow::into_owned)
    }

    fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        match self.parameters.get(name)? {
            Value::Null => None,
            Value::String(text) => Some(text.into()),
            other => Some(other.to_string().into()),
        }
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }
}

fn pairs(form: &str) -> HashMap<String, Value> {
    // The URL parser knows the encoding of forms.
    let url = reqwest::Url::parse(&format!("http://form/?{form}"));
    url.map(|url| url.query_pairs().map(|(key, value)| (key.into_owned(), Value::from(value))).collect())
        .unwrap_or_default()
}

impl Bot {
    /// Carries out `call`.
    pub(super) async fn answer(&self, call: &Call) -> Answer {
        match call.method.as_str() {
            "getMe" => Answer::ok(&self.me().to_string()),
            "getUpdates" => self.get_updates(call).await,
            "sendMessage" => self.send_message(call),
            "sendPhoto" => self.send_file(call, "photo"),
            "sendVoice" => self.send_file(call, "voice"),
            "sendAudio" => self.send_file(call, "audio"),
            "sendVideo" => self.send_file(call, "video"),
            "sendDocument" => self.send_file(call, "document"),
            "editMessageText" => self.edit_message(call),
            "sendChatAction" => match call.text("chat_id") {
                Some(_) if call.text("action").is_some() => Answer::ok("true"),
                Some(_) => error(400, "Bad Request: wrong parameter action in request", None),
                None => error(400, "Bad Request: chat_id is empty", None),
            },
            "getFile" => self.place_of(&call.get("file_id").unwrap_or_default()),
            "deleteWebhook" | "answerCallbackQuery" => Answer::ok("true"),
            "getWebhookInfo" => {
                let pending = self.locked().updates.len();
                Answer::ok(&json!({"url": "", "pending_update_count": pending}).to_string())
            }
            _ => error(404, "Not Found: method not found", None),
        }
    }

    fn me(&self) -> Value {
        let id = self.id();
        json!({"id": id, "is_bot": true, "first_name": "Fake", "username": format!("fake{id}_bot"),
            "can_join_groups": true, "can_read_all_group_messages": true, "supports_inline_queries": false})
    }

    async fn get_updates(&self, call: &Call) -> Answer {
        let offset = call.number::<i64>("offset").unwrap_or(0);
        let limit = call.number::<usize>("limit").unwrap_or(MOST_UPDATES).clamp(1, MOST_UPDATES);
        let seconds = call.number::<u64>("timeout").unwrap_or(0).min(LONGEST_POLL);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
        if let Some(conflict) = self.held_poll() {
            return conflict;
        }
        let number = self.begin_poll(offset);
        let mut waiting = Waiting::new(self, deadline);
        let answer = self.next_answer(number, limit, deadline).await;
        waiting.answered = true;
        answer
    }

    async fn next_answer(&self, number: u64, limit: usize, deadline: tokio::time::Instant) -> Answer {
        loop {
            let notified = self.0.updates.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(answer) = self.poll_answer(number, limit) {
                return answer;
            }
            if tokio::time::timeout_at(deadline, notified).await.is_err() {
                return self.poll_answer(number, limit).unwrap_or_else(|| Answer::ok("[]"));
            }
        }
    }

    /// 409 for a poll that comes while another is held. Counts those that come while another receiver waits.
    fn held_poll(&self) -> Option<Answer> {
        let mut state = self.locked();
        if state.waiting_polls > 0 {
            state.overlaps += 1;
        }
        let lingers = state.lingers.is_some_and(|until| until > tokio::time::Instant::now());
        (state.holds_polls && (state.waiting_polls > 0 || lingers)).then(|| error(409, CONFLICT, None))
    }

    /// Confirms what lies before `offset`, sends the older poll home and answers this one's number.
    fn begin_poll(&self, offset: i64) -> u64 {
        let mut state = self.locked();
        if offset < 0 {
            // A negative offset keeps that many of the newest and confirms the rest.
            let keep = usize::try_from(offset.unsigned_abs()).unwrap_or(usize::MAX);
            let gone = state.updates.len().saturating_sub(keep);
            state.confirm(gone);
        } else {
            let gone = state.updates.partition_point(|(id, _)| *id < offset);
            state.confirm(gone);
        }
        state.offset = offset;
        state.poll += 1;
        let number = state.poll;
        drop(state);
        self.0.updates.notify_waiters();
        self.0.happened.notify_waiters();
        number
    }

    fn poll_answer(&self, number: u64, limit: usize) -> Option<Answer> {
        let mut state = self.locked();
        if state.poll != number {
            return Some(error(409, CONFLICT, None));
        }
        if state.updates.is_empty() && state.again.is_empty() {
            return None;
        }
        let again = std::mem::take(&mut state.again);
        let texts: Vec<&str> =
            again.iter().chain(state.updates.iter().map(|(_, text)| text)).take(limit).map(String::as_str).collect();
        Some(Answer::ok(&format!("[{}]", texts.join(","))))
    }

    fn send_message(&self, call: &Call) -> Answer {
        let text = call.get("text").unwrap_or_default();
        if text.trim().is_empty() {
            return error(400, "Bad Request: message text is empty", None);
        }
        if text.encode_utf16().count() > TEXT_LIMIT {
            return error(400, "Bad Request: message is too long", None);
        }
        let shown = json!({"text": text.trim()});
        self.deliver(call, text, None, shown)
    }

    /// Puts a message into its chat; `shown` is what the answer says of its content.
    pub(super) fn deliver(&self, call: &Call, text: String, file: Option<SentFile>, shown: Value) -> Answer {
        let Some(chat_id) = call.get("chat_id").filter(|chat| !chat.is_empty()) else {
            return error(400, "Bad Request: chat_id is empty", None);
        };
        let thread_id = call.number::<i64>("message_thread_id");
        let markup = call.parameters.get("reply_markup").map(|markup| match markup {
            // In a form it is text.
            Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
            markup => markup.clone(),
        });
        let rows = markup.as_ref().and_then(|markup| markup["inline_keyboard"].as_array());
        let keys = rows.into_iter().flatten().filter_map(Value::as_array).flatten();
        let buttons: Vec<String> = keys.filter_map(|key| key["callback_data"].as_str().map(str::to_owned)).collect();
        if buttons.iter().any(|data| data.is_empty() || data.len() > 64) {
            return error(400, "Bad Request: BUTTON_DATA_INVALID", None);
        }
        let now = Instant::now();
        let mut state = self.locked();
        if thread_id.is_some_and(|thread| state.dead_topics.contains(&(chat_id.clone(), thread))) {
            return error(400, "Bad Request: message thread not found", None);
        }
        if let Some(new) = state.migrated.get(&chat_id) {
            let text = "Bad Request: group chat was upgraded to a supergroup chat";
            return envelope(400, text, Some(json!({ "migrate_to_chat_id": new })));
        }
        if state.is_flooded(&chat_id, now) {
            return error(429, "Too Many Requests: retry after 1", Some(1));
        }
        state.last_message += 1;
        let message_id = state.last_message;
        let mut result = shown;
        result["message_id"] = json!(message_id);
        result["from"] = self.me();
        result["date"] = json!(jiff::Timestamp::now().as_second());
        result["chat"] = chat(&chat_id);
        if let Some(thread) = thread_id {
            result["message_thread_id"] = json!(thread);
        }
        let index = state.deliveries.len();
        state.deliveries.push(Delivery {
            at: now,
            chat_id: chat_id.clone(),
            thread_id,
            text,
            file,
            earlier: Vec::new(),
            message_id,
            buttons,
        });
        state.by_chat.entry(chat_id.clone()).or_default().push(index);
        let waiting = state.chat_notify.get(&chat_id).cloned();
        drop(state);
        if let Some(waiting) = waiting {
            waiting.notify_waiters();
        }
        self.0.happened.notify_waiters();
        Answer::ok(&result.to_string())
    }
}

impl Bot {
    /// As Telegram does it: the message keeps its place, a text that it has already is refused, and what is not there cannot be edited.
    fn edit_message(&self, call: &Call) -> Answer {
        let Some(chat_id) = call.get("chat_id").filter(|chat| !chat.is_empty()) else {
            return error(400, "Bad Request: chat_id is empty", None);
        };
        let text = call.get("text").unwrap_or_default();
        if text.trim().is_empty() {
            return error(400, "Bad Request: message text is empty", None);
        }
        if text.encode_utf16().count() > TEXT_LIMIT {
            return error(400, "Bad Request: MESSAGE_TOO_LONG", None);
        }
        let Some(message_id) = call.number::<i64>("message_id") else {
            return error(400, "Bad Request: message identifier is not specified", None);
        };
        let mut state = self.locked();
        if state.is_flooded(&chat_id, Instant::now()) {
            return error(429, "Too Many Requests: retry after 1", Some(1));
        }
        let is_deleted = state.deleted.contains(&message_id);
        let found = state.deliveries.iter_mut().find(|sent| sent.chat_id == chat_id && sent.message_id == message_id);
        let Some(sent) = found.filter(|_| !is_deleted) else {
            return error(400, "Bad Request: message to edit not found", None);
        };
        if sent.file.is_some() {
            return error(400, "Bad Request: there is no text in the message to edit", None);
        }
        if sent.text.trim() == text.trim() {
            let same = "Bad Request: message is not modified: specified new message content and reply markup are exactly the \
                        same as a current content and reply markup of the message";
            return error(400, same, None);
        }
        let before = std::mem::replace(&mut sent.text, text.clone());
        sent.earlier.push(before);
        let now = jiff::Timestamp::now().as_second();
        let result = json!({"message_id": message_id, "from": self.me(), "text": text.trim(), "date": now,
            "edit_date": now, "chat": chat(&chat_id)});
        drop(state);
        self.0.happened.notify_waiters();
        Answer::ok(&result.to_string())
    }
}

impl super::State {
    /// Counts a call of the chat; whether that is one too many.
    fn is_flooded(&mut self, chat_id: &str, now: Instant) -> bool {
        let Some(limit) = self.chat_limit else { return false };
        let (start, used) = self.chat_windows.entry(chat_id.to_owned()).or_insert((now, 0));
        if now.duration_since(*start) >= Duration::from_secs(1) {
            (*start, *used) = (now, 0);
        }
        let flooded = *used >= limit;
        *used += u32::from(!flooded);
        flooded
    }
}

/// Counts a poll for as long as it lives; a client that leaves drops it.
struct Waiting<'a> {
    bot: &'a Bot,
    deadline: tokio::time::Instant,
    answered: bool,
}

impl<'a> Waiting<'a> {
    fn new(bot: &'a Bot, deadline: tokio::time::Instant) -> Self {
        bot.locked().waiting_polls += 1;
        bot.0.happened.notify_waiters();
        Self { bot, deadline, answered: false }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.bot.locked();
        state.waiting_polls -= 1;
        if state.holds_polls && !self.answered {
            state.lingers = Some(self.deadline);
        }
        drop(state);
        self.bot.0.happened.notify_waiters();
    }
}

pub(super) fn chat(chat_id: &str) -> Value {
    match chat_id.parse::<i64>() {
        Ok(id) if id < 0 => json!({"id": id, "type": "supergroup", "title": format!("Group {id}")}),
        Ok(id) => json!({"id": id, "type": "private", "first_name": format!("User {id}")}),
        Err(_) => json!({"id": -1, "type": "channel", "username": chat_id.trim_start_matches('@')}),
    }
}
