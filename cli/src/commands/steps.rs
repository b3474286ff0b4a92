//! `turn show`: one turn with the steps of its journal. (`turn stop` is with `session stop`.)

use hermes_proto::v1::session_service_client::SessionServiceClient;
use hermes_proto::v1::{self, GetTurnStepsRequest};
use serde::Serialize;

use super::session::TurnLine;
use super::{Invocation, LINES, all_pages, required};
use crate::args::{TurnCommand, TurnShowArgs};
use crate::connect::{ANSWER_BYTES, Connection, Transport};
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, or_dash, plain_lines, time};

/// Runs it.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(command: TurnCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        TurnCommand::Show(args) => show(args, inv).await,
        TurnCommand::Stop { id } => super::session::stop(id, String::new(), inv).await,
    }
}

fn client(connection: &Connection) -> SessionServiceClient<Transport> {
    SessionServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES)
}

async fn show(args: TurnShowArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let turn = std::cell::RefCell::new(None);
    let steps = all_pages(LINES, args.limit.limit, |page| {
        let (connection, mut client, turn) = (&connection, client(&connection), &turn);
        let request = GetTurnStepsRequest { turn: args.turn.clone(), page: Some(page), bodies: args.full };
        async move {
            let answer = connection.answer(client.get_turn_steps(request)).await?;
            *turn.borrow_mut() = answer.turn;
            Ok((answer.steps, answer.next_page_token))
        }
    })
    .await?;
    let turn = TurnLine::from_proto(required(turn.into_inner(), "the turn")?);
    let steps = steps.into_iter().map(|step| StepView::from_proto(step, args.full)).collect();
    inv.printer.show(&StepsView { turn, steps })?;
    Ok(ExitStatus::Done)
}

#[derive(Serialize)]
struct StepView {
    step: u32,
    phase: String,
    kind: String,
    effect: Option<String>,
    idempotency_key: Option<String>,
    unknown: bool,
    epoch: u64,
    at_ms: i64,
    bytes: u64,
    /// What is no UTF-8 is shown as U+FFFD.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

impl StepView {
    fn from_proto(step: v1::TurnStep, full: bool) -> Self {
        let said = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            step: step.step,
            phase: step.phase,
            kind: step.kind,
            effect: said(step.effect),
            idempotency_key: said(step.idempotency_key),
            unknown: step.unknown,
            epoch: step.epoch,
            at_ms: step.at_ms,
            bytes: step.bytes,
            body: full.then(|| String::from_utf8_lossy(&step.body).into_owned()),
        }
    }
}

#[derive(Serialize)]
struct StepsView {
    #[serde(flatten)]
    turn: TurnLine,
    steps: Vec<StepView>,
}

impl View for StepsView {
    fn table(&self, paint: Paint) -> String {
        let headings = ["STEP", "PHASE", "KIND", "EFFECT", "OUTCOME", "EPOCH", "AT", "BYTES"];
        let mut grid = Grid::new(paint, &headings).right(&[0, 5, 7]);
        for step in &self.steps {
            // An intent is a line of its own; the lines after it say what came of it.
            let outcome = match (step.phase.as_str(), step.unknown) {
                ("result", true) => "unknown",
                ("result", false) => "known",
                _ => "",
            };
            grid.row([
                step.step.to_string(),
                step.phase.clone(),
                step.kind.clone(),
                or_dash(step.effect.as_deref()),
                or_dash(Some(outcome).filter(|outcome| !outcome.is_empty())),
                step.epoch.to_string(),
                time(Some(step.at_ms)),
                step.bytes.to_string(),
            ]);
        }
        let mut text = format!("{}\n\n{}", self.turn.text(paint), grid.finish("no step"));
        for step in &self.steps {
            if let Some(body) = &step.body {
                let head = format!("{} {}", step.step, step.phase);
                text.push_str(&format!("\n\n{}\n{}", paint.dim(&head), plain_lines(body)));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    fn view(full: bool) -> StepsView {
        let turn = v1::TranscriptTurn {
            turn: "t17.12".into(),
            state: "running".into(),
            input: "tidy up".into(),
            accepted_at_ms: 1_700_000_000_000,
            ..v1::TranscriptTurn::default()
        };
        let step = |step, phase: &str, kind: &str, effect: &str, body: &str| v1::TurnStep {
            step,
            phase: phase.into(),
            kind: kind.into(),
            effect: effect.into(),
            epoch: 3,
            at_ms: 1_700_000_001_000 + i64::from(step) * 1_000,
            bytes: body.len() as u64,
            body: body.as_bytes().to_vec(),
            ..v1::TurnStep::default()
        };
        let unknown = v1::TurnStep {
            unknown: true,
            epoch: 5,
            ..step(1, "result", "tool_call", "at_most_once", "nobody knows\u{1b}[31m")
        };
        let steps = vec![
            step(0, "result", "model_reply", "", "{\"text\":\"\"}"),
            step(1, "intent", "tool_call", "at_most_once", "{\"name\":\"send\"}"),
            unknown,
            v1::TurnStep { idempotency_key: "k1".into(), ..step(2, "intent", "tool_call", "idempotent", "{}") },
        ];
        let steps = steps.into_iter().map(|step| StepView::from_proto(step, full)).collect();
        StepsView { turn: TurnLine::from_proto(turn), steps }
    }

    #[test]
    fn a_turn_is_shown_with_its_steps() {
        insta::assert_snapshot!("turn_show_table", render(&view(false), Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("turn_show_json", render(&view(false), Format::Json, Paint::Off).unwrap());
        insta::assert_snapshot!("turn_show_full_table", render(&view(true), Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("turn_show_full_json", render(&view(true), Format::Json, Paint::Off).unwrap());
    }
}
