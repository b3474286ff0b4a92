//! The figures of one run, as JSON for scripts and as a table for people.
//!
//! Filled by `main`, printed once. The names in the JSON are fixed: scripts outside read them. Absent figures are null,
//! never zero. Megabytes are 10⁶ bytes.

use std::fmt::Write as _;

use serde::Serialize;

use crate::floor::Floor;
use crate::tally::{Counts, Percentiles};
use crate::usage::{Cpu, Reading, Role};

/// How the run was made.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) surface: &'static str,
    pub(crate) chats: u32,
    pub(crate) seconds: f64,
    pub(crate) warm_up_seconds: f64,
    /// Pacing of the account; only Telegram's surface has one.
    pub(crate) account_rate: Option<&'static str>,
    pub(crate) model: &'static str,
    /// Where traces and metrics went.
    pub(crate) otlp: Option<String>,
    pub(crate) cores: usize,
}

/// What was seen, raw.
pub(crate) struct Seen {
    /// Counters at the start and at the end of the measured time, and when everything had ended.
    pub(crate) counts: [Counts; 3],
    /// The measured time as it came out, s.
    pub(crate) elapsed: f64,
    pub(crate) percentiles: Option<Percentiles>,
    /// CPU in the measured time, ms.
    pub(crate) cpu: Cpu,
    pub(crate) driver_cpu: f64,
    pub(crate) model_cpu: f64,
    /// The processes after the load.
    pub(crate) after: Reading,
    pub(crate) floor: Option<Floor>,
    pub(crate) first_fault: Option<String>,
}

/// The figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    messages_per_s: f64,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    /// Control plane, workers and Postgres together.
    cpu_ms_per_message: Option<f64>,
    control_plane_cpu_ms_per_message: Option<f64>,
    worker_cpu_ms_per_message: Option<f64>,
    postgres_cpu_ms_per_message: Option<f64>,
    /// Not in `cpu_ms_per_message`: this program with its Bot API server, and the model server.
    driver_cpu_ms_per_message: Option<f64>,
    model_cpu_ms_per_message: Option<f64>,
    control_plane_rss_mb: Option<f64>,
    /// The largest worker.
    worker_rss_mb: Option<f64>,
    workers: usize,
    postgres_floor_per_s: Option<f64>,
    /// `messages_per_s` / `postgres_floor_per_s`.
    floor_ratio: Option<f64>,
    /// Answered in the measured time.
    messages: u64,
    /// These six over the whole run, the warm-up included.
    answered: u64,
    lost: u64,
    late: u64,
    duplicates: u64,
    out_of_order: u64,
    unexpected: u64,
    first_fault: Option<String>,
    settings: Settings,
    postgres: Option<Floor>,
}

impl Report {
    /// The figures of what was seen.
    pub(crate) fn new(settings: Settings, seen: Seen) -> Self {
        let [start, end, all] = seen.counts;
        let messages = end.answered.saturating_sub(start.answered);
        let count = f64::from(u32::try_from(messages).unwrap_or(u32::MAX));
        let per_message = |ms: f64| (messages > 0).then(|| rounded(ms / count));
        let messages_per_s = rounded(count / seen.elapsed);
        let latency = |pick: fn(Percentiles) -> f64| seen.percentiles.map(pick).map(rounded);
        let floor = seen.floor.as_ref().map(|floor| floor.per_s);
        Self {
            messages_per_s,
            p50_ms: latency(|all| all.p50),
            p95_ms: latency(|all| all.p95),
            p99_ms: latency(|all| all.p99),
            max_ms: latency(|all| all.max),
            cpu_ms_per_message: per_message(seen.cpu.total()),
            control_plane_cpu_ms_per_message: per_message(seen.cpu.control_plane),
            worker_cpu_ms_per_message: per_message(seen.cpu.workers),
            postgres_cpu_ms_per_message: per_message(seen.cpu.postgres),
            driver_cpu_ms_per_message: per_message(seen.driver_cpu),
            model_cpu_ms_per_message: per_message(seen.model_cpu),
            control_plane_rss_mb: seen.after.largest_mb(Role::ControlPlane),
            worker_rss_mb: seen.after.largest_mb(Role::Worker),
            workers: seen.after.count(Role::Worker),
            postgres_floor_per_s: floor.map(rounded),
            floor_ratio: floor.filter(|floor| *floor > 0.0).map(|floor| rounded(messages_per_s / floor)),
            messages,
            answered: all.answered,
            lost: all.lost,
            late: all.late,
            duplicates: all.duplicates,
            out_of_order: all.out_of_order,
            unexpected: all.unexpected,
            first_fault: seen.first_fault,
            settings,
            postgres: seen.floor,
        }
    }

    /// Whether a single message was answered in the measured time.
    pub(crate) fn has_answers(&self) -> bool {
        self.messages > 0
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
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let settings = &self.settings;
        let rate =
            settings.account_rate.map_or_else(String::new, |rate| format!(", account rate and inbound pace: {rate}"));
        let otlp = settings.otlp.as_deref().map_or_else(String::new, |otlp| format!(", OTLP to {otlp}"));
        let floor = self.postgres.as_ref().map_or_else(String::new, |floor| {
            let of = &floor.settings;
            format!(
                "postgres           {}, fsync {}, synchronous_commit {}, shared_buffers {}; floor: {} connections, {} s\n",
                of.server_version, of.fsync, of.synchronous_commit, of.shared_buffers, floor.connections, floor.seconds
            )
        });
        let mut out = format!(
            "{} chats through {} for {} s after {} s, model {}{rate}{otlp}, {} cores\n",
            settings.chats,
            settings.surface,
            settings.seconds,
            settings.warm_up_seconds,
            settings.model,
            settings.cores
        );
        let rows = [
            ("messages/s", self.messages_per_s.to_string()),
            (
                "latency ms",
                format!(
                    "p50 {}  p95 {}  p99 {}  max {}",
                    number(self.p50_ms),
                    number(self.p95_ms),
                    number(self.p99_ms),
                    number(self.max_ms)
                ),
            ),
            (
                "CPU ms/message",
                format!(
                    "{}  (control plane {}, workers {}, postgres {}; outside: driver {}, model {})",
                    number(self.cpu_ms_per_message),
                    number(self.control_plane_cpu_ms_per_message),
                    number(self.worker_cpu_ms_per_message),
                    number(self.postgres_cpu_ms_per_message),
                    number(self.driver_cpu_ms_per_message),
                    number(self.model_cpu_ms_per_message)
                ),
            ),
            (
                "RSS MB after it",
                format!(
                    "control plane {}, largest of {} workers {}",
                    number(self.control_plane_rss_mb),
                    self.workers,
                    number(self.worker_rss_mb)
                ),
            ),
            ("postgres floor/s", format!("{}, ratio {}", number(self.postgres_floor_per_s), number(self.floor_ratio))),
            (
                "faults",
                format!(
                    "lost {} (late {}), duplicates {}, out of order {}, unexpected {}",
                    self.lost, self.late, self.duplicates, self.out_of_order, self.unexpected
                ),
            ),
        ];
        for (name, value) in rows {
            let _ = writeln!(out, "{name:<18} {value}");
        }
        out.push_str(&floor);
        if let Some(fault) = &self.first_fault {
            let _ = writeln!(out, "first fault        {fault}");
        }
        out
    }
}

/// Three decimals: more would pretend.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floor;
    use crate::usage::Process;

    fn report(answered: u64) -> Report {
        let counts = |answered| Counts { answered, ..Counts::default() };
        let process = |role, resident| Process { pid: 1, started: 1, role, ticks: 0, resident };
        let settings = Settings {
            surface: "telegram",
            chats: 32,
            seconds: 10.0,
            warm_up_seconds: 2.0,
            account_rate: Some("off"),
            model: "mock",
            otlp: None,
            cores: 2,
        };
        let floor = Floor { per_s: 2000.0, connections: 32, seconds: 5.0, settings: floor::Settings::default() };
        let seen = Seen {
            counts: [counts(100), counts(100 + answered), Counts { lost: 1, ..counts(5200) }],
            elapsed: 10.0,
            percentiles: Some(Percentiles { p50: 1.0, p95: 2.0, p99: 3.0, max: 4.123_456 }),
            cpu: Cpu { control_plane: 2000.0, workers: 1000.0, postgres: 2000.0 },
            driver_cpu: 500.0,
            model_cpu: 250.0,
            after: Reading {
                processes: vec![
                    process(Role::ControlPlane, 40_000_000),
                    process(Role::Worker, 9_000_000),
                    process(Role::Worker, 12_500_000),
                ],
            },
            floor: Some(floor),
            first_fault: None,
        };
        Report::new(settings, seen)
    }

    #[test]
    fn the_figures_follow_from_what_was_seen_under_their_fixed_names() {
        let json: serde_json::Value = serde_json::from_str(&report(5000).json().unwrap()).unwrap();
        let expected = [
            ("messages_per_s", 500.0),
            ("p50_ms", 1.0),
            ("p95_ms", 2.0),
            ("p99_ms", 3.0),
            ("max_ms", 4.123),
            ("cpu_ms_per_message", 1.0),
            ("control_plane_rss_mb", 40.0),
            ("worker_rss_mb", 12.5),
            ("postgres_floor_per_s", 2000.0),
            ("floor_ratio", 0.25),
            ("driver_cpu_ms_per_message", 0.1),
        ];
        for (name, value) in expected {
            assert_eq!(json[name].as_f64(), Some(value), "{name}");
        }
        for (name, value) in [("lost", 1), ("duplicates", 0), ("out_of_order", 0), ("messages", 5000)] {
            assert_eq!(json[name].as_u64(), Some(value), "{name}");
        }
        assert_eq!(json["settings"]["account_rate"], "off");
    }

    #[test]
    fn without_an_answer_figures_per_message_are_absent() {
        let report = report(0);
        assert!(!report.has_answers());
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert!(json["cpu_ms_per_message"].is_null());
        assert_eq!(json["messages_per_s"].as_f64(), Some(0.0));
    }

    #[test]
    fn the_table_says_everything_a_person_needs_to_compare() {
        let table = report(5000).table();
        for part in [
            "32 chats through telegram",
            "account rate and inbound pace: off",
            "messages/s         500",
            "p99 3",
            "ratio 0.25",
            "lost 1",
        ] {
            assert!(table.contains(part), "{part:?} is not in\n{table}");
        }
    }
}
