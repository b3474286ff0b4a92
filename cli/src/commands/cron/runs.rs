//! Runs of a job as they are shown. Called by the cron commands. Always true: a run is named by its slot, which is shown to the last digit.

use hermes_proto::v1::{self, CronRunState};
use jiff::SignedDuration;
use serde::Serialize;

use super::view::{filled, words};
use crate::commands::{required, unknown};
use crate::output::{Grid, Paint, View, or_dash, pairs, plain, plain_lines, time};

#[derive(Serialize)]
struct UsageView {
    input_tokens: u64,
    output_tokens: u64,
    cached_tokens: u64,
    cost_usd: Option<f64>,
    model: String,
}

#[derive(Serialize)]
struct DeliveryView {
    chat: String,
    state: String,
}

/// A run.
#[derive(Serialize)]
pub(super) struct RunView {
    job: String,
    slot: String,
    state: &'static str,
    by_hand: bool,
    slots: u32,
    until: Option<String>,
    reason: Option<String>,
    turn: Option<String>,
    began_at_ms: i64,
    ended_at_ms: Option<i64>,
    duration_ms: Option<i64>,
    usage: Option<UsageView>,
    output: Option<String>,
    deliveries: Vec<DeliveryView>,
    undelivered: Option<String>,
}

/// A state's name.
///
/// # Errors
/// For one that this build does not know.
pub(super) fn state_of(state: i32) -> anyhow::Result<&'static str> {
    Ok(match CronRunState::try_from(state) {
        Ok(CronRunState::Waiting) => "waiting",
        Ok(CronRunState::Running) => "running",
        Ok(CronRunState::Ran) => "ran",
        Ok(CronRunState::Failed) => "failed",
        Ok(CronRunState::Missed) => "missed",
        Ok(CronRunState::Skipped) => "skipped",
        Ok(CronRunState::Cancelled) => "cancelled",
        Ok(CronRunState::Unspecified) | Err(_) => return Err(unknown("state of a run", state)),
    })
}

impl RunView {
    /// A run of the job with that id.
    ///
    /// # Errors
    /// What this build does not know.
    pub(super) fn from_proto(job: String, run: v1::CronRun) -> anyhow::Result<Self> {
        let state = state_of(run.state)?;
        let turn = filled(run.turn);
        let usage = UsageView {
            input_tokens: run.input_tokens,
            output_tokens: run.output_tokens,
            cached_tokens: run.cached_tokens,
            cost_usd: run.cost_usd,
            model: run.model,
        };
        let deliveries = run.deliveries.into_iter().map(|one| DeliveryView { chat: one.chat, state: one.state });
        Ok(Self {
            job: required(filled(job), "the job's id")?,
            slot: run.slot,
            state,
            by_hand: run.by_hand,
            slots: run.slots,
            until: filled(run.until),
            reason: filled(run.reason),
            usage: turn.is_some().then_some(usage),
            turn,
            began_at_ms: run.began_at_ms,
            ended_at_ms: run.ended_at_ms,
            duration_ms: run.ended_at_ms.map(|ended| ended.saturating_sub(run.began_at_ms)),
            output: run.output,
            deliveries: deliveries.collect(),
            undelivered: filled(run.undelivered),
        })
    }

    /// Whether nothing more becomes of it.
    pub(super) fn is_over(&self) -> bool {
        !matches!(self.state, "waiting" | "running")
    }

    /// What is to be said when it is over and did not run.
    pub(super) fn complaint(&self) -> Option<String> {
        let why = self.reason.as_deref().map(|why| format!(": {}", plain(why))).unwrap_or_default();
        (self.state != "ran").then(|| format!("error: the run is {}{why}", self.state))
    }

    fn state(&self) -> String {
        let many = if self.slots > 1 { format!(" {} times", self.slots) } else { String::new() };
        format!("{}{many}{}", self.state, if self.by_hand { ", by hand" } else { "" })
    }

    fn took(&self) -> String {
        let took = self.duration_ms.filter(|_| self.turn.is_some()).map(SignedDuration::from_millis);
        took.map_or_else(|| "-".to_owned(), words)
    }

    fn tokens(&self) -> String {
        self.usage
            .as_ref()
            .map_or_else(|| "-".to_owned(), |usage| (usage.input_tokens + usage.output_tokens).to_string())
    }

    fn delivered(&self) -> String {
        let sent = self.deliveries.iter().map(|one| format!("{} {}", one.chat, one.state));
        let all: Vec<String> = sent.chain(self.undelivered.clone()).collect();
        if all.is_empty() { "-".to_owned() } else { all.join("; ") }
    }
}

/// One run with all that is known of it.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct WholeRun(pub RunView);

impl View for WholeRun {
    fn table(&self, paint: Paint) -> String {
        let run = &self.0;
        let mut rows = vec![("job", run.job.clone()), ("slot", run.slot.clone()), ("state", run.state())];
        rows.extend(run.until.clone().map(|until| ("until", until)));
        rows.extend(run.reason.clone().map(|reason| ("reason", reason)));
        rows.extend(run.turn.clone().map(|turn| ("turn", turn)));
        rows.push(("began", time(Some(run.began_at_ms))));
        rows.push(("took", run.took()));
        if let Some(usage) = &run.usage {
            let cost = usage.cost_usd.map(|usd| format!(", {usd} USD")).unwrap_or_default();
            let model = if usage.model.is_empty() { String::new() } else { format!(", {}", usage.model) };
            rows.push(("used", format!("{} tokens{cost}{model}", run.tokens())));
        }
        rows.push(("delivered", run.delivered()));
        let output = run.output.as_deref().filter(|output| !output.is_empty());
        let output = output.map(|output| format!("\n\n{}", plain_lines(output))).unwrap_or_default();
        format!("{}{output}", pairs(paint, &rows))
    }
}

/// Several runs.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct RunList(pub Vec<RunView>);

impl View for RunList {
    fn table(&self, paint: Paint) -> String {
        let headings = ["SLOT", "STATE", "TOOK", "TURN", "TOKENS", "DELIVERED", "REASON"];
        let mut grid = Grid::new(paint, &headings).right(&[4]);
        for run in &self.0 {
            grid.row([
                run.slot.clone(),
                run.state(),
                run.took(),
                or_dash(run.turn.as_deref()),
                run.tokens(),
                run.delivered(),
                or_dash(run.reason.as_deref()),
            ]);
        }
        grid.finish("it has not run yet")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    fn runs() -> Vec<RunView> {
        let ran = v1::CronRun {
            slot: "2027-03-26T08:00:00Z".into(),
            state: CronRunState::Ran.into(),
            slots: 1,
            turn: "t12.4".into(),
            began_at_ms: 1_700_000_000_000,
            ended_at_ms: Some(1_700_000_065_400),
            output: Some("two \u{7}things\nchanged".into()),
            input_tokens: 100,
            output_tokens: 50,
            cached_tokens: 40,
            cost_usd: Some(0.00164),
            model: "mock/mock-1".into(),
            deliveries: vec![
                v1::CronDelivery { chat: "telegram/front/11".into(), state: "delivered".into() },
                v1::CronDelivery { chat: "telegram/front/-100/7".into(), state: "dead".into() },
            ],
            undelivered: "no chat to deliver to: slack has no home chat".into(),
            ..v1::CronRun::default()
        };
        let missed = v1::CronRun {
            slot: "2027-03-20T08:00:00Z".into(),
            state: CronRunState::Missed.into(),
            slots: 5,
            until: "2027-03-25T08:00:00Z".into(),
            reason: "nobody ran it in time (5 of missed: once)".into(),
            began_at_ms: 1_700_000_000_000,
            ended_at_ms: Some(1_700_000_000_000),
            ..v1::CronRun::default()
        };
        let by_hand = v1::CronRun {
            slot: "2027-03-26T11:59:58.000123Z".into(),
            state: CronRunState::Running.into(),
            slots: 1,
            by_hand: true,
            turn: "t12.5".into(),
            began_at_ms: 1_700_000_000_000,
            ..v1::CronRun::default()
        };
        [by_hand, ran, missed].map(|run| RunView::from_proto("3f9a1c07b2de".into(), run).unwrap()).into()
    }

    #[test]
    fn runs_are_shown_with_what_became_of_them() {
        insta::assert_snapshot!("cron_runs_table", render(&RunList(runs()), Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("cron_runs_json", render(&RunList(runs()), Format::Json, Paint::Off).unwrap());
        let ran = WholeRun(runs().remove(1));
        insta::assert_snapshot!("cron_run_table", render(&ran, Format::Table, Paint::Off).unwrap());
        let over: Vec<bool> = runs().iter().map(RunView::is_over).collect();
        assert_eq!(over, [false, true, true]);
        assert_eq!(ran.0.complaint(), None);
        let complaint = runs()[2].complaint().unwrap();
        assert_eq!(complaint, "error: the run is missed: nobody ran it in time (5 of missed: once)");
        assert!(RunView::from_proto("3f9a1c07b2de".into(), v1::CronRun::default()).is_err());
    }
}
