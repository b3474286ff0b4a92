//! Turns' ends, stored in batches: the connection that comes back is the clock, there is no linger.

use std::time::{Duration, Instant};

use hermes_core::AgentId;
use hermes_core::turn::TurnState;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Dispatcher, Report, STOPPED, journal};
use crate::cron;
use crate::outbox::HandingOver;
use crate::store::{self, BATCH_ROWS, Completion, CompletionOutcome, DueDelivery, Ended, Leased, Signal, TurnEnd};

/// How long a turn may run before the store is asked whether its chat is still there: what dies faster is found by the attempt.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// A report on its way into the store.
pub(super) struct Pending {
    completion: Completion,
    /// Where it ran, when that is known here: the slot to free.
    place: Option<Place>,
    end: TurnEnd,
    agent: AgentId,
    since: Instant,
    traceparent: Option<String>,
    stored: oneshot::Sender<bool>,
    /// A call that may have stored it got no answer.
    uncertain: bool,
    /// How often the database refused it.
    refused: u8,
}

struct Place {
    worker: i64,
    slot: i16,
    agent_no: i32,
    session_key: String,
}

/// Queues a report and waits for its commit.
pub(super) async fn complete(dispatcher: &Dispatcher, worker: i64, agent: &AgentId, report: Report) -> bool {
    let inner = &dispatcher.inner;
    let mut report = report;
    if let Err(error) = dispatcher.recall(report.turn, report.epoch).await {
        tracing::warn!(turn = %report.turn, %error, "what an earlier attempt's model calls used is not counted");
    }
    let (lane, revision, place, traceparent, since) = match inner.fleet.running(worker, report.turn, report.epoch) {
        Some((slot, running)) => {
            let Some(agent_no) = inner.fleet.agent_of(worker) else { return false };
            // What the broker counted is the truth, not what the worker says.
            let snapshot = inner.registry.current();
            // Of a program with models of its own nobody else counts.
            let foreign = snapshot.by_no(agent_no).is_some_and(|agent| agent.spec.acp().is_some());
            if !foreign {
                report.usage = running.usage.unwrap_or_default();
            }
            // Nobody stopped it: its chat is told why it ended.
            if let (Some((why, _)), Ended::Cancelled) = (running.overrun, report.ended) {
                report.ended = Ended::Failed;
                why.notice().clone_into(&mut report.reply);
            }
            let place = Place { worker, slot, agent_no, session_key: running.session_key };
            (running.lane, running.revision, Some(place), running.traceparent, running.since)
        }
        // Resent after a reconnect. The fence decides whether it may still be written; whose turn it is must be asked.
        // What its model calls used was counted where it ran before: but for the journaled replies it is unknown here, whatever the
        // worker says.
        None => match inner.store.turn_place(report.turn).await {
            Ok((owner, lane)) if owner == agent.as_str() => {
                report.usage = journal::usage_of(&inner.store, report.turn).await.unwrap_or_default();
                (lane, 0, None, None, Instant::now())
            }
            Ok(_) => {
                tracing::warn!(worker, turn = %report.turn, %agent, "a worker reported a turn of another agent");
                return false;
            }
            Err(error) => {
                tracing::info!(worker, turn = %report.turn, %error, "a report of an unknown turn");
                return false;
            }
        },
    };
    if report.ended == Ended::Cancelled
        && let Ok(Some(Signal::Stop)) = inner.store.asked_to_end(report.turn).await
    {
        // One line instead of half an answer.
        STOPPED.clone_into(&mut report.reply);
    }
    let state = match report.ended {
        Ended::Succeeded => TurnState::Succeeded,
        Ended::Failed => TurnState::Failed,
        Ended::Cancelled => TurnState::Cancelled,
        Ended::Dead => TurnState::Dead,
    };
    let mut usage = serde_json::to_value(&report.usage).unwrap_or_default();
    if let Some(fields) = usage.as_object_mut() {
        fields.insert("revision".to_owned(), revision.into());
    }
    // What waits behind a turn of a removed agent is cancelled and not begun.
    let registered = inner.registry.current().agent(agent).is_some();
    let next = registered && place.as_ref().is_some_and(|place| !inner.fleet.is_waiting(place.agent_no));
    let completion = Completion {
        turn: report.turn,
        epoch: report.epoch,
        ended: report.ended,
        reply: report.reply.clone().into_bytes(),
        usage,
        lane,
        send: lane.is_some() && inner.outbox.has_room(),
        next,
    };
    let (stored, answer) = oneshot::channel();
    let end = TurnEnd { state, reply: report.reply, usage: report.usage };
    if inner
        .completions
        .send(Pending {
            completion,
            place,
            end,
            agent: agent.clone(),
            since,
            traceparent,
            stored,
            uncertain: false,
            refused: 0,
        })
        .await
        .is_err()
    {
        return false;
    }
    answer.await.unwrap_or(false)
}

/// The loop: takes what has gathered, stores it, acts on the answers.
pub(super) async fn run(dispatcher: Dispatcher, mut pending: mpsc::Receiver<Pending>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH_ROWS);
    loop {
        batch.clear();
        tokio::select! {
            () = stop.cancelled() => return,
            taken = pending.recv_many(&mut batch, BATCH_ROWS) => if taken == 0 { return },
        }
        store_batch(&dispatcher, &mut batch, &stop).await;
    }
}

async fn store_batch(dispatcher: &Dispatcher, batch: &mut Vec<Pending>, stop: &CancellationToken) {
    let inner = &dispatcher.inner;
    while !batch.is_empty() {
        let rows: Vec<Completion> = batch.iter().map(|pending| pending.completion.clone()).collect();
        let leasing = dispatcher.leasing().await;
        let handing_over = inner.outbox.handing_over().await;
        let answers = inner.store.complete(inner.replica, &rows, dispatcher.turn_limit()).await;
        let mut again = Vec::new();
        for (mut pending, answer) in batch.drain(..).zip(answers) {
            match answer {
                Ok(outcome) => settle(dispatcher, pending, outcome, &handing_over),
                // A repeat is answered as stored, but without what the first answer handed over.
                Err(store::Error::Unavailable(_)) => {
                    pending.uncertain = true;
                    inner.outbox.doubt();
                    again.push(pending);
                }
                Err(error) => {
                    tracing::error!(turn = %pending.completion.turn, %error, "a turn's end was refused by the database");
                    again.extend(without_the_fault(dispatcher, pending));
                }
            }
        }
        drop((leasing, handing_over));
        *batch = again;
        if !batch.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }
}

/// A refused report without what is probably at fault: its usage (words of a provider) first, then the reply, so that the chat
/// is told instead of waiting for ever. After that the worker is hung up, and its loss gives the turn back.
fn without_the_fault(dispatcher: &Dispatcher, mut pending: Pending) -> Option<Pending> {
    pending.refused += 1;
    match pending.refused {
        1 => pending.completion.usage = serde_json::json!({}),
        2 => {
            let sentence = "My answer could not be stored, so I cannot show it.";
            pending.completion.ended = Ended::Failed;
            pending.completion.reply = sentence.into();
            pending.end.state = TurnState::Failed;
            pending.end.reply = sentence.to_owned();
        }
        _ => {
            if let Some(place) = &pending.place {
                dispatcher.inner.fleet.hang_up(place.worker);
            }
            let _ = pending.stored.send(false);
            return None;
        }
    }
    Some(pending)
}

fn settle(dispatcher: &Dispatcher, pending: Pending, outcome: CompletionOutcome, handing_over: &HandingOver<'_>) {
    let inner = &dispatcher.inner;
    let counted = outcome.stored;
    let Pending { completion, place, end, agent, since, traceparent, stored, uncertain, .. } = pending;
    if outcome.stored {
        inner.metrics.turn_ended(&agent, end.state.as_str(), since.elapsed());
        if outcome.send
            && let (Some(lane), Some(pos)) = (completion.lane, outcome.delivery)
        {
            let delivery = DueDelivery {
                lane,
                pos,
                turn: completion.turn,
                attempt: 1,
                failures: 0,
                part: 0,
                maybe_duplicate: false,
                body: completion.reply,
                traceparent,
                gone: None,
                // Its chat may have died while it ran.
                ask: place.is_none() || since.elapsed() > ASK_AFTER || inner.outbox.is_suspected(lane),
            };
            handing_over.send(delivery);
        }
        inner.live.end(completion.turn, end);
        if place.as_ref().is_some_and(|place| cron::is_session(&place.session_key)) {
            inner.alarm.ended_somewhere();
        }
    } else {
        tracing::info!(turn = %completion.turn, epoch = completion.epoch, "a stale report was refused");
        inner.metrics.report_fenced("end");
        inner.live.forget(completion.turn);
    }
    if let Some(place) = place {
        let asked = uncertain && completion.next;
        continue_session(dispatcher, place, (completion.turn, completion.epoch), asked, outcome);
    }
    let _ = stored.send(counted);
}

/// Gives the slot to the session's next turn, or frees it. `doubtful`: the session's next turn may have been leased to it in an
/// answer that was lost.
fn continue_session(
    dispatcher: &Dispatcher,
    place: Place,
    (ended, epoch): (store::TurnId, i64),
    doubtful: bool,
    outcome: CompletionOutcome,
) {
    let Place { worker, slot, agent_no, session_key } = place;
    let fleet = &dispatcher.inner.fleet;
    let held = fleet.finish(worker, slot, ended, epoch);
    match outcome.next {
        Some((epoch, seq, next)) if held => {
            dispatcher.inner.pressure.begun(agent_no);
            let turn = store::TurnId { session: ended.session, seq };
            let left = dispatcher.turn_limit();
            dispatcher.begin(Leased { worker, slot, turn, epoch, crashes: 0, journaled: 0, left, session_key, next });
        }
        // The worker has left, or registered anew and brought the turn along: its new registration holds the lease now.
        Some(_) => fleet.suspect(),
        None if held && (doubtful || fleet.in_doubt()) => {
            fleet.doubt(worker, slot);
            dispatcher.nudge();
        }
        None if held => fleet.release(worker, slot),
        None => {}
    }
    if outcome.waits {
        dispatcher.waits_anywhere(agent_no);
    } else if fleet.is_waiting(agent_no) {
        dispatcher.waits(agent_no);
    }
}
