//! The history of a session as its worker fetches it, and summaries that a worker stores.
//!
//! Called by the worker's service, which has judged whose turn it is. Always true: of what a summary stands for nothing else is sent; a turn comes
//! whole; of results only the beginnings are sent; and more is sent than a model is given, so that what does not fit any more can be summed
//! up.

use std::collections::BTreeMap;

use hermes_proto::{CHUNK_BYTES, v1};
use tonic::Status;

use super::convert::{signed, store_status, unsigned};
use super::status::{Reason, invalid, refuse};
use crate::store::{Did, Exchange, Store, Summarised, Summary, TurnId};

/// Longest summary, bytes.
const MAX_SUMMARY: usize = 64 << 10;

/// What was said and done in the turn's session before it; `limit`: how much a model is given of it, bytes.
pub(super) async fn chunks(
    store: &Store,
    turn: TurnId,
    request: &v1::FetchTranscriptRequest,
    limit: usize,
) -> Result<Vec<v1::TranscriptChunk>, Status> {
    let mut after = signed("after_seq", request.after_seq)?;
    let mut chunks = Vec::new();
    if request.summaries
        && let Some(summary) = store.summary(turn.session).await.map_err(store_status)?
        && summary.through > after
    {
        push(&mut chunks, summary.through, v1::TranscriptRole::Summary, &summary.body);
        after = summary.through;
    }
    let exchanges =
        store.transcript(turn.session, after, turn.seq, limit.saturating_mul(2)).await.map_err(store_status)?;
    let mut steps = match (exchanges.first(), exchanges.last()) {
        (Some(first), Some(last)) if request.steps => {
            store.steps_of(turn.session, first.seq, last.seq).await.map_err(store_status)?
        }
        _ => BTreeMap::new(),
    };
    for exchange in exchanges {
        let did = steps.remove(&exchange.seq).unwrap_or_default();
        push_turn(&mut chunks, exchange, did);
    }
    Ok(chunks)
}

fn push_turn(chunks: &mut Vec<v1::TranscriptChunk>, exchange: Exchange, did: Vec<Did>) {
    let Exchange { seq, said, reply } = exchange;
    let mut push = |role, text: &[u8]| push(chunks, seq, role, text);
    // What was taken in stands where it was said, as long as that is known.
    let known = did.iter().filter(|did| **did == Did::TookIn).count();
    let (first, taken_in) = said.split_at(said.len().saturating_sub(known));
    first.iter().for_each(|text| push(v1::TranscriptRole::User, text.as_bytes()));
    let mut taken_in = taken_in.iter();
    for did in did {
        match did {
            Did::Asked(body) => push(v1::TranscriptRole::Asks, &body),
            Did::Result(text) => push(v1::TranscriptRole::Result, &text),
            Did::TookIn => {
                taken_in.next().into_iter().for_each(|text| push(v1::TranscriptRole::User, text.as_bytes()));
            }
        }
    }
    push(v1::TranscriptRole::Assistant, &reply);
}

fn push(chunks: &mut Vec<v1::TranscriptChunk>, seq: i64, role: v1::TranscriptRole, text: &[u8]) {
    let mut parts = text.chunks(CHUNK_BYTES).peekable();
    if parts.peek().is_none() {
        chunks.push(v1::TranscriptChunk { seq: unsigned(seq), role: role.into(), text: Vec::new(), more: false });
    }
    while let Some(part) = parts.next() {
        let more = parts.peek().is_some();
        chunks.push(v1::TranscriptChunk { seq: unsigned(seq), role: role.into(), text: part.to_vec(), more });
    }
}

/// Stores a summary for the turns up to the one that the request names.
pub(super) async fn put_summary(
    store: &Store,
    (turn, epoch): (TurnId, i64),
    request: v1::PutSummaryRequest,
) -> Result<v1::PutSummaryResponse, Status> {
    let through = signed("through_seq", request.through_seq)?;
    if through == 0 || request.text.is_empty() || request.text.len() > MAX_SUMMARY {
        let message = format!("a summary stands for at least one turn and has 1 to {MAX_SUMMARY} bytes");
        return Err(invalid("text", message));
    }
    let summary = Summary { through, body: request.text };
    match store.summarise(turn, epoch, &summary).await.map_err(store_status)? {
        Summarised::Stored(history_rewinds) => Ok(v1::PutSummaryResponse { history_rewinds }),
        Summarised::Fenced => Err(refuse(Reason::StaleEpoch, "this worker does not run that turn")),
        Summarised::Refused => Err(invalid("through_seq", "those turns are not over, or a summary stands for them")),
    }
}
