//! The `platforms` section of a text.
//!
//! Called by [`super::parse`]. Always true of an account it accepts: exactly one secret reference, somebody is allowed to
//! talk to it, a reply has one way to go. It deliberately does not know which accounts are stored; a deliver target is
//! checked on the merged document.

use super::fields::{self, Faults, Path, Section, boolean, judged, list, rate_number, text, texts};
use super::patch::Patch;
use super::tree::{Content, Node};
use super::{
    Rate, SecretRef, Streaming, TelegramAccount, UnauthorizedDm, WebhookAccount, WebhookReply, home_chats, values,
};
use crate::command::{AccessLists, listed};

const TELEGRAM_KEYS: [&str; 11] = [
    "id",
    "token_env",
    "token_file",
    "api_base",
    "allow_users",
    "allow_chats",
    "allow_all",
    "unauthorized_dm",
    "rate",
    "streaming",
    "homes",
];
const WEBHOOK_KEYS: [&str; 5] = ["id", "secret_env", "secret_file", "callback_url", "deliver"];
/// Of every account, beside its platform's own.
const ACCESS_KEYS: [&str; 4] =
    ["allow_admin_from", "user_allowed_commands", "group_allow_admin_from", "group_user_allowed_commands"];

/// Reads `platforms`.
pub(super) fn read(node: &Node, patch: &mut Patch, faults: &mut Faults) {
    let path = Path::Root.key("platforms");
    let section = Section::open(node, &path, super::PLATFORMS, faults);
    each(&section, &path, "telegram", faults, |item, path, faults| {
        let account = Section::open(item, &path, &[&TELEGRAM_KEYS[..], &ACCESS_KEYS].concat(), faults);
        let id = account_id(&account, path, faults);
        let read = telegram(&account, path, faults);
        if let Some((id, line)) = &id {
            patch.positions.note(super::account_path("telegram", id), *line);
            if let Some(homes) = account.get("homes") {
                home_chats::note(homes, "telegram", id, &mut patch.positions);
            }
        }
        keep(&mut patch.telegram, id, read, path, faults);
    });
    each(&section, &path, "webhook", faults, |item, path, faults| {
        let account = Section::open(item, &path, &[&WEBHOOK_KEYS[..], &ACCESS_KEYS].concat(), faults);
        let id = account_id(&account, path, faults);
        let read = webhook(&account, path, faults);
        if let Some((id, line)) = &id {
            patch.positions.note(super::account_path("webhook", id), *line);
        }
        keep(&mut patch.webhook, id, read, path, faults);
    });
}

/// Calls `read` for every item of `platforms.<platform>.accounts`.
fn each(
    section: &Section<'_, '_>,
    path: &Path<'_>,
    platform: &str,
    faults: &mut Faults,
    mut read: impl FnMut(&Node, Path<'_>, &mut Faults),
) {
    let Some(node) = section.get(platform) else { return };
    let path = path.key(platform);
    let section = Section::open(node, &path, &["accounts"], faults);
    let Some(node) = section.get("accounts") else { return };
    let path = path.key("accounts");
    for (index, item) in list(node, path, faults).unwrap_or_default().iter().enumerate() {
        let path = path.index(index);
        if matches!(item.content, Content::Map(_)) {
            read(item, path, faults);
        } else {
            faults.add(item.line, path, "an account is a mapping with an id");
        }
    }
}

fn account_id(account: &Section<'_, '_>, path: Path<'_>, faults: &mut Faults) -> Option<(String, u32)> {
    let Some(node) = account.get("id") else {
        faults.add(account.line(), path.key("id"), "id is missing; name the account");
        return None;
    };
    judged(node, path.key("id"), faults, |id| values::name(id, "an account id")).map(|id| (id, node.line))
}

fn keep<T>(
    kept: &mut indexmap::IndexMap<String, T>,
    id: Option<(String, u32)>,
    account: Option<T>,
    path: Path<'_>,
    faults: &mut Faults,
) {
    let Some((id, line)) = id else { return };
    if kept.contains_key(&id) {
        faults.add(line, path.key("id"), format!("another account of this platform is called {id}; rename one"));
    } else if let Some(account) = account {
        kept.insert(id, account);
    }
}

/// Exactly one of `<what>_env` and `<what>_file`.
fn secret(account: &Section<'_, '_>, what: &str, path: Path<'_>, faults: &mut Faults) -> Option<SecretRef> {
    let (env_key, file_key) = (format!("{what}_env"), format!("{what}_file"));
    let env = |node, path: Path<'_>, faults: &mut Faults| judged(node, path, faults, values::env_name);
    let file = |node, path: Path<'_>, faults: &mut Faults| judged(node, path, faults, values::secret_file);
    match (account.get(&env_key), account.get(&file_key)) {
        (Some(_), Some(node)) => {
            let message = format!("{env_key} and {file_key} are both set; keep one");
            faults.add(node.line, path.key(&file_key), message);
            None
        }
        (Some(node), None) => env(node, path.key(&env_key), faults).map(SecretRef::Env),
        (None, Some(node)) => file(node, path.key(&file_key), faults).map(SecretRef::File),
        (None, None) => {
            let message = format!("no {what} is named; set {env_key} (a variable) or {file_key} (an absolute path)");
            faults.add(account.line(), path, message);
            None
        }
    }
}

fn telegram(account: &Section<'_, '_>, path: Path<'_>, faults: &mut Faults) -> Option<TelegramAccount> {
    let token = secret(account, "token", path, faults);
    let api_base = account.optional("api_base", faults, |node, path, faults| judged(node, path, faults, values::url));
    let id = |node: &Node, path: Path<'_>, faults: &mut Faults| {
        let id = fields::platform_id(node, path, faults)?;
        values::telegram_id(&id).map_err(|message| faults.add(node.line, path, message)).ok().map(|()| id)
    };
    let mut ids = |key: &str| account.optional(key, faults, |node, path, faults| texts(node, path, faults, id));
    let allow_users = ids("allow_users").unwrap_or_default();
    let allow_chats = ids("allow_chats").unwrap_or_default();
    let allow_all = account.optional("allow_all", faults, boolean).unwrap_or_default();
    let named =
        |key: &str| account.get(key).is_some_and(|node| !matches!(&node.content, Content::List(l) if l.is_empty()));
    let unauthorized_dm = account.optional("unauthorized_dm", faults, unauthorized);
    let nobody = !allow_all && !named("allow_users") && !named("allow_chats");
    if nobody && unauthorized_dm == Some(UnauthorizedDm::Ignore) {
        let message = "nobody may talk to this account; set allow_users or allow_chats, or say allow_all: true or unauthorized_dm: pair";
        faults.add(account.line(), path, message);
    }
    if allow_all && unauthorized_dm == Some(UnauthorizedDm::Pair) {
        let message = "everybody may talk to this account, so nobody pairs; drop allow_all or unauthorized_dm";
        faults.add(account.get("unauthorized_dm").map_or(0, |node| node.line), path.key("unauthorized_dm"), message);
    }
    let rate = account.optional("rate", faults, rate);
    if rate == Some(Rate::Off) && account.get("api_base").is_none() {
        let message = "rate: off is for a Bot API server of your own; set api_base, or give rates";
        faults.add(account.get("rate").map_or(0, |node| node.line), path.key("rate"), message);
    }
    let streaming = account.optional("streaming", faults, streaming);
    let homes = account.optional("homes", faults, |node, path, faults| Some(home_chats::read(node, path, faults)));
    Some(TelegramAccount {
        token: token?,
        api_base,
        allow_users,
        allow_chats,
        allow_all,
        unauthorized_dm,
        rate: rate.unwrap_or_default(),
        streaming: streaming.unwrap_or_default(),
        homes: homes.unwrap_or_default(),
        access: access(account, faults),
    })
}

/// Who may give which commands. A list is a list or one text with commas.
fn access(account: &Section<'_, '_>, faults: &mut Faults) -> AccessLists {
    let mut entries = |key: &str| {
        let read = |node: &Node, path: Path<'_>, faults: &mut Faults| match &node.content {
            Content::List(_) => texts(node, path, faults, fields::platform_id),
            _ => fields::platform_id(node, path, faults).map(|text| listed(&text).map(str::to_owned).collect()),
        };
        let mut entries = account.optional(key, faults, read).unwrap_or_default();
        for entry in &mut entries {
            *entry = entry.trim().to_owned();
        }
        entries.retain(|entry| !entry.is_empty());
        entries
    };
    AccessLists {
        allow_admin_from: entries("allow_admin_from"),
        user_allowed_commands: entries("user_allowed_commands"),
        group_allow_admin_from: entries("group_allow_admin_from"),
        group_user_allowed_commands: entries("group_user_allowed_commands"),
    }
}

fn unauthorized(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<UnauthorizedDm> {
    match &node.content {
        Content::Text(word) if word == "pair" => Some(UnauthorizedDm::Pair),
        Content::Text(word) if word == "ignore" => Some(UnauthorizedDm::Ignore),
        _ => {
            faults.add(node.line, path, "write pair, so that strangers get a code to be approved, or ignore");
            None
        }
    }
}

fn streaming(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<Streaming> {
    match &node.content {
        // `off` is text to some YAML readers and a boolean to others; here it means off either way.
        Content::Bool(false) => Some(Streaming::Off),
        Content::Odd(word) | Content::Text(word) if word.eq_ignore_ascii_case("off") => Some(Streaming::Off),
        Content::Odd(word) | Content::Text(word) if word == "edit" => Some(Streaming::Edit),
        _ => {
            faults.add(node.line, path, "write off, or edit to show an answer while it is written");
            None
        }
    }
}

fn rate(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<Rate> {
    match &node.content {
        // `off` is text to some YAML readers and a boolean to others; here it means off either way.
        Content::Bool(false) => Some(Rate::Off),
        Content::Odd(word) | Content::Text(word) if word.eq_ignore_ascii_case("off") => Some(Rate::Off),
        Content::Map(_) => {
            let section = Section::open(node, &path, &["per_chat_per_s", "per_account_per_s"], faults);
            let mut number = |key: &str| section.optional(key, faults, rate_number);
            Some(Rate::Limited {
                per_chat_per_s: number("per_chat_per_s").unwrap_or(Rate::PER_CHAT_PER_S),
                per_account_per_s: number("per_account_per_s").unwrap_or(Rate::PER_ACCOUNT_PER_S),
            })
        }
        _ => {
            faults.add(node.line, path, "write off or a mapping of per_chat_per_s and per_account_per_s");
            None
        }
    }
}

fn webhook(account: &Section<'_, '_>, path: Path<'_>, faults: &mut Faults) -> Option<WebhookAccount> {
    let secret = secret(account, "secret", path, faults);
    let reply = match (account.get("callback_url"), account.get("deliver")) {
        (Some(_), Some(node)) => {
            faults.add(node.line, path.key("deliver"), "callback_url and deliver are both set; keep one");
            None
        }
        (Some(node), None) => {
            let url = judged(node, path.key("callback_url"), faults, values::url);
            url.map(|url| WebhookReply::Callback { url })
        }
        (None, Some(node)) => deliver(node, path.key("deliver"), faults),
        (None, None) => {
            let message = "replies have nowhere to go; set callback_url, or deliver: {platform, account, chat_id}";
            faults.add(account.line(), path, message);
            None
        }
    };
    Some(WebhookAccount { secret: secret?, reply: reply?, access: access(account, faults) })
}

fn deliver(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<WebhookReply> {
    let section = Section::open(node, &path, &["platform", "account", "chat_id", "thread_id"], faults);
    for key in ["platform", "account", "chat_id"] {
        if section.get(key).is_none() {
            faults.add(section.line(), path.key(key), format!("{key} is missing; name the chat that gets the replies"));
        }
    }
    let platform = section.get("platform").and_then(|node| {
        let name = text(node, path.key("platform"), faults)?;
        if name != "telegram" {
            let message = format!("{} cannot be delivered to; write telegram", super::shown(name));
            faults.add(node.line, path.key("platform"), message);
        }
        Some(name.to_owned())
    });
    let account = section
        .get("account")
        .and_then(|node| judged(node, path.key("account"), faults, |id| values::name(id, "an account id")));
    let mut chat = |key: &str| {
        let node = section.get(key)?;
        let id = fields::platform_id(node, path.key(key), faults)?;
        values::some_text(&id).map_err(|message| faults.add(node.line, path.key(key), message)).ok().map(|()| id)
    };
    let (chat_id, thread_id) = (chat("chat_id"), chat("thread_id"));
    Some(WebhookReply::Chat { platform: platform?, account: account?, chat_id: chat_id?, thread_id })
}
