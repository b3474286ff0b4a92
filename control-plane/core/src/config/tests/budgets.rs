//! Budgets, prices and lists of models in a document.

use super::*;
use crate::budget::{Unpriced, Usd};

fn usd(dollars: f64) -> Option<Usd> {
    Some(Usd::from(dollars))
}

#[test]
fn budgets_and_prices_are_read_exported_and_compared() {
    let document = load(FULL);
    let budget = Budget {
        usd_per_day: usd(2.5),
        usd_per_month: usd(40.0),
        tokens_per_day: Some(90_000),
        max_output_tokens: Some(500),
        unpriced: Unpriced::Allow,
    };
    assert_eq!(document.budget, budget);
    assert_eq!(document.user_budget, Budget { usd_per_day: usd(0.0), ..Budget::default() });
    let price = document.providers["anthropic"].prices["claude-haiku"];
    assert_eq!((Some(price.input), Some(price.output), price.cached), (usd(1.0), usd(5.0), usd(0.1)));
    assert_eq!(document.fallback_models, ["local/small", "anthropic/claude-haiku"]);
    let coder = &document.agents["coder"];
    assert_eq!(coder.fallback_models, Some(Vec::new()));
    assert_eq!(document.budget_of(coder), &Budget { tokens_per_day: Some(7), ..Budget::default() }, "as a whole");
    assert_eq!(document.budget_of(&document.agents["plain"]), &budget);
    let changed = load(&FULL.replace("usd_per_day: 2.5, ", ""));
    let change = &diff(&document, &changed)[0];
    assert_eq!((change.path.as_str(), change.before.as_deref()), ("budget.usd_per_day", Some("2.5")));
}

#[test]
fn a_budget_of_an_agent_replaces_the_default_and_none_is_said_so() {
    let stored =
        load("budget: {usd_per_day: 5}\nagents: {free: {budget: {}}, own: {budget: {tokens_per_day: 1}}, all: {}}");
    let of = |id: &str| stored.budget_of(&stored.agents[id]).clone();
    assert!(!of("free").binds());
    assert_eq!((of("own").tokens_per_day, of("own").usd_per_day), (Some(1), None));
    assert_eq!(of("all").usd_per_day, usd(5.0));
    // A text that does not speak of budgets leaves them; one that does replaces them whole.
    assert_eq!(stored.merged(&parse("model: builtin/echo").unwrap(), false).budget, stored.budget);
    let merged = stored.merged(&parse("budget: {tokens_per_day: 9}").unwrap(), false);
    assert_eq!((merged.budget.usd_per_day, merged.budget.tokens_per_day), (None, Some(9)));
}

#[test]
fn a_budget_that_cannot_hold_or_lets_nothing_in_is_warned_about() {
    let warned = |text: &str| {
        let (_, warnings) = load_offline(text).unwrap();
        warnings.iter().map(|warning| format!("{}: {}", warning.path, warning.message)).collect::<Vec<_>>()
    };
    let providers = "providers: {openai: {prices: {m: {input_usd_per_mtok: 1, output_usd_per_mtok: 10}}}}\n";
    let all = |budget: &str, model: &str| warned(&format!("{providers}model: openai/{model}\nbudget: {budget}"));
    assert_eq!(all("{usd_per_day: 5}", "m"), Vec::<String>::new());
    assert_eq!(all("{tokens_per_day: 100000}", "x"), Vec::<String>::new(), "tokens need no price");
    assert_eq!(
        all("{usd_per_day: 5}", "x"),
        [
            "agents.main.budget: no price is known for openai/x, so under budget it is refused; add it under prices of its provider, \
          or say unpriced: allow"
        ]
    );
    assert_eq!(all("{usd_per_day: 5, unpriced: allow}", "x").len(), 1);
    // 8192 tokens at 10 dollars a million are 8 cents.
    assert!(all("{usd_per_day: 0.05}", "m")[0].contains("budget.usd_per_day is less than"));
    assert_eq!(all("{usd_per_day: 0.05, max_output_tokens: 100}", "m"), Vec::<String>::new());
    assert!(all("{tokens_per_day: 100}", "m")[0].contains("budget.tokens_per_day is less than"));
    let user = warned(&format!("{providers}model: openai/x\nuser_budget: {{usd_per_day: 1}}"));
    assert!(user[0].contains("under user_budget it is refused"), "{user:?}");
    assert_eq!(warned("budget: {usd_per_day: 0}"), Vec::<String>::new(), "builtin/echo costs nothing");
}

#[test]
fn models_are_asked_in_the_order_of_the_list_with_their_own_providers_and_keys() {
    let document = load(
        "providers:\n  a: {kind: openai, base_url: 'https://a', api_key_env: A, prices: {m: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}\n  \
         b: {kind: anthropic, api_key_env: B}\nmodel: a/m\nfallback_models: [b/n, a/m, gone/x, b/n]\n\
         agents: {own: {model: q, base_url: 'http://own', api_key_env: OWN}, none: {fallback_models: []}}",
    );
    let show = |id: &str| -> Vec<String> {
        let models = resolve_models(&document, &document.agents[id]);
        let show = |model: &Model| match &model.resolved {
            Resolved::Endpoint(end) => format!(
                "{} {} {} {}",
                model.id,
                end.model,
                end.api_key_env.as_deref().unwrap_or("-"),
                if end.price.is_some() { "priced" } else { "-" }
            ),
            other => format!("{} {other:?}", model.id),
        };
        models.iter().map(show).collect()
    };
    assert_eq!(show("main"), ["a/m m A priced", "b/n n B -", "gone/x Unserved"], "none twice");
    assert_eq!(show("own"), ["q q OWN -", "b/n n B -", "a/m m A priced", "gone/x Unserved"]);
    assert_eq!(show("none"), ["a/m m A priced"]);
    let (_, warnings) = check(&document, &Positions::default());
    let unserved: Vec<&str> = warnings.iter().map(|warning| warning.path.as_str()).collect();
    assert_eq!(unserved, ["agents.main.fallback_models", "agents.own.fallback_models"]);
}
