//! `homes` of an account: the chats in which its agents find their people when nobody has just written.
//!
//! Called by the reader of accounts, the check of the merged document and [`super::to_yaml`]; the control plane stores what
//! [`Platforms::homes`] answers. Always true of a home that it reads: its chat and its topic are numbers. It deliberately does not
//! know which agents there are; that is found out on the merged document.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::export::{Shape, named, text};
use super::fields::{Faults, Path, entries, platform_id};
use super::tree::{Content, Node};
use super::{Platforms, Positions, account_path, values};
use crate::AgentId;

/// A chat of an account. Written as `chat`, or `chat:thread`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeChat {
    /// The chat.
    pub chat_id: String,
    /// The topic, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
}

impl fmt::Display for HomeChat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chat_id)?;
        self.thread_id.as_ref().map_or(Ok(()), |thread| write!(f, ":{thread}"))
    }
}

/// The home of an agent on an account, as a document names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedHome<'a> {
    /// The account's platform.
    pub platform: &'static str,
    /// The account.
    pub account: &'a str,
    /// Whose home it is.
    pub agent: &'a AgentId,
    /// Where it is.
    pub chat: &'a HomeChat,
}

impl NamedHome<'_> {
    /// Where the merged document says it: `platforms.telegram.accounts[front].homes.coder`.
    pub fn path(&self) -> String {
        format!("{}.homes.{}", account_path(self.platform, self.account), self.agent)
    }
}

impl Platforms {
    /// The homes that accounts name, account by account in the order written.
    pub fn homes(&self) -> impl Iterator<Item = NamedHome<'_>> {
        self.telegram.iter().flat_map(|(account, telegram)| {
            telegram.homes.iter().map(move |(agent, chat)| NamedHome { platform: "telegram", account, agent, chat })
        })
    }

    /// Takes an agent's homes away. On accounts that name none for `to`, they become the homes of `to`.
    pub fn rehome(&mut self, agent: &AgentId, to: Option<&AgentId>) {
        for account in self.telegram.values_mut() {
            let Some((chat, to)) = account.homes.remove(agent).zip(to) else { continue };
            account.homes.entry(to.clone()).or_insert(chat);
        }
    }
}

pub(super) fn read(node: &Node, path: Path<'_>, faults: &mut Faults) -> BTreeMap<AgentId, HomeChat> {
    let mut homes = BTreeMap::new();
    for entry in entries(node, path, faults) {
        let path = path.key(entry.key);
        let agent = AgentId::parse(entry.key).map_err(|invalid| faults.add(entry.line, path, invalid.to_string()));
        let chat = home_chat(entry.value, path, faults);
        homes.extend(agent.ok().zip(chat));
    }
    homes
}

fn home_chat(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<HomeChat> {
    if matches!(node.content, Content::Null | Content::Bool(_) | Content::List(_) | Content::Map(_)) {
        let message = "write one chat, such as \"12345\", or one with its topic, such as \"-100123:42\"";
        faults.add(node.line, path, message);
        return None;
    }
    let written = platform_id(node, path, faults)?;
    let (chat, thread) = match written.split_once(':') {
        Some((chat, thread)) => (chat, Some(thread)),
        None => (written.as_str(), None),
    };
    let judged = values::telegram_id(chat).and_then(|()| thread.map_or(Ok(()), values::telegram_thread));
    judged.map_err(|message| faults.add(node.line, path, message)).ok()?;
    Some(HomeChat { chat_id: chat.to_owned(), thread_id: thread.map(str::to_owned) })
}

/// Notes the line of each home, for faults about the merged document.
pub(super) fn note(node: &Node, platform: &str, account: &str, positions: &mut Positions) {
    let Content::Map(homes) = &node.content else { return };
    for (key, _) in homes {
        if let Content::Text(agent) = &key.content {
            positions.note(format!("{}.homes.{agent}", account_path(platform, account)), key.line);
        }
    }
}

pub(super) fn shape(homes: &BTreeMap<AgentId, HomeChat>) -> Shape {
    named(homes, |chat| text(&chat.to_string()))
}
