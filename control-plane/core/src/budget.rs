//! Budgets of model use: what a call may take, whether it is let in, and until when a used up budget binds.
//!
//! Asked by the control plane before each model call of an agent that has a budget and after it, and by the configuration for
//! its warnings. Always true: a call is let in only where what was spent and is reserved, and the most that the call may take,
//! stay within every limit; amounts are whole nano-dollars, so sums do not drift; costs are rounded up, never down; days and
//! months are those of the document's time zone. It deliberately knows no price by itself and keeps no account: the store
//! does, and compares by [`Budget::ceilings`] under its lock.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::AgentId;
use crate::turn::Usage;

/// Largest answer of one call under a budget that does not say another one, tokens.
pub const OUTPUT_TOKENS: u64 = 8192;
/// Bytes of input that are reserved as one token. Models come to three or four bytes of prose, less of code.
const BYTES_PER_TOKEN: u64 = 3;
const NANOS: f64 = 1e9;
const MILLION: u128 = 1_000_000;

/// US dollars, as whole nano-dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "f64", into = "f64")]
pub struct Usd(u64);

impl Usd {
    /// Most that a limit or a price may be, dollars.
    pub const MOST: f64 = 1_000_000.0;

    /// So many nano-dollars.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// In nano-dollars.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// In dollars, for people and programs.
    pub fn dollars(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "shown, not summed; exact below nine million dollars")]
        let nanos = self.0 as f64;
        nanos / NANOS
    }

    /// The sum, bounded.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The rest, never below nothing.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl From<f64> for Usd {
    /// To the nearest nano-dollar; what is no amount is nothing.
    fn from(dollars: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, and NaN is 0")]
        let nanos = (dollars * NANOS).round() as u64;
        Self(nanos)
    }
}

impl From<Usd> for f64 {
    fn from(usd: Usd) -> Self {
        usd.dollars()
    }
}

impl fmt::Display for Usd {
    /// `$1.50`; an amount below ten cents with six decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = if self.0 == 0 || self.0 >= 100_000_000 { 2 } else { 6 };
        write!(f, "${:.decimals$}", self.dollars())
    }
}

/// What a model costs, US dollars for a million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Tokens read.
    #[serde(rename = "input_usd_per_mtok")]
    pub input: Usd,
    /// Tokens written.
    #[serde(rename = "output_usd_per_mtok")]
    pub output: Usd,
    /// Tokens read from the provider's cache; absent: as others that are read.
    #[serde(default, rename = "cached_usd_per_mtok", skip_serializing_if = "Option::is_none")]
    pub cached: Option<Usd>,
}

impl Price {
    /// What so many tokens cost, rounded up; `input` holds the cached ones, too.
    pub fn cost(&self, input: u64, cached: u64, output: u64) -> Usd {
        let cached = cached.min(input);
        let part = |tokens: u64, price: Usd| u128::from(tokens) * u128::from(price.0);
        let cached_price = self.cached.unwrap_or(self.input);
        let all = part(input - cached, self.input) + part(cached, cached_price) + part(output, self.output);
        Usd(u64::try_from(all.div_ceil(MILLION)).unwrap_or(u64::MAX))
    }
}

/// An amount of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// What it costs.
    pub usd: Usd,
    /// Tokens read and written.
    pub tokens: u64,
}

impl Amount {
    /// The most that a call may take: its input by its bytes, and the largest answer that it is allowed. Without a price it
    /// counts by its tokens alone.
    pub fn reserved(input_bytes: u64, output_tokens: u64, price: Option<&Price>) -> Self {
        let input = input_bytes.div_ceil(BYTES_PER_TOKEN);
        let usd = price.map_or(Usd::default(), |price| price.cost(input, 0, output_tokens));
        Self { usd, tokens: input.saturating_add(output_tokens) }
    }

    /// What a call used, as its provider reported it, at the provider's own cost or else by `price`. Nothing when it did not
    /// report any.
    pub fn used(usage: &Usage, price: Option<&Price>) -> Option<Self> {
        let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
        let priced = || price.map(|price| price.cost(usage.input_tokens, usage.cached_tokens, usage.output_tokens));
        let usd = usage.cost_usd.map(Usd::from).or_else(priced).unwrap_or_default();
        (tokens > 0).then_some(Self { usd, tokens })
    }

    /// In each part the larger one.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { usd: self.usd.max(other.usd), tokens: self.tokens.max(other.tokens) }
    }
}

/// What a budget says of models whose price nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unpriced {
    /// A limit in dollars refuses them: it could not hold.
    #[default]
    Refuse,
    /// They are asked; they count by their tokens, and by the cost that their provider reports, if it does.
    Allow,
}

impl Unpriced {
    /// The name written in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Allow => "allow",
        }
    }
}

/// One of a budget's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// US dollars in a day.
    UsdPerDay,
    /// US dollars in a month.
    UsdPerMonth,
    /// Tokens in a day.
    TokensPerDay,
}

impl Limit {
    /// All of them; the one that binds longest first.
    pub const ALL: [Self; 3] = [Self::UsdPerMonth, Self::UsdPerDay, Self::TokensPerDay];

    /// The key in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UsdPerDay => "usd_per_day",
            Self::UsdPerMonth => "usd_per_month",
            Self::TokensPerDay => "tokens_per_day",
        }
    }

    /// The limit of this key.
    pub fn parse(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|limit| limit.as_str() == key)
    }

    /// The end of the period that it counts.
    pub const fn ends(self, periods: &Periods) -> Timestamp {
        match self {
            Self::UsdPerMonth => periods.month_ends,
            Self::UsdPerDay | Self::TokensPerDay => periods.day_ends,
        }
    }

    /// The first day of the period that it counts.
    pub const fn begins(self, periods: &Periods) -> Date {
        match self {
            Self::UsdPerMonth => periods.month,
            Self::UsdPerDay | Self::TokensPerDay => periods.day,
        }
    }
}

/// The most that may be used. Without a limit it bounds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// US dollars in a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_day: Option<Usd>,
    /// US dollars in a month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_month: Option<Usd>,
    /// Tokens in a day, read and written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
    /// Largest answer of one call, tokens: reserved before the call and told to the provider. Absent: [`OUTPUT_TOKENS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
    /// Models without a price.
    #[serde(default)]
    pub unpriced: Unpriced,
}

/// A limit that an operator has raised for a time, apart from the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raise {
    /// Which.
    pub limit: Limit,
    /// To what: nano-dollars or tokens.
    pub value: u64,
    /// Until when.
    pub until: Timestamp,
}

/// What was spent, open reservations included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Today.
    pub day: Amount,
    /// This month, today included.
    pub month: Usd,
}

/// What may have been spent, at most, for a call to be let in; nothing: any amount. Below zero no call fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ceilings {
    /// Today, nano-dollars.
    pub day_usd: Option<i64>,
    /// This month, nano-dollars.
    pub month_usd: Option<i64>,
    /// Today, tokens.
    pub day_tokens: Option<i64>,
}

impl Budget {
    /// One of its limits: nano-dollars or tokens.
    pub fn limit(&self, limit: Limit) -> Option<u64> {
        match limit {
            Limit::UsdPerDay => self.usd_per_day.map(Usd::nanos),
            Limit::UsdPerMonth => self.usd_per_month.map(Usd::nanos),
            Limit::TokensPerDay => self.tokens_per_day,
        }
    }

    /// Whether it bounds anything.
    pub fn binds(&self) -> bool {
        Limit::ALL.into_iter().any(|limit| self.limit(limit).is_some())
    }

    /// Whether it bounds dollars.
    pub fn binds_usd(&self) -> bool {
        self.usd_per_day.is_some() || self.usd_per_month.is_some()
    }

    /// Largest answer of one call, tokens.
    pub fn output_tokens(&self) -> u64 {
        self.max_output_tokens.unwrap_or(OUTPUT_TOKENS)
    }

    /// With the raises that hold at `now`. A raise never lowers a limit and never makes one.
    #[must_use]
    pub fn raised(&self, raises: &[Raise], now: Timestamp) -> Self {
        let mut raised = self.clone();
        for raise in raises.iter().filter(|raise| raise.until > now) {
            match raise.limit {
                Limit::UsdPerDay => raised.usd_per_day = raised.usd_per_day.map(|now| now.max(Usd(raise.value))),
                Limit::UsdPerMonth => raised.usd_per_month = raised.usd_per_month.map(|now| now.max(Usd(raise.value))),
                Limit::TokensPerDay => raised.tokens_per_day = raised.tokens_per_day.map(|now| now.max(raise.value)),
            }
        }
        raised
    }

    /// The limit that a call of at most `ask` does not fit into after what was `spent`; of several the one that binds
    /// longest. Nothing: it is let in.
    pub fn exceeded(&self, spent: &Spent, ask: &Amount) -> Option<Limit> {
        Limit::ALL.into_iter().find(|limit| {
            let (spent, ask) = match limit {
                Limit::UsdPerDay => (spent.day.usd.0, ask.usd.0),
                Limit::UsdPerMonth => (spent.month.0, ask.usd.0),
                Limit::TokensPerDay => (spent.day.tokens, ask.tokens),
            };
            self.limit(*limit).is_some_and(|most| spent.saturating_add(ask) > most)
        })
    }

    /// [`Budget::exceeded`] as bounds of what was spent, for who compares under a lock.
    pub fn ceilings(&self, ask: &Amount) -> Ceilings {
        let below = |most: Option<u64>, ask: u64| {
            let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            most.map(|most| signed(most).saturating_sub(signed(ask)))
        };
        Ceilings {
            day_usd: below(self.limit(Limit::UsdPerDay), ask.usd.0),
            month_usd: below(self.limit(Limit::UsdPerMonth), ask.usd.0),
            day_tokens: below(self.limit(Limit::TokensPerDay), ask.tokens),
        }
    }
}

/// The day and the month of an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periods {
    /// The day.
    pub day: Date,
    /// The first day of the month.
    pub month: Date,
    /// When the next day begins.
    pub day_ends: Timestamp,
    /// When the next month begins.
    pub month_ends: Timestamp,
}

impl Periods {
    /// Those of `now` in `zone`.
    pub fn at(now: Timestamp, zone: &TimeZone) -> Self {
        let day = now.to_zoned(zone.clone()).date();
        let begins = |date: Option<Date>| {
            // Days exist on both sides of any time that a clock shows.
            date.and_then(|date| date.to_zoned(zone.clone()).ok()).map_or(Timestamp::MAX, |zoned| zoned.timestamp())
        };
        let next_month = day.last_of_month().tomorrow().ok();
        Self { day, month: day.first_of_month(), day_ends: begins(day.tomorrow().ok()), month_ends: begins(next_month) }
    }
}

/// Whose budget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payer<'a> {
    /// An agent's.
    Agent(&'a AgentId),
    /// Of the one who wrote the message.
    User,
}

/// The sentence for the chat whose message needs a call that does not fit, without a full stop.
pub fn refusal(
    payer: Payer<'_>,
    budget: &Budget,
    limit: Limit,
    ask: &Amount,
    periods: &Periods,
    zone: &TimeZone,
) -> String {
    let next = match limit {
        Limit::UsdPerDay | Limit::UsdPerMonth => ask.usd.to_string(),
        Limit::TokensPerDay => format!("{} tokens", ask.tokens),
    };
    let whose = match payer {
        Payer::Agent(agent) => format!("the budget of agent {agent}"),
        Payer::User => "your own budget".to_owned(),
    };
    let (most, remedy) = (most(budget, limit), remedy(payer, limit, periods, zone));
    format!("{whose}, {most}, does not allow the next model call, which may take up to {next}; {remedy}")
}

/// What the home chat of an agent is told when a limit is hit first in a period. It names no user: a home may be a group.
pub fn alert(
    agent: &AgentId,
    payer: Payer<'_>,
    budget: &Budget,
    limit: Limit,
    periods: &Periods,
    zone: &TimeZone,
) -> String {
    let whose = match payer {
        Payer::Agent(_) => "the budget of agent",
        Payer::User => "the budget of a user of agent",
    };
    let (most, remedy) = (most(budget, limit), remedy(payer, limit, periods, zone));
    format!("Budget alert: {whose} {agent}, {most}, is used up, and model calls are refused; {remedy}.")
}

/// A limit as people read it.
fn most(budget: &Budget, limit: Limit) -> String {
    let most = budget.limit(limit).unwrap_or_default();
    match limit {
        Limit::UsdPerDay => format!("{} a day", Usd(most)),
        Limit::UsdPerMonth => format!("{} a month", Usd(most)),
        Limit::TokensPerDay => format!("{most} tokens a day"),
    }
}

/// When a limit begins anew, and who may raise it before, and how.
fn remedy(payer: Payer<'_>, limit: Limit, periods: &Periods, zone: &TimeZone) -> String {
    let resets = limit.ends(periods).to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M %Z");
    let how = match payer {
        Payer::Agent(agent) => {
            format!("hermesctl budget raise {agent} --{}", limit.as_str().replace('_', "-"))
        }
        Payer::User => format!("user_budget.{} of the document", limit.as_str()),
    };
    format!("it begins anew at {resets}, and an operator can raise it before ({how})")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usd(dollars: f64) -> Usd {
        Usd::from(dollars)
    }

    #[test]
    fn amounts_are_exact_and_costs_are_rounded_up() {
        assert_eq!(usd(0.1).plus(usd(0.2)), usd(0.3));
        assert_eq!((usd(f64::NAN), usd(-1.0)), (Usd::default(), Usd::default()));
        for (dollars, shown) in [(0.0, "$0.00"), (5.0, "$5.00"), (0.5, "$0.50"), (0.004_2, "$0.004200")] {
            assert_eq!(usd(dollars).to_string(), shown);
        }
        let price = Price { input: usd(3.0), output: usd(15.0), cached: Some(usd(0.3)) };
        assert_eq!(price.cost(1_000_000, 0, 0), usd(3.0));
        assert_eq!(price.cost(1_000_000, 400_000, 100_000), usd(1.8 + 0.12 + 1.5));
        assert_eq!(price.cost(1, 9, 0), Usd::from_nanos(300), "no more can be cached than was read");
        let cheap = Price { input: Usd::from_nanos(1), ..Price::default() };
        assert_eq!(cheap.cost(1, 0, 0), Usd::from_nanos(1), "a part of a nano-dollar is one");
        assert_eq!(price.cost(u64::MAX, 0, u64::MAX), Usd::from_nanos(u64::MAX));
    }

    #[test]
    fn a_call_counts_what_its_provider_says_or_else_by_the_price() {
        let price = Price { input: usd(1.0), output: usd(2.0), cached: None };
        let usage = Usage { input_tokens: 1000, output_tokens: 500, ..Usage::default() };
        assert_eq!(Amount::used(&usage, Some(&price)), Some(Amount { usd: usd(0.002), tokens: 1500 }));
        assert_eq!(Amount::used(&usage, None), Some(Amount { usd: usd(0.0), tokens: 1500 }));
        let told = Usage { cost_usd: Some(0.5), ..usage };
        assert_eq!(Amount::used(&told, Some(&price)).map(|used| used.usd), Some(usd(0.5)));
        assert_eq!(Amount::used(&Usage::default(), Some(&price)), None, "nothing was reported");
        assert_eq!(
            Amount::reserved(31, 10, Some(&price)),
            Amount { usd: Usd::from_nanos(11_000 + 20_000), tokens: 21 }
        );
    }

    #[test]
    fn days_and_months_are_those_of_the_zone() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let now: Timestamp = "2026-10-24T22:30:00Z".parse().unwrap();
        let periods = Periods::at(now, &berlin);
        assert_eq!((periods.day.to_string(), periods.month.to_string()), ("2026-10-25".into(), "2026-10-01".into()));
        // The day on which clocks are put back has 25 hours.
        assert_eq!(periods.day_ends.to_string(), "2026-10-25T23:00:00Z");
        assert_eq!(periods.month_ends.to_string(), "2026-10-31T23:00:00Z");
        let december = Periods::at("2026-12-31T12:00:00Z".parse().unwrap(), &TimeZone::UTC);
        assert_eq!(december.month_ends.to_string(), "2027-01-01T00:00:00Z");
    }

    #[test]
    fn a_raise_holds_for_its_time_and_only_upwards() {
        let budget = Budget { usd_per_day: Some(usd(5.0)), ..Budget::default() };
        let until: Timestamp = "2026-11-28T23:00:00Z".parse().unwrap();
        let raise = |limit, value| Raise { limit, value, until };
        let raises = [raise(Limit::UsdPerDay, usd(9.0).nanos()), raise(Limit::TokensPerDay, 10)];
        let before: Timestamp = "2026-11-28T22:59:59Z".parse().unwrap();
        let raised = budget.raised(&raises, before);
        assert_eq!((raised.usd_per_day, raised.tokens_per_day), (Some(usd(9.0)), None));
        assert_eq!(budget.raised(&raises, until), budget, "it is over");
        assert_eq!(budget.raised(&[raise(Limit::UsdPerDay, 1)], before), budget);
    }

    #[test]
    fn a_refusal_says_which_budget_until_when_and_who_can_raise_it() {
        let agent = AgentId::parse("coder").unwrap();
        let budget = Budget { usd_per_day: Some(usd(5.0)), tokens_per_day: Some(9000), ..Budget::default() };
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let periods = Periods::at("2026-11-28T12:00:00Z".parse().unwrap(), &zone);
        let ask = Amount { usd: usd(0.25), tokens: 8500 };
        assert_eq!(
            refusal(Payer::Agent(&agent), &budget, Limit::UsdPerDay, &ask, &periods, &zone),
            "the budget of agent coder, $5.00 a day, does not allow the next model call, which may take up to $0.25; it begins \
             anew at 2026-11-29 00:00 CET, and an operator can raise it before (hermesctl budget raise coder --usd-per-day)"
        );
        assert_eq!(
            refusal(Payer::User, &budget, Limit::TokensPerDay, &ask, &periods, &zone),
            "your own budget, 9000 tokens a day, does not allow the next model call, which may take up to 8500 tokens; it begins \
             anew at 2026-11-29 00:00 CET, and an operator can raise it before (user_budget.tokens_per_day of the document)"
        );
    }

    proptest! {
        /// Whatever is let in one after the other stays within every limit, and both ways to decide agree.
        #[test]
        fn what_is_let_in_stays_within_every_limit(
            day in proptest::option::of(0..1000_u64), month in proptest::option::of(0..3000_u64),
            tokens in proptest::option::of(0..5000_u64), asks in proptest::collection::vec((0..200_u64, 0..900_u64), 1..60),
        ) {
            let budget = Budget {
                usd_per_day: day.map(Usd), usd_per_month: month.map(Usd), tokens_per_day: tokens, ..Budget::default()
            };
            let mut spent = Spent { month: Usd(500), ..Spent::default() };
            for (nanos, tokens) in asks {
                let ask = Amount { usd: Usd(nanos), tokens };
                let ceilings = budget.ceilings(&ask);
                let fits = |most: Option<i64>, spent: u64| most.is_none_or(|most| i64::try_from(spent).unwrap() <= most);
                let let_in = fits(ceilings.day_usd, spent.day.usd.0)
                    && fits(ceilings.month_usd, spent.month.0)
                    && fits(ceilings.day_tokens, spent.day.tokens);
                prop_assert_eq!(budget.exceeded(&spent, &ask).is_none(), let_in);
                if let_in {
                    spent.day = Amount { usd: spent.day.usd.plus(ask.usd), tokens: spent.day.tokens + ask.tokens };
                    spent.month = spent.month.plus(ask.usd);
                }
            }
            prop_assert!(budget.usd_per_day.is_none_or(|most| spent.day.usd <= most));
            prop_assert!(budget.usd_per_month.is_none_or(|most| spent.month <= most.max(Usd(500))));
            prop_assert!(budget.tokens_per_day.is_none_or(|most| spent.day.tokens <= most));
        }
    }
}
