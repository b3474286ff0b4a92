//! Drills: what the drill binaries do at the named points of the flow, and which mechanism they do without.
//!
//! `hermes-drill-control-plane` and `hermes-drill-worker` are the programs as shipped with their seams opened by two
//! variables of the environment:
//!
//! - `HERMES_DRILL`: `point[@n]=action`, several separated by `;`. The n-th time (default 1, `*` for every time) that this
//!   process reaches the point it acts: `kill` (SIGKILL itself), `pause` (SIGSTOP itself), `fail` (answer as if the other side
//!   were gone), `hold:FILE` (wait until FILE exists). `kill:FILE`, `pause:FILE` and `fail:FILE` act once in all processes: the
//!   one that creates FILE. With `HERMES_DRILL_LOG=FILE` every point that is reached is appended there as `pid point n`, so that
//!   a test waits for a point instead of a time.
//! - `HERMES_DRILL_WITHOUT`: one mechanism to do without, see [`Mechanism`]. A drill that stays green without its mechanism
//!   proves nothing.
//!
//! Used by the drill binaries and the tests that start them. It knows the texts of the functions it mutates and fails when
//! one of them is not there any more.

pub mod tools;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hermes_control_plane::app::Seams;
use hermes_control_plane::failpoint::{Failpoints, Verdict};
use hermes_control_plane::store::Functions;
use hermes_worker::seams::{self, Without};
use nix::sys::signal::{Signal, raise};

/// The variable that names points and actions.
pub const POINTS: &str = "HERMES_DRILL";
/// The variable that names the log of reached points.
pub const LOG: &str = "HERMES_DRILL_LOG";
/// The variable that names the mechanism to do without.
pub const WITHOUT: &str = "HERMES_DRILL_WITHOUT";
/// The variable that names the file to which test tools append their effects.
pub const EFFECTS: &str = "HERMES_DRILL_EFFECTS";

/// How often a held process looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A mechanism that a promise rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The epoch in the fence of completions and journal rows.
    Epoch,
    /// The dedupe key of accepted messages.
    Dedupe,
    /// The journaled intent before an effect.
    Intent,
    /// The delivery in the transaction that ends its turn.
    Delivery,
    /// One delivery of a lane at a time, in order.
    LaneOrder,
    /// The stored id of the message that shows a running turn.
    Preview,
    /// The mark of a chat that is gone.
    DeadMark,
    /// The worker's own stop before its lease may have been given away.
    SelfFence,
}

impl Mechanism {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Epoch,
        Self::Dedupe,
        Self::Intent,
        Self::Delivery,
        Self::LaneOrder,
        Self::Preview,
        Self::DeadMark,
        Self::SelfFence,
    ];

    /// Its name in the environment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epoch => "epoch",
            Self::Dedupe => "dedupe",
            Self::Intent => "intent",
            Self::Delivery => "delivery",
            Self::LaneOrder => "lane-order",
            Self::Preview => "preview",
            Self::DeadMark => "dead-mark",
            Self::SelfFence => "self-fence",
        }
    }

    /// What is replaced in the text of the functions, and by what; nothing for what a worker does.
    fn edits(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Epoch => &[("s.session_id = i.sid AND s.epoch = i.epoch AND", "s.session_id = i.sid AND")],
            Self::Dedupe => &[(
                "b.dedupe_key IS NOT NULL OR row_number() OVER (PARTITION BY i.key ORDER BY i.ord) > 1 AS dup",
                "false AS dup",
            )],
            Self::Delivery => {
                &[("FROM f WHERE f.pos IS NOT NULL AND f.ln = 1 ORDER BY f.lane", "FROM f WHERE false ORDER BY f.lane")]
            }
            Self::LaneOrder => {
                &[("AND NOT o.head ORDER BY o.pos LIMIT 1", "AND NOT o.head ORDER BY o.pos DESC LIMIT 1")]
            }
            Self::Preview => &[(
                "RETURN QUERY SELECT CASE WHEN p.message_id IS NULL THEN 2 ELSE 1 END, p.message_id;",
                "RETURN QUERY SELECT 0, NULL::text;",
            )],
            Self::DeadMark => &[("IF p_result && '{7,8}' THEN", "IF false THEN")],
            Self::Intent | Self::SelfFence => &[],
        }
    }
}

impl FromStr for Mechanism {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let known = Self::ALL.into_iter().find(|mechanism| mechanism.name() == text);
        known.with_context(|| format!("there is no mechanism {text:?}"))
    }
}

/// What a process of a drill was told by its environment.
#[derive(Debug, Default)]
pub struct Drill {
    /// The points.
    pub points: Points,
    /// What it does without.
    pub without: Option<Mechanism>,
    /// Where test tools note their effects.
    pub effects: Option<PathBuf>,
}

impl Drill {
    /// Reads the variables above.
    ///
    /// # Errors
    /// When one of them cannot be understood.
    #[expect(clippy::disallowed_methods, reason = "the entry point of a drill's process")]
    pub fn from_env() -> anyhow::Result<Self> {
        let read = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let points = Points::new(&read(POINTS).unwrap_or_default(), read(LOG).map(PathBuf::from))?;
        let without = read(WITHOUT).map(|name| name.parse()).transpose()?;
        Ok(Self { points, without, effects: read(EFFECTS).map(PathBuf::from) })
    }

    /// The seams of the control plane.
    ///
    /// # Errors
    /// When the text that a missing mechanism changes is not there.
    pub fn control_plane(&self) -> anyhow::Result<Seams> {
        let mut text = Functions::default().text().to_owned();
        if let Some(mechanism) = self.without {
            for (old, new) in mechanism.edits() {
                ensure!(text.contains(old), "{} replaces a text that is not there: {old}", mechanism.name());
                text = text.replace(old, new);
            }
            if mechanism == Mechanism::Dedupe {
                text.push_str(
                    "ALTER TABLE hermes.inbound DROP CONSTRAINT IF EXISTS inbound_pkey;\n\
                     CREATE INDEX IF NOT EXISTS inbound_key ON hermes.inbound (dedupe_key);\n",
                );
            }
        }
        let points = self.points.clone();
        let failpoints = if points.are_set() {
            Failpoints::new(move |point| {
                let (points, point) = (points.clone(), point.to_owned());
                Box::pin(async move { if points.reach(&point).await { Verdict::GoOn } else { Verdict::Fail } })
            })
        } else {
            Failpoints::default()
        };
        let own = std::env::current_exe().context("find this program's own file")?;
        let worker = own.with_file_name("hermes-drill-worker");
        let variables = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(POINTS.as_bytes()));
        Ok(Seams {
            functions: Functions::from_text(text),
            failpoints,
            worker_binary: worker.is_file().then_some(worker),
            worker_environment: variables.collect(),
        })
    }
}

impl Drill {
    /// The seams of a worker.
    pub fn worker(&self) -> seams::Seams {
        let mut seams = seams::Seams::default();
        if self.points.are_set() {
            let points = self.points.clone();
            seams.failpoints = hermes_worker::failpoint::Failpoints::new(move |point| {
                let (points, point) = (points.clone(), point.to_owned());
                Box::pin(async move {
                    use hermes_worker::failpoint::Verdict;
                    if points.reach(&point).await { Verdict::GoOn } else { Verdict::Fail }
                })
            });
        }
        if let Some(file) = &self.effects {
            seams.toolbox = Some(Arc::new(tools::Notes::new(file.clone())));
        }
        seams.without = Without {
            self_fence: self.without == Some(Mechanism::SelfFence),
            intent_row: self.without == Some(Mechanism::Intent),
        };
        seams
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Pause,
    Fail,
    Hold(PathBuf),
    /// The first process that gets to create the file.
    Once(PathBuf, Box<Action>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    point: String,
    /// `None`: every time.
    nth: Option<u64>,
    action: Action,
}

/// The points of one process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Points {
    rules: Arc<[Rule]>,
    log: Option<PathBuf>,
    reached: Arc<Mutex<HashMap<String, u64>>>,
}

impl Points {
    /// Reads rules as [`POINTS`] has them.
    ///
    /// # Errors
    /// When one cannot be understood.
    pub fn new(rules: &str, log: Option<PathBuf>) -> anyhow::Result<Self> {
        let rules: anyhow::Result<Vec<Rule>> =
            rules.split(';').map(str::trim).filter(|rule| !rule.is_empty()).map(rule).collect();
        Ok(Self { rules: rules?.into(), log, reached: Arc::default() })
    }

    /// Whether reaching a point does anything.
    pub fn are_set(&self) -> bool {
        !self.rules.is_empty() || self.log.is_some()
    }

    /// Acts; false: the flow is to fail here.
    pub async fn reach(&self, point: &str) -> bool {
        let count = {
            let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
            let count = reached.entry(point.to_owned()).or_default();
            *count += 1;
            *count
        };
        if let Some(log) = &self.log {
            // One write, so that lines of several processes stay whole.
            let line = format!("{} {point} {count}\n", std::process::id());
            let _ =
                File::options().create(true).append(true).open(log).and_then(|mut log| log.write_all(line.as_bytes()));
        }
        let mut goes_on = true;
        for rule in self.rules.iter().filter(|rule| rule.point == point && rule.nth.is_none_or(|nth| nth == count)) {
            let action = match &rule.action {
                Action::Once(file, _) if File::create_new(file).is_err() => continue,
                Action::Once(_, action) => action.as_ref(),
                action => action,
            };
            match action {
                Action::Once(..) => {}
                Action::Kill => drop(raise(Signal::SIGKILL)),
                Action::Pause => drop(raise(Signal::SIGSTOP)),
                Action::Fail => goes_on = false,
                Action::Hold(file) => {
                    while !file.try_exists().unwrap_or(false) {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                }
            }
        }
        goes_on
    }
}

fn rule(text: &str) -> anyhow::Result<Rule> {
    let (place, action) = text.split_once('=').with_context(|| format!("{text:?} is not point=action"))?;
    let (point, nth) = match place.split_once('@') {
        None => (place, Some(1)),
        Some((point, "*")) => (point, None),
        Some((point, nth)) => (point, Some(nth.parse().with_context(|| format!("{nth:?} is not a count"))?)),
    };
    let (name, file) = action.split_once(':').map_or((action, None), |(name, file)| (name, Some(PathBuf::from(file))));
    let act = match name {
        "kill" => Some(Action::Kill),
        "pause" => Some(Action::Pause),
        "fail" => Some(Action::Fail),
        _ => None,
    };
    let action = match (act, file) {
        (Some(act), None) => act,
        (Some(act), Some(file)) => Action::Once(file, Box::new(act)),
        (None, Some(file)) if name == "hold" => Action::Hold(file),
        _ => bail!("{action:?} is not kill, pause, fail or hold:FILE"),
    };
    Ok(Rule { point: point.to_owned(), nth, action })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_or_refused() {
        let points = Points::new("a.before=kill; b@3=hold:/x/y ;c@*=fail", None).unwrap();
        let rule = |point: &str, nth, action| Rule { point: point.to_owned(), nth, action };
        let want = [
            rule("a.before", Some(1), Action::Kill),
            rule("b", Some(3), Action::Hold("/x/y".into())),
            rule("c", None, Action::Fail),
        ];
        assert_eq!(*points.rules, want);
        for wrong in ["a", "a=explode", "a@x=kill", "a=hold", "a=explode:/x"] {
            assert!(Points::new(wrong, None).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_point_acts_the_nth_time() {
        let points = Points::new("a@2=fail", None).unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(points.reach("a").await);
        }
        assert_eq!((seen, points.reach("b").await), (vec![true, false, true], true));
    }

    #[tokio::test]
    async fn what_happens_once_happens_in_one_process_only() {
        let dir = tempfile::tempdir().unwrap();
        let rules = format!("a@*=fail:{}", dir.path().join("done").display());
        let (one, other) = (Points::new(&rules, None).unwrap(), Points::new(&rules, None).unwrap());
        assert_eq!([one.reach("a").await, other.reach("a").await, one.reach("a").await], [false, true, true]);
    }

    #[test]
    fn every_mechanism_changes_the_text_it_names() {
        let shipped = Drill::default().control_plane().unwrap().functions;
        assert_eq!(shipped, Functions::default());
        for mechanism in Mechanism::ALL {
            let drill = Drill { without: Some(mechanism), ..Drill::default() };
            let functions = drill.control_plane().unwrap().functions;
            assert_eq!(functions == shipped, mechanism.edits().is_empty(), "{mechanism:?}");
            assert_eq!(mechanism.name().parse::<Mechanism>().unwrap(), mechanism);
        }
    }
}
