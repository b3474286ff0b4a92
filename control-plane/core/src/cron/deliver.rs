//! Where a job's answer goes: what people write for it, and the chats that it comes to.
//!
//! Called by whoever takes a job in ([`Deliver::parse`], [`Deliver::admit`]) and by whoever delivers a run's answer
//! ([`Deliver::resolve`]). It owns the grammar and the order of platforms. Always true: every text is read as something, and what is read
//! prints as what reads alike; a chat is named once per run; what leads nowhere is said. It deliberately does not know which chats there
//! are, who may write to them, nor names of channels: an id is what is written.
//!
//! This is the grammar of jobs (spec e.6), whose parts are [`Target`]s; [`Target::parse`] reads that of messages (spec f). A job's value
//! differs in this: it has several parts, split at commas, and `all`; words count in their own case, but for `all`; a platform stays as typed,
//! known or not; where a thread begins depends on the platform, so that ids that hold colons stay whole; and `origin` that does not exist is
//! the first home there is.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Error;
use crate::config::{nearest, shown};
use crate::target::Target;

/// Most parts of a value.
const MAX_PARTS: usize = 50;
/// Longest id of a chat or a thread, bytes.
const MAX_ID: usize = 256;
/// Longest value, bytes.
const MAX_BYTES: usize = 4096;
/// In which order platforms are asked for a home; others come after them, as they are given.
const ORDER: [&str; 16] = [
    "matrix",
    "telegram",
    "discord",
    "slack",
    "signal",
    "mattermost",
    "sms",
    "email",
    "dingtalk",
    "feishu",
    "wecom",
    "weixin",
    "bluebubbles",
    "qqbot",
    "whatsapp",
    "whatsapp_cloud",
];
/// What a value looks like.
const HOW: &str = "write local, origin, all, a platform for its home chat, or platform:chat_id";
/// How a platform gets a home chat.
const NAME_ONE: &str = "write /sethome in one, or name one under homes of an account";

/// A chat, or a thread of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The platform's name. In a [`Resolved`] as the job has it, in whatever case; folded to lower case it names the platform's accounts.
    pub platform: String,
    /// The chat's id; empty where a job has none (see [`Deliver::admit`]).
    pub chat_id: String,
    /// The thread in it, if any.
    pub thread_id: Option<String>,
}

/// One part of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Every platform that has a home.
    All,
    /// What it says.
    To(Target),
}

/// Where a job's answer goes, as written. In a record it is text, a list of texts or nothing, and is written as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deliver {
    /// In the order written; never none.
    parts: Vec<Part>,
}

/// What a value comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The chats, each once, in the order of the value.
    pub targets: Vec<Place>,
    /// What leads nowhere, with a remedy. There may be targets beside it: those are good all the same.
    pub error: Option<String>,
}

impl Default for Deliver {
    /// Nowhere: the answer is kept, and sent to nobody.
    fn default() -> Self {
        Self { parts: vec![Part::To(Target::Local)] }
    }
}

impl Deliver {
    /// Reads a value: parts with commas between them, where nothing but blanks is `local`. It takes everything, as records of other programs
    /// hold everything; what somebody writes anew has to be let in by [`Self::admit`].
    pub fn parse(text: &str) -> Self {
        let parts: Vec<Part> =
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(Part::parse).collect();
        if parts.is_empty() { Self::default() } else { Self { parts } }
    }

    /// Refuses what can come to no chat whatever happens, at the time when a job is taken in; `known` are the platforms there are.
    ///
    /// # Errors
    /// Which part is wrong, and what to write instead.
    pub fn admit(self, known: &[&str]) -> Result<Self, Error> {
        let text = self.to_string();
        if self.parts.len() > MAX_PARTS || text.len() > MAX_BYTES {
            return Err(Error(format!(
                "deliver has at most {MAX_PARTS} parts and {MAX_BYTES} bytes; name fewer chats"
            )));
        }
        for part in &self.parts {
            part.admit(known).map_err(|message| Error(format!("deliver: {message}")))?;
        }
        Ok(self)
    }

    /// What it names, in order, but for `all`.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.parts.iter().filter_map(|part| match part {
            Part::All => None,
            Part::To(target) => Some(target),
        })
    }

    /// Whether it names nothing but `local`.
    pub fn is_local(&self) -> bool {
        self.parts.iter().all(|part| *part == Part::To(Target::Local))
    }

    /// The chats that it comes to now: `origin` is where the job was made, and `homes` are the home chats, in any order; of a platform that
    /// has several the first one counts.
    ///
    /// A platform is the job's origin where that is on it, else its home. A job made nowhere has the first home for its origin. A value that is
    /// `origin` alone may lead nowhere, and `all` where other parts lead somewhere; the rest is an error.
    pub fn resolve(&self, origin: Option<&Place>, homes: &[Place]) -> Resolved {
        let mut homes: Vec<&Place> = homes.iter().filter(|home| !home.chat_id.is_empty()).collect();
        homes.sort_by_key(|home| {
            let rank = ORDER.iter().position(|platform| home.platform.eq_ignore_ascii_case(platform));
            rank.unwrap_or(ORDER.len())
        });
        let world = World { origin: origin.filter(|at| !at.platform.is_empty() && !at.chat_id.is_empty()), homes };
        let mut resolved = Resolved::default();
        for part in &self.parts {
            for place in world.places(part) {
                if !resolved.targets.iter().any(|known| known.is(&place)) {
                    resolved.targets.push(place);
                }
            }
        }
        resolved.error = self.error(&world, resolved.targets.is_empty());
        resolved
    }

    /// What of it leads nowhere, where that is worth a word.
    fn error(&self, world: &World<'_>, nowhere: bool) -> Option<String> {
        let mut said: Vec<String> = Vec::new();
        for part in &self.parts {
            let why = match part {
                Part::To(Target::Home { platform }) if world.places(part).is_empty() => {
                    format!("{} has no home chat; {NAME_ONE}", shown(platform))
                }
                Part::All if nowhere => format!("all: no platform has a home chat; {NAME_ONE}"),
                Part::To(Target::Origin) if nowhere && self.parts.len() > 1 => {
                    "origin: the job was made in no chat, and no platform has a home chat".to_owned()
                }
                Part::All | Part::To(_) => continue,
            };
            if !said.contains(&why) {
                said.push(why);
            }
        }
        (!said.is_empty()).then(|| format!("no chat to deliver to: {}", said.join("; ")))
    }
}

/// What there is at the time of a run.
struct World<'a> {
    origin: Option<&'a Place>,
    /// In the order of platforms.
    homes: Vec<&'a Place>,
}

impl World<'_> {
    fn places(&self, part: &Part) -> Vec<Place> {
        let one = |place: Option<Place>| place.into_iter().collect();
        match part {
            Part::All => self.homes.iter().filter_map(|home| self.on(&home.platform)).collect(),
            Part::To(Target::Local) => Vec::new(),
            Part::To(Target::Origin) => one(self.origin.or(self.homes.first().copied()).cloned()),
            Part::To(Target::Home { platform }) => one(self.on(platform)),
            Part::To(Target::Chat { platform, chat_id, thread_id }) => {
                one(Some(Place { platform: platform.clone(), chat_id: chat_id.clone(), thread_id: thread_id.clone() }))
            }
        }
    }

    /// The chat that a platform alone means: only in its own case is it the origin's.
    fn on(&self, platform: &str) -> Option<Place> {
        if let Some(origin) = self.origin.filter(|origin| origin.platform == platform) {
            return Some(origin.clone());
        }
        let wanted = platform.to_lowercase();
        let home = self.homes.iter().find(|home| home.platform.to_lowercase() == wanted)?;
        Some(Place { platform: platform.to_owned(), ..Place::clone(home) })
    }
}

impl Place {
    /// Whether it is the same chat and thread, in whatever case its platform is written.
    fn is(&self, other: &Self) -> bool {
        self.platform.to_lowercase() == other.platform.to_lowercase()
            && (&self.chat_id, &self.thread_id) == (&other.chat_id, &other.thread_id)
    }
}

impl Part {
    fn parse(text: &str) -> Self {
        if text.eq_ignore_ascii_case("all") {
            return Self::All;
        }
        Self::To(match (text, text.split_once(':')) {
            ("local", _) => Target::Local,
            ("origin", _) => Target::Origin,
            (_, None) => Target::Home { platform: text.to_owned() },
            (_, Some((platform, rest))) => {
                let rest = rest.trim();
                let (chat_id, thread_id) = match thread_at(&platform.to_lowercase(), rest) {
                    Some((chat, thread)) => (chat, Some(thread.to_owned())),
                    None => (rest, None),
                };
                Target::Chat { platform: platform.to_owned(), chat_id: chat_id.to_owned(), thread_id }
            }
        })
    }

    fn admit(&self, known: &[&str]) -> Result<(), String> {
        let (Self::To(Target::Home { platform }) | Self::To(Target::Chat { platform, .. })) = self else {
            return Ok(());
        };
        if self.to_string().chars().any(char::is_control) {
            return Err(format!("{} has a control character; remove it", shown(&self.to_string())));
        }
        if !known.contains(&platform.as_str()) {
            let words = known.iter().copied().chain(["local", "origin", "all"]);
            let hint = nearest(platform, words).map_or_else(|| HOW.to_owned(), |word| format!("did you mean {word}?"));
            return Err(format!("there is no platform {}; {hint}", shown(platform)));
        }
        if matches!(self, Self::To(Target::Chat { chat_id, thread_id, .. }) if chat_id.len().max(thread_id.as_ref().map_or(0, String::len)) > MAX_ID)
        {
            return Err(format!("an id of a chat or thread has at most {MAX_ID} bytes"));
        }
        if matches!(self, Self::To(Target::Chat { chat_id, .. }) if chat_id.is_empty()) {
            return Err(format!("{} names no chat; {HOW}", shown(&self.to_string())));
        }
        Ok(())
    }
}

/// Where in an id of a platform a thread begins, for platforms whose ids say so: before it a whole id, behind it a whole thread.
fn thread_at<'a>(platform: &str, rest: &'a str) -> Option<(&'a str, &'a str)> {
    let all = |text: &str, fits: fn(char) -> bool| !text.is_empty() && text.chars().all(fits);
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if platform == "matrix" {
        // Rooms have a server, which may have a port; events begin with their own sign.
        let at = rest.find(":$").filter(|_| rest.starts_with('!'))?;
        let (room, event) = (rest.get(..at)?, rest.get(at + 1..)?);
        return (room.contains(':') && all(event, |c| !c.is_whitespace())).then_some((room, event));
    }
    let (chat, thread) = rest.split_once(':')?;
    let whole = match platform {
        "telegram" | "discord" => {
            let digit = |c: char| c.is_ascii_digit();
            all(chat.strip_prefix('-').unwrap_or(chat), digit) && all(thread, digit)
        }
        "slack" => {
            chat.starts_with(['C', 'G', 'D'])
                && chat.len() >= 9
                && all(chat, |c| c.is_ascii_uppercase() || c.is_ascii_digit())
                && all(thread, |c| !c.is_whitespace() && c != ':')
        }
        "feishu" => {
            let kinds = ["oc", "ou", "on", "chat", "open"];
            chat.split_once('_').is_some_and(|(kind, id)| kinds.contains(&kind) && all(id, word))
                && all(thread, |c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        }
        _ => false,
    };
    whole.then_some((chat, thread))
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            // Here a chat without an id is no home.
            Self::To(Target::Chat { platform, chat_id, .. }) if chat_id.is_empty() => write!(f, "{platform}:"),
            Self::To(target) => target.fmt(f),
        }
    }
}

impl fmt::Display for Deliver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.parts.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            part.fmt(f)?;
        }
        Ok(())
    }
}

impl Serialize for Deliver {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Deliver {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Value;

        impl<'de> Visitor<'de> for Value {
            type Value = Deliver;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or a list of texts that say where answers go (")?;
                f.write_str(HOW)?;
                f.write_str(")")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Deliver, E> {
                Ok(Deliver::default())
            }

            fn visit_none<E: de::Error>(self) -> Result<Deliver, E> {
                Ok(Deliver::default())
            }

            fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Deliver, D::Error> {
                from.deserialize_any(self)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Deliver, E> {
                Ok(Deliver::parse(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Deliver, A::Error> {
                let mut texts: Vec<String> = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Deliver::parse(&texts.join(",")))
            }
        }

        from.deserialize_any(Value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn place(text: &str) -> Place {
        match Part::parse(text) {
            Part::To(Target::Chat { platform, chat_id, thread_id }) => Place { platform, chat_id, thread_id },
            other => panic!("{text}: {other:?}"),
        }
    }

    /// The chats and the error of a value.
    fn resolved(value: &str, origin: Option<&str>, homes: &[&str]) -> (Vec<Place>, Option<String>) {
        let homes: Vec<Place> = homes.iter().map(|text| place(text)).collect();
        let Resolved { targets, error } = Deliver::parse(value).resolve(origin.map(place).as_ref(), &homes);
        (targets, error)
    }

    #[test]
    fn a_thread_begins_where_the_platform_lets_it() {
        for (text, chat, thread) in [
            ("telegram:-100:17", "-100", Some("17")),
            ("TELEGRAM: -100:17", "-100", Some("17")),
            ("telegram:--1:2", "--1:2", None),
            ("telegram:-100:17:2", "-100:17:2", None),
            ("telegram:-100:", "-100:", None),
            ("slack:C0123ABCD:1700.01", "C0123ABCD", Some("1700.01")),
            ("slack:C0ABC:1700.01", "C0ABC:1700.01", None),
            ("matrix:!r:ex.org:8448:$ev:x", "!r:ex.org:8448", Some("$ev:x")),
            ("matrix:@u:ex.org:$ev", "@u:ex.org:$ev", None),
            ("matrix:!r:$ev", "!r:$ev", None),
            ("feishu:chat_a-b:om_x", "chat_a-b", Some("om_x")),
            ("feishu:xx_a:om_x", "xx_a:om_x", None),
            ("teams:19:5", "19:5", None),
        ] {
            let read = place(text);
            assert_eq!((read.chat_id.as_str(), read.thread_id.as_deref()), (chat, thread), "{text}");
        }
    }

    #[test]
    fn homes_are_asked_in_their_order_and_chats_named_once() {
        let homes = ["ntfy:topic", "Slack:C1", "telegram:5:6", "telegram:7", "irc:#a", "matrix:!r:ex.org"];
        let chats = |value: &str, origin: Option<&str>| resolved(value, origin, &homes).0;
        let all = ["matrix:!r:ex.org", "telegram:5:6", "Slack:C1", "ntfy:topic", "irc:#a"].map(place);
        assert_eq!(chats("All", None), all);
        assert_eq!(chats("origin", None), all[..1]);
        assert_eq!(chats("origin", Some("irc:#b")), [place("irc:#b")]);
        assert_eq!(chats("slack", None), [place("slack:C1")]);
        // The same chat, however its platform is written.
        assert_eq!(
            chats("telegram:5:6,Telegram:5:6,TELEGRAM,telegram:5", None),
            ["telegram:5:6", "telegram:5"].map(place)
        );
        // Only in its own case is a platform that of the origin.
        assert_eq!(chats("telegram,Telegram", Some("telegram:9")), ["telegram:9", "Telegram:5:6"].map(place));
    }

    #[test]
    fn what_leads_nowhere_is_said() {
        let none = |value: &str| resolved(value, None, &[]).1;
        for quiet in ["", ",,", "local", "local,local", "origin", "irc:#a,all", "irc:#a,origin", "all,local,irc:#a"] {
            assert_eq!(none(quiet), None, "{quiet}");
        }
        for (value, parts) in [
            ("all", &["all: no platform"][..]),
            ("origin,local", &["origin: the job was made in no chat"]),
            ("Origin", &["\"Origin\" has no home chat"]),
            ("irc,all,irc", &["\"irc\" has no home chat; write /sethome", "all: no platform"]),
        ] {
            let error = none(value).expect(value);
            assert!(parts.iter().all(|part| error.matches(part).count() == 1), "{error}");
        }
        // Of several, the one that is lost is named, and the other is served.
        let (targets, error) = resolved("telegram,discord,all", None, &["telegram:5"]);
        assert_eq!(targets, [place("telegram:5")]);
        assert_eq!(
            error.unwrap(),
            "no chat to deliver to: \"discord\" has no home chat; write /sethome in one, or name one under homes of an account"
        );
    }

    #[test]
    fn what_can_reach_nobody_is_not_admitted() {
        let admitted = |text: &str| Deliver::parse(text).admit(&["telegram", "irc"]).map(|deliver| deliver.to_string());
        assert_eq!(admitted(" origin , ALL,telegram:-1:2,irc"), Ok("origin,all,telegram:-1:2,irc".to_owned()));
        assert_eq!(admitted(""), Ok("local".to_owned()));
        for (text, said) in [
            ("Telegram", "deliver: there is no platform \"Telegram\"; did you mean telegram?"),
            ("Origin", "deliver: there is no platform \"Origin\"; did you mean origin?"),
            ("fax:1", "deliver: there is no platform \"fax\"; write local, origin, all,"),
            (":5", "deliver: there is no platform \"\"; write local"),
            ("irc,telegram:", "deliver: \"telegram:\" names no chat; write local"),
            ("irc:a\u{1}b", "deliver: \"irc:a\\u{1}b\" has a control character"),
        ] {
            let error = admitted(text).expect_err(text).to_string();
            assert!(error.starts_with(said), "{error}");
        }
        for long in ["irc,".repeat(51), format!("irc:{}", "a".repeat(MAX_BYTES))] {
            assert!(admitted(&long).expect_err("long").to_string().contains("at most 50 parts and 4096 bytes"));
        }
    }

    #[test]
    fn a_record_holds_text_or_a_list_of_texts() {
        let read = |value| serde_json::from_value::<Deliver>(value);
        for (value, text) in [
            (json!(null), "local"),
            (json!([]), "local"),
            (json!([" ", "irc, slack:C1"]), "irc,slack:C1"),
            (json!("all"), "all"),
        ] {
            let deliver = read(value).unwrap();
            assert_eq!(deliver.is_local(), text == "local");
            assert_eq!(serde_json::to_value(&deliver).unwrap(), json!(text));
        }
        let optional: Option<Deliver> = serde_json::from_value(json!("irc")).unwrap();
        assert_eq!(optional.unwrap().to_string(), "irc");
        for wrong in [json!(5), json!(true), json!({"platform": "irc"}), json!(["irc", 5]), json!(["irc", ["slack"]])] {
            let error = read(wrong.clone()).expect_err(&wrong.to_string()).to_string();
            assert!(
                error.contains("expected text or a list of texts") || error.contains("expected a string"),
                "{error}"
            );
        }
    }

    /// Values that look like some, and any text.
    fn any_value() -> impl Strategy<Value = String> {
        let part = "(all|ALL|local|origin|Origin| |telegram|matrix|slack|feishu|irc|[a-z]{0,3})(:(-?[0-9]{1,3}|!r:ex|C0123ABCD|oc_a|#c| |\\$e|)){0,3}";
        prop_oneof![proptest::collection::vec(part, 0..5).prop_map(|parts| parts.join(",")), any::<String>()]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_printed_reads_alike(text in any_value()) {
            let deliver = Deliver::parse(&text);
            prop_assert_eq!(&Deliver::parse(&deliver.to_string()), &deliver);
            let record = serde_json::to_value(&deliver).unwrap();
            prop_assert_eq!(serde_json::from_value::<Deliver>(record).unwrap(), deliver);
        }

        #[test]
        fn a_value_comes_to_different_chats_or_says_why_not(value in any_value(), at_home in any::<bool>()) {
            let homes = if at_home { vec![place("telegram:5:6"), place("irc:#c")] } else { Vec::new() };
            let deliver = Deliver::parse(&value);
            let Resolved { targets, error } = deliver.resolve(None, &homes);
            for (at, target) in targets.iter().enumerate() {
                prop_assert!(!targets[..at].iter().any(|other| other.is(target)), "{:?}", targets);
            }
            let may_lead_nowhere = deliver.is_local() || deliver.to_string() == "origin";
            prop_assert!(!targets.is_empty() || error.is_some() || may_lead_nowhere, "{}", value);
        }
    }
}
