//! `routing.jsonl`: first match wins.

use hermes_core::routing::{DecidedBy, resolve};
use serde_json::Value;

use super::{each_row, field, same, source, table};

#[test]
fn a_strict_table_decides_as_the_row_says_and_any_other_is_refused() {
    each_row("routing.jsonl", |row| {
        let input = &row["in"];
        let (routes, default) = (&input["routes"], &input["default"]);
        let yaml = field(input, "yaml");
        let strict = row["strict_ok"].as_bool().ok_or("strict_ok is missing")?;
        match (table::load(routes, yaml.as_deref(), default), strict) {
            (Ok((document, table)), _) if strict || yaml.is_some() => {
                // A row with YAML text is about spelling: ours may read it or refuse it, but never read it otherwise.
                let decision = resolve(&table, &document.default_agent, None, None, &source(input));
                let matched = row["out"]["matched_index"].as_u64();
                same("matched_index", &decision.route_index.map(|index| index as u64), &matched)?;
                same("decided by a route", &(decision.decided_by == DecidedBy::Route), &matched.is_some())?;
                let expected = match &row["out"]["agent"] {
                    Value::String(agent) => agent.as_str(),
                    _ => "main",
                };
                same("agent", &decision.agent.as_str(), &expected)
            }
            (Ok(_), _) => Err("accepted".to_owned()),
            (Err(faults), true) => Err(format!("refused: {faults:?}")),
            (Err(faults), false) if yaml.is_some() => {
                if table::named(&faults).is_empty() {
                    Err(format!("no route is named: {faults:?}"))
                } else {
                    Ok(())
                }
            }
            (Err(faults), false) => table::refused(&faults, routes),
        }
    });
}
