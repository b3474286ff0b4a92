//! When a scheduled job runs: what people write for it, and the instants that it comes to. Beside it, what becomes of its answer:
//! whether it is told, in which words, and to whom ([`Deliver`]).
//!
//! Called by whoever takes a job in, asks for its next slot or shows the coming ones. Pure: the time and the zone are given. A schedule is one
//! of three (spec e.2): once, at a fixed distance, or a cron pattern, which is matched against the wall clock of its zone. Always true of
//! a pattern: each wall-clock time that it matches comes once; one that a clock change leaves out comes at the first instant after the
//! gap, together with what else falls there; one that a clock change repeats comes the first time, and with a pattern that steps through
//! such a stretch both times. What a job does and who runs it is not known here.

mod answer;
mod deliver;
mod due;
mod job;
mod pattern;
mod times;

use std::fmt;

use jiff::civil;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};

pub use answer::{failure_line, is_narrated_silence, is_silent, next_notice, notice_due, wrapped};
pub use deliver::{Deliver, Place, Resolved};
pub use due::{Due, MissedSlots, due};
pub use job::{Conversation, Fault, Job, MAX_PROMPT, Missed, Overlap, is_id, jitter, judge_name, skills_without};
pub use pattern::Pattern;

/// How long after its time a run that happens once is still taken in, seconds (spec e.2).
pub const LATE_SECONDS: i64 = 120;
/// Shortest and longest grace of a schedule, seconds (spec e.3).
const GRACE_SECONDS: (i64, i64) = (120, 7200);
/// Longest text of a schedule, bytes.
const MAX_BYTES: usize = 200;
/// Longest distance, minutes: a hundred years.
const MAX_MINUTES: u64 = 60 * 24 * 36_525;
const MINUTES_PER_HOUR: u64 = 60;
const MINUTES_PER_DAY: u64 = 24 * 60;

/// Why a text is no schedule or no value of `deliver`, or none that anybody can want; says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// When a job runs.
#[derive(Clone, Debug)]
pub struct Schedule {
    kind: Kind,
    zone: TimeZone,
    display: String,
}

/// The three kinds.
#[derive(Clone, Debug)]
pub enum Kind {
    /// At one instant.
    Once(Timestamp),
    /// So many minutes after the last run; whole days are days of the wall clock.
    Every(u64),
    /// Whenever the wall clock matches.
    Cron(Box<Pattern>),
}

/// A run of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// When.
    pub at: Timestamp,
    /// What a clock change did to it.
    pub moved: Option<Moved>,
}

/// What a clock change does to a wall-clock time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It left the time out: this is the first instant after the gap.
    Gap,
    /// It made the time come twice: this is one of the two.
    Repeat,
}

impl Moved {
    /// As programs read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Repeat => "repeat",
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display)
    }
}

impl Schedule {
    /// Reads what somebody wrote at `now`; times without a zone are those of `zone`, which `CRON_TZ=Zone` before a pattern replaces.
    ///
    /// # Errors
    /// When it is no schedule; says what would be one. One that nobody can want is read all the same: see [`Schedule::admit`].
    pub fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() || text.len() > MAX_BYTES {
            return Err(Error(format!("a schedule has 1 to {MAX_BYTES} bytes; {HOW}")));
        }
        let schedule = |kind, display| Ok(Self { kind, zone: zone.clone(), display });
        if let Some(rest) = strip_word(text, "every") {
            let minutes = minutes(rest).ok_or_else(|| Error(format!("\"{rest}\" is no distance; {HOW}")))?;
            return schedule(Kind::Every(minutes), format!("every {minutes}m"));
        }
        if let Some((pattern, own)) = pattern::read(text)? {
            let zone = own.unwrap_or_else(|| zone.clone());
            let display = text.split_whitespace().collect::<Vec<_>>().join(" ");
            return Ok(Self { kind: Kind::Cron(Box::new(pattern)), zone, display });
        }
        if text.contains('T') || times::begins_with_date(text) {
            let (at, shown) = times::instant(text, zone).map_err(Error)?;
            return schedule(Kind::Once(at), format!("once at {}", shown.strftime("%Y-%m-%d %H:%M")));
        }
        let minutes = minutes(text).ok_or_else(|| Error(format!("\"{text}\" is no schedule; {HOW}")))?;
        let distance = SignedDuration::from_mins(i64::try_from(minutes).unwrap_or(i64::MAX));
        let at = now.checked_add(distance).map_err(|_| Error(format!("\"{text}\" is too far away")))?;
        schedule(Kind::Once(at), format!("once in {text}"))
    }

    /// Refuses what can never run, would run without a pause, or was over long ago, at the time when a job is taken in.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn admit(self, now: Timestamp) -> Result<Self, Error> {
        match &self.kind {
            Kind::Once(at) if now.duration_since(*at) > SignedDuration::from_secs(LATE_SECONDS) => {
                let at = at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string();
                Err(Error(format!("{at} is over already; write a time that is to come")))
            }
            Kind::Every(0) => {
                Err(Error("a job every 0 minutes would run without a pause; every 1m is the shortest".to_owned()))
            }
            Kind::Cron(_) if self.next(now).is_none() => {
                Err(Error(format!("\"{self}\" matches no day that is to come, so the job would never run")))
            }
            _ => Ok(self),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The zone whose wall clock counts.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first run after `after`: the last run, or now where there was none. Of one that happens once that is its time, also when it is a
    /// little late: up to [`LATE_SECONDS`] before `after`.
    pub fn next(&self, after: Timestamp) -> Option<Slot> {
        match &self.kind {
            Kind::Once(at) => (after.duration_since(*at) <= SignedDuration::from_secs(LATE_SECONDS))
                .then_some(Slot { at: *at, moved: None }),
            Kind::Every(minutes) => Some(Slot { at: later(after, *minutes, &self.zone)?, moved: None }),
            Kind::Cron(pattern) => pattern.next(after, &self.zone),
        }
    }

    /// The runs after `after`, one after the other.
    pub fn upcoming(&self, after: Timestamp) -> impl Iterator<Item = Slot> {
        let happens_once = matches!(self.kind, Kind::Once(_));
        std::iter::successors(self.next(after), move |last| if happens_once { None } else { self.next(last.at) })
    }

    /// How late a run may begin and still count as in time, seconds: half the distance of the next two, within bounds (spec e.3).
    pub fn grace_seconds(&self, now: Timestamp) -> i64 {
        let (least, most) = GRACE_SECONDS;
        let mut slots = self.upcoming(now);
        let distance =
            slots.next().zip(slots.next()).map_or(0, |(first, second)| second.at.as_second() - first.at.as_second());
        (distance / 2).clamp(least, most)
    }
}

/// What a schedule looks like.
const HOW: &str = "write \"30m\" or \"2h\" (once, after that time), \"every 15m\", \"2027-01-31T09:00\" (once), or a cron pattern: minute, hour, \
     day, month, weekday, as in \"0 9 * * mon-fri\"";

/// What follows a word and white space, whatever its case.
fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (first, rest) = text.split_once(char::is_whitespace)?;
    first.eq_ignore_ascii_case(word).then(|| rest.trim_start())
}

/// A number and a unit of minutes, hours or days, in minutes.
fn minutes(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_numeric()).filter(|at| *at > 0)?;
    let (number, unit) = text.split_at(at);
    let mut count = 0_u64;
    for digit in number.chars() {
        count = count.checked_mul(10)?.checked_add(u64::from(decimal(digit)?))?;
    }
    let factor = match unit.trim_start().to_ascii_lowercase().as_str() {
        "m" | "min" | "mins" | "minute" | "minutes" => 1,
        "h" | "hr" | "hrs" | "hour" | "hours" => MINUTES_PER_HOUR,
        "d" | "day" | "days" => MINUTES_PER_DAY,
        _ => return None,
    };
    count.checked_mul(factor).filter(|minutes| *minutes <= MAX_MINUTES)
}

/// The value of a decimal digit of the scripts that are written with a computer most; the reference takes those of all.
fn decimal(digit: char) -> Option<u32> {
    const ZEROS: [char; 12] = ['0', '٠', '۰', '०', '০', '੦', '૦', '௦', '౦', '๐', '༠', '０'];
    ZEROS.iter().find_map(|zero| u32::from(digit).checked_sub(u32::from(*zero)).filter(|value| *value < 10))
}

/// The instant so many minutes later; whole days are days of the wall clock.
fn later(after: Timestamp, minutes: u64, zone: &TimeZone) -> Option<Timestamp> {
    match (minutes / MINUTES_PER_DAY, minutes % MINUTES_PER_DAY) {
        (days @ 1.., 0) => {
            let time =
                zone.to_datetime(after).checked_add(Span::new().try_days(i64::try_from(days).ok()?).ok()?).ok()?;
            first_instant(time, zone)
        }
        _ => after.checked_add(SignedDuration::from_mins(i64::try_from(minutes).ok()?)).ok(),
    }
}

/// A wall-clock time of a zone as an instant: one that comes twice is the first, one that a clock change leaves out lies as long after it as
/// it would have.
fn first_instant(time: civil::DateTime, zone: &TimeZone) -> Option<Timestamp> {
    zone.to_ambiguous_timestamp(time).compatible().ok()
}

#[cfg(test)]
mod tests;
