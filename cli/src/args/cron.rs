//! The flags of `cron …`; parsed by `main`, read by the cron commands.

use clap::{Args, Subcommand};

/// `cron …`
#[derive(Debug, Subcommand)]
pub(crate) enum CronCommand {
    /// Show when a schedule runs next; asks no server.
    #[command(
        after_help = "Examples:\n  hermesctl cron next \"0 9 * * mon-fri\"\n  hermesctl cron next \"30 2 * * *\" --tz America/New_York --now 2027-03-13T00:00:00-05:00 -n 3 -o json\n  hermesctl cron next \"every 2h\"\n  hermesctl cron next \"CRON_TZ=Asia/Tokyo @daily\"\n\nA schedule is \"30m\" or \"2h\" (once, after that time), \"every 15m\", \"2027-01-31T09:00\" (once), or a cron pattern: minute,\nhour, day of month, month, day of week, then (where they are wanted) second and year. MOVED says what a clock change did: `gap`, the\ntime was left out, and this is the first instant behind; `repeat`, it comes twice, and this is one of them."
    )]
    Next(CronNextArgs),
}

/// `cron next`
#[derive(Debug, Args)]
pub(crate) struct CronNextArgs {
    /// The schedule.
    #[arg(value_name = "SCHEDULE", allow_hyphen_values = true)]
    pub schedule: String,
    /// The IANA time zone whose wall clock counts, for example Europe/Berlin.
    #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = zone)]
    pub tz: jiff::tz::TimeZone,
    /// From when on, for example 2027-03-13T00:00:00-05:00 [default: now]
    #[arg(long, value_name = "TIME")]
    pub now: Option<jiff::Timestamp>,
    /// How many runs.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,
}

fn zone(name: &str) -> Result<jiff::tz::TimeZone, String> {
    jiff::tz::TimeZone::get(name)
        .map_err(|_| "there is no such time zone; write one as in Europe/Berlin or UTC".to_owned())
}
