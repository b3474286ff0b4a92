//! Which faults there are, and the plan of a run: when each comes, whom it hits and for how long.
//!
//! Made once per run from the seed, before anything starts. Always true: the same seed, time and choice of faults give the
//! same plan; every chosen fault comes before any comes again. It carries out nothing.

use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Fault {
    /// A worker ends without a word (SIGKILL).
    KillWorker,
    /// A worker stands still for half a lease to three (SIGSTOP, SIGCONT).
    StopWorker,
    /// A worker is asked to end (SIGTERM).
    TermWorker,
    /// A replica ends without a word.
    KillReplica,
    /// A replica stands still.
    StopReplica,
    /// A replica is asked to end.
    TermReplica,
    /// Postgres ends some connections of the replicas.
    PgTerminate,
    /// Postgres ends without a word, all its processes (SIGKILL), and is started again.
    KillPg,
    /// A worker's lines are cut.
    WorkerCut,
    /// A worker's lines are slow.
    WorkerSlow,
    /// A worker's lines carry nothing, in one direction or both.
    WorkerSilent,
    /// A worker's line is closed in one direction.
    WorkerHalfClosed,
    /// A replica's lines to Postgres are cut.
    DbCut,
    /// A replica's lines to Postgres are slow.
    DbSlow,
    /// A replica's lines to Postgres carry nothing, in one direction or both.
    DbSilent,
    /// The platform asks to wait (429).
    PlatformFlood,
    /// The platform fails (500).
    PlatformError,
    /// The platform takes a message and its answer is cut.
    PlatformCut,
    /// Something between us and the platform fails (502): nobody knows whether the message is there.
    PlatformProxy,
    /// The platform's answer to a poll is cut, or says 409 or 500.
    PlatformPoll,
    /// The platform brings again what was confirmed.
    PlatformRedelivers,
    /// The model says half and then nothing, until its connection is cut.
    ModelHangs,
    /// The model fails (500).
    ModelError,
    /// The model's answer is cut.
    ModelCut,
    /// A worker ends without a word while replicas, lines and Postgres are well: what the time to recover is taken from.
    KillWorkerAlone,
    /// Replicas and workers are asked to end, one after another, each waited for. Not part of a run without a choice.
    Rolling,
}

impl Fault {
    /// Its name on the command line and in reports.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Those of a run without a choice.
    pub(crate) fn all() -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|fault| *fault != Self::Rolling).collect()
    }
}

impl Fault {
    /// Whether it leaves replicas, workers, lines and Postgres alone.
    fn is_outside(self) -> bool {
        matches!(
            self,
            Self::PlatformFlood
                | Self::PlatformError
                | Self::PlatformCut
                | Self::PlatformProxy
                | Self::PlatformPoll
                | Self::PlatformRedelivers
                | Self::ModelHangs
                | Self::ModelError
                | Self::ModelCut
        )
    }
}

/// One fault of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Planned {
    /// When, from the start of the faults.
    pub(crate) at: Duration,
    /// What.
    pub(crate) fault: Fault,
    /// Decides whom it hits and how.
    pub(crate) dice: u64,
    /// How long it lasts, for those that last.
    pub(crate) lasts: Duration,
}

/// From the end of all else to a worker's end alone: by then every process is back and connected.
const SETTLE: Duration = Duration::from_secs(4);
/// What is left of its recovery after the lease.
const RECOVERY: Duration = Duration::from_secs(3);

/// The plan of a run: `faults` dealt in rounds, each round in another order. At the end of a round comes what must come alone, with
/// only platform and model failing until it is over.
pub(crate) fn plan(seed: u64, length: Duration, lease: Duration, faults: &[Fault]) -> Vec<Planned> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut plan: Vec<Planned> = Vec::new();
    let mut at = Duration::from_millis(1_500);
    let (mut dealt, outside) = (faults.to_vec(), faults.iter().copied().filter(|fault| fault.is_outside()));
    let outside: Vec<Fault> = outside.collect();
    dealt.sort_unstable();
    dealt.dedup();
    let alone = dealt.contains(&Fault::KillWorkerAlone);
    dealt.retain(|fault| *fault != Fault::KillWorkerAlone);
    let mut add = |dice: &mut StdRng, at: Duration, fault: Fault| {
        let lasts = match fault {
            Fault::StopWorker => lease.mul_f64(dice.random_range(0.5..3.0)),
            Fault::StopReplica => lease.mul_f64(dice.random_range(0.2..1.5)),
            Fault::WorkerSilent => lease.mul_f64(dice.random_range(0.2..1.8)),
            Fault::DbSilent => lease.mul_f64(dice.random_range(0.1..1.0)),
            Fault::KillPg => Duration::from_millis(dice.random_range(100..2_500)),
            _ => Duration::from_millis(dice.random_range(500..4_000)),
        };
        let lasts = lasts.min(length.saturating_sub(at));
        plan.push(Planned { at, fault, dice: dice.random(), lasts });
        at + lasts
    };
    let mut round = |dice: &mut StdRng, mut at: Duration| {
        let mut well = at;
        let mut left = dealt.clone();
        left.shuffle(dice);
        for fault in left {
            if at >= length {
                return at;
            }
            let over = add(dice, at, fault);
            if !fault.is_outside() && fault != Fault::StopWorker {
                well = well.max(over);
            }
            at += Duration::from_millis(dice.random_range(250..1_200));
        }
        if alone {
            at = at.max(well + SETTLE);
            let over = at + lease + RECOVERY;
            if at < length && over <= length {
                add(dice, at, Fault::KillWorkerAlone);
            }
            at += Duration::from_millis(dice.random_range(250..1_200));
            while at < over.min(length) {
                if let Some(fault) = outside.choose(dice) {
                    add(dice, at, *fault);
                }
                at += Duration::from_millis(dice.random_range(250..1_200));
            }
        }
        at
    };
    while at < length && !faults.is_empty() {
        at = round(&mut dice, at);
    }
    plan
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    #[test]
    fn a_seed_is_a_plan_and_every_fault_comes_in_each_round() {
        let length = Duration::from_secs(120);
        let first = plan(7, length, LEASE, &Fault::all());
        assert_eq!(first, plan(7, length, LEASE, &Fault::all()));
        assert_ne!(first, plan(8, length, LEASE, &Fault::all()));
        let round: BTreeSet<Fault> = first.iter().take(Fault::all().len()).map(|planned| planned.fault).collect();
        assert_eq!(round.into_iter().collect::<Vec<_>>(), Fault::all());
        // While somebody recovers alone, whatever must help is well. A worker that stands still is no help it needs.
        let alone = first.iter().filter(|planned| planned.fault == Fault::KillWorkerAlone);
        for kill in alone {
            let disturbs = |one: &&Planned| {
                let stands = one.fault == Fault::StopWorker && one.at < kill.at;
                !one.fault.is_outside()
                    && one.fault != Fault::KillWorkerAlone
                    && !stands
                    && one.at + one.lasts > kill.at
                    && one.at < kill.at + LEASE
            };
            assert_eq!(first.iter().find(disturbs), None, "{kill:?}");
        }
        assert!(first.iter().all(|planned| planned.at + planned.lasts <= length), "nothing lasts beyond the faults");
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        assert_eq!(Fault::KillWorker.name(), "kill-worker");
        assert!(plan(1, Duration::from_secs(9), LEASE, &[Fault::DbCut]).iter().all(|one| one.fault == Fault::DbCut));
        assert!(!Fault::all().contains(&Fault::Rolling));
    }
}
