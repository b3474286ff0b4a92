//! What a worker does to a turn that another one has by now.

use anyhow::{Result, ensure};
use hermes_proto::v1::StepOutcome;
use hermes_tests::drill::Mechanism;
use hermes_tests::mock_model::MockModel;

use crate::journal::plane::Plane;
use crate::journal::{intent, result};

/// The first worker gives its turn back and does not know any more that it did; the second is in the middle of it.
pub(super) async fn a_worker_whose_turn_is_anothers_appends_and_ends_nothing(without: Option<Mechanism>) -> Result<()> {
    let mock = MockModel::start().await?;
    let plane = Plane::drilled(without, &mock).await;
    let (mut old, mut new) = (plane.worker("coder").await, plane.worker("coder").await);
    let said = plane.tell("hello");
    // Whoever gets it first is the one to lose it.
    let (first, stale) = tokio::select! {
        first = old.assignment() => (first, true),
        first = new.assignment() => (first, false),
    };
    let (stale, owner) = if stale { (&mut old, &mut new) } else { (&mut new, &mut old) };
    stale.hand_back(first.turn).await;
    let turn = owner.assignment().await.turn;
    ensure!(turn.map(|turn| turn.epoch) > first.turn.map(|turn| turn.epoch), "{turn:?} after {:?}", first.turn);
    ensure!(owner.step(intent(turn, 0, "act")).await == StepOutcome::Stored, "the owner's intent");

    let appended = stale.step(intent(first.turn, 1, "act again")).await;
    let ended = stale.complete(first.turn, "stale").await;
    let (went_on, answered) = (owner.step(result(turn, 0, "done")).await, owner.complete(turn, "fresh").await);
    ensure!(appended == StepOutcome::Fenced, "a stale worker's step: {appended:?}");
    ensure!(!ended, "a stale worker ended the turn; its owner's step: {went_on:?}, its owner's end: {answered}");
    ensure!(went_on == StepOutcome::Stored && answered, "the owner's work is thrown away: {went_on:?}, {answered}");
    let shown = plane.turn(&said).to_string();
    ensure!(shown.contains("fresh") && !shown.contains("stale"), "{shown}");
    Ok(())
}
