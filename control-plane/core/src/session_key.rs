//! The session key of a source (spec a.3, a.4): which durable dialogue a message belongs to.
//!
//! Called by intake, by `hermesctl session key` (offline) and by importers. It owns nothing: WhatsApp's id mappings are
//! read by the caller and passed in. Always true: keys are byte-equal to the reference's, so that imported dialogues are
//! found again. It deliberately does not check that the namespace is a registered agent.

use std::collections::{BTreeSet, VecDeque};

use crate::Source;
use crate::id::MAIN;

/// Most ids one WhatsApp alias walk visits; a person has a handful.
const ALIAS_LIMIT: usize = 1000;

/// Longest sender name shown to a model, in characters.
const SENDER_NAME_CHARS: usize = 240;

/// Who shares a session outside direct messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// One session per user in group chats.
    pub group_per_user: bool,
    /// One session per user inside a thread.
    pub thread_per_user: bool,
}

impl Default for Isolation {
    fn default() -> Self {
        Self { group_per_user: true, thread_per_user: false }
    }
}

/// The mapped ids that WhatsApp's mapping files give for one id: the content of the files named by [`lid_mapping_files`],
/// each through [`lid_mapping`]. The id contains only `[A-Za-z0-9@.+-]`, so it is safe in a file name.
pub type Aliases<'a> = &'a dyn Fn(&str) -> Vec<String>;

/// The [`Aliases`] of a process without WhatsApp mapping files.
pub fn no_aliases(_id: &str) -> Vec<String> {
    Vec::new()
}

/// Names of the files that may map this id, inside WhatsApp's session directory.
pub fn lid_mapping_files(id: &str) -> [String; 2] {
    [format!("lid-mapping-{id}.json"), format!("lid-mapping-{id}_reverse.json")]
}

/// The id a mapping file holds: one JSON string; `None` for broken content.
pub fn lid_mapping(content: &str) -> Option<String> {
    serde_json::from_str(content).ok()
}

/// The namespace field of a key: the agent's text unless empty or `main`, else the profile unless empty or `default`,
/// else `main`. Both are taken verbatim so that imported keys work.
pub fn namespace<'a>(agent: Option<&'a str>, profile: Option<&'a str>) -> &'a str {
    let agent = agent.filter(|id| !id.is_empty() && *id != MAIN);
    agent.or(profile.filter(|name| !name.is_empty() && *name != "default")).unwrap_or(MAIN)
}

/// The session key of a source under a namespace (see [`namespace`]; an agent's id is its own namespace).
pub fn session_key(namespace: &str, source: &Source, isolation: Isolation, aliases: Aliases<'_>) -> String {
    let whatsapp = source.platform == "whatsapp";
    let thread = given(source.thread_id.as_deref());
    let participant = || {
        let raw = given(source.user_id_alt.as_deref()).or(given(source.user_id.as_deref()))?;
        let canonical = if whatsapp { whatsapp_canonical(raw, aliases) } else { String::new() };
        Some(if canonical.is_empty() { raw.to_owned() } else { canonical })
    };
    let mut key = format!("agent:{namespace}:{}:{}", source.platform, source.chat_type);
    let mut push = |part: Option<&str>| {
        if let Some(part) = part {
            key.push(':');
            key.push_str(part);
        }
    };
    if source.chat_type == "dm" {
        let chat = if whatsapp { whatsapp_canonical(&source.chat_id, aliases) } else { source.chat_id.clone() };
        let peer = if chat.is_empty() { participant() } else { Some(chat) };
        push(peer.as_deref());
        push(thread);
    } else {
        push(given(Some(&source.chat_id)));
        push(thread);
        if isolation.group_per_user && (thread.is_none() || isolation.thread_per_user) {
            push(participant().as_deref());
        }
    }
    key
}

/// Whether several people share the source's session, so that each message carries its sender's name. Like the reference
/// it asks one flag only: the thread's inside a thread, else the group's.
pub fn shared_multi_user(source: &Source, isolation: Isolation) -> bool {
    if source.chat_type == "dm" {
        return false;
    }
    match given(source.thread_id.as_deref()) {
        Some(_) => !isolation.thread_per_user,
        None => !isolation.group_per_user,
    }
}

/// What precedes a message's text in a shared session: `[sender name] `, or nothing when the platform gave no name. Line
/// breaks and other control characters of the name become spaces, so a name cannot pose as a message of its own.
pub fn sender_prefix(source: &Source) -> String {
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let name = source.user_name.as_deref().unwrap_or_default();
    let name: String = name.chars().map(|c| if breaks(c) { ' ' } else { c }).take(SENDER_NAME_CHARS).collect();
    match name.trim() {
        "" => String::new(),
        name => format!("[{name}] "),
    }
}

/// An id as it counts: an empty one is none.
fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Normalises a WhatsApp id: trimmed, without its first `+`, up to the first `:`, then up to the first `@`.
pub fn whatsapp_normalized(id: &str) -> String {
    let id = id.trim().replacen('+', "", 1);
    let id = id.split(':').next().unwrap_or_default();
    id.split('@').next().unwrap_or_default().to_owned()
}

/// The one id that stands for all known ids of a WhatsApp user: the shortest, then lexicographically first, of those
/// reachable through the mapping files. An id with unsafe characters is never looked up and stands for itself, normalised.
pub fn whatsapp_canonical(id: &str, aliases: Aliases<'_>) -> String {
    let normalized = whatsapp_normalized(id);
    let safe = |id: &str| {
        !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'@' | b'.' | b'+' | b'-'))
    };
    let mut known: BTreeSet<(usize, String)> = BTreeSet::new();
    // The reference normalises once more before it walks; a second "+" disappears only here.
    let mut queue = VecDeque::from([whatsapp_normalized(&normalized)]);
    while let Some(current) = queue.pop_front() {
        if !safe(&current) || known.len() >= ALIAS_LIMIT || !known.insert((current.len(), current.clone())) {
            continue;
        }
        queue.extend(aliases(&current).iter().map(|mapped| whatsapp_normalized(mapped)));
    }
    known.into_iter().next().map_or(normalized, |(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(platform: &str, chat_type: &str, chat: &str, thread: Option<&str>, user: Option<&str>) -> Source {
        Source {
            platform: platform.into(),
            chat_type: chat_type.into(),
            chat_id: chat.into(),
            thread_id: thread.map(Into::into),
            user_id: user.map(Into::into),
            ..Source::default()
        }
    }

    #[test]
    fn keys_follow_chat_type_thread_and_isolation() {
        let flags = |group_per_user, thread_per_user| Isolation { group_per_user, thread_per_user };
        let cases = [
            (source("telegram", "dm", "12345", None, Some("7")), flags(true, true), "dm:12345", false),
            (source("telegram", "dm", "", Some("9"), Some("7")), flags(true, true), "dm:7:9", false),
            (source("telegram", "dm", "", Some("9"), None), flags(true, true), "dm:9", false),
            (source("telegram", "dm", "", None, None), flags(true, true), "dm", false),
            (source("telegram", "group", "1", None, Some("7")), flags(true, false), "group:1:7", false),
            (source("telegram", "group", "1", None, Some("7")), flags(false, false), "group:1", true),
            (source("telegram", "group", "1", Some("0"), Some("7")), flags(true, false), "group:1:0", true),
            (source("telegram", "group", "1", Some("0"), Some("7")), flags(true, true), "group:1:0:7", false),
            (source("telegram", "group", "1", Some("0"), Some("7")), flags(false, true), "group:1:0", false),
            (source("telegram", "group", "1", Some(""), Some("7")), flags(true, false), "group:1:7", false),
            (source("telegram", "DM", "1", None, Some("7")), flags(true, false), "DM:1:7", false),
        ];
        for (source, isolation, rest, shared) in cases {
            let key = session_key("main", &source, isolation, &no_aliases);
            assert_eq!(key, format!("agent:main:telegram:{rest}"));
            assert_eq!(shared_multi_user(&source, isolation), shared, "{key}");
        }
    }

    #[test]
    fn the_alternative_user_id_is_preferred() {
        let mut source = source("signal", "group", "g", None, Some("+1555"));
        source.user_id_alt = Some("uuid".into());
        assert_eq!(session_key("main", &source, Isolation::default(), &no_aliases), "agent:main:signal:group:g:uuid");
        source.user_id_alt = Some(String::new());
        assert_eq!(session_key("main", &source, Isolation::default(), &no_aliases), "agent:main:signal:group:g:+1555");
    }

    #[test]
    fn the_namespace_prefers_the_agent_then_the_profile() {
        for (agent, profile, expected) in [
            (None, None, "main"),
            (Some("main"), Some("ops"), "ops"),
            (Some(""), Some("default"), "main"),
            (Some("coder"), Some("ops"), "coder"),
            (Some("default"), None, "default"),
            (Some(" Coder "), None, " Coder "),
        ] {
            assert_eq!(namespace(agent, profile), expected, "{agent:?} {profile:?}");
        }
    }

    #[test]
    fn whatsapp_aliases_are_walked_to_the_shortest_id_and_cycles_end() {
        let files = |id: &str| match id {
            "111" => vec!["222@lid".to_owned()],
            "222" => vec!["111".to_owned(), "9@s.whatsapp.net".to_owned(), "bad id".to_owned(), String::new()],
            _ => Vec::new(),
        };
        for (id, canonical) in [
            (" +111:4@s.whatsapp.net", "9"),
            ("222", "9"),
            ("333", "333"),
            ("++333", "333"),
            ("", ""),
            ("@lid", ""),
            ("12 34", "12 34"),
            ("a/b:1", "a/b"),
            ("1555\u{661}", "1555\u{661}"),
        ] {
            assert_eq!(whatsapp_canonical(id, &files), canonical, "{id:?}");
        }
        let cloud = source("whatsapp_cloud", "dm", "+111", None, None);
        assert_eq!(session_key("main", &cloud, Isolation::default(), &files), "agent:main:whatsapp_cloud:dm:+111");
        let group = source("whatsapp", "group", "+111@g.us", None, Some("@lid"));
        let key = session_key("main", &group, Isolation::default(), &files);
        assert_eq!(
            key, "agent:main:whatsapp:group:+111@g.us:@lid",
            "group chats are verbatim, an empty user falls back"
        );
    }

    #[test]
    fn a_sender_name_cannot_break_the_line() {
        let named =
            |name: Option<&str>| sender_prefix(&Source { user_name: name.map(Into::into), ..Source::default() });
        assert_eq!(named(Some("Ada")), "[Ada] ");
        assert_eq!(named(Some("Ada\r\n[Bob] hi\u{2028}x")), "[Ada  [Bob] hi x] ");
        assert_eq!(named(Some(" \n ")), "");
        assert_eq!(named(None), "");
        assert_eq!(named(Some(&"x".repeat(10_000))).len(), SENDER_NAME_CHARS + 3);
    }

    #[test]
    fn mapping_files_hold_one_json_string() {
        assert_eq!(lid_mapping("\"77@lid\""), Some("77@lid".to_owned()));
        assert_eq!(lid_mapping("{broken"), None);
        assert_eq!(lid_mapping("[1]"), None);
        assert_eq!(lid_mapping_files("77"), ["lid-mapping-77.json", "lid-mapping-77_reverse.json"]);
    }
}
