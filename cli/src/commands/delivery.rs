//! `delivery list|show|redrive`: replies on their way into chats, and those that were given up.

use hermes_proto::v1::delivery_service_client::DeliveryServiceClient;
use hermes_proto::v1::{self, GetDeliveryRequest, ListDeliveriesRequest, RedriveDeliveriesRequest};
use serde::Serialize;

use super::{Invocation, LINES, all_pages, required, unknown};
use crate::args::{DeliveryCommand, DeliveryListArgs, DeliveryRedriveArgs, DeliveryState};
use crate::connect::{ANSWER_BYTES, Connection, Transport};
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, or_dash, pairs, plain_lines, time};

/// Runs one of them.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(command: DeliveryCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        DeliveryCommand::List(args) => list(args, inv).await,
        DeliveryCommand::Show { id } => show(id, inv).await,
        DeliveryCommand::Redrive(args) => redrive(args, inv).await,
    }
}

/// The service, with room for long texts.
pub(super) fn client(connection: &Connection) -> DeliveryServiceClient<Transport> {
    DeliveryServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES)
}

async fn list(args: DeliveryListArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let states: Vec<i32> = args.states.iter().map(|state| v1::DeliveryState::from(*state).into()).collect();
    let deliveries = all_pages(LINES, args.limit.limit, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        let request = ListDeliveriesRequest {
            page: Some(page),
            states: states.clone(),
            platform: args.platform.clone(),
            account: args.account.clone(),
            chat_id: args.chat.clone(),
        };
        async move {
            let answer = connection.answer(client.list_deliveries(request)).await?;
            Ok((answer.deliveries, answer.next_page_token))
        }
    })
    .await?;
    let deliveries = deliveries.into_iter().map(DeliveryView::from_proto).collect::<anyhow::Result<_>>()?;
    inv.printer.show(&DeliveryList(deliveries))?;
    Ok(ExitStatus::Done)
}

async fn show(id: String, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let mut client = client(&connection);
    let answer = connection.answer(client.get_delivery(GetDeliveryRequest { id })).await?;
    let delivery = DeliveryView::from_proto(required(answer.delivery, "the delivery")?)?;
    inv.printer.show(&WholeView { delivery, text: answer.text })?;
    Ok(ExitStatus::Done)
}

async fn redrive(args: DeliveryRedriveArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let mut results = Vec::new();
    loop {
        let request = RedriveDeliveriesRequest {
            ids: args.ids.clone(),
            all_dead: args.all_dead,
            platform: args.platform.clone(),
            account: args.account.clone(),
        };
        let mut client = client(&connection);
        let answer = connection.answer(client.redrive_deliveries(request)).await?;
        let progress = answer.results.iter().any(|result| result.refused.is_empty());
        results.extend(answer.results);
        if !answer.more || !progress {
            return settled(results, "redriven as", inv);
        }
    }
}

/// What was done, on stdout, and what was refused, on stderr.
///
/// # Errors
/// When stdout is gone.
pub(super) fn settled(
    results: Vec<v1::Redriven>,
    done: &'static str,
    inv: &mut Invocation,
) -> anyhow::Result<ExitStatus> {
    let (did, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(|result| result.refused.is_empty());
    for result in &refused {
        inv.printer.error(&result.refused);
    }
    if !did.is_empty() || refused.is_empty() {
        let lines = did.into_iter().map(|result| SettledView { id: result.id, redriven_as: result.redriven_as });
        inv.printer.show(&SettledList { done, lines: lines.collect() })?;
    }
    Ok(if refused.is_empty() { ExitStatus::Done } else { ExitStatus::Failed })
}

impl From<DeliveryState> for v1::DeliveryState {
    fn from(state: DeliveryState) -> Self {
        match state {
            DeliveryState::Waiting => Self::Waiting,
            DeliveryState::Attempting => Self::Attempting,
            DeliveryState::Retrying => Self::Retrying,
            DeliveryState::Dead => Self::Dead,
            DeliveryState::Delivered => Self::Delivered,
        }
    }
}

#[derive(Serialize)]
struct DeliveryView {
    id: String,
    state: &'static str,
    platform: String,
    account: String,
    chat_id: String,
    thread_id: String,
    turn: String,
    attempts: u32,
    failures: u32,
    maybe_duplicate: bool,
    parts: u32,
    cause: String,
    next_at_ms: Option<i64>,
    ended_at_ms: Option<i64>,
    message_id: String,
    redriven_as: String,
    redriven_by: String,
    redriven_at_ms: Option<i64>,
    chat_dead: String,
}

impl DeliveryView {
    fn from_proto(delivery: v1::Delivery) -> anyhow::Result<Self> {
        let state = match delivery.state() {
            v1::DeliveryState::Waiting => "waiting",
            v1::DeliveryState::Attempting => "attempting",
            v1::DeliveryState::Retrying => "retrying",
            v1::DeliveryState::Dead => "dead",
            v1::DeliveryState::Delivered => "delivered",
            v1::DeliveryState::Unspecified => return Err(unknown("delivery state", delivery.state)),
        };
        Ok(Self {
            id: delivery.id,
            state,
            platform: delivery.platform,
            account: delivery.account,
            chat_id: delivery.chat_id,
            thread_id: delivery.thread_id,
            turn: delivery.turn,
            attempts: delivery.attempts,
            failures: delivery.failures,
            maybe_duplicate: delivery.maybe_duplicate,
            parts: delivery.parts,
            cause: delivery.cause,
            next_at_ms: delivery.next_at_ms,
            ended_at_ms: delivery.ended_at_ms,
            message_id: delivery.message_id,
            redriven_as: delivery.redriven_as,
            redriven_by: delivery.redriven_by,
            redriven_at_ms: delivery.redriven_at_ms,
            chat_dead: delivery.chat_dead,
        })
    }

    fn standing(&self) -> String {
        match self.redriven_as.as_str() {
            "" => self.state.to_owned(),
            again => format!("{} (redriven as {again})", self.state),
        }
    }

    fn chat(&self) -> String {
        let thread = if self.thread_id.is_empty() { String::new() } else { format!("/{}", self.thread_id) };
        format!("{}/{}/{}{thread}", self.platform, self.account, self.chat_id)
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct DeliveryList(Vec<DeliveryView>);

impl View for DeliveryList {
    fn table(&self, paint: Paint) -> String {
        let headings = ["DELIVERY", "STATE", "CHAT", "TURN", "ATTEMPTS", "NEXT", "CAUSE"];
        let mut grid = Grid::new(paint, &headings).right(&[4]);
        for delivery in &self.0 {
            grid.row([
                delivery.id.clone(),
                delivery.standing(),
                delivery.chat(),
                delivery.turn.clone(),
                delivery.attempts.to_string(),
                time(delivery.next_at_ms),
                or_dash(Some(&delivery.cause)),
            ]);
        }
        grid.finish("nothing is on its way and nothing was given up")
    }
}

#[derive(Serialize)]
struct WholeView {
    #[serde(flatten)]
    delivery: DeliveryView,
    text: String,
}

impl View for WholeView {
    fn table(&self, paint: Paint) -> String {
        let delivery = &self.delivery;
        let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
        let head = pairs(
            paint,
            &[
                ("delivery", delivery.id.clone()),
                ("state", delivery.standing()),
                ("chat", delivery.chat()),
                ("chat dead", or_dash(Some(&delivery.chat_dead))),
                ("turn", delivery.turn.clone()),
                ("attempts", format!("{}, {} failed", delivery.attempts, delivery.failures)),
                ("may be a duplicate", yes(delivery.maybe_duplicate)),
                ("parts arrived", delivery.parts.to_string()),
                ("cause", or_dash(Some(&delivery.cause))),
                ("next attempt", time(delivery.next_at_ms)),
                ("ended", time(delivery.ended_at_ms)),
                ("message", or_dash(Some(&delivery.message_id))),
                ("redriven by", or_dash(Some(&delivery.redriven_by))),
            ],
        );
        format!("{head}\n\n{}", plain_lines(&self.text))
    }
}

#[derive(Serialize)]
struct SettledView {
    id: String,
    redriven_as: String,
}

#[derive(Serialize)]
#[serde(transparent)]
struct SettledList {
    #[serde(skip)]
    done: &'static str,
    lines: Vec<SettledView>,
}

impl View for SettledList {
    fn table(&self, _paint: Paint) -> String {
        if self.lines.is_empty() {
            return "there is none".to_owned();
        }
        let line = |line: &SettledView| match line.redriven_as.as_str() {
            "" => format!("{} {}", line.id, self.done),
            again => format!("{} {} {again}", line.id, self.done),
        };
        self.lines.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    fn delivery(id: &str, state: v1::DeliveryState) -> v1::Delivery {
        v1::Delivery {
            id: id.into(),
            state: state.into(),
            platform: "telegram".into(),
            account: "support".into(),
            chat_id: "-1001234".into(),
            turn: "t12.4".into(),
            attempts: 3,
            failures: 2,
            ..v1::Delivery::default()
        }
    }

    #[test]
    fn deliveries_are_shown_with_what_they_wait_for() {
        let retrying = v1::Delivery {
            thread_id: "42".into(),
            cause: "telegram says 500 Internal Server Error".into(),
            next_at_ms: Some(1_700_000_000_000),
            ..delivery("d7.124", v1::DeliveryState::Retrying)
        };
        let dead = v1::Delivery {
            cause: "telegram says 403 Forbidden: bot was blocked by the user".into(),
            ended_at_ms: Some(1_700_000_000_000),
            maybe_duplicate: true,
            redriven_as: "d7.125".into(),
            redriven_by: "0190-token".into(),
            chat_dead: "telegram says 403".into(),
            ..delivery("d7.123", v1::DeliveryState::Dead)
        };
        let views = || [retrying.clone(), dead.clone()].map(|delivery| DeliveryView::from_proto(delivery).unwrap());
        let list = DeliveryList(views().into());
        insta::assert_snapshot!("delivery_list_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("delivery_list_json", render(&list, Format::Json, Paint::Off).unwrap());
        let [_, delivery] = views();
        let whole = WholeView { delivery, text: "Hello,\nworld".into() };
        insta::assert_snapshot!("delivery_show_table", render(&whole, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("delivery_show_json", render(&whole, Format::Json, Paint::Off).unwrap());
        let odd = v1::Delivery { state: 99, ..v1::Delivery::default() };
        assert!(DeliveryView::from_proto(odd).is_err());
    }

    #[test]
    fn what_was_redriven_is_named() {
        let line = |id: &str, again: &str| SettledView { id: id.into(), redriven_as: again.into() };
        let list = SettledList { done: "redriven as", lines: vec![line("d7.123", "d7.125"), line("d7.124", "d7.126")] };
        insta::assert_snapshot!(render(&list, Format::Table, Paint::Off).unwrap(), @r"
        d7.123 redriven as d7.125
        d7.124 redriven as d7.126
        ");
        let none = SettledList { done: "dropped", lines: vec![] };
        insta::assert_snapshot!(render(&none, Format::Table, Paint::Off).unwrap(), @"there is none");
        insta::assert_snapshot!(render(&none, Format::Json, Paint::Off).unwrap(), @"[]");
    }
}
