//! The protocol on the pipes of a program: JSON-RPC, one message in each line.
//!
//! One task for each process ([`drive`]), spoken to over [`Wire`]. Always true: whatever comes is looked at message by message and handed to
//! the turn whose session it names, or to nobody; an answer goes to who asked for it; what is asked of us that we do not offer is
//! refused; a program that reads nothing, or that does not stop a prompt within [`STOPPING`] of being told to, is ended. It does not
//! know what the messages mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::tools::child::{Lines, State};

/// How long a prompt may go on after it was told to stop.
const STOPPING: Duration = Duration::from_secs(5);
/// What waits to be sent, and what waits for a turn to look at it.
const QUEUE: usize = 64;
/// Longest id of a session, bytes.
pub(super) const MAX_SESSION: usize = 512;

/// What a program says of a session of its.
#[derive(Debug)]
pub(crate) enum Event {
    /// An update.
    Update(Value),
    /// It asks whether it may do something; `id` is what its answer has to name.
    Permission {
        /// Of the request.
        id: Value,
        /// What it says of it.
        params: Value,
    },
}

/// Why a request was not answered as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Fault {
    /// The protocol's number for it.
    #[serde(default)]
    pub(crate) code: i64,
    /// For people.
    #[serde(default)]
    pub(crate) message: String,
}

/// An answer that may still come; the sender is dropped when the program ends.
pub(crate) type Answer = oneshot::Receiver<Result<Value, Fault>>;

enum Order {
    Ask {
        method: &'static str,
        params: Value,
        session: Option<String>,
        answer: oneshot::Sender<Result<Value, Fault>>,
    },
    Answer {
        id: Value,
        result: Value,
    },
    Listen {
        session: String,
        to: mpsc::Sender<Event>,
    },
    /// Nobody listens to the session any more; what it was asked is to stop.
    Leave {
        session: String,
    },
    Stop {
        session: String,
    },
}

/// The way to a program.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    orders: mpsc::Sender<Order>,
    state: Arc<State>,
}

impl Wire {
    /// Over these pipes; and the task, to be run beside.
    pub(super) fn new(
        lines: Lines,
        input: mpsc::Sender<Vec<u8>>,
        state: Arc<State>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (orders, taken) = mpsc::channel(QUEUE);
        let wire = Self { orders, state: Arc::clone(&state) };
        (wire, drive(lines, input, state, taken))
    }

    /// Asks; what concerns a session names it.
    pub(super) fn ask(&self, method: &'static str, params: Value, session: Option<String>) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Ask { method, params, session, answer });
        answered
    }

    /// Answers what it asked.
    pub(super) fn answer(&self, id: Value, result: Value) {
        self.order(Order::Answer { id, result });
    }

    /// Has everything that it says of the session from here on.
    pub(super) fn listen(&self, session: &str) -> mpsc::Receiver<Event> {
        let (to, events) = mpsc::channel(QUEUE);
        self.order(Order::Listen { session: session.to_owned(), to });
        events
    }

    /// Tells it to stop what it does in the session; it is ended where it does not.
    pub(super) fn stop(&self, session: &str) {
        self.order(Order::Stop { session: session.to_owned() });
    }

    /// Listens to the session no more, and stops what it still does there.
    pub(super) fn leave(&self, session: &str) {
        self.order(Order::Leave { session: session.to_owned() });
    }

    /// Never waits: so many orders come only when the program is not read any more.
    fn order(&self, order: Order) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.orders.try_send(order) {
            self.state.broken("it could not be told anything any more".to_owned());
        }
    }
}

/// As much of a message as says what it is.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error: Option<Fault>,
}

/// A request without its answer.
struct Waiting {
    session: Option<String>,
    answer: oneshot::Sender<Result<Value, Fault>>,
    /// It was told to stop; then it has to have.
    until: Option<Instant>,
}

struct Driver {
    input: mpsc::Sender<Vec<u8>>,
    state: Arc<State>,
    next: u64,
    waiting: HashMap<u64, Waiting>,
    listeners: HashMap<String, mpsc::Sender<Event>>,
}

async fn drive(mut lines: Lines, input: mpsc::Sender<Vec<u8>>, state: Arc<State>, mut orders: mpsc::Receiver<Order>) {
    let mut driver =
        Driver { input, state: Arc::clone(&state), next: 0, waiting: HashMap::new(), listeners: HashMap::new() };
    let reason = loop {
        let late = driver.waiting.values().filter_map(|waiting| waiting.until).min();
        tokio::select! {
            line = lines.next() => match line {
                Ok(Some(line)) => driver.heard(&line).await,
                Ok(None) => break None,
                Err(reason) => break Some(reason),
            },
            order = orders.recv() => match order {
                Some(order) => driver.ordered(order),
                None => return,
            },
            () = tokio::time::sleep_until(late.unwrap_or_else(Instant::now)), if late.is_some() => {
                break Some(format!("it did not stop within {} s of being told to", STOPPING.as_secs()));
            }
            () = state.closed.cancelled() => return,
        }
    };
    match reason {
        Some(reason) => state.broken(reason),
        None => state.closed.cancel(),
    }
}

impl Driver {
    fn write(&self, message: &Value) {
        if self.input.try_send(format!("{message}\n").into_bytes()).is_err() {
            self.state.broken("it does not read what it is told".to_owned());
        }
    }

    fn ordered(&mut self, order: Order) {
        match order {
            Order::Ask { method, params, session, answer } => {
                self.next += 1;
                self.state.allow();
                self.write(&json!({"jsonrpc": "2.0", "id": self.next, "method": method, "params": params}));
                self.waiting.insert(self.next, Waiting { session, answer, until: None });
            }
            Order::Answer { id, result } => self.write(&json!({"jsonrpc": "2.0", "id": id, "result": result})),
            Order::Listen { session, to } => drop(self.listeners.insert(session, to)),
            Order::Leave { session } => {
                self.listeners.remove(&session);
                self.stop(&session);
            }
            Order::Stop { session } => self.stop(&session),
        }
    }

    fn stop(&mut self, session: &str) {
        let until = Instant::now() + STOPPING;
        let mut runs = false;
        for waiting in self.waiting.values_mut().filter(|waiting| waiting.session.as_deref() == Some(session)) {
            runs |= waiting.until.is_none();
            waiting.until.get_or_insert(until);
        }
        if runs {
            self.write(&json!({"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": session}}));
        }
    }

    async fn heard(&mut self, line: &[u8]) {
        if line.trim_ascii().is_empty() {
            return;
        }
        let Ok(Message { id, method, params, result, error }) = serde_json::from_slice(line) else {
            self.state.was_odd();
            return;
        };
        let session = params.get("sessionId").and_then(Value::as_str).unwrap_or_default();
        let listener = self.listeners.get(session).cloned();
        match (method.as_deref(), id) {
            (Some("session/update"), None) => {
                // What it says of a session that no turn is in is nobody's.
                if let (Some(listener), Some(update)) = (listener, params.get("update")) {
                    let _ = listener.send(Event::Update(update.clone())).await;
                }
            }
            (Some("session/request_permission"), Some(id)) => {
                let cancelled = || json!({"jsonrpc": "2.0", "id": id, "result": {"outcome": {"outcome": "cancelled"}}});
                let sent = match listener {
                    Some(listener) => listener.send(Event::Permission { id: id.clone(), params }).await.is_ok(),
                    None => false,
                };
                if !sent {
                    self.write(&cancelled());
                }
            }
            (Some(_), Some(id)) => {
                let error = json!({"code": -32601, "message": "this client does not offer that"});
                self.write(&json!({"jsonrpc": "2.0", "id": id, "error": error}));
            }
            (Some(_), None) => {}
            (None, Some(id)) => {
                let Some(waiting) = id.as_u64().and_then(|id| self.waiting.remove(&id)) else {
                    self.state.was_odd();
                    return;
                };
                // Whoever asked may have gone.
                let _ = waiting.answer.send(error.map_or(Ok(result), Err));
            }
            (None, None) => self.state.was_odd(),
        }
    }
}
