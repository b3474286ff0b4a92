//! Prints what a table of 100,000 routes costs: YAML text to a compiled table with its shadow warnings, and one decision.
//!
//! Run with `cargo bench -p hermes-core`. Exits with an error when a bound of the architecture is missed: 3 s for loading,
//! 20 µs for a decision.

use std::fmt::Write as _;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hermes_core::config::{Document, check_compiled, parse};
use hermes_core::routing::RouteTable;
use hermes_core::source::Source;

const ROUTES: usize = 100_000;
const DECISIONS: usize = 200_000;

/// Twelve key sets; one route in ten repeats an earlier one.
const KEY_SETS: [&[&str]; 12] = [
    &["platform", "chat_id"],
    &["platform", "chat_id", "thread_id"],
    &["platform", "guild_id"],
    &["platform", "account", "chat_id"],
    &["chat_id"],
    &["user_id"],
    &["platform", "user_id"],
    &["platform", "user_id_alt"],
    &["guild_id", "chat_type"],
    &["parent_chat_id"],
    &["platform", "parent_chat_id", "thread_id"],
    &["account", "user_id", "chat_type"],
];

fn text() -> String {
    let mut text = String::from("agents:\n");
    for agent in 0..100 {
        let _ = writeln!(text, "  agent-{agent}: {{}}");
    }
    text.push_str("routes:\n");
    for index in 0..ROUTES {
        let number = if index % 10 == 9 { index - 9 } else { index };
        let keys = KEY_SETS[number % KEY_SETS.len()];
        let pairs: Vec<String> = keys.iter().map(|key| format!("{key}: {}", value(key, number))).collect();
        let _ = writeln!(text, "  - match: {{ {} }}\n    agent: agent-{}", pairs.join(", "), number % 100);
    }
    text
}

fn value(key: &str, number: usize) -> String {
    match key {
        "platform" => ["telegram", "slack", "discord", "matrix"][number % 4].to_owned(),
        "chat_type" => "group".to_owned(),
        "account" => format!("bot{}", number % 7),
        "chat_id" => format!("-100{number}"),
        _ => format!("\"{number}\""),
    }
}

fn sources() -> Vec<Source> {
    let source = |n: usize| {
        let number = n * 7919 % (ROUTES * 2);
        let id = Some(number.to_string());
        Source {
            platform: ["telegram", "slack", "discord", "matrix"][number % 4].to_owned(),
            account: Some(format!("bot{}", number % 7)),
            chat_id: format!("-100{number}"),
            chat_type: "group".to_owned(),
            thread_id: id.clone(),
            parent_chat_id: id.clone(),
            user_id: id.clone(),
            user_id_alt: id.clone(),
            guild_id: id,
            ..Source::default()
        }
    };
    (0..1000).map(source).collect()
}

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() -> ExitCode {
    let text = text();
    let begun = Instant::now();
    let patch = match parse(&text) {
        Ok(patch) => patch,
        Err(faults) => {
            println!("the bench's own text is refused: {:?}", faults.first());
            return ExitCode::FAILURE;
        }
    };
    let parsed = begun.elapsed();
    let document = Document::default().merged(&patch, false);
    let table = RouteTable::compile(document.routes.as_slice().into());
    let compiled = begun.elapsed();
    let (faults, warnings) = check_compiled(&document, &table, &patch.positions);
    let loaded = begun.elapsed();
    println!("text           {} routes, {} key sets, {} bytes", ROUTES, table.key_sets(), text.len());
    println!("parse          {parsed:?}");
    println!("merge, compile {:?}", compiled.saturating_sub(parsed));
    println!(
        "check, shadows {:?} ({} faults, {} warnings)",
        loaded.saturating_sub(compiled),
        faults.len(),
        warnings.len()
    );
    println!("load           {loaded:?} (bound 3 s)");

    let sources = sources();
    let begun = Instant::now();
    let mut decided = 0_usize;
    for source in sources.iter().cycle().take(DECISIONS) {
        decided += usize::from(black_box(table.decide(black_box(source))).is_some());
    }
    let each = begun.elapsed() / u32::try_from(DECISIONS).unwrap_or(u32::MAX);
    println!("decide         {each:?} (bound 20 µs; {decided} of {DECISIONS} matched)");

    if loaded < Duration::from_secs(3) && each < Duration::from_micros(20) && faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("a bound is missed");
        ExitCode::FAILURE
    }
}
