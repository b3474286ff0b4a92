//! `dead list|redrive|drop`: messages that were given up, and what to do about them.

use hermes_proto::v1::{self, DropTurnsRequest, ListDeadTurnsRequest, RedriveTurnsRequest};
use serde::Serialize;

use super::delivery::{client, settled};
use super::{Invocation, TEXTS, all_pages};
use crate::args::{DeadCommand, DeadListArgs, DeadTurnsArgs};
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, time};

/// Most characters of an input in a table.
const INPUT: usize = 60;

/// Runs one of them.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(command: DeadCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        DeadCommand::List(args) => list(args, inv).await,
        DeadCommand::Redrive(args) => settle(args, true, inv).await,
        DeadCommand::Drop(args) => settle(args, false, inv).await,
    }
}

async fn list(args: DeadListArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let turns = all_pages(TEXTS, args.limit.limit, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        let request = ListDeadTurnsRequest { page: Some(page), include_settled: args.settled };
        async move {
            let answer = connection.answer(client.list_dead_turns(request)).await?;
            Ok((answer.turns, answer.next_page_token))
        }
    })
    .await?;
    inv.printer.show(&DeadList(turns.into_iter().map(DeadView::from_proto).collect()))?;
    Ok(ExitStatus::Done)
}

async fn settle(args: DeadTurnsArgs, again: bool, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let mut results = Vec::new();
    loop {
        let (turns, all) = (args.turns.clone(), args.all);
        let mut client = client(&connection);
        let (batch, more) = if again {
            let answer = connection.answer(client.redrive_turns(RedriveTurnsRequest { turns, all })).await?;
            (answer.results, answer.more)
        } else {
            let answer = connection.answer(client.drop_turns(DropTurnsRequest { turns, all })).await?;
            (answer.results, answer.more)
        };
        let progress = batch.iter().any(|result| result.refused.is_empty());
        results.extend(batch);
        if !more || !progress {
            return settled(results, if again { "redriven as" } else { "dropped" }, inv);
        }
    }
}

#[derive(Serialize)]
struct DeadView {
    turn: String,
    agent: String,
    session_key: String,
    reason: String,
    died_at_ms: i64,
    input: String,
    settled: String,
    settled_by: String,
    settled_at_ms: Option<i64>,
    redriven_as: String,
    redrives: u32,
}

impl DeadView {
    fn from_proto(dead: v1::DeadTurn) -> Self {
        Self {
            turn: dead.turn,
            agent: dead.agent,
            session_key: dead.session_key,
            reason: dead.reason,
            died_at_ms: dead.died_at_ms,
            input: dead.input,
            settled: dead.settled,
            settled_by: dead.settled_by,
            settled_at_ms: dead.settled_at_ms,
            redriven_as: dead.redriven_as,
            redrives: dead.redrives,
        }
    }

    fn standing(&self) -> String {
        match (self.settled.as_str(), self.redriven_as.as_str()) {
            ("", _) => "open".to_owned(),
            (how, "") => how.to_owned(),
            (how, again) => format!("{how} as {again}"),
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct DeadList(Vec<DeadView>);

impl View for DeadList {
    fn table(&self, paint: Paint) -> String {
        let headings = ["TURN", "AGENT", "REASON", "DIED", "STANDING", "INPUT", "KEY"];
        let mut grid = Grid::new(paint, &headings);
        for dead in &self.0 {
            let mut input: String = dead.input.chars().take(INPUT).collect();
            if input.len() < dead.input.len() {
                input.push('…');
            }
            grid.row([
                dead.turn.clone(),
                dead.agent.clone(),
                dead.reason.clone(),
                time(Some(dead.died_at_ms)),
                dead.standing(),
                input,
                dead.session_key.clone(),
            ]);
        }
        grid.finish("no message was given up")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    #[test]
    fn dead_turns_are_shown_with_their_inputs() {
        let open = v1::DeadTurn {
            turn: "t12.4".into(),
            agent: "coder".into(),
            session_key: "agent:coder:telegram:dm:11".into(),
            reason: "crashed".into(),
            died_at_ms: 1_700_000_000_000,
            input: "a long question ".repeat(8),
            ..v1::DeadTurn::default()
        };
        let settled = v1::DeadTurn {
            turn: "t12.3".into(),
            input: "short".into(),
            settled: "redriven".into(),
            settled_by: "0190-token".into(),
            settled_at_ms: Some(1_700_000_001_000),
            redriven_as: "t12.5".into(),
            redrives: 1,
            ..open.clone()
        };
        let list = DeadList([open, settled].map(DeadView::from_proto).into());
        insta::assert_snapshot!("dead_list_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("dead_list_json", render(&list, Format::Json, Paint::Off).unwrap());
        insta::assert_snapshot!(render(&DeadList(vec![]), Format::Table, Paint::Off).unwrap(), @"no message was given up");
    }
}
