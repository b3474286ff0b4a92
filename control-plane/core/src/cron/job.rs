//! A scheduled job as its owner writes it: what is run, when, and what becomes of it.
//!
//! Called by whoever takes one in (the document, operators, agents) and by the scheduler. Always true: a job that was judged
//! ([`Job::judged`]) has a schedule that can run and parts of bounded size; whose job it is and what it is called stands beside it, so nothing in a
//! job can name another agent. Whether its skills, script and model are there is found out when it runs.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hermes_home::threats::visible;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Deliver, Error, Schedule, minutes};

/// Longest name, characters.
const MAX_NAME: usize = 100;
/// Longest prompt, bytes.
pub const MAX_PROMPT: usize = 64 << 10;
/// Most skills of a job, and most jobs that it builds upon.
const MAX_LISTED: usize = 16;
/// Most slots that `missed: all` makes up for.
const MAX_MADE_UP: u32 = 100;
/// Runs of a job that may wait, at most, where it makes up for no more.
const MOST_WAITING: u32 = 10;
/// Longest spread of a slot, seconds: a day.
const MAX_JITTER: u32 = 86_400;
/// Longest and shortest time that a run may take, seconds.
const TIMEOUTS: (u32, u32) = (10, 86_400);
/// Longest path of a script or a folder, bytes.
const MAX_PATH: usize = 200;

/// A job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Job {
    /// When: see [`Schedule::parse`].
    pub schedule: String,
    /// The zone of its times, an IANA name; absent: the document's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// What the agent is told.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prompt: String,
    /// Skills whose texts it is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skills: Vec<String>,
    /// Where the answer goes.
    #[serde(skip_serializing_if = "Deliver::is_local")]
    pub deliver: Deliver,
    /// How many slots it runs for in all; absent: for ever, or once where the schedule says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat: Option<u32>,
    /// It does not run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// `provider/model` in place of the agent's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A folder below `workspace/` where its commands begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// A file of the home's `scripts/`, run first; the agent is told what it prints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// The script alone: what it prints is the answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_agent: bool,
    /// Jobs of the same agent, by name or id, whose last answers it is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub context_from: Vec<String>,
    /// What becomes of slots that nobody ran in time.
    #[serde(skip_serializing_if = "is_default")]
    pub missed: Missed,
    /// What becomes of a slot while an earlier run still goes.
    #[serde(skip_serializing_if = "is_default")]
    pub overlap: Overlap,
    /// Each slot begins later by up to so many seconds, always the same for the same slot.
    #[serde(skip_serializing_if = "is_default")]
    pub jitter_seconds: u32,
    /// How long a run may take, from when it is due until it has ended; absent: as long as a turn may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Which conversation its runs are in.
    #[serde(skip_serializing_if = "is_default")]
    pub session: Conversation,
    /// The answer is delivered as it is, without the lines that say which job it is from.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bare: bool,
    /// What is delivered to the chat that the job was made in becomes part of the conversation there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub mirror: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What becomes of slots that came due while nobody was there to run them. Written `skip`, `once`, `all`, `all 5`, `within 2h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missed {
    /// They are missed; what is not later than the schedule's grace still runs.
    Skip,
    /// The last of them runs, for all.
    #[default]
    Once,
    /// So many of the last ones run, one after the other, as far as they may wait ([`Job::most_waiting`]).
    All(u32),
    /// The last of them runs if it is no older.
    Within(Duration),
}

impl Missed {
    /// How many slots that came due meanwhile run, at most.
    pub fn made_up(self) -> u32 {
        match self {
            Self::All(most) => most,
            Self::Skip | Self::Once | Self::Within(_) => 1,
        }
    }
}

impl FromStr for Missed {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let how = "write skip, once, all, all 5 (the last five) or within 2h";
        let mut words = text.split_whitespace();
        let (word, rest) = (words.next().unwrap_or_default(), words.collect::<Vec<_>>().join(" "));
        match (word.to_ascii_lowercase().as_str(), rest.as_str()) {
            ("skip", "") => Ok(Self::Skip),
            ("once", "") => Ok(Self::Once),
            ("all", "") => Ok(Self::All(MAX_MADE_UP)),
            ("all", number) => match number.parse() {
                Ok(most) if (1..=MAX_MADE_UP).contains(&most) => Ok(Self::All(most)),
                _ => Err(Error(format!("\"{text}\": at most {MAX_MADE_UP} slots can be made up for; {how}"))),
            },
            ("within", distance) => match minutes(distance) {
                Some(minutes @ 1..) => Ok(Self::Within(Duration::from_secs(minutes.saturating_mul(60)))),
                _ => Err(Error(format!("\"{distance}\" is no distance of time; {how}"))),
            },
            _ => Err(Error(format!("\"{text}\" says nothing about missed slots; {how}"))),
        }
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skip => f.write_str("skip"),
            Self::Once => f.write_str("once"),
            Self::All(MAX_MADE_UP) => f.write_str("all"),
            Self::All(most) => write!(f, "all {most}"),
            Self::Within(age) => write!(f, "within {}m", age.as_secs() / 60),
        }
    }
}

/// What becomes of a slot while an earlier run of its job waits or goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    /// It is skipped.
    #[default]
    Skip,
    /// It runs when the earlier ones are over; see [`Job::most_waiting`].
    Queue,
    /// The earlier ones are stopped.
    Cancel,
}

/// Which conversation a job's runs are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conversation {
    /// Each run begins one.
    #[default]
    Fresh,
    /// All runs go on with one.
    Continue,
}

/// Words of an enumeration, as text.
macro_rules! words {
    ($type:ty, $what:literal, $($value:ident = $word:literal),+) => {
        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                match text.trim().to_ascii_lowercase().as_str() {
                    $($word => Ok(Self::$value),)+
                    _ => Err(Error(format!(concat!("\"{}\" is no ", $what, "; write one of: ", $($word, " ",)+), text.trim()).trim_end().to_owned())),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$value => $word,)+ })
            }
        }
    };
}

words!(Overlap, "overlap policy", Skip = "skip", Queue = "queue", Cancel = "cancel");
words!(Conversation, "session mode", Fresh = "fresh", Continue = "continue");

/// Kept and read as its text.
macro_rules! as_text {
    ($($type:ty),+) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

as_text!(Missed, Overlap, Conversation);

/// A part of a job that is wrong, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field's name.
    pub field: &'static str,
    /// For people, with what to write instead.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// What is wrong with a job's name: 1 to [`MAX_NAME`] characters of one line, and no job's id.
///
/// # Errors
/// For people.
pub fn judge_name(name: &str) -> Result<(), String> {
    let count = name.chars().count();
    let is_hidden = |c: char| c.is_control() || c != ' ' && c.is_whitespace();
    if name.trim() != name || !(1..=MAX_NAME).contains(&count) || name.chars().any(is_hidden) || visible(name).1 > 0 {
        return Err(format!(
            "a job's name is one line of 1 to {MAX_NAME} characters, without space around it and without characters that nobody sees"
        ));
    }
    if is_id(name) {
        return Err("12 hexadecimal digits are an id; choose another name".to_owned());
    }
    Ok(())
}

/// Whether a text is a job's id: 12 lower-case hexadecimal digits.
pub fn is_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

impl Job {
    /// Runs of it that may wait for earlier ones, at most; slots beyond are skipped. A job that makes up for more slots than usual has room for as many,
    /// so that none of them is skipped because it was found in time, alone.
    pub fn most_waiting(&self) -> u32 {
        MOST_WAITING.max(self.missed.made_up())
    }

    /// When it runs, as written at `anchor`. `zone` is the document's.
    ///
    /// # Errors
    /// As [`Schedule::parse`], and for an unknown zone.
    pub fn schedule(&self, anchor: Timestamp, zone: &TimeZone) -> Result<Schedule, Error> {
        let own = match &self.timezone {
            Some(name) => &TimeZone::get(name)
                .map_err(|_| Error(format!("\"{name}\" is no time zone; write an IANA name such as Europe/Berlin")))?,
            None => zone,
        };
        Schedule::parse(&self.schedule, anchor, own)
    }

    /// How many slots it runs for in all; nothing: for ever.
    pub fn times(&self, schedule: &Schedule) -> Option<u32> {
        match (self.repeat, schedule.kind()) {
            (Some(0), _) => None,
            (Some(times), _) => Some(times),
            (None, super::Kind::Once(_)) => Some(1),
            (None, _) => None,
        }
    }

    /// Judges the whole job as it is taken in at `now`; its schedule. `platforms` are those that there are.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn judged(&self, now: Timestamp, zone: &TimeZone, platforms: &[&str]) -> Result<Schedule, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut fault = |field, message: String| faults.push(Fault { field, message });
        let schedule = self.schedule(now, zone).and_then(|schedule| schedule.admit(now));
        if let Err(Error(message)) = &schedule {
            let unknown = self.timezone.as_ref().is_some_and(|name| TimeZone::get(name).is_err());
            fault(if unknown { "timezone" } else { "schedule" }, message.clone());
        }
        if self.prompt.len() > MAX_PROMPT {
            fault("prompt", format!("a prompt has at most {MAX_PROMPT} bytes, this one {}", self.prompt.len()));
        }
        if self.prompt.contains('\0') {
            fault("prompt", "a prompt has no NUL characters".to_owned());
        }
        if self.no_agent && self.script.is_none() {
            fault("script", "with no_agent the script is all there is; name one".to_owned());
        }
        if self.no_agent && (!self.prompt.is_empty() || !self.skills.is_empty() || self.model.is_some()) {
            fault(
                "no_agent",
                "without an agent nobody reads a prompt or skills, or needs a model; leave them out".to_owned(),
            );
        }
        if !self.no_agent && self.prompt.trim().is_empty() && self.skills.is_empty() && self.script.is_none() {
            fault("prompt", "say in prompt what the agent is to do, or name skills or a script".to_owned());
        }
        for (field, texts) in [("skills", &self.skills), ("context_from", &self.context_from)] {
            if texts.len() > MAX_LISTED {
                fault(field, format!("at most {MAX_LISTED} can be named"));
            }
            if texts.iter().any(|text| text.trim().is_empty() || text.len() > 4 * MAX_NAME) {
                fault(field, "each is a name".to_owned());
            }
        }
        for (field, path) in [("script", &self.script), ("workdir", &self.workdir)] {
            if let Some(Err(message)) = path.as_deref().map(judge_path) {
                fault(field, message);
            }
        }
        if self.model.as_deref().is_some_and(|model| model.trim().is_empty() || model.len() > MAX_PATH) {
            fault("model", "name a model as provider/model".to_owned());
        }
        if let Err(Error(message)) = self.deliver.clone().admit(platforms) {
            fault("deliver", message);
        }
        if self.jitter_seconds > MAX_JITTER {
            fault("jitter_seconds", format!("at most {MAX_JITTER} seconds, a day"));
        }
        let (least, most) = TIMEOUTS;
        if self.timeout_seconds.is_some_and(|seconds| !(least..=most).contains(&seconds)) {
            fault("timeout_seconds", format!("{least} to {most} seconds"));
        }
        match schedule {
            Ok(schedule) if faults.is_empty() => Ok(schedule),
            _ => Err(faults),
        }
    }
}

/// What is wrong with a path below a folder of the home.
fn judge_path(path: &str) -> Result<(), String> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.chars().any(char::is_control);
    if path.len() > MAX_PATH || path.contains('\\') || !path.split('/').all(plain) {
        return Err(format!("write a path below the folder, without \"..\", of at most {MAX_PATH} bytes"));
    }
    Ok(())
}

/// How much later than its slot a run begins: less than `most`, always the same for the same job and slot.
pub fn jitter(job: &str, slot: Timestamp, most: Duration) -> Duration {
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    if most == 0 {
        return Duration::ZERO;
    }
    // FNV-1a and the finisher of splitmix64: spread well, and the same in every build.
    let bytes = job.bytes().chain(slot.as_second().to_be_bytes());
    let mut hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Duration::from_millis((hash ^ (hash >> 31)) % most)
}

/// The skills that a job names once some of its agent's are in the archive: another one, if there is one, stands in their first place, and no
/// skill is named twice. Skills are compared without their category, with which a job may name them.
pub fn skills_without(named: &[String], away: &[String], into: Option<&str>) -> Vec<String> {
    let bare = |skill: &str| skill.rsplit('/').next().unwrap_or(skill).trim().to_owned();
    let away: Vec<String> = away.iter().map(|skill| bare(skill)).collect();
    let mut left: Vec<String> = Vec::new();
    for skill in named {
        let skill = match away.contains(&bare(skill)) {
            true => into,
            false => Some(skill.as_str()),
        };
        if let Some(skill) = skill.filter(|skill| !left.iter().any(|there| bare(there) == bare(skill))) {
            left.push(skill.to_owned());
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2027-01-31T12:00:00Z".parse().unwrap()
    }

    fn job() -> Job {
        Job { schedule: "every 5m".to_owned(), prompt: "look".to_owned(), ..Job::default() }
    }

    #[test]
    fn policies_are_read_as_they_are_shown() {
        for text in ["skip", "once", "all", "all 5", "within 120m"] {
            assert_eq!(text.parse::<Missed>().unwrap().to_string(), text);
        }
        assert_eq!("Within 2h".parse(), Ok(Missed::Within(Duration::from_secs(7200))));
        for wrong in ["", "all 0", "all 101", "within", "within 0m", "sometimes", "skip it"] {
            assert!(wrong.parse::<Missed>().is_err(), "{wrong}");
        }
        assert_eq!("Queue".parse(), Ok(Overlap::Queue));
        assert_eq!(
            "x".parse::<Overlap>().unwrap_err().to_string(),
            "\"x\" is no overlap policy; write one of: skip queue cancel"
        );
    }

    #[test]
    fn a_job_is_kept_without_what_is_usual() {
        assert_eq!(serde_json::to_string(&job()).unwrap(), r#"{"schedule":"every 5m","prompt":"look"}"#);
        let whole = Job {
            missed: Missed::All(3),
            overlap: Overlap::Cancel,
            session: Conversation::Continue,
            jitter_seconds: 30,
            ..job()
        };
        let text = serde_json::to_string(&whole).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), whole, "{text}");
        assert!(serde_json::from_str::<Job>(r#"{"schedule":"1h","agent":"other"}"#).is_err());
    }

    #[test]
    fn all_faults_of_a_job_are_told_at_once() {
        assert!(job().judged(now(), &TimeZone::UTC, &["telegram"]).is_ok());
        let wrong = Job {
            schedule: "0 0 30 2 *".to_owned(),
            prompt: String::new(),
            script: Some("../x.sh".to_owned()),
            no_agent: true,
            skills: vec!["a".to_owned(); 17],
            jitter_seconds: MAX_JITTER + 1,
            timeout_seconds: Some(9),
            model: Some(" ".to_owned()),
            deliver: Deliver::parse("telegarm"),
            ..job()
        };
        let faults = wrong.judged(now(), &TimeZone::UTC, &["telegram"]).unwrap_err();
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field).collect();
        assert_eq!(
            fields,
            ["schedule", "no_agent", "skills", "script", "model", "deliver", "jitter_seconds", "timeout_seconds"]
        );
        let zone = Job { timezone: Some("Mars/Olympus".to_owned()), ..job() };
        assert_eq!(zone.judged(now(), &TimeZone::UTC, &["telegram"]).unwrap_err()[0].field, "timezone");
        for (path, good) in [("a/b.sh", true), ("/a", false), ("a//b", false), ("a/..", false), ("a\\b", false)] {
            assert_eq!(judge_path(path).is_ok(), good, "{path}");
        }
    }

    #[test]
    fn names_are_no_ids() {
        assert!(judge_name("daily report").is_ok() && judge_name("deadbeef").is_ok());
        for wrong in ["a\u{200b}b", "a\u{202e}b", "a\u{2028}b", "", " x", "a\nb", "0123456789ab", &"x".repeat(101)] {
            assert!(judge_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn another_skill_takes_the_place_of_those_in_the_archive_once() {
        let without = |named: &str, away: &str, into: Option<&str>| {
            let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            skills_without(&list(named), &list(away), into).join(" ")
        };
        assert_eq!(without("a b c", "b c", Some("bc")), "a bc");
        assert_eq!(without("bc web/a b", "a b", Some("bc")), "bc");
        assert_eq!(without("b x/bc", "b", Some("bc")), "bc");
        assert_eq!(without("a b", "b", None), "a");
        assert_eq!(without("b", "b", None), "");
        assert_eq!(without("a c", "b", Some("bc")), "a c");
    }

    #[test]
    fn jitter_is_spread_and_stays() {
        let most = Duration::from_secs(60);
        let of = |job: &str| jitter(job, now(), most);
        assert_eq!(of("a"), of("a"));
        let all: Vec<u64> = (0..1000).map(|n| of(&format!("job{n}")).as_secs() / 15).collect();
        for quarter in 0..4 {
            let count = all.iter().filter(|found| **found == quarter).count();
            assert!((150..350).contains(&count), "{quarter}: {count}");
        }
        assert_eq!(jitter("a", now(), Duration::ZERO), Duration::ZERO);
    }
}
