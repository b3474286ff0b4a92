//! Budgets and prices in a text, and in exports.
//!
//! Called by [`super::read`], [`super::to_yaml`] and [`super::check`]. Always true of what it accepts: amounts are from 0 to
//! a million, so that sums of them fit. What a budget means is [`crate::budget`]'s; no price is known but from the document.

use std::collections::BTreeMap;

use super::export::{Entries, Shape, literal, named, text};
use super::fields::{Faults, Path, Section, entries, integer, judged};
use super::models::{Resolved, resolve_models};
use super::tree::{Content, Node};
use super::{AgentSpec, Document, shown, values};
use crate::budget::{Amount, Budget, Price, Unpriced, Usd};

/// Most tokens that a limit may name.
const TOKENS_MOST: u64 = 1_000_000_000_000;
/// Largest answer that a budget may allow, tokens.
const OUTPUT_MOST: u64 = 1_000_000;
const KEYS: [&str; 5] = ["usd_per_day", "usd_per_month", "tokens_per_day", "max_output_tokens", "unpriced"];

/// Reads a budget; `{}` bounds nothing.
pub(super) fn read(node: &Node, path: Path<'_>, faults: &mut Faults) -> Budget {
    if matches!(node.content, Content::Null) {
        faults.add(node.line, path, "a mapping is expected here; write {} for no budget, or remove the key");
    }
    let section = Section::open(node, &path, &KEYS, faults);
    Budget {
        usd_per_day: section.optional("usd_per_day", faults, usd),
        usd_per_month: section.optional("usd_per_month", faults, usd),
        tokens_per_day: section
            .optional("tokens_per_day", faults, |node, path, faults| integer(node, 0..=TOKENS_MOST, path, faults)),
        max_output_tokens: section
            .optional("max_output_tokens", faults, |node, path, faults| integer(node, 1..=OUTPUT_MOST, path, faults)),
        unpriced: section.optional("unpriced", faults, unpriced).unwrap_or_default(),
    }
}

fn unpriced(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<Unpriced> {
    let word = super::fields::text(node, path, faults)?;
    let known = [Unpriced::Refuse, Unpriced::Allow].into_iter().find(|known| known.as_str() == word);
    if known.is_none() {
        faults.add(node.line, path, format!("{} is not an answer; write refuse or allow", shown(word)));
    }
    known
}

/// Dollars.
fn usd(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<Usd> {
    let value = match &node.content {
        Content::Decimal(text) => text.parse::<f64>().ok(),
        Content::Float(value, _) => Some(*value),
        _ => None,
    };
    let value = value.filter(|value| (0.0..=Usd::MOST).contains(value));
    if value.is_none() {
        faults.add(node.line, path, "write US dollars as a number from 0 to 1000000");
    }
    value.map(Usd::from)
}

/// What is wrong with a budget that did not come as text.
pub(super) fn judge(budget: &Budget) -> Vec<String> {
    let mut wrong = Vec::new();
    for (key, usd) in [("usd_per_day", budget.usd_per_day), ("usd_per_month", budget.usd_per_month)] {
        if usd.is_some_and(|usd| usd > Usd::from(Usd::MOST)) {
            wrong.push(format!("{key}: write US dollars from 0 to 1000000"));
        }
    }
    if budget.tokens_per_day.is_some_and(|tokens| tokens > TOKENS_MOST) {
        wrong.push(format!("tokens_per_day: write a whole number from 0 to {TOKENS_MOST}"));
    }
    if budget.max_output_tokens.is_some_and(|tokens| !(1..=OUTPUT_MOST).contains(&tokens)) {
        wrong.push(format!("max_output_tokens: write a whole number from 1 to {OUTPUT_MOST}"));
    }
    wrong
}

/// Reads the prices of a provider by model.
pub(super) fn read_prices(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<BTreeMap<String, Price>> {
    let mut prices = BTreeMap::new();
    for entry in entries(node, path, faults) {
        let path = path.key(entry.key);
        if let Err(message) = values::model(entry.key) {
            faults.add(entry.line, path, message);
        }
        let keys = ["input_usd_per_mtok", "output_usd_per_mtok", "cached_usd_per_mtok"];
        let section = Section::open(entry.value, &path, &keys, faults);
        let [input, output, cached] = keys.map(|key| section.optional(key, faults, usd));
        for key in keys.into_iter().take(2).filter(|key| section.get(key).is_none()) {
            faults.add(entry.line, path.key(key), format!("{key} is missing; write US dollars for a million tokens"));
        }
        let price = Price { input: input.unwrap_or_default(), output: output.unwrap_or_default(), cached };
        prices.insert(entry.key.to_owned(), price);
    }
    Some(prices)
}

/// Reads a list of model ids.
pub(super) fn read_models(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<Vec<String>> {
    super::fields::texts(node, path, faults, |node, path, faults| judged(node, path, faults, values::model))
}

/// A budget as exports show it.
pub(super) fn shape(budget: &Budget) -> Shape {
    let put = |entries: Entries, key, value: Option<Shape>| match value {
        Some(value) => entries.put(key, value),
        None => entries,
    };
    let dollars = |usd: Option<Usd>| usd.map(|usd| literal(usd.dollars()));
    let entries = put(Entries::default(), "usd_per_day", dollars(budget.usd_per_day));
    let entries = put(entries, "usd_per_month", dollars(budget.usd_per_month));
    let entries = put(entries, "tokens_per_day", budget.tokens_per_day.map(literal));
    let entries = put(entries, "max_output_tokens", budget.max_output_tokens.map(literal));
    let allowed = (budget.unpriced == Unpriced::Allow).then(|| text(budget.unpriced.as_str()));
    put(entries, "unpriced", allowed).map()
}

/// Prices as exports show them.
pub(super) fn prices_shape(prices: &BTreeMap<String, Price>) -> Shape {
    named(prices, |price| {
        let entries = Entries::default()
            .put("input_usd_per_mtok", literal(price.input.dollars()))
            .put("output_usd_per_mtok", literal(price.output.dollars()));
        match price.cached {
            Some(cached) => entries.put("cached_usd_per_mtok", literal(cached.dollars())).map(),
            None => entries.map(),
        }
    })
}

/// What of an agent's budgets cannot be as it was meant.
pub(super) fn warnings(document: &Document, spec: &AgentSpec) -> Vec<String> {
    let mut found = Vec::new();
    for (name, budget) in [("budget", document.budget_of(spec)), ("user_budget", &document.user_budget)] {
        if !budget.binds() {
            continue;
        }
        for model in resolve_models(document, spec) {
            let price = match &model.resolved {
                Resolved::Endpoint(endpoint) => endpoint.price.as_ref(),
                Resolved::Echo | Resolved::Unserved => continue,
            };
            if budget.binds_usd() && price.is_none() {
                let what = match budget.unpriced {
                    Unpriced::Refuse => "is refused; add it under prices of its provider, or say unpriced: allow",
                    Unpriced::Allow => "counts by its tokens and by the cost that its provider reports",
                };
                found.push(format!("no price is known for {}, so under {name} it {what}", model.id));
            }
            let least = Amount::reserved(0, budget.output_tokens(), price);
            if let Some(limit) = budget.exceeded(&crate::budget::Spent::default(), &least) {
                found.push(format!(
                    "{name}.{} is less than what the largest answer of {} takes, so no call fits; raise it or lower \
                     max_output_tokens",
                    limit.as_str(),
                    model.id
                ));
            }
        }
    }
    found
}
