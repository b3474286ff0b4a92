//! The platform accounts of the document as running adapters: built when they appear, replaced when they change, stopped
//! when they go.

use std::collections::HashMap;
use std::sync::Arc;

use hermes_core::config::{Document, TelegramAccount, WebhookAccount, WebhookReply};
use hermes_platforms::telegram::{self, Telegram};
use hermes_platforms::webhook::{self, Webhook};
use hermes_platforms::{AccountState, Adapter, ChatRef, ReplyTarget};
use tokio_util::sync::CancellationToken;

use super::secrets;
use crate::intake::Sink;
use crate::outbox::Adapters;
use crate::registry::Registry;
use crate::tasks::Tasks;

#[derive(Clone, PartialEq)]
enum Wanted {
    Telegram(TelegramAccount),
    Webhook(WebhookAccount),
}

struct Running {
    wanted: Wanted,
    stop: CancellationToken,
}

/// Builds the accounts the document has now, then follows it until `doors` close: then no message is taken any more, and what
/// is to be sent still is. When this answers, all of them take messages.
pub(super) fn start(registry: Registry, adapters: Adapters, sink: Sink, tasks: &Tasks, doors: &CancellationToken) {
    let mut changes = registry.changes();
    changes.borrow_and_update();
    let mut running: HashMap<(String, String), Running> = HashMap::new();
    follow(&registry.current().document, &mut running, &adapters, &sink, tasks, doors);
    let (own, stop) = (tasks.clone(), doors.clone());
    tasks.spawn("accounts", async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
            changes.borrow_and_update();
            follow(&registry.current().document, &mut running, &adapters, &sink, &own, &stop);
        }
    });
}

fn follow(
    document: &Document,
    running: &mut HashMap<(String, String), Running>,
    adapters: &Adapters,
    sink: &Sink,
    tasks: &Tasks,
    doors: &CancellationToken,
) {
    let telegram = document
        .platforms
        .telegram
        .iter()
        .map(|(id, account)| (("telegram".to_owned(), id.clone()), Wanted::Telegram(account.clone())));
    let webhook = document
        .platforms
        .webhook
        .iter()
        .map(|(id, account)| (("webhook".to_owned(), id.clone()), Wanted::Webhook(account.clone())));
    let wanted: HashMap<(String, String), Wanted> = telegram.chain(webhook).collect();
    running.retain(|key, account| {
        let stays = wanted.get(key) == Some(&account.wanted);
        if !stays {
            account.stop.cancel();
            adapters.remove(&key.0, &key.1);
        }
        stays
    });
    for (key, wanted) in wanted {
        if running.contains_key(&key) {
            continue;
        }
        let stop = doors.child_token();
        match build(&key.1, &wanted, sink) {
            Ok(adapter) => {
                adapters.insert(adapter.clone());
                let (sink, stop, leases) = (sink.clone(), stop.clone(), adapters.leases().clone());
                tasks.spawn("account", async move {
                    if adapter.polls() {
                        leases.receive(adapter.as_ref(), &sink, stop).await;
                    } else {
                        adapter.receive(&sink, stop).await;
                    }
                });
            }
            // The other accounts go on; this one says what it needs.
            Err(why) => adapters.report(&key.0, &key.1, AccountState::Failed(why)),
        }
        running.insert(key, Running { wanted, stop });
    }
}

fn build(id: &str, wanted: &Wanted, sink: &Sink) -> Result<Arc<dyn Adapter>, String> {
    match wanted {
        Wanted::Telegram(account) => {
            let settings = telegram::Settings {
                account: id.to_owned(),
                token: secrets::resolve(&account.token)?,
                api_base: account.api_base.clone(),
                allow_users: account.allow_users.clone(),
                allow_chats: account.allow_chats.clone(),
                allow_all: account.allow_all,
                // Where not everybody may talk, those who have paired may.
                strangers: !account.allow_all,
                rate: account.rate,
                streaming: account.streaming,
            };
            Ok(Arc::new(Telegram::new(settings).map_err(|error| error.to_string())?))
        }
        Wanted::Webhook(account) => {
            let reply = match &account.reply {
                WebhookReply::Callback { url } => webhook::Reply::Callback { url: url.clone() },
                WebhookReply::Chat { platform, account, chat_id, thread_id } => webhook::Reply::Chat(ReplyTarget {
                    platform: platform.clone(),
                    account: account.clone(),
                    chat: ChatRef { chat_id: chat_id.clone(), thread_id: thread_id.clone() },
                }),
            };
            let settings =
                webhook::Settings { account: id.to_owned(), secret: secrets::resolve(&account.secret)?, reply };
            // Whether a signature is old says the time that all replicas agree on.
            let clock = sink.clone();
            let clock: webhook::Clock = Arc::new(move || u64::try_from(clock.now().as_second()).unwrap_or(0));
            Ok(Arc::new(Webhook::new(settings, clock).map_err(|error| error.to_string())?))
        }
    }
}
