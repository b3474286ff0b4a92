//! `budget show|raise|pause|resume`: what agents and users may spend on models, and what they did.

use hermes_proto::v1::budget_service_client::BudgetServiceClient;
use hermes_proto::v1::{self, ListBudgetsRequest, PauseAgentRequest, RaiseBudgetRequest, ResumeAgentRequest};
use serde::Serialize;

use super::{Invocation, LINES, all_pages, required};
use crate::args::{BudgetCommand, BudgetRaiseArgs, BudgetShowArgs};
use crate::connect::{ANSWER_BYTES, Connection, Transport};
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, plain, time};

/// Runs one of them.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(command: BudgetCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        BudgetCommand::Show(args) => show(args, inv).await,
        BudgetCommand::Raise(args) => raise(args, inv).await,
        BudgetCommand::Pause { agent } => set_paused(agent, true, inv).await,
        BudgetCommand::Resume { agent } => set_paused(agent, false, inv).await,
    }
}

fn client(connection: &Connection) -> BudgetServiceClient<Transport> {
    BudgetServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES)
}

async fn show(args: BudgetShowArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let budgets = all_pages(LINES, args.limit.limit, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        let request = ListBudgetsRequest { page: Some(page), agent: args.agent.clone(), users: args.users };
        async move {
            let answer = connection.answer(client.list_budgets(request)).await?;
            Ok((answer.budgets, answer.next_page_token))
        }
    })
    .await?;
    inv.printer.show(&BudgetList(budgets.into_iter().map(BudgetView::from_proto).collect()))?;
    Ok(ExitStatus::Done)
}

async fn raise(args: BudgetRaiseArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let request = RaiseBudgetRequest {
        agent: args.agent,
        usd_per_day: args.usd_per_day,
        usd_per_month: args.usd_per_month,
        tokens_per_day: args.tokens_per_day,
        until_ms: args.until.map(|until| until.as_millisecond()),
    };
    let answer = connection.answer(client(&connection).raise_budget(request)).await?;
    let budget = required(answer.budget, "budget")?;
    inv.printer.show(&BudgetList(vec![BudgetView::from_proto(budget)]))?;
    Ok(ExitStatus::Done)
}

async fn set_paused(agent: String, paused: bool, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let mut client = client(&connection);
    let was_paused = if paused {
        connection.answer(client.pause_agent(PauseAgentRequest { agent: agent.clone() })).await?.was_paused
    } else {
        connection.answer(client.resume_agent(ResumeAgentRequest { agent: agent.clone() })).await?.was_paused
    };
    inv.printer.show(&PausedView { agent, paused, was_paused })?;
    Ok(ExitStatus::Done)
}

#[derive(Serialize)]
struct LimitsView {
    usd_per_day: Option<f64>,
    usd_per_month: Option<f64>,
    tokens_per_day: Option<u64>,
    max_output_tokens: Option<u64>,
    allow_unpriced: bool,
}

#[derive(Serialize)]
struct RaiseView {
    limit: String,
    value: f64,
    until_ms: i64,
    by: String,
}

#[derive(Serialize)]
struct AlertView {
    limit: String,
    turn: String,
    at_ms: i64,
}

#[derive(Serialize)]
struct BudgetView {
    agent: String,
    user: String,
    limits: LimitsView,
    spent_today_usd: f64,
    spent_today_tokens: u64,
    spent_month_usd: f64,
    reserved_usd: f64,
    reserved_tokens: u64,
    day_ends_ms: i64,
    month_ends_ms: i64,
    paused_at_ms: Option<i64>,
    paused_by: String,
    raises: Vec<RaiseView>,
    alerts: Vec<AlertView>,
}

impl BudgetView {
    fn from_proto(standing: v1::BudgetStanding) -> Self {
        let limits = standing.limits.unwrap_or_default();
        let raise = |raise: v1::BudgetRaise| RaiseView {
            limit: raise.limit,
            value: raise.value,
            until_ms: raise.until_ms,
            by: raise.by,
        };
        let alert = |alert: v1::BudgetAlert| AlertView { limit: alert.limit, turn: alert.turn, at_ms: alert.at_ms };
        Self {
            agent: standing.agent,
            user: standing.user,
            limits: LimitsView {
                usd_per_day: limits.usd_per_day,
                usd_per_month: limits.usd_per_month,
                tokens_per_day: limits.tokens_per_day,
                max_output_tokens: limits.max_output_tokens,
                allow_unpriced: limits.allow_unpriced,
            },
            spent_today_usd: standing.spent_today_usd,
            spent_today_tokens: standing.spent_today_tokens,
            spent_month_usd: standing.spent_month_usd,
            reserved_usd: standing.reserved_usd,
            reserved_tokens: standing.reserved_tokens,
            day_ends_ms: standing.day_ends_ms,
            month_ends_ms: standing.month_ends_ms,
            paused_at_ms: standing.paused_at_ms,
            paused_by: standing.paused_by,
            raises: standing.raises.into_iter().map(raise).collect(),
            alerts: standing.alerts.into_iter().map(alert).collect(),
        }
    }

    /// What a person should know beside the numbers.
    fn notes(&self) -> String {
        let limits = &self.limits;
        let bound = limits.usd_per_day.is_some() || limits.usd_per_month.is_some() || limits.tokens_per_day.is_some();
        let uncounted = (!bound).then(|| "no budget, not counted".to_owned());
        let paused = self.paused_at_ms.map(|at| format!("paused since {}", time(Some(at))));
        let raises =
            self.raises.iter().map(|raise| format!("{} raised until {}", raise.limit, time(Some(raise.until_ms))));
        let alerts = self.alerts.iter().map(|alert| format!("{} hit at {}", alert.limit, time(Some(alert.at_ms))));
        uncounted.into_iter().chain(paused).chain(raises).chain(alerts).collect::<Vec<_>>().join("; ")
    }
}

/// Dollars with cents, small amounts with more.
fn usd(dollars: f64) -> String {
    let decimals = if dollars == 0.0 || dollars >= 0.1 { 2 } else { 6 };
    format!("${dollars:.decimals$}")
}

/// `spent / limit`.
fn of(spent: String, limit: Option<String>) -> String {
    format!("{spent} / {}", limit.as_deref().unwrap_or("-"))
}

#[derive(Serialize)]
#[serde(transparent)]
struct BudgetList(Vec<BudgetView>);

impl View for BudgetList {
    fn table(&self, paint: Paint) -> String {
        let headings = ["WHO", "USD TODAY", "USD THIS MONTH", "TOKENS TODAY", "RESERVED", "DAY ENDS", "NOTES"];
        let mut grid = Grid::new(paint, &headings).right(&[1, 2, 3, 4]);
        for budget in &self.0 {
            let limits = &budget.limits;
            grid.row([
                if budget.agent.is_empty() { format!("user {}", budget.user) } else { budget.agent.clone() },
                of(usd(budget.spent_today_usd), limits.usd_per_day.map(usd)),
                of(usd(budget.spent_month_usd), limits.usd_per_month.map(usd)),
                of(budget.spent_today_tokens.to_string(), limits.tokens_per_day.map(|tokens| tokens.to_string())),
                format!("{}, {} tokens", usd(budget.reserved_usd), budget.reserved_tokens),
                time(Some(budget.day_ends_ms)),
                budget.notes(),
            ]);
        }
        grid.finish("nobody spent anything this month")
    }
}

#[derive(Serialize)]
struct PausedView {
    agent: String,
    paused: bool,
    was_paused: bool,
}

impl View for PausedView {
    fn table(&self, _: Paint) -> String {
        let agent = plain(&self.agent);
        match (self.paused, self.was_paused) {
            (true, false) => {
                format!("agent {agent} makes no further model call; `hermesctl budget resume {agent}` ends that")
            }
            (true, true) => format!("agent {agent} was paused already"),
            (false, true) => format!("agent {agent} makes model calls again"),
            (false, false) => format!("agent {agent} was not paused"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    #[test]
    fn budgets_are_shown_with_what_was_spent_of_them() {
        let coder = v1::BudgetStanding {
            agent: "coder".into(),
            limits: Some(v1::Budget { usd_per_day: Some(20.0), usd_per_month: Some(100.0), ..v1::Budget::default() }),
            spent_today_usd: 4.75,
            spent_today_tokens: 120_000,
            spent_month_usd: 61.5,
            reserved_usd: 0.013,
            reserved_tokens: 8500,
            day_ends_ms: 1_700_006_400_000,
            month_ends_ms: 1_701_388_800_000,
            paused_at_ms: Some(1_700_000_000_000),
            paused_by: "0190-token".into(),
            raises: vec![v1::BudgetRaise {
                limit: "usd_per_day".into(),
                value: 20.0,
                until_ms: 1_700_006_400_000,
                by: "0190-token".into(),
            }],
            alerts: vec![v1::BudgetAlert {
                limit: "usd_per_day".into(),
                turn: "t12.4".into(),
                at_ms: 1_699_999_000_000,
            }],
            ..v1::BudgetStanding::default()
        };
        let user = v1::BudgetStanding {
            user: "telegram:777".into(),
            limits: Some(v1::Budget { tokens_per_day: Some(50_000), ..v1::Budget::default() }),
            spent_today_tokens: 49_990,
            day_ends_ms: 1_700_006_400_000,
            ..v1::BudgetStanding::default()
        };
        let free = v1::BudgetStanding { agent: "main".into(), ..v1::BudgetStanding::default() };
        let list = BudgetList([coder, free, user].map(BudgetView::from_proto).into());
        insta::assert_snapshot!("budget_list_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("budget_list_json", render(&list, Format::Json, Paint::Off).unwrap());
        insta::assert_snapshot!(render(&BudgetList(vec![]), Format::Table, Paint::Off).unwrap(), @"nobody spent anything this month");
    }

    #[test]
    fn a_pause_says_what_it_did() {
        let said = |paused, was_paused| {
            let view = PausedView { agent: "coder".to_owned(), paused, was_paused };
            render(&view, Format::Table, Paint::Off).unwrap()
        };
        insta::assert_snapshot!(said(true, false), @"agent coder makes no further model call; `hermesctl budget resume coder` ends that");
        insta::assert_snapshot!(said(true, true), @"agent coder was paused already");
        insta::assert_snapshot!(said(false, true), @"agent coder makes model calls again");
        insta::assert_snapshot!(said(false, false), @"agent coder was not paused");
    }
}
