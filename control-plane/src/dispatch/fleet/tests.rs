//! The fleet without workers: channels stand in for their streams.

use hermes_core::AgentId;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::attachments::Had;
use crate::store::{SessionId, Signal};

fn connected(worker_id: i64, agent_no: i32, outgoing: mpsc::Sender<ToWorker>) -> Connected {
    Connected {
        worker_id,
        agent_no,
        agent: AgentId::main(),
        identity: Uuid::from_u128(u128::from(worker_id.unsigned_abs())),
        pid: 1,
        home: String::new(),
        build: String::new(),
        protocol: 2,
        curates: true,
        connected_at: Timestamp::UNIX_EPOCH,
        outgoing,
        hang_up: CancellationToken::new(),
    }
}

fn fleet_of(slots: u32) -> (Fleet, mpsc::Receiver<ToWorker>, CancellationToken) {
    let fleet = Fleet::default();
    let (outgoing, incoming) = mpsc::channel(64);
    let hang_up = CancellationToken::new();
    fleet.join(Connected { hang_up: hang_up.clone(), ..connected(7, 1, outgoing) }, slots, Vec::new());
    (fleet, incoming, hang_up)
}

fn turn(seq: i64) -> TurnId {
    TurnId { session: SessionId(1), seq }
}

fn running(seq: i64, epoch: i64) -> Running {
    Running {
        turn: turn(seq),
        epoch,
        lane: None,
        session_key: String::new(),
        revision: 1,
        model: None,
        errand: None,
        traceparent: None,
        since: Instant::now(),
        usage: None,
        replies: Replies::default(),
        accepted: false,
        told: Told::Nothing,
        deadline: None,
        progressed: Instant::now(),
        overrun: None,
        had: Had::default(),
    }
}

fn assignment(seq: i64, epoch: i64) -> Box<Assignment> {
    Box::new(Assignment {
        turn: turn(seq),
        epoch,
        attempt: 1,
        session_key: String::new(),
        input: Vec::new(),
        traceparent: String::new(),
        accepted_at: Timestamp::UNIX_EPOCH,
        revision: 1,
        model: String::new(),
        enabled_toolsets: None,
        disabled_toolsets: Vec::new(),
        sandbox: hermes_home::sandbox::Sandbox::default(),
        approvals: hermes_core::approvals::Approvals::default(),
        mcp_servers: Default::default(),
        runtime: None,
        history_bytes: 0,
        history_rewinds: 0,
        home_version: 0,
        journal_entries: 0,
    })
}

#[test]
fn a_report_that_came_twice_does_not_free_the_slot_of_the_next_turn() {
    let (fleet, _incoming, _) = fleet_of(1);
    let (worker, slot) = fleet.reserve(1, "key").unwrap();
    assert!(fleet.assign(worker, slot, running(1, 1), assignment(1, 1)));
    assert!(fleet.finish(worker, slot, turn(1), 1));
    assert!(fleet.assign(worker, slot, running(2, 2), assignment(2, 2)));
    assert!(!fleet.finish(worker, slot, turn(1), 1));
    fleet.release(worker, slot);
    assert!(fleet.runs(turn(2), 2));
    assert_eq!(fleet.reserve(1, "key"), None);
}

#[test]
fn a_slot_in_doubt_is_given_away_only_after_the_store_was_asked() {
    let (fleet, _incoming, _) = fleet_of(2);
    let (worker, slot) = fleet.reserve(1, "key").unwrap();
    fleet.doubt(worker, slot);
    assert!(fleet.in_doubt());
    let other = fleet.reserve(1, "key").unwrap();
    assert_ne!(other.1, slot);
    assert_eq!(fleet.reserve(1, "key"), None);
    let (workers, slots) = fleet.doubts();
    assert_eq!((workers, slots.as_slice()), (vec![7], [(worker, slot)].as_slice()));
    fleet.settled(&slots, 0);
    assert!(!fleet.in_doubt());
    assert_eq!(fleet.reserve(1, "key"), Some((worker, slot)));
    // One of which the lease was found is not free.
    fleet.doubt(worker, slot);
    assert!(fleet.is_vacant(worker, slot));
    assert!(fleet.assign(worker, slot, running(1, 1), assignment(1, 1)));
    fleet.settled(&[(worker, slot)], 0);
    assert!(fleet.runs(turn(1), 1));
}

#[test]
fn a_worker_that_does_not_take_its_turn_is_hung_up() {
    let (fleet, _incoming, hang_up) = fleet_of(1);
    let (worker, slot) = fleet.reserve(1, "key").unwrap();
    assert!(fleet.assign(worker, slot, running(1, 1), assignment(1, 1)));
    assert!(fleet.hang_up_idlers(Duration::from_secs(3600)).is_empty());
    fleet.accepted(worker, turn(1), 1);
    fleet.heard(worker);
    assert!(fleet.hang_up_idlers(Duration::from_secs(3600)).is_empty());
    assert_eq!(fleet.hang_up_idlers(Duration::ZERO), [worker]);
    assert!(hang_up.is_cancelled());
}

#[test]
fn a_signal_is_told_once_and_a_stop_over_an_interruption() {
    let (fleet, mut incoming, _) = fleet_of(1);
    let (worker, slot) = fleet.reserve(1, "key").unwrap();
    assert!(fleet.assign(worker, slot, running(1, 1), assignment(1, 1)));
    let _ = incoming.try_recv();
    let mut tell = |seq, epoch, signal: Signal| {
        fleet.tell(Signalled { worker, turn: turn(seq), epoch, signal });
        match incoming.try_recv() {
            Ok(ToWorker::Cancel { kind, .. }) => format!("{kind:?}"),
            Ok(ToWorker::Steer { seq, .. }) => seq.to_string(),
            _ => String::new(),
        }
    };
    let offer = |seq| Signal::Steer(Some((seq, Vec::new())));
    assert_eq!(tell(1, 1, offer(2)), "2");
    assert_eq!(tell(1, 1, offer(2)), "", "told before");
    assert_eq!(tell(1, 1, offer(3)), "3");
    assert_eq!(tell(2, 1, Signal::Stop), "", "another turn");
    assert_eq!(tell(1, 2, Signal::Stop), "", "another fence");
    assert_eq!(tell(1, 1, Signal::Interrupt), "Interrupted");
    assert_eq!(tell(1, 1, offer(4)), "", "it ends");
    assert_eq!(tell(1, 1, Signal::Stop), "Stopped");
    assert_eq!(tell(1, 1, Signal::Stop) + &tell(1, 1, Signal::Interrupt), "");
    assert_eq!(fleet.take(turn(1), 1, true), Some(1));
    assert_eq!(fleet.reserve(1, "key"), Some((worker, slot)), "its slot is free");
}

#[test]
fn every_agent_has_a_part_in_every_claim() {
    let fleet = Fleet::default();
    let mut ends = Vec::new();
    for (worker_id, agent_no, slots) in [(1, 1, 400), (2, 1, 400), (3, 2, 3), (4, 3, 1)] {
        let (outgoing, incoming) = mpsc::channel(1);
        ends.push(incoming);
        fleet.join(connected(worker_id, agent_no, outgoing), slots, Vec::new());
    }
    let taken = fleet.reserve_all(&[1, 2, 3], 256);
    let of = |workers: &[i64]| taken.iter().filter(|(worker, _)| workers.contains(worker)).count();
    assert_eq!((taken.len(), of(&[1, 2]), of(&[3]), of(&[4])), (256, 252, 3, 1));
    // With room for one only, each agent is first once.
    for (worker, slot) in taken {
        fleet.release(worker, slot);
    }
    let first = |_| fleet.reserve_all(&[1, 2, 3], 1).first().map(|(worker, _)| fleet.agent_of(*worker).unwrap());
    let mut agents: Vec<_> = (0..3).filter_map(first).collect();
    agents.sort_unstable();
    assert_eq!(agents, [1, 2, 3]);
}

#[test]
fn skills_are_kept_by_the_oldest_worker_that_can_and_stays() {
    let fleet = Fleet::default();
    let mut ends = Vec::new();
    for (worker_id, agent_no, curates) in [(1, 1, false), (2, 1, true), (3, 1, true), (4, 2, true)] {
        let (outgoing, incoming) = mpsc::channel(4);
        ends.push(incoming);
        fleet.join(Connected { curates, ..connected(worker_id, agent_no, outgoing) }, 1, Vec::new());
    }
    assert_eq!((fleet.curator_of(1), fleet.curator_of(2), fleet.curator_of(3)), (Some(2), Some(4), None));
    fleet.drain(|worker| worker.worker_id == 2, Duration::from_secs(1));
    assert_eq!(fleet.curator_of(1), Some(3));
    fleet.leave(3);
    assert_eq!(fleet.curator_of(1), None, "one that cannot is not asked");
}
