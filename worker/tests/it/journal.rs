//! A journal as the control plane keeps it, in memory: it fences by epoch, notices divergence and takes queued turns in.

use std::collections::BTreeMap;

use hermes_proto::v1::*;
use serde_json::json;

/// What a model says at one step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) calls: Vec<ToolCall>,
}

/// A model's answer.
pub(crate) fn say(text: &str) -> Line {
    Line { text: text.into(), calls: Vec::new() }
}

/// A model's wish: id, tool and arguments of each call.
pub(crate) fn ask(text: &str, calls: &[(&str, &str, &str)]) -> Line {
    let call = |(id, name, arguments): &(&str, &str, &str)| ToolCall {
        id: (*id).into(),
        name: (*name).into(),
        arguments: (*arguments).into(),
    };
    Line { text: text.into(), calls: calls.iter().map(call).collect() }
}

#[derive(Clone, Debug)]
struct Row {
    epoch: u64,
    kind: StepKind,
    effect: Effect,
    key: String,
    body: Vec<u8>,
    unknown: bool,
}

#[derive(Debug, Default)]
struct Turn {
    /// The epoch that may write.
    epoch: u64,
    rows: BTreeMap<(u32, i32), Row>,
    /// Queued turns that may be taken in, in order.
    queued: Vec<u64>,
}

/// The journals of all turns.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    turns: BTreeMap<(u64, u64), Turn>,
    /// Model replies that were asked for again although they are here.
    pub(crate) replays: u32,
}

impl Journal {
    /// From now on this epoch alone may write; answers how many rows are there.
    pub(crate) fn lease(&mut self, turn: &TurnRef) -> u32 {
        let entry = self.turns.entry((turn.session_id, turn.seq)).or_default();
        entry.epoch = turn.epoch;
        u32::try_from(entry.rows.len()).unwrap()
    }

    /// A message waits as that queued turn.
    pub(crate) fn queue(&mut self, turn: &TurnRef, seq: u64) {
        self.turns.entry((turn.session_id, turn.seq)).or_default().queued.push(seq);
    }

    /// Whether that epoch runs the turn; of a turn that was never leased here, everybody does.
    pub(crate) fn runs(&self, turn: Option<&TurnRef>) -> bool {
        turn.is_some_and(|turn| {
            self.turns.get(&(turn.session_id, turn.seq)).is_none_or(|entry| entry.epoch == turn.epoch)
        })
    }

    /// The broker journals a reply that asks for tools; one that is here already is replayed. Not for an old epoch.
    pub(crate) fn reply(&mut self, header: &GenerateHeader, line: &Line) -> bool {
        if !self.runs(header.turn.as_ref()) {
            return false;
        }
        let calls = line.calls.iter();
        let calls: Vec<_> =
            calls.map(|call| json!({"id": call.id, "name": call.name, "arguments": call.arguments})).collect();
        let usage =
            json!({"input_tokens": 3, "output_tokens": 5, "cached_tokens": 0, "cost_usd": null, "model": "fake/model"});
        let body = json!({"text": line.text, "tool_calls": calls, "usage": usage, "finish_reason": "tool_calls"});
        let turn = header.turn.unwrap();
        let kind = StepKind::ModelReply;
        let (effect, key) = (Effect::Unspecified, String::new());
        let row = Row { epoch: turn.epoch, kind, effect, key, body: body.to_string().into_bytes(), unknown: false };
        let rows = &mut self.turns.entry((turn.session_id, turn.seq)).or_default().rows;
        let before = rows.len();
        rows.entry((header.step, StepPhase::Result.into())).or_insert(row);
        self.replays += u32::from(rows.len() == before);
        true
    }

    /// A worker's report, judged as strictly as the control plane does.
    pub(crate) fn record(&mut self, report: &StepReport) -> StepOutcome {
        let turn = report.turn.unwrap();
        let entry = self.turns.get_mut(&(turn.session_id, turn.seq)).expect("a turn that was leased");
        assert_eq!(report.idempotency_key.is_empty(), report.effect() != Effect::Idempotent, "{report:?}");
        assert_eq!(report.absorbs == 0, report.kind() == StepKind::ToolCall, "{report:?}");
        assert_eq!(report.effect() == Effect::Unspecified, report.kind() == StepKind::Steering, "{report:?}");
        assert!(report.body.len() <= 900 << 10);
        if entry.epoch != turn.epoch {
            return StepOutcome::Fenced;
        }
        let row = Row {
            epoch: turn.epoch,
            kind: report.kind(),
            effect: report.effect(),
            key: report.idempotency_key.clone(),
            body: report.body.clone(),
            unknown: report.unknown,
        };
        match entry.rows.get(&(report.step, report.phase)) {
            Some(known) if known.epoch == row.epoch && known.body == row.body => StepOutcome::Stored,
            Some(_) => StepOutcome::Diverged,
            None => {
                if row.kind == StepKind::Steering {
                    if entry.queued.first() != Some(&report.absorbs) {
                        return StepOutcome::Refused;
                    }
                    entry.queued.remove(0);
                }
                entry.rows.insert((report.step, report.phase), row);
                StepOutcome::Stored
            }
        }
    }

    /// The control plane does it itself and journals it; answers whether it did it now.
    pub(crate) fn call(&mut self, request: &CallToolRequest) -> (CallToolResponse, bool) {
        let (turn, call) = (request.turn.unwrap(), request.call.clone().unwrap());
        let answer =
            |outcome: StepOutcome, text: &[u8]| CallToolResponse { outcome: outcome.into(), text: text.to_vec() };
        if !self.runs(Some(&turn)) {
            return (answer(StepOutcome::Fenced, b""), false);
        }
        let entry = self.turns.entry((turn.session_id, turn.seq)).or_default();
        let key = format!("{}:{}", call.name, call.arguments);
        match entry.rows.get(&(request.step, StepPhase::Result.into())) {
            Some(row) if row.key == key => (answer(StepOutcome::Stored, &row.body), false),
            Some(_) => (answer(StepOutcome::Diverged, b""), false),
            None => {
                let body = match call.name.as_str() {
                    "skills_consolidate" => br#"{"success":true}"#.to_vec(),
                    name => format!("{name} done over there").into_bytes(),
                };
                let answer = answer(StepOutcome::Stored, &body);
                let (kind, effect) = (StepKind::ToolCall, Effect::Idempotent);
                let row = Row { epoch: turn.epoch, kind, effect, key, body, unknown: false };
                entry.rows.insert((request.step, StepPhase::Result.into()), row);
                (answer, true)
            }
        }
    }

    /// Puts something there that no worker of this build would.
    pub(crate) fn spoil(&mut self, turn: &TurnRef, step: u32, kind: StepKind, body: &str) {
        let row = Row {
            epoch: turn.epoch,
            kind,
            effect: Effect::Unspecified,
            key: String::new(),
            body: body.as_bytes().to_vec(),
            unknown: false,
        };
        let rows = &mut self.turns.entry((turn.session_id, turn.seq)).or_default().rows;
        rows.insert((step, StepPhase::Result.into()), row);
    }

    /// The turn's rows for people, in order.
    pub(crate) fn lines(&self, turn: &TurnRef) -> Vec<String> {
        let rows = self.turns.get(&(turn.session_id, turn.seq)).map(|entry| &entry.rows).into_iter().flatten();
        let line = |((step, phase), row): (&(u32, i32), &Row)| {
            let phase = if *phase == i32::from(StepPhase::Intent) { "intent" } else { "result" };
            let unknown = if row.unknown { " unknown" } else { "" };
            let key = if row.key.is_empty() { String::new() } else { format!(" {}", row.key) };
            let body = match row.kind {
                StepKind::ModelReply => "reply".to_owned(),
                _ => String::from_utf8_lossy(&row.body).into_owned(),
            };
            format!("{step} {phase}{unknown}{key}: {body}")
        };
        rows.map(line).collect()
    }

    pub(crate) fn chunks(&self, turn: &TurnRef) -> Vec<JournalChunk> {
        let rows = self.turns.get(&(turn.session_id, turn.seq)).map(|entry| &entry.rows).into_iter().flatten();
        let mut chunks = Vec::new();
        for ((step, phase), row) in rows {
            // In small pieces: a body may be continued anywhere.
            let mut pieces = row.body.chunks(100).peekable();
            loop {
                let body = pieces.next().unwrap_or_default().to_vec();
                let more = pieces.peek().is_some();
                chunks.push(JournalChunk {
                    step: *step,
                    phase: *phase,
                    kind: row.kind.into(),
                    effect: row.effect.into(),
                    idempotency_key: row.key.clone(),
                    body,
                    more,
                    unknown: row.unknown,
                });
                if !more {
                    break;
                }
            }
        }
        chunks
    }
}
