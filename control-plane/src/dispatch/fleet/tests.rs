//! The fleet without workers: channels stand in for their streams.

use hermes_core::AgentId;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::SessionId;

fn fleet_of(slots: u32) -> (Fleet, mpsc::Receiver<ToWorker>, CancellationToken) {
    let fleet = Fleet::default();
    let (outgoing, incoming) = mpsc::channel(64);
    let hang_up = CancellationToken::new();
    let about = Connected {
        worker_id: 7,
        agent_no: 1,
        agent: AgentId::main(),
        identity: Uuid::nil(),
        pid: 1,
        home: String::new(),
        build: String::new(),
        protocol: 2,
        connected_at: Timestamp::UNIX_EPOCH,
        outgoing,
        hang_up: hang_up.clone(),
    };
    fleet.join(about, slots, Vec::new());
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
        traceparent: None,
        since: Instant::now(),
        usage: None,
        replies: Replies::default(),
        accepted: false,
        deadline: None,
        progressed: Instant::now(),
        overrun: None,
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
        history_bytes: 0,
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
