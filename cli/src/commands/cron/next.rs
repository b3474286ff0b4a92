//! `cron next`: when a schedule runs, computed here with the code the control plane uses. It asks no server.

use hermes_core::cron::{Moved, Schedule};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::CronNextArgs;
use crate::commands::Invocation;
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View};

/// Shows its next runs.
///
/// # Errors
/// When it is no schedule, or one that never runs.
pub(super) fn run(args: &CronNextArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let now = args.now.unwrap_or_else(Timestamp::now);
    let schedule = Schedule::parse(&args.schedule, now, &args.tz)?.admit(now)?;
    let shown = |slot: hermes_core::cron::Slot| SlotView {
        at: slot.at.to_string(),
        local: slot.at.to_zoned(schedule.zone().clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
        moved: slot.moved.map(Moved::as_str),
    };
    let next = schedule.upcoming(now).take(args.count.into()).map(shown).collect();
    inv.printer.show(&NextView { next })?;
    Ok(ExitStatus::Done)
}

/// A run: its instant, the wall clock's time then, and what a clock change did to it.
#[derive(Serialize)]
struct SlotView {
    at: String,
    local: String,
    moved: Option<&'static str>,
}

#[derive(Serialize)]
struct NextView {
    next: Vec<SlotView>,
}

impl View for NextView {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["AT", "LOCAL", "MOVED"]);
        for slot in &self.next {
            grid.row([slot.at.clone(), slot.local.clone(), slot.moved.unwrap_or("-").to_owned()]);
        }
        grid.finish("it does not run any more")
    }
}
