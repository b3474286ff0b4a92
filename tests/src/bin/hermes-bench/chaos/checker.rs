//! The verdict on one run, from what the stand-ins saw.
//!
//! Called once, after a quiet drain. Always true: it decides from the [`Record`] alone, every message that counts against a
//! promise is named, and what cannot be told apart counts against us. How it decides:
//!
//! - A message is answered by the first text in its chat that has its tag. A text without a tag (a turn that failed, a
//!   turn that was given up) tells the chat how the oldest message ended that has no answer and stands before the next
//!   answered one; that message is `told`, not lost.
//! - Each further text with the same tag is a copy: marked, or not.
//! - In a chat the first answers come in the order of the numbers.
//! - An effect that may happen once has one line per argument and per call id; one with a key has one key per argument.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;

use super::record::{Record, Said, Shown, tagged};

/// How the Telegram adapter begins a text that may be in the chat already.
pub(crate) const MARK: &str = "(may be a duplicate)";
/// So many offenders of one kind are listed.
const LISTED: usize = 20;
/// A turn that only went on elsewhere asks the model again within this time after a kill, seconds; what takes longer waited for
/// the end of a lease.
const GOES_ON_WITHIN: f64 = 3.0;
/// A turn that was being worked on had asked the model within this time, seconds: it thinks for less, and so do the tools. What had
/// not was held up by something else, and how long that lasts is not a worker's end to answer for.
const WORKED_WITHIN: f64 = 3.0;

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// Messages the platform takes as arrived.
    pub(crate) accepted: usize,
    /// Accepted, and its chat never heard of it.
    pub(crate) lost: usize,
    /// Written, and never accepted although all was well again.
    pub(crate) never_accepted: usize,
    /// Accepted and answered by a sentence about a failure.
    pub(crate) told: usize,
    /// Copies that do not say so.
    pub(crate) duplicates_unmarked: usize,
    /// Copies that do.
    pub(crate) duplicates_marked: usize,
    /// Answers that came after the answer to a later message of their chat.
    pub(crate) out_of_order: usize,
    /// Effects that happened once too often.
    pub(crate) effects_twice: usize,
    /// Effects in all.
    pub(crate) effects: usize,
    /// Calls whose result the model was told is unknown.
    pub(crate) unknown_steps: usize,
    /// From the end of a worker to the moment when somebody began its turns again, seconds.
    pub(crate) recovery_p99_s: Option<f64>,
    /// How many such turns there were.
    pub(crate) recoveries: usize,
    /// Who broke a promise, one line each.
    pub(crate) offenders: Vec<String>,
}

impl Verdict {
    /// Whether every promise was kept.
    pub(crate) fn is_kept(&self) -> bool {
        let broken = [self.lost, self.never_accepted, self.duplicates_unmarked, self.out_of_order, self.effects_twice];
        broken.iter().all(|count| *count == 0)
    }

    fn offends(&mut self, kind: &str, about: &str) {
        let known = self.offenders.iter().filter(|line| line.starts_with(kind)).count();
        if known < LISTED {
            self.offenders.push(format!("{kind}: {about}"));
        }
    }
}

/// The verdict on `record`.
pub(crate) fn check(record: &Record) -> Verdict {
    let mut verdict = Verdict { unknown_steps: record.unknown.len(), ..Verdict::default() };
    let accepted: BTreeMap<u64, f64> = record.accepted.iter().rev().map(|one| (one.number, one.at)).collect();
    verdict.accepted = accepted.len();
    let mut chats: BTreeMap<i64, (Vec<&Said>, Vec<&Shown>)> = BTreeMap::new();
    for said in &record.said {
        if !accepted.contains_key(&said.number) {
            verdict.never_accepted += 1;
            verdict.offends(
                "never accepted",
                &format!("message {} of chat {}, said at {:.3} s", said.number, said.chat, said.at),
            );
        }
        chats.entry(said.chat).or_default().0.push(said);
    }
    for shown in &record.shown {
        chats.entry(shown.chat).or_default().1.push(shown);
    }
    for (chat, (said, shown)) in &chats {
        check_chat(*chat, said, shown, &accepted, &mut verdict);
    }
    check_effects(&record.effects, &mut verdict);
    check_recovery(record, &mut verdict);
    verdict
}

/// The first place of each message's answer, and the places of texts without a tag.
fn check_chat(chat: i64, said: &[&Said], shown: &[&Shown], accepted: &BTreeMap<u64, f64>, verdict: &mut Verdict) {
    let known: HashSet<u64> = said.iter().map(|one| one.number).collect();
    let mut first = BTreeMap::new();
    let mut notices = Vec::new();
    let mut newest = 0;
    // The text without a tag that came last, if no answer came since.
    let mut before = None;
    for (place, one) in shown.iter().enumerate() {
        let is_marked = one.text.starts_with(MARK);
        let Some(number) = tagged(&one.text).filter(|number| known.contains(number)) else {
            let body = one.text.strip_prefix(MARK).unwrap_or(&one.text).trim_start();
            if is_marked && before == Some(body) {
                verdict.duplicates_marked += 1;
            } else if !body.is_empty() {
                // The mark alone announces the part that comes next.
                notices.push(place);
            }
            before = Some(body);
            continue;
        };
        before = None;
        let about = || format!("message {number} of chat {chat}, shown at {:.3} s: {:?}", one.at, shorten(&one.text));
        if first.contains_key(&number) {
            if is_marked {
                verdict.duplicates_marked += 1;
            } else {
                verdict.duplicates_unmarked += 1;
                verdict.offends("unmarked duplicate", &about());
            }
            continue;
        }
        first.insert(number, place);
        if number < newest {
            verdict.out_of_order += 1;
            verdict.offends("out of order", &format!("{} after {newest}", about()));
        }
        newest = newest.max(number);
    }
    for one in said.iter().filter(|one| accepted.contains_key(&one.number) && !first.contains_key(&one.number)) {
        let after = first.range(..one.number).map(|(_, place)| *place).max();
        let before = first.range(one.number..).map(|(_, place)| *place).min().unwrap_or(shown.len());
        let told = notices.iter().position(|place| after.is_none_or(|after| *place > after) && *place < before);
        if let Some(told) = told {
            notices.remove(told);
            verdict.told += 1;
            continue;
        }
        verdict.lost += 1;
        let at = accepted.get(&one.number).copied().unwrap_or_default();
        verdict.offends(
            "lost",
            &format!("message {} of chat {chat}, said at {:.3} s, accepted at {at:.3} s", one.number, one.at),
        );
    }
}

fn check_effects(lines: &[String], verdict: &mut Verdict) {
    let mut calls = HashSet::new();
    let mut once = HashSet::new();
    let mut keys: HashMap<&str, &str> = HashMap::new();
    for line in lines {
        let mut words = line.splitn(4, ' ');
        let (Some(class), Some(call), Some(key), Some(argument)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            verdict.effects_twice += 1;
            verdict.offends("effect that cannot be read", line);
            continue;
        };
        verdict.effects += 1;
        let twice = match class {
            "once" => {
                let (new_call, new_argument) = (calls.insert(call), once.insert(argument));
                !new_call || !new_argument
            }
            "keyed" => *keys.entry(argument).or_insert(key) != key,
            _ => false,
        };
        if twice {
            verdict.effects_twice += 1;
            verdict.offends("effect twice", line);
        }
    }
}

/// For each kill, the messages of that agent on which was being worked and whose next request repeats one, or comes so late that
/// nobody worked on them in between.
fn check_recovery(record: &Record, verdict: &mut Verdict) {
    let agents: HashMap<u64, usize> = record.said.iter().map(|one| (one.number, one.agent)).collect();
    let mut answered: HashMap<u64, f64> = HashMap::new();
    for (number, at) in record.shown.iter().filter_map(|one| Some((tagged(&one.text)?, one.at))) {
        answered.entry(number).or_insert(at);
    }
    let mut asked: BTreeMap<u64, Vec<(f64, usize, bool)>> = BTreeMap::new();
    for one in &record.asked {
        asked.entry(one.number).or_default().push((one.at, one.step, one.failed));
    }
    let mut times = Vec::new();
    for kill in &record.killed {
        for (number, requests) in asked.iter().filter(|(number, _)| agents.get(*number) == Some(&kill.agent)) {
            if answered.get(number).is_some_and(|at| *at <= kill.at) {
                continue;
            }
            let next = requests.partition_point(|(at, ..)| *at <= kill.at);
            let Some((last, step, failed)) = next.checked_sub(1).and_then(|last| requests.get(last)) else { continue };
            let Some((at, next_step, _)) = requests.get(next) else { continue };
            let took = at - kill.at;
            if !failed && kill.at - last < WORKED_WITHIN && (next_step <= step || took > GOES_ON_WITHIN) {
                times.push(took);
            }
        }
    }
    times.sort_by(f64::total_cmp);
    verdict.recoveries = times.len();
    let at = (times.len() * 99).div_ceil(100).saturating_sub(1);
    verdict.recovery_p99_s = times.get(at).map(|time| (time * 1e3).round() / 1e3);
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Messages of `record` that were accepted and have neither an answer nor a sentence about a failure yet; what a drain waits for.
pub(crate) fn open(record: &Record) -> usize {
    let verdict = check(record);
    verdict.lost + verdict.never_accepted
}

/// The numbers that were answered by `shown`, each once.
pub(crate) fn answered(shown: &[Shown]) -> BTreeSet<u64> {
    shown.iter().filter_map(|one| tagged(&one.text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::record::{Accepted, Asked, Killed};

    /// Messages 1, 2, 3 of chat 7, all accepted, and these texts in that chat.
    fn chat(texts: &[&str]) -> Record {
        let said = |number| Said { number, chat: 7, agent: 0, at: 1.0 };
        let shown = |(place, text): (usize, &&str)| Shown {
            chat: 7,
            text: (*text).to_owned(),
            at: 2.0 + f64::from(u32::try_from(place).unwrap()),
        };
        Record {
            said: vec![said(1), said(2), said(3)],
            accepted: (1..=3).map(|number| Accepted { number, at: 1.5 }).collect(),
            shown: texts.iter().enumerate().map(shown).collect(),
            ..Record::default()
        }
    }

    const GOOD: [&str; 3] = ["echo <1>", "echo <2>", "echo <3>"];

    #[test]
    fn a_good_run_is_kept() {
        let verdict = check(&chat(&GOOD));
        assert_eq!(verdict, Verdict { accepted: 3, ..Verdict::default() });
        assert!(verdict.is_kept());
        assert_eq!(answered(&chat(&GOOD).shown), BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn an_accepted_message_without_an_answer_is_lost() {
        let record = chat(&["echo <1>", "echo <3>"]);
        let verdict = check(&record);
        assert_eq!((verdict.lost, verdict.told, verdict.is_kept()), (1, 0, false));
        assert!(verdict.offenders[0].starts_with("lost: message 2 of chat 7"), "{:?}", verdict.offenders);
        assert_eq!(open(&record), 1);
        // An answer in another chat is none.
        let mut elsewhere = chat(&GOOD);
        elsewhere.shown[1].chat = 8;
        assert_eq!(check(&elsewhere).lost, 1);
    }

    #[test]
    fn a_message_nobody_took_is_not_lost_but_not_kept_either() {
        let mut record = chat(&["echo <1>", "echo <2>"]);
        record.accepted.pop();
        let verdict = check(&record);
        assert_eq!((verdict.accepted, verdict.lost, verdict.never_accepted, verdict.is_kept()), (2, 0, 1, false));
    }

    #[test]
    fn a_sentence_about_a_failure_stands_for_one_message_at_its_place() {
        let verdict = check(&chat(&["echo <1>", "The model failed.", "echo <3>"]));
        assert_eq!((verdict.lost, verdict.told, verdict.is_kept()), (0, 1, true));
        let verdict = check(&chat(&["The model failed.", "echo <1>", "echo <3>"]));
        assert_eq!((verdict.lost, verdict.told), (1, 0), "it was about an earlier message");
        let verdict = check(&chat(&["The model failed.", "echo <3>"]));
        assert_eq!((verdict.lost, verdict.told), (1, 1), "one sentence, one message");
        let verdict = check(&chat(&["echo <1>", "(may be a duplicate)", "echo <3>"]));
        assert_eq!((verdict.lost, verdict.told), (1, 0), "the mark alone tells nothing");
        let marked = "(may be a duplicate)\nThe model failed.";
        let verdict = check(&chat(&["echo <1>", marked, "echo <3>"]));
        assert_eq!((verdict.lost, verdict.told), (0, 1), "nobody knew whether it had arrived");
        let verdict = check(&chat(&["The model failed.", marked, "echo <3>"]));
        assert_eq!((verdict.lost, verdict.told, verdict.duplicates_marked), (1, 1, 1), "a copy tells nothing new");
    }

    #[test]
    fn a_copy_is_unmarked_or_marked() {
        let verdict = check(&chat(&["echo <1>", "echo <2>", "echo <2>", "echo <3>"]));
        assert_eq!((verdict.duplicates_unmarked, verdict.duplicates_marked, verdict.is_kept()), (1, 0, false));
        assert!(verdict.offenders[0].starts_with("unmarked duplicate: message 2"), "{:?}", verdict.offenders);
        let marked = "(may be a duplicate)\necho <2>";
        let verdict = check(&chat(&["echo <1>", "echo <2>", marked, "echo <3>"]));
        assert_eq!((verdict.duplicates_unmarked, verdict.duplicates_marked, verdict.is_kept()), (0, 1, true));
        let verdict = check(&chat(&["echo <1>", marked, "echo <3>"]));
        assert_eq!(verdict, Verdict { accepted: 3, ..Verdict::default() }, "the only one is no copy");
        let verdict = check(&chat(&["echo <1>", marked, "echo <2>", "echo <3>"]));
        assert_eq!(verdict.duplicates_unmarked, 1, "it is the later one that must say so");
    }

    #[test]
    fn an_answer_after_a_later_one_is_out_of_order() {
        let verdict = check(&chat(&["echo <1>", "echo <3>", "echo <2>"]));
        assert_eq!((verdict.out_of_order, verdict.lost, verdict.is_kept()), (1, 0, false));
        assert!(verdict.offenders[0].contains("after 3"), "{:?}", verdict.offenders);
    }

    #[test]
    fn an_effect_that_may_happen_once_happens_once() {
        let with = |effects: &[&str]| {
            let effects = effects.iter().map(|line| (*line).to_owned()).collect();
            check(&Record { effects, ..chat(&GOOD) })
        };
        let verdict = with(&[
            "once c1 - 1.0",
            "once c2 - 1.1",
            "keyed c3 k3 1.2",
            "keyed c3 k3 1.2",
            "pure c4 - 1.3",
            "pure c4 - 1.3",
        ]);
        assert_eq!((verdict.effects, verdict.effects_twice, verdict.is_kept()), (6, 0, true));
        for twice in [
            ["once c1 - 1.0", "once c1 - 1.0"],
            ["once c1 - 1.0", "once c9 - 1.0"],
            ["keyed c3 k3 1.2", "keyed c3 k4 1.2"],
        ] {
            let verdict = with(&twice);
            assert_eq!((verdict.effects_twice, verdict.is_kept()), (1, false), "{twice:?}");
        }
        assert_eq!(with(&["garbage"]).effects_twice, 1);
    }

    #[test]
    fn unknown_results_are_counted_and_break_nothing() {
        let mut record = chat(&GOOD);
        record.unknown.insert((1, "c1".to_owned()));
        let verdict = check(&record);
        assert_eq!((verdict.unknown_steps, verdict.is_kept()), (1, true));
    }

    #[test]
    fn recovery_is_the_time_until_the_model_is_asked_again() {
        let mut record = chat(&["echo <1>", "echo <2>", "echo <3>"]);
        let asked = |number, step, at, failed| Asked { number, step, failed, at };
        record.killed.push(Killed { agent: 0, at: 1.8 });
        record.asked = vec![
            asked(1, 0, 1.6, false),
            asked(2, 0, 1.6, true),
            asked(3, 0, 1.7, false),
            asked(2, 0, 1.9, false),
            asked(3, 1, 2.0, false),
            asked(1, 0, 17.0, false),
        ];
        let verdict = check(&record);
        // Of 2 the model had failed anyway, 3 went on with its next step elsewhere.
        assert_eq!((verdict.recoveries, verdict.recovery_p99_s), (1, Some(15.2)));
        // Nobody was working on it when the worker ended.
        record.asked[0].at = -2.0;
        assert_eq!(check(&record).recovery_p99_s, None, "it was held up before");
        record.asked[0].at = 1.6;
        record.killed[0].agent = 1;
        assert_eq!(check(&record).recovery_p99_s, None, "somebody else's worker");
    }
}
