//! Two workers of one agent, a control plane, and faults by a seed: streams cut before and after a report was stored, leases
//! given away under a worker that goes on, workers that die. Judged by what was done to the world.
//!
//! `HERMES_WORKER_SEEDS=200` runs more of them, `HERMES_WORKER_SEED=7` that one alone.

use std::sync::Arc;

use hermes_proto::v1::*;
use hermes_worker::seams::Without;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::Worker;
use crate::fake::{Attached, Fake, assignment, says, soon, turn};
use crate::journal::{ask, say};
use crate::plane::World;

/// Faults of one seed, at most: then the turn must end.
const FAULTS: u32 = 12;

struct Chaos {
    seed: u64,
    rng: StdRng,
    faults: u32,
    fake: Fake,
    world: Arc<World>,
    workers: [Worker; 2],
    links: [Option<Attached>; 2],
    /// Who has the turn, under which epoch, and whether it was told.
    owner: usize,
    epoch: u64,
    told: bool,
    ended: bool,
}

impl Chaos {
    async fn new(seed: u64) -> Self {
        let fake = Fake::start().await;
        *fake.state.joins_left.lock().unwrap() = 1_000;
        let calls = [("a", "look", "{}"), ("b", "put", "{}"), ("c", "send", "{}")];
        let script =
            [(0, ask("", &calls)), (4, ask("", &[("d", "put", "{}"), ("e", "wait", "{}")])), (7, say("Done."))];
        *fake.state.script.lock().unwrap() = script.into_iter().collect();
        let world = Arc::new(World::default());
        let worker = || Worker::new().serve_with(&fake, world.seams(Without::default()));
        let workers = [worker(), worker()];
        let rng = StdRng::seed_from_u64(seed);
        let links = [None, None];
        Self { seed, rng, faults: 0, fake, world, workers, links, owner: 0, epoch: 0, told: true, ended: false }
    }

    fn fault(&mut self, probability: f64) -> bool {
        let fault = self.faults < FAULTS && self.rng.random_bool(probability);
        self.faults += u32::from(fault);
        fault
    }

    /// The lease goes to one of the workers, whatever the present one believes.
    async fn move_lease(&mut self) {
        self.owner = self.rng.random_range(0..2);
        self.epoch += 1;
        self.told = false;
        self.tell().await;
    }

    async fn tell(&mut self) {
        let turn = turn(1, 1, self.epoch);
        if let Some(link) = self.links[self.owner].as_ref().filter(|_| !self.told) {
            let journal_entries = self.fake.state.journal.lock().unwrap().lease(&turn);
            let assignment = Assignment { journal_entries, ..assignment(turn, &says("hi")) };
            link.send(control_message::Message::Assignment(assignment)).await;
            self.told = true;
        }
    }

    async fn attached(&mut self, mut link: Attached) {
        let register = link.welcome_speaking(2, 1_000, 60_000).await;
        let home = |worker: &Worker| worker.home().canonicalize().unwrap().display().to_string();
        if let Some(index) = self.workers.iter().position(|worker| home(worker) == register.home) {
            self.links[index] = Some(link);
            self.tell().await;
        }
    }

    /// A worker's message, or the end of its stream.
    async fn heard(&mut self, from: usize, message: Option<worker_message::Message>) {
        let Some(message) = message else {
            self.links[from] = None;
            return;
        };
        if let worker_message::Message::Heartbeat(beat) = message {
            let ack = HeartbeatAck { sequence: beat.sequence, lease_lost: false, ..HeartbeatAck::default() };
            return self.answer(from, control_message::Message::HeartbeatAck(ack)).await;
        }
        if self.fault(0.1) {
            // Before anything came of it.
            self.links[from] = None;
            return;
        }
        let answer = match message {
            worker_message::Message::Step(report) => {
                let outcome = self.fake.state.journal.lock().unwrap().record(&report);
                assert_ne!(outcome, StepOutcome::Diverged, "seed {}: {report:?}", self.seed);
                let (turn, step, phase) = (report.turn, report.step, report.phase);
                control_message::Message::StepAck(StepAck { turn, step, phase, outcome: outcome.into() })
            }
            worker_message::Message::Completed(completed) => {
                let stored = completed.turn == Some(turn(1, 1, self.epoch));
                if stored {
                    assert_eq!(completed.outcome(), Outcome::Succeeded, "seed {}: {completed:?}", self.seed);
                    self.ended = true;
                }
                control_message::Message::CompletedAck(CompletedAck { turn: completed.turn, stored })
            }
            _ => return,
        };
        if self.fault(0.15) {
            // Stored, and nobody hears of it.
            self.links[from] = None;
        } else {
            self.answer(from, answer).await;
        }
        if !self.ended && self.fault(0.1) {
            self.move_lease().await;
        }
        if !self.ended && self.fault(0.05) {
            self.kill(from).await;
        }
    }

    async fn answer(&mut self, to: usize, message: control_message::Message) {
        if let Some(link) = &self.links[to] {
            let message = ControlMessage { message: Some(message) };
            // It may have gone meanwhile.
            let _ = link.to_worker.send(Ok(message)).await;
        }
    }

    async fn kill(&mut self, index: usize) {
        self.workers[index].task.abort_all();
        while self.workers[index].task.join_next().await.is_some() {}
        self.links[index] = None;
        self.workers[index] = Worker::new().serve_with(&self.fake, self.world.seams(Without::default()));
        if self.owner == index {
            self.move_lease().await;
        }
    }

    async fn run(&mut self) {
        self.move_lease().await;
        while !self.ended {
            let [first, second] = &mut self.links;
            tokio::select! {
                link = self.fake.attached() => self.attached(link).await,
                message = next(first) => self.heard(0, message).await,
                message = next(second) => self.heard(1, message).await,
                // The tool that waits for it ends; a permit that nobody took yet is one permit.
                () = self.world.begun.notified() => self.world.go_on.notify_one(),
            }
        }
    }

    /// What must be true of the world, whatever happened on the way.
    fn judge(&self) {
        let seed = self.seed;
        let effects = self.world.effects();
        let count = |name: &str| effects.iter().filter(|effect| *effect == name).count();
        let asked = self.fake.state.asked(7).pop().unwrap();
        assert_eq!(asked.len(), 8, "seed {seed}: {asked:?}");
        for (id, tool) in [("c", "send"), ("e", "wait")] {
            let result = asked.iter().find(|line| line.starts_with(&format!("tool {id}: "))).unwrap();
            let unknown = result.contains("UNKNOWN");
            assert!(unknown || result.ends_with(" done"), "seed {seed}: {result}");
            assert!(count(tool) == 1 || unknown && count(tool) == 0, "seed {seed}: {tool} {effects:?} {result}");
        }
        for key in ["put1.1.2", "put1.1.5"] {
            assert!(count(key) >= 1, "seed {seed}: {effects:?}");
        }
        let known = ["look", "put1.1.2", "send", "put1.1.5", "wait"];
        assert!(effects.iter().all(|effect| known.contains(&effect.as_str())), "seed {seed}: {effects:?}");
        let provider = self.fake.state.asked(0).len() + self.fake.state.asked(4).len();
        assert!(provider <= 2 + FAULTS as usize, "seed {seed}: {provider} model calls");
    }
}

async fn next(link: &mut Option<Attached>) -> Option<worker_message::Message> {
    match link {
        Some(link) => link.from_worker.message().await.ok().flatten().and_then(|message| message.message),
        None => std::future::pending().await,
    }
}

#[allow(clippy::disallowed_methods, reason = "how many seeds is asked of the environment, as in every randomised test")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn whatever_breaks_a_turn_ends_and_nothing_is_done_twice() {
    let seeds = match number("HERMES_WORKER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HERMES_WORKER_SEEDS").unwrap_or(10),
    };
    let mut faults = 0;
    for seed in seeds.clone() {
        let mut chaos = Chaos::new(seed).await;
        soon(&format!("the end of the turn of seed {seed}"), chaos.run()).await;
        chaos.judge();
        faults += chaos.faults;
    }
    eprintln!("{faults} faults in seeds {seeds:?}");
    assert!(faults > 0 || seeds.end - seeds.start < 10, "the faults are on");
}
