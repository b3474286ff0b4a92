//! Cron patterns: five fields as in a crontab, six with seconds last, seven with the year behind them (spec e.2, rule 2), and their matches on a
//! wall clock that is changed now and then.
//!
//! Which days and times match is croner's to say; the fields are brought into its form here, so that what the reference reads (ranges that wrap,
//! steps that are longer than their range) is read, and what is wrong is said of its field. Clock changes are ours: croner sees the wall
//! clock only.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{Timestamp, ToSpan as _};

use super::{Error, Moved, Slot};

/// A field of a pattern.
struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    /// Names that stand for numbers, from the least on.
    names: &'static [&'static str],
    /// What stands here besides numbers and names, for people.
    also: &'static str,
}

const fn field(name: &'static str, least: u32, most: u32) -> Field {
    Field { name, least, most, names: &[], also: "" }
}

const SECOND: Field = field("second", 0, 59);
const MINUTE: Field = field("minute", 0, 59);
const HOUR: Field = field("hour", 0, 23);
const DAY: Field = Field { also: ", L, LW or 15W", ..field("day of month", 1, 31) };
const MONTH: Field = Field {
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    also: ", jan to dec",
    ..field("month", 1, 12)
};
/// Sunday is 0 and 7.
const WEEKDAY: Field = Field {
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    also: ", mon to sun, 5L or fri#2",
    ..field("day of week", 0, 7)
};
const YEAR: Field = field("year", 1970, 2099);

/// Words that stand for a pattern.
const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// A pattern that can be asked for its matches.
#[derive(Clone, Debug)]
pub struct Pattern {
    cron: Cron,
    /// It comes more often than a stretch that a clock change repeats is long.
    steps: bool,
}

/// The pattern that a text is, and the zone that it names itself; nothing when it is no pattern at all.
pub(super) fn read(text: &str) -> Result<Option<(Pattern, Option<TimeZone>)>, Error> {
    let (text, zone) = match text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ=")) {
        Some(rest) => {
            let (name, pattern) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let zone = TimeZone::get(name)
                .map_err(|_| Error(format!("there is no time zone \"{name}\"; write one as in Europe/Berlin")))?;
            (pattern.trim_start(), Some(zone))
        }
        None => (text, None),
    };
    let text = match text.strip_prefix('@') {
        Some(_) => {
            let known = NICKNAMES.iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
            let names = || NICKNAMES.map(|(name, _)| name).join(", ");
            known.ok_or_else(|| Error(format!("there is no \"{text}\"; there are {}", names())))?.1
        }
        None => text,
    };
    let fields: Vec<&str> = text.split_whitespace().collect();
    match fields.len() {
        5..=7 => Pattern::new(&fields).map(|pattern| Some((pattern, zone))),
        count if count > 7 || zone.is_some() => Err(Error(format!(
            "\"{text}\" has {count} fields; a cron pattern has five (minute, hour, day of month, month, day of week), then second and year"
        ))),
        _ => Ok(None),
    }
}

impl Pattern {
    fn new(fields: &[&str]) -> Result<Self, Error> {
        let at = |index: usize, default: &'static str| fields.get(index).copied().unwrap_or(default);
        let (minute, hour) = (MINUTE.read(at(0, "*"))?, HOUR.read(at(1, "*"))?);
        let (day, month, weekday) = (DAY.read(at(2, "*"))?, MONTH.read(at(3, "*"))?, WEEKDAY.read(at(4, "*"))?);
        let (second, year) = (SECOND.read(at(5, "0"))?, YEAR.read(at(6, "*"))?);
        let steps = hour == "*" || at(0, "*").starts_with('*');
        let text = format!("{second} {minute} {hour} {day} {month} {weekday} {year}");
        let parser = CronParser::builder().seconds(Seconds::Required).year(Year::Required).build();
        let cron = parser.parse(&text).map_err(|error| Error(format!("\"{}\": {error}", fields.join(" "))))?;
        Ok(Self { cron, steps })
    }

    /// The first match of the wall clock of `zone` after an instant.
    pub(super) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Slot> {
        let first = self.next_first(after, zone);
        let again = if self.steps { self.next_again(after, zone) } else { None };
        first.into_iter().chain(again).min_by_key(|slot| slot.at)
    }

    /// The first after an instant, with a repeated stretch passed only the first time.
    fn next_first(&self, after: Timestamp, zone: &TimeZone) -> Option<Slot> {
        let (mut from, mut inclusive) = match Fold::at(after, zone) {
            Some(fold) if fold.again => (fold.end(), true),
            _ => (zone.to_datetime(after), false),
        };
        loop {
            let time = self.matched(from, inclusive)?;
            let slot = match zone.to_ambiguous_timestamp(time).offset() {
                AmbiguousOffset::Unambiguous { offset } => Slot { at: offset.to_timestamp(time).ok()?, moved: None },
                AmbiguousOffset::Fold { before, .. } => {
                    Slot { at: before.to_timestamp(time).ok()?, moved: Some(Moved::Repeat) }
                }
                AmbiguousOffset::Gap { before, .. } => {
                    // The time as if the clock had not been changed lies behind the change.
                    let at = last_change(before.to_timestamp(time).ok()?, zone)?;
                    let (there, asked) = (zone.to_datetime(at), zone.to_datetime(after));
                    let falls_there = self.matched(there, true) == Some(there);
                    if at <= after {
                        (from, inclusive) = (there.max(asked), false);
                        continue;
                    }
                    Slot { at, moved: (!falls_there).then_some(Moved::Gap) }
                }
            };
            if slot.at > after {
                return Some(slot);
            }
            (from, inclusive) = (time, false);
        }
    }

    /// The first after an instant in the second pass of the repeated stretch that it lies in.
    fn next_again(&self, after: Timestamp, zone: &TimeZone) -> Option<Slot> {
        let fold = Fold::at(after, zone)?;
        let (from, inclusive) = if fold.again { (zone.to_datetime(after), false) } else { (fold.start(), true) };
        let time = self.matched(from, inclusive)?;
        let at = fold.later.to_timestamp(time).ok()?;
        (time < fold.end()).then_some(Slot { at, moved: Some(Moved::Repeat) })
    }

    fn matched(&self, from: DateTime, inclusive: bool) -> Option<DateTime> {
        self.cron.find_next_occurrence(&from, inclusive).ok()
    }
}

/// A stretch of the wall clock that comes twice.
struct Fold {
    /// When the clock is set back.
    change: Timestamp,
    earlier: Offset,
    later: Offset,
    /// The second time is running.
    again: bool,
}

impl Fold {
    /// The one that an instant lies in.
    fn at(instant: Timestamp, zone: &TimeZone) -> Option<Self> {
        let time = zone.to_datetime(instant);
        let AmbiguousOffset::Fold { before: earlier, after: later } = zone.to_ambiguous_timestamp(time).offset() else {
            return None;
        };
        let again = zone.to_offset(instant) == later;
        let change = if again { last_change(instant, zone)? } else { zone.following(instant).next()?.timestamp() };
        Some(Self { change, earlier, later, again })
    }

    fn start(&self) -> DateTime {
        self.later.to_datetime(self.change)
    }

    fn end(&self) -> DateTime {
        self.earlier.to_datetime(self.change)
    }
}

/// The last change of a zone's clock that is not after an instant.
fn last_change(instant: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let behind = instant.checked_add(1.second()).ok()?;
    Some(zone.preceding(behind).find(|change| change.timestamp() <= instant)?.timestamp())
}

impl Field {
    /// The field in croner's form: `*`, or the numbers that it comes to, and what only croner knows.
    fn read(&self, text: &str) -> Result<String, Error> {
        let mut numbers = Vec::new();
        let mut special = Vec::new();
        for item in text.split(',') {
            match self.special(item) {
                Some(known) => special.push(known),
                None => numbers.extend(self.numbers(item).ok_or_else(|| self.wrong(text))?),
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        let all = self.period();
        if u32::try_from(numbers.len()).is_ok_and(|count| count == all) {
            return Ok("*".to_owned());
        }
        let numbers = numbers.iter().map(u32::to_string);
        Ok(numbers.chain(special).collect::<Vec<_>>().join(","))
    }

    fn wrong(&self, text: &str) -> Error {
        let Self { name, least, most, also, .. } = self;
        Error(format!(
            "the {name} \"{text}\" cannot be read: write *, {least} to {most}{also}, ranges as 1-5, steps as */2, and several with commas"
        ))
    }

    /// How many values it has; Sunday counts once.
    fn period(&self) -> u32 {
        if self.is_weekday() { 7 } else { self.most - self.least + 1 }
    }

    fn is_weekday(&self) -> bool {
        self.most == 7
    }

    /// What is no set of numbers: the last day, the nearest working day, the nth of a weekday.
    fn special(&self, item: &str) -> Option<String> {
        let upper = item.to_ascii_uppercase();
        if self.is_weekday() {
            let (day, nth) = upper.split_once('#').or_else(|| upper.strip_suffix('L').map(|day| (day, "L")))?;
            let nth = if nth == "L" || matches!(nth.parse(), Ok(1..=5_u32)) { nth } else { return None };
            return Some(format!("{}#{nth}", self.value(day)? % 7));
        }
        if self.name != DAY.name {
            return None;
        }
        match upper.as_str() {
            "L" | "LW" => Some(upper),
            nearest => self.value(nearest.strip_suffix('W')?).map(|day| format!("{day}W")),
        }
    }

    fn numbers(&self, item: &str) -> Option<Vec<u32>> {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, number(step).filter(|step| *step > 0)?),
            None => (item, 1),
        };
        let last = self.least + self.period() - 1;
        let (from, to) = match range.split_once('-') {
            Some((from, to)) => (self.value(from)?, self.value(to)?),
            None if range == "*" || (range == "?" && item == "?") => (self.least, last),
            None if item.contains('/') => (self.value(range)?, last),
            None => (self.value(range)?, self.value(range)?),
        };
        // Beyond the end it goes on from the beginning.
        let end = if from <= to { to } else { to + self.period() };
        let wrap = |value: u32| (value - self.least) % self.period() + self.least;
        Some((from..=end).step_by(usize::try_from(step).ok()?).map(wrap).collect())
    }

    /// A number or a name.
    fn value(&self, text: &str) -> Option<u32> {
        let named = self.names.iter().zip(self.least..).find(|(name, _)| text.eq_ignore_ascii_case(name));
        let value = named.map(|(_, value)| value).or_else(|| number(text))?;
        (self.least..=self.most).contains(&value).then_some(value)
    }
}

/// A decimal number, digits only.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
