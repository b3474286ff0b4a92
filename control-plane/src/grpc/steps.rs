//! Steps of turns on the wire: a worker's reports on their way into the journal, and the journal on its way to a worker.
//!
//! Called by the worker's service. Always true: what a report says is checked before it goes on; a worker that reports faster
//! than is stored is read no further; the journal is read page by page, so a long one costs no memory.

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use futures_util::{StreamExt as _, TryStreamExt as _};
use hermes_core::step::{Effect, Phase, StepKind};
use hermes_proto::{CHUNK_BYTES, v1};
use tonic::Status;

use super::convert::store_status;
use super::status::{Reason, invalid, refuse};
use super::worker_api::{turn_ref, turn_to};
use crate::dispatch::{Dispatcher, StepAnswer, ToWorker};
use crate::store::{JOURNAL_BEGIN, StepRecord, StepRow, Store, TurnId};

/// Steps of one turn.
pub(super) const MAX_STEPS: u32 = 10_000;
/// Longest content of a reported step, bytes.
const MAX_BODY: usize = 900 << 10;
/// Longest idempotency key, bytes.
const MAX_KEY: usize = 256;
/// Content of one worker's steps on their way into the store, bytes; the last one may go beyond it.
const MAX_RECORDING: usize = 8 << 20;
/// Rows of the journal read at once.
const PAGE_ROWS: i64 = 16;

/// The number of a step as the journal has it.
pub(super) fn step_number(step: u32) -> Result<i32, Status> {
    let number = i32::try_from(step).ok().filter(|_| step < MAX_STEPS);
    number.ok_or_else(|| invalid("step", format!("a turn has at most {MAX_STEPS} steps")))
}

/// Judges a worker's report.
pub(super) fn read(report: v1::StepReport) -> Result<StepRow, Status> {
    let (turn, epoch) = turn_ref(report.turn.as_ref())?;
    let step = step_number(report.step)?;
    let phase = match report.phase() {
        v1::StepPhase::Intent => Phase::Intent,
        v1::StepPhase::Result => Phase::Result,
        v1::StepPhase::Unspecified => return Err(invalid("phase", "it is missing")),
    };
    let effect = match report.effect() {
        v1::Effect::Unspecified => None,
        v1::Effect::Pure => Some(Effect::Pure),
        v1::Effect::Idempotent => Some(Effect::Idempotent),
        v1::Effect::AtMostOnce => Some(Effect::AtMostOnce),
    };
    let kind = match (report.kind(), effect, report.absorbs) {
        (v1::StepKind::ToolCall, Some(_), 0) => StepKind::ToolCall,
        (v1::StepKind::ToolCall, None, _) => return Err(invalid("effect", "a tool call has one")),
        (v1::StepKind::ToolCall, ..) => return Err(invalid("absorbs", "only steering takes a turn in")),
        (v1::StepKind::Steering, _, 0) => return Err(invalid("absorbs", "steering takes a turn in")),
        (v1::StepKind::Steering, None, _) => StepKind::Steering,
        (v1::StepKind::Steering, ..) => return Err(invalid("effect", "only a tool call has one")),
        (v1::StepKind::ModelReply, ..) => {
            return Err(invalid("kind", "the control plane journals model replies itself"));
        }
        (v1::StepKind::Unspecified, ..) => return Err(invalid("kind", "it is missing")),
    };
    if report.body.len() > MAX_BODY {
        return Err(refuse(Reason::TooLarge, format!("the content of a step is larger than {MAX_BODY} bytes")));
    }
    let key = report.idempotency_key;
    match (effect, phase) {
        // Its intent said it.
        (Some(Effect::Idempotent), Phase::Result) => {}
        (Some(Effect::Idempotent), Phase::Intent) if !key.is_empty() => {}
        (Some(Effect::Idempotent), Phase::Intent) => {
            return Err(invalid("idempotency_key", "an idempotent call has one"));
        }
        _ if key.is_empty() => {}
        _ => return Err(invalid("idempotency_key", "only an idempotent call has one")),
    }
    if key.len() > MAX_KEY || key.chars().any(char::is_control) {
        return Err(invalid("idempotency_key", format!("it is one line of at most {MAX_KEY} bytes")));
    }
    if report.unknown && (kind, phase) != (StepKind::ToolCall, Phase::Result) {
        return Err(invalid("unknown", "only the result of a tool call can be unknown"));
    }
    let idempotency_key = Some(key).filter(|key| !key.is_empty());
    let absorbs = super::convert::signed("absorbs", report.absorbs)?;
    let (body, unknown) = (report.body, report.unknown);
    Ok(StepRow { turn, epoch, step, phase, kind, effect, idempotency_key, body, unknown, absorbs })
}

/// One worker's reported steps on their way into the store.
#[derive(Default)]
pub(super) struct Recording {
    reports: FuturesUnordered<BoxFuture<'static, (Option<ToWorker>, usize)>>,
    bytes: usize,
}

impl Recording {
    /// Sends a step of `worker` on its way.
    pub(super) fn push(&mut self, dispatcher: &Dispatcher, worker: i64, row: StepRow) {
        let dispatcher = dispatcher.clone();
        let (turn, epoch, step, phase, bytes) = (row.turn, row.epoch, row.step, row.phase, row.body.len());
        self.bytes += bytes;
        self.reports.push(Box::pin(async move {
            let answer = dispatcher.record(worker, row).await;
            (answer.map(|answer| ToWorker::StepAck { turn, epoch, step, phase, answer }), bytes)
        }));
    }

    /// Whether another one may be read.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < MAX_RECORDING
    }

    /// The next that is done, with its acknowledgement if there is one to give; nothing when none is on its way.
    pub(super) async fn next(&mut self) -> Option<Option<ToWorker>> {
        let (ack, bytes) = self.reports.next().await?;
        self.bytes -= bytes;
        Some(ack)
    }
}

/// The acknowledgement of a step on the wire.
pub(super) fn ack_to(turn: TurnId, epoch: i64, step: i32, phase: Phase, answer: StepAnswer) -> v1::StepAck {
    let outcome = match answer {
        StepAnswer::Stored => v1::StepOutcome::Stored,
        StepAnswer::Fenced => v1::StepOutcome::Fenced,
        StepAnswer::Diverged => v1::StepOutcome::Diverged,
        StepAnswer::Refused => v1::StepOutcome::Refused,
    };
    v1::StepAck {
        turn: turn_to(turn, epoch),
        step: u32::try_from(step).unwrap_or(u32::MAX),
        phase: phase_to(phase).into(),
        outcome: outcome.into(),
    }
}

/// A turn's journal, row by row and each in chunks.
pub(super) fn journal(store: Store, turn: TurnId) -> BoxStream<'static, Result<v1::JournalChunk, Status>> {
    let pages = stream::try_unfold((store, JOURNAL_BEGIN), move |(store, after)| async move {
        let page = store.journal_rows(turn, after, PAGE_ROWS, true).await.map_err(store_status)?;
        Ok::<_, Status>(page.last().map(StepRecord::cursor).map(|last| (page, (store, last))))
    });
    pages.map_ok(|page| stream::iter(page.into_iter().flat_map(chunks).map(Ok))).try_flatten().boxed()
}

fn chunks(record: StepRecord) -> Vec<v1::JournalChunk> {
    let head = v1::JournalChunk {
        step: u32::try_from(record.step).unwrap_or(u32::MAX),
        phase: phase_to(record.phase).into(),
        kind: kind_to(record.kind).into(),
        effect: effect_to(record.effect).into(),
        idempotency_key: record.idempotency_key.unwrap_or_default(),
        unknown: record.unknown,
        ..v1::JournalChunk::default()
    };
    let mut parts = record.body.chunks(CHUNK_BYTES).peekable();
    if parts.peek().is_none() {
        return vec![head];
    }
    let mut chunks = Vec::new();
    while let Some(part) = parts.next() {
        chunks.push(v1::JournalChunk { body: part.to_vec(), more: parts.peek().is_some(), ..head.clone() });
    }
    chunks
}

/// On the wire.
pub(super) fn phase_to(phase: Phase) -> v1::StepPhase {
    match phase {
        Phase::Intent => v1::StepPhase::Intent,
        Phase::Result => v1::StepPhase::Result,
    }
}

/// On the wire.
pub(super) fn kind_to(kind: StepKind) -> v1::StepKind {
    match kind {
        StepKind::ModelReply => v1::StepKind::ModelReply,
        StepKind::ToolCall => v1::StepKind::ToolCall,
        StepKind::Steering => v1::StepKind::Steering,
    }
}

/// On the wire.
pub(super) fn effect_to(effect: Option<Effect>) -> v1::Effect {
    match effect {
        None => v1::Effect::Unspecified,
        Some(Effect::Pure) => v1::Effect::Pure,
        Some(Effect::Idempotent) => v1::Effect::Idempotent,
        Some(Effect::AtMostOnce) => v1::Effect::AtMostOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> v1::StepReport {
        v1::StepReport {
            turn: Some(v1::TurnRef { session_id: 1, seq: 1, epoch: 1 }),
            step: 1,
            phase: v1::StepPhase::Intent.into(),
            kind: v1::StepKind::ToolCall.into(),
            effect: v1::Effect::AtMostOnce.into(),
            body: b"{}".to_vec(),
            ..v1::StepReport::default()
        }
    }

    #[test]
    fn a_report_is_judged_field_by_field() {
        assert!(read(report()).is_ok());
        let idempotent =
            v1::StepReport { effect: v1::Effect::Idempotent.into(), idempotency_key: "k".into(), ..report() };
        assert_eq!(read(idempotent.clone()).unwrap().idempotency_key.as_deref(), Some("k"));
        let end = v1::StepPhase::Result.into();
        assert!(read(v1::StepReport { idempotency_key: String::new(), phase: end, ..idempotent.clone() }).is_ok());
        let steering = v1::StepReport { kind: v1::StepKind::Steering.into(), effect: 0, absorbs: 2, ..report() };
        assert!(read(steering.clone()).is_ok());
        let wrong = [
            v1::StepReport { turn: None, ..report() },
            v1::StepReport { step: MAX_STEPS, ..report() },
            v1::StepReport { step: u32::MAX, ..report() },
            v1::StepReport { phase: 0, ..report() },
            v1::StepReport { kind: 0, ..report() },
            v1::StepReport { kind: v1::StepKind::ModelReply.into(), effect: 0, ..report() },
            v1::StepReport { effect: 0, ..report() },
            v1::StepReport { absorbs: 2, ..report() },
            v1::StepReport { absorbs: 0, ..steering.clone() },
            v1::StepReport { effect: 1, ..steering },
            v1::StepReport { idempotency_key: String::new(), ..idempotent.clone() },
            v1::StepReport { idempotency_key: "k\0".into(), ..idempotent.clone() },
            v1::StepReport { idempotency_key: "k".repeat(MAX_KEY + 1), ..idempotent },
            v1::StepReport { idempotency_key: "k".into(), ..report() },
            v1::StepReport { unknown: true, ..report() },
            v1::StepReport { body: vec![0; MAX_BODY + 1], ..report() },
        ];
        for report in wrong {
            assert!(read(report.clone()).is_err(), "{report:?}");
        }
    }
}
