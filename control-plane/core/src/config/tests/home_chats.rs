//! Homes of agents on accounts: read, refused with their place, judged with the agents there are, compared and exported.

use super::{faults, load, refused};
use crate::AgentId;
use crate::config::*;

fn agent(id: &str) -> AgentId {
    AgentId::parse(id).unwrap()
}

/// A document with an account of these homes.
fn with_homes(homes: &str) -> String {
    format!(
        "agents: {{coder: {{}}}}\nplatforms:\n  telegram:\n    accounts:\n    - id: front\n      token_env: T\n      homes:{homes}\n"
    )
}

fn shown(document: &Document) -> Vec<String> {
    let one = |home: NamedHome<'_>| format!("{} {} {} {}", home.platform, home.account, home.agent, home.chat);
    document.platforms.homes().map(one).collect()
}

#[test]
fn a_home_is_a_chat_or_a_topic_of_one() {
    let document = load(&with_homes("\n        main: 12345\n        coder: \"-100123:42\""));
    assert_eq!(shown(&document), ["telegram front coder -100123:42", "telegram front main 12345"]);
    let homes = &document.platforms.telegram["front"].homes;
    assert_eq!(homes["coder"], HomeChat { chat_id: "-100123".to_owned(), thread_id: Some("42".to_owned()) });
    assert_eq!(homes["main"], HomeChat { chat_id: "12345".to_owned(), thread_id: None });
    for none in [" {}", " null", ""] {
        assert_eq!(shown(&load(&with_homes(none))), [""; 0], "{none:?}");
    }
    // What was stored before there were homes has none.
    let mut stored = serde_json::to_value(&document).unwrap();
    stored["platforms"]["telegram"]["front"].as_object_mut().unwrap().remove("homes").unwrap();
    assert_eq!(shown(&serde_json::from_value(stored).unwrap()), [""; 0]);
    assert_eq!(serde_json::from_value::<Document>(serde_json::to_value(&document).unwrap()).unwrap(), document);
}

#[test]
fn what_is_no_home_is_refused_with_its_line_and_what_to_write() {
    let at = "platforms.telegram.accounts[0].homes";
    let main = format!("{at}.main");
    for (homes, path, part) in [
        (" [1]", at, "a mapping is expected here, not a list"),
        ("\n        main:", &main, "write one chat"),
        ("\n        main: null", &main, "write one chat"),
        ("\n        main: true", &main, "write one chat"),
        ("\n        main: [1]", &main, "such as \"-100123:42\""),
        ("\n        main: {chat_id: 1}", &main, "write one chat"),
        ("\n        main: 1.5", &main, "quote it: \"1.5\""),
        ("\n        main: 042", &main, "quote it: \"042\""),
        ("\n        main: -100123:42", &main, "quote it: \"-100123:42\""),
        ("\n        main: \"@ada\"", &main, "\"@ada\" is not a Telegram id; write the number"),
        ("\n        main: \"\"", &main, "is not a Telegram id"),
        ("\n        main: \":42\"", &main, "\"\" is not a Telegram id"),
        ("\n        main: \"telegram:42\"", &main, "\"telegram\" is not a Telegram id"),
        ("\n        main: \"1:\"", &main, "\"\" is not a topic; write its number behind the colon"),
        ("\n        main: \"1:-2\"", &main, "\"-2\" is not a topic"),
        ("\n        main: \"1:0\"", &main, "\"0\" is not a topic"),
        ("\n        main: \"-100123:1\"", &main, "\"1\" is not a topic"),
        ("\n        main: \"0123\"", &main, "\"0123\" is not a Telegram id"),
        ("\n        main: \"1:2:3\"", &main, "\"2:3\" is not a topic"),
        ("\n        main: \"1: 2\"", &main, "\" 2\" is not a topic"),
        ("\n        main: 1\n        main: 2", &main, "written before, on line 8"),
        ("\n        Main: 1", &format!("{at}.Main"), "\"Main\" is not an agent id"),
        ("\n        7: 1", at, "write \"7\" in quotes"),
    ] {
        let line = 7 + u32::try_from(homes.matches('\n').count()).unwrap();
        refused(&with_homes(homes), &[(line, path, part)]);
    }
    refused(
        "platforms: {webhook: {accounts: [{id: h, secret_env: S, callback_url: 'http://h/', homes: {main: 1}}]}}",
        &[(1, "platforms.webhook.accounts[0].homes", "unknown key \"homes\"")],
    );
}

#[test]
fn a_home_of_an_agent_that_does_not_exist_is_a_fault_of_the_merged_document() {
    let text = with_homes("\n        main: 1\n        codr: 2");
    refused(
        &text,
        &[(9, "platforms.telegram.accounts[front].homes.codr", "agent codr is not registered; did you mean coder?")],
    );
    // With what is wrong otherwise, too.
    let found = faults(&format!("{text}model: [x]\n"));
    assert_eq!(found.iter().map(|fault| fault.line).collect::<Vec<_>>(), [9, 10], "{found:?}");
    // The agent may be registered before, and go while the account stays.
    let alone = parse(&with_homes(" {coder: 2}").replace("agents: {coder: {}}", "")).unwrap();
    let before = load("agents: {coder: {}}");
    assert_eq!(check(&before.merged(&alone, false), &alone.positions).0, Vec::new());
    let (gone, _) = check(&before.merged(&alone, true), &alone.positions);
    assert_eq!(
        gone.iter().map(|fault| (fault.line, fault.path.as_str())).collect::<Vec<_>>(),
        [(7, "platforms.telegram.accounts[front].homes.coder")]
    );
}

#[test]
fn homes_are_exported_compared_and_go_with_an_account_that_is_written_anew() {
    let before = load(&with_homes("\n        main: 12345\n        coder: \"-100123:42\""));
    let exported = to_yaml(&before);
    assert!(
        exported.contains("        homes:\n          coder: \"-100123:42\"\n          main: \"12345\"\n"),
        "{exported}"
    );
    assert_eq!(Document::default().merged(&parse(&exported).unwrap(), true), before);
    let changed = |homes: &str| {
        let after = before.merged(&parse(&with_homes(homes)).unwrap(), false);
        let line = |c: Change| format!("{:?} {} {:?} {:?}", c.kind, c.path, c.before.as_deref(), c.after.as_deref());
        diff(&before, &after).into_iter().map(line).collect::<Vec<_>>()
    };
    let at = "platforms.telegram.accounts[front].homes";
    assert_eq!(
        changed(" {main: 6}"),
        [
            format!(r#"Remove {at}.coder Some("\"-100123:42\"") None"#),
            format!(r#"Change {at}.main Some("\"12345\"") Some("\"6\"")"#),
        ]
    );
    assert_eq!(changed(""), [format!(r#"Remove {at} Some("{{coder: \"-100123:42\", main: \"12345\"}}") None"#)]);
    assert_eq!(
        shown(&before.merged(&parse("model: builtin/echo").unwrap(), false)),
        shown(&before),
        "not named: it stays"
    );
}

#[test]
fn homes_of_an_agent_go_or_become_anothers_where_that_has_none() {
    let text = "agents: {coder: {}, poet: {}}\nplatforms: {telegram: {accounts: [\
                {id: a, token_env: A, homes: {coder: 1}}, {id: b, token_env: B, homes: {coder: 2, poet: 3}}, {id: c, token_env: C}]}}";
    let mut rerouted = load(text);
    rerouted.platforms.rehome(&agent("coder"), Some(&agent("poet")));
    assert_eq!(shown(&rerouted), ["telegram a poet 1", "telegram b poet 3"]);
    let mut dropped = load(text);
    dropped.platforms.rehome(&agent("coder"), None);
    assert_eq!(shown(&dropped), ["telegram b poet 3"]);
}
