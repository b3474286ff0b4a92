//! What operators ask of the curator of an agent's skills: handed to a worker of the agent over its link, and answered by it.
//!
//! Called by the operators' service with an order, and by the worker links with what came of it. It owns the questions that wait.
//! Always true: an answer counts only from the registration that was asked; a question ends when its worker leaves or its time is
//! over. Nothing of it is stored: skills and what is known of them lie in the worker's home, which only it touches.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hermes_core::AgentId;
use hermes_home::curator::{Order, Report, Settings};
use tokio::sync::oneshot;

use super::{Dispatcher, ToWorker};

/// How long a worker may take.
const PATIENCE: Duration = Duration::from_secs(25);

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Curated {
    /// It was done.
    Done(Box<Report>),
    /// The worker says why not.
    Refused(String),
    /// No worker of the agent that can do it is connected to this replica.
    NoWorker,
    /// The worker left meanwhile: nobody knows.
    Left,
    /// The worker has not answered in time: nobody knows.
    Late,
}

type Answer = Result<Box<Report>, String>;

/// A question.
#[derive(Debug)]
struct Waiting {
    worker: i64,
    runs: Option<i32>,
    answer: oneshot::Sender<Answer>,
}

/// The questions that wait for their workers.
#[derive(Debug, Default)]
pub(super) struct Curations {
    waiting: Mutex<HashMap<u64, Waiting>>,
}

impl Curations {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an answer of this worker to `id`. `runs`: the agent whose skills are looked after by that.
    fn ask(&self, worker: i64, id: u64, runs: Option<i32>) -> (Asked<'_>, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        self.waiting().insert(id, Waiting { worker, runs, answer });
        (Asked { curations: self, id }, answered)
    }

    /// A worker answers. What it was not asked, or nobody waits for any more, is no concern.
    fn answered(&self, worker: i64, id: u64, answer: Answer) {
        let mut waiting = self.waiting();
        if waiting.get(&id).is_some_and(|waiting| waiting.worker == worker)
            && let Some(Waiting { answer: to, .. }) = waiting.remove(&id)
        {
            // Whoever asked may have gone.
            let _ = to.send(answer);
        }
    }

    /// Whether somebody waits for a run by that order of this agent's curator.
    fn is_run_of(&self, agent_no: i32, id: u64) -> bool {
        self.waiting().get(&id).is_some_and(|waiting| waiting.runs == Some(agent_no))
    }

    /// A worker has left: it answers no more.
    pub(super) fn left(&self, worker: i64) {
        self.waiting().retain(|_, waiting| waiting.worker != worker);
    }
}

/// Takes the question back when nobody waits for its answer any more.
struct Asked<'a> {
    curations: &'a Curations,
    id: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.curations.waiting().remove(&self.id);
    }
}

impl Dispatcher {
    /// Has a worker of the agent do it.
    pub async fn curate(&self, agent_no: i32, order: Order, settings: Settings) -> Curated {
        let Some(worker) = self.inner.fleet.curator_of(agent_no) else { return Curated::NoWorker };
        // Another replica's question must not be taken for this one when the worker comes from there.
        let id = rand::random();
        let runs = (order == Order::Run { dry_run: false }).then_some(agent_no);
        let (_asked, answered) = self.inner.curations.ask(worker, id, runs);
        if !self.inner.fleet.send(worker, ToWorker::Curate { id, order, settings }) {
            return Curated::NoWorker;
        }
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(Ok(report))) => Curated::Done(report),
            Ok(Ok(Err(problem))) => Curated::Refused(problem),
            Ok(Err(_)) => Curated::Left,
            Err(_) => Curated::Late,
        }
    }

    /// When the skills of an agent are looked after, as of now; nothing for one that is not registered.
    pub fn curator_of(&self, agent: &AgentId) -> Option<Settings> {
        let snapshot = self.inner.registry.current();
        snapshot.agent(agent).map(|agent| snapshot.document.curator_of(&agent.spec))
    }

    /// Whether an operator waits for what comes of a run of this agent's curator by the order `id`.
    pub fn is_running(&self, agent_no: i32, id: u64) -> bool {
        self.inner.curations.is_run_of(agent_no, id)
    }

    /// What a worker says of the order `id`; one that it was not given, or that nobody waits for any more, is no concern.
    pub fn curated(&self, worker: i64, id: u64, answer: Result<Box<Report>, String>) {
        self.inner.curations.answered(worker, id, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_was_asked_answers_and_who_leaves_answers_nothing() {
        let curations = Curations::default();
        let (asked, mut answered) = curations.ask(7, 1, Some(3));
        let (_other, left) = curations.ask(8, 2, None);
        assert!(curations.is_run_of(3, 1));
        assert!(!curations.is_run_of(4, 1) && !curations.is_run_of(3, 2) && !curations.is_run_of(3, 0));
        curations.answered(8, 1, Err("not mine".to_owned()));
        curations.answered(7, 3, Err("never asked".to_owned()));
        assert!(answered.try_recv().is_err());
        curations.left(8);
        assert!(left.await.is_err());
        curations.answered(7, 1, Err("mine".to_owned()));
        assert_eq!(answered.await, Ok(Err("mine".to_owned())));
        drop(asked);
        assert!(!curations.is_run_of(3, 1), "it is answered");
        let (asked, _) = curations.ask(7, 4, None);
        drop(asked);
        curations.left(8);
        assert_eq!(curations.waiting().len(), 0, "nothing is left of what is over");
    }
}
