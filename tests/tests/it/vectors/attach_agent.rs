//! `attach_agent.jsonl`: preset, then hook, then route, then the default agent, then `main`.

use hermes_core::AgentId;
use hermes_core::routing::resolve;
use serde_json::Value;

use super::{each_row, field, same, source, table};

#[test]
fn the_agent_is_chosen_in_the_order_of_precedence() {
    each_row("attach_agent.jsonl", |row| {
        let input = &row["in"];
        let strict = row["strict_ok"].as_bool().ok_or("strict_ok is missing")?;
        let preset = field(input, "preset_agent_id").map(|id| AgentId::parse(&id)).transpose();
        // Of what hooks return the first text that is not blank counts, trimmed.
        let hook = input["hook_results"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::trim);
        let hook = hook.filter(|id| !id.is_empty()).map(AgentId::parse).next().transpose();
        match (table::load(&input["routes"], None, &input["default_agent"]), preset, hook, strict) {
            (Ok((document, table)), Ok(preset), Ok(hook), true) => {
                let default = &document.default_agent;
                let decision = resolve(&table, default, preset.as_ref(), hook.as_ref(), &source(input));
                same("agent", &Some(decision.agent.as_str()), &row["out"]["agent_id"].as_str())
            }
            (Err(faults), _, _, false) => table::refused(&faults, &input["routes"]),
            // The table is right; what a caller gave is not an id and never reaches the decision.
            (Ok(_), Err(_), _, false) | (Ok(_), _, Err(_), false) => Ok(()),
            (Ok(_), Ok(_), Ok(_), false) => Err("accepted".to_owned()),
            (Err(faults), _, _, true) => Err(format!("refused: {faults:?}")),
            (_, preset, hook, true) => Err(format!("an id is refused: {preset:?} {hook:?}")),
        }
    });
}
