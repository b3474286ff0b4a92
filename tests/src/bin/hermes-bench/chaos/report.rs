//! What a run says in the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::checker::Verdict;

/// The figures of one run, under fixed names.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Which kind of run.
    pub(crate) run: &'static str,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) chats: i64,
    pub(crate) replicas: usize,
    pub(crate) workers: usize,
    /// Whether the programs had the drills' tools.
    pub(crate) tools: bool,
    pub(crate) messages_per_s: f64,
    /// From the end of the faults until everything was answered, seconds.
    pub(crate) drain_s: f64,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    /// How often each fault struck.
    pub(crate) faults: BTreeMap<String, u64>,
    /// Ends of processes that nobody asked for, panics, and answers that should not be given.
    pub(crate) surprises: Vec<String>,
    /// What this kind of run looks at besides, and whether each held.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) conditions: Vec<Condition>,
}

/// Something that must hold.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Condition {
    pub(crate) name: String,
    pub(crate) held: bool,
    /// The figure behind it.
    pub(crate) seen: String,
}

impl Condition {
    pub(crate) fn new(name: &str, held: bool, seen: impl ToString) -> Self {
        Self { name: name.to_owned(), held, seen: seen.to_string() }
    }
}

impl Report {
    /// Whether everything that was promised held.
    pub(crate) fn is_kept(&self) -> bool {
        self.verdict.is_kept() && self.conditions.iter().all(|condition| condition.held)
    }

    /// One JSON object.
    ///
    /// # Errors
    /// Never with these types.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// A line per figure.
    pub(crate) fn table(&self) -> String {
        let verdict = &self.verdict;
        let mut out = format!(
            "{}: seed {}, {} chats for {} s, {} replicas, {} workers{}\n",
            self.run,
            self.seed,
            self.chats,
            self.seconds,
            self.replicas,
            self.workers,
            if self.tools { ", with tools" } else { "" }
        );
        let recovery = verdict.recovery_p99_s.map_or_else(|| "-".to_owned(), |time| format!("{time} s"));
        let faults: Vec<String> = self.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let rows = [
            (
                "accepted",
                format!("{} ({}/s), never accepted {}", verdict.accepted, self.messages_per_s, verdict.never_accepted),
            ),
            ("lost", format!("{} (told of a failure: {})", verdict.lost, verdict.told)),
            ("duplicates", format!("{} unmarked, {} marked", verdict.duplicates_unmarked, verdict.duplicates_marked)),
            ("out of order", verdict.out_of_order.to_string()),
            (
                "effects",
                format!(
                    "{}, twice {}, unknown steps {}",
                    verdict.effects, verdict.effects_twice, verdict.unknown_steps
                ),
            ),
            ("recovery p99", format!("{recovery} of {} turns", verdict.recoveries)),
            ("drain", format!("{} s", self.drain_s)),
            ("faults", faults.join(", ")),
        ];
        for (name, value) in rows {
            let _ = writeln!(out, "{name:<14} {value}");
        }
        for condition in &self.conditions {
            let word = if condition.held { "held" } else { "BROKEN" };
            let _ = writeln!(out, "{word:<14} {}: {}", condition.name, condition.seen);
        }
        for (name, lines) in [("broken", &verdict.offenders), ("surprise", &self.surprises)] {
            for line in lines {
                let _ = writeln!(out, "{name:<14} {line}");
            }
        }
        out
    }
}

/// Three decimals: more would pretend.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
