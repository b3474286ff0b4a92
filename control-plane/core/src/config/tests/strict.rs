//! What strict reading refuses, and how it says so.

use super::{faults, load, refused};
use crate::config::*;
use crate::routing::MatchKey;

#[test]
fn all_faults_of_a_text_are_reported_together_with_line_and_path() {
    refused(
        r#"default_agnet: main
timezone: Mars/Phobos
model: [a]
agents:
  coder: {modle: x}
  Bad: {}
  7: {}
  coder: {}
routes:
  - match: {platform: telegram, chatid: 1}
    agent: coder
  - match: {}
    agent: 7
  - match: {chat_id: true, user_id: 1.5, guild_id: null, thread_id: [1], account: 042}
    agent: coder
  - agent: coder
  - x
  - match: {platform: a, platform: b}
    agent: coder
    extra: 1
"#,
        &[
            (1, "default_agnet", "did you mean default_agent?"),
            (2, "timezone", "IANA name"),
            (3, "model", "text is expected here, not a list"),
            (5, "agents.coder.modle", "did you mean model?"),
            (6, "agents.Bad", "\"Bad\" is not an agent id"),
            (7, "agents", "write \"7\" in quotes"),
            (8, "agents.coder", "written before, on line 5"),
            (10, "routes[0].match.chatid", "did you mean chat_id?"),
            (12, "routes[1].match", "empty match"),
            (13, "routes[1].agent", "not a number; quote it"),
            (14, "routes[2].match.chat_id", "not a boolean; quote it: \"true\""),
            (14, "routes[2].match.user_id", "quote it: \"1.5\""),
            (14, "routes[2].match.guild_id", "not nothing"),
            (14, "routes[2].match.thread_id", "not a list"),
            (14, "routes[2].match.account", "quote it: \"042\""),
            (16, "routes[3].match", "match is missing"),
            (17, "routes[4]", "a route is a mapping"),
            (18, "routes[5].match.platform", "written before, on line 18"),
            (20, "routes[5].extra", "unknown key \"extra\"; the keys here are match, agent"),
        ],
    );
}

#[test]
fn agents_that_do_not_exist_are_reported_together_with_all_other_faults() {
    refused(
        "default_agent: nobody\nroutes:\n- x\n- {match: {chatid: 1}, agent: ghost}\n- {match: {chat_id: 1}, agent: 7}\n- {match: {chat_id: 2}, agent: ghost}\n",
        &[
            (1, "default_agent", "agent nobody is not registered"),
            (3, "routes[0]", "a route is a mapping"),
            (4, "routes[1].match.chatid", "did you mean chat_id?"),
            (4, "routes[1].agent", "agent ghost is not registered"),
            (5, "routes[2].agent", "quote it"),
            (6, "routes[3].agent", "agent ghost is not registered"),
        ],
    );
    refused(
        "agents: {7: {}}\nroutes: [{match: {chat_id: 1}, agent: '7'}]\n",
        &[(1, "agents", "write \"7\" in quotes")],
    );
}

#[test]
fn match_values_are_text_or_plain_integers_of_any_length() {
    for (spelled, value) in [
        ("-1001234", "-1001234"),
        ("0", "0"),
        ("9007199254740993", "9007199254740993"),
        ("123456789012345678901234567890123456789012345", "123456789012345678901234567890123456789012345"),
        ("'042'", "042"),
        ("\"true\"", "true"),
        ("\"\"", ""),
        ("T0ABC", "T0ABC"),
        ("'!r:ex.org'", "!r:ex.org"),
        ("y", "y"),
        ("\"a\\u0001b\"", "a\u{1}b"),
        ("  padded  ", "padded"),
        ("' padded '", " padded "),
    ] {
        let document = load(&format!("routes: [{{match: {{chat_id: {spelled}}}, agent: main}}]"));
        assert_eq!(document.routes[0].keys, [(MatchKey::ChatId, value.to_owned())], "{spelled}");
    }
    for spelled in [
        "\"a\\u0000b\"",
        "042",
        "0x10",
        "0o7",
        "0b1",
        "1_000",
        "+5",
        "-0",
        "7:36",
        "1.0",
        "1e3",
        "1e999",
        ".nan",
        ".inf",
        "true",
        "False",
        "yes",
        "No",
        "on",
        "OFF",
        "null",
        "~",
        "",
        "[1]",
        "{a: 1}",
    ] {
        refused(
            &format!("routes:\n- agent: main\n  match:\n    chat_id: {spelled}\n"),
            &[(4, "routes[0].match.chat_id", "")],
        );
    }
}

#[test]
fn what_a_document_must_not_contain_is_refused_with_its_line() {
    let laughs = "a: &a [x,x]\nb: &b [*a,*a]\nroutes: [*b,*b]\n";
    for (text, line, part) in [
        (laughs, 1, "an anchor"),
        ("agents:\n  a: !!python/object:os.system {}\n", 2, "the tag"),
        ("model: !foo x\n", 1, "the tag"),
        ("default_agent: main\n---\nmodel: x\n", 2, "second document"),
        ("default_agent: main\nmodel: a\0b\n", 2, "U+0000"),
        ("model: a\u{85}b\n", 1, "U+0085"),
        ("model: a\u{2028}routes: []\n", 1, "U+2028"),
        ("default_agent: main\n\u{feff}model: x\n", 2, "U+FEFF"),
        ("agents:\n\tcoder: {}\n", 2, "not YAML"),
        ("agents: {coder: {}\n", 0, "not YAML"),
        ("model: \"abc\n", 0, "not YAML"),
    ] {
        let found = faults(text);
        assert!(found.iter().any(|f| f.message.contains(part) && (line == 0 || f.line == line)), "{text:?}: {found:?}");
    }
    assert_eq!(faults(laughs).len(), 6, "both anchors and all four aliases");
    for text in ["- a\n- b\n", "just text\n", "42\n"] {
        refused(text, &[(1, "", "a mapping is expected")]);
    }
    refused("<<: {model: x}\n", &[(1, "\"<<\"", "merge keys")]);
    refused("agents:\n  coder:\n    <<: {model: x}\n", &[(3, "agents.coder.\"<<\"", "merge keys")]);
    refused("model: ${MODEL}\n", &[(1, "model", "not expanded")]);
}

#[test]
fn deep_and_long_texts_are_refused_or_read_without_harm() {
    for open in ["[", "{a: ", "- ", "? "] {
        let found = faults(&open.repeat(100_000));
        assert!(
            found.iter().any(|fault| fault.message.contains("nested deeper") || fault.message.contains("not YAML"))
        );
    }
    let found = faults(&"a:\n ".repeat(50));
    assert_eq!(found.len(), 1);
    let long = "x".repeat(1 << 20);
    let document = load(&format!("routes: [{{match: {{chat_id: {long}}}, agent: main}}]"));
    assert_eq!(document.routes[0].keys[0].1.len(), 1 << 20);
    assert_eq!(faults(&format!("model: {long}")).len(), 1);
    let many: String = (0..5000).map(|n| format!("k{n}: 1\n")).collect();
    let found = faults(&many);
    assert_eq!(found.len(), 1001);
    assert_eq!(found.last().map(|fault| fault.message.as_str()), Some("4000 more faults are not listed"));
    assert!(parse(&" ".repeat(64 * 1024 * 1024 + 1)).is_err());
}

#[test]
fn a_list_or_mapping_left_empty_is_no_silent_deletion() {
    refused("routes:\n", &[(1, "routes", "write [] for none")]);
    refused("default_agent:\n", &[(1, "default_agent", "remove the key")]);
    refused("session_reset:\n", &[(1, "session_reset", "{mode: none}")]);
    refused("reset_by_type:\n", &[(1, "reset_by_type", "write {} for none")]);
    refused("reset_by_platform:\n  slack:\n", &[(2, "reset_by_platform.slack", "{mode: none}")]);
    let patch = parse("agents:\nproviders:\nplatforms:\n  telegram:\nlimits:\n").unwrap();
    assert_eq!(Document::default().merged(&patch, false), Document::default());
}

#[test]
fn values_outside_their_range_or_kind_are_refused() {
    for (text, path) in [
        ("group_sessions_per_user: 'true'", "group_sessions_per_user"),
        ("thread_sessions_per_user: yes", "thread_sessions_per_user"),
        ("session_reset: {mode: weird}", "session_reset.mode"),
        ("session_reset: {mode: off}", "session_reset.mode"),
        ("session_reset: {at_hour: 24}", "session_reset.at_hour"),
        ("session_reset: {at_hour: -1}", "session_reset.at_hour"),
        ("session_reset: {idle_minutes: 0}", "session_reset.idle_minutes"),
        ("session_reset: {idle_minutes: 1.5}", "session_reset.idle_minutes"),
        ("session_reset: idle", "session_reset"),
        ("reset_by_type: {dm: {notify: true}}", "reset_by_type.dm.notify"),
        ("busy: {mode: weird}", "busy.mode"),
        ("busy: {mod: queue}", "busy.mod"),
        ("busy: {notice: 'no'}", "busy.notice"),
        ("busy: steer", "busy"),
        ("busy: {rules: {platform: slack}}", "busy.rules"),
        ("busy: {rules: [{mode: steer}]}", "busy.rules[0]"),
        ("busy: {rules: [{platform: slack}]}", "busy.rules[0]"),
        ("busy: {rules: [{platform: slack, mode: steer, when: now}]}", "busy.rules[0].when"),
        ("busy: {rules: [{agent: Coder!, mode: steer}]}", "busy.rules[0].agent"),
        ("busy: {rules: [{platform: a, mode: steer}, {platform: a, mode: queue}]}", "busy.rules[1]"),
        ("limits: {queued_per_agent: 0}", "limits.queued_per_agent"),
        ("limits: {queued_per_session: 1000001}", "limits.queued_per_session"),
        ("limits: {shed_after_seconds: -1}", "limits.shed_after_seconds"),
        ("limits: {message_bytes: 0}", "limits.message_bytes"),
        ("limits: {message_bytes: 10000000}", "limits.message_bytes"),
        ("limits: {history_bytes: 99999999999999999999}", "limits.history_bytes"),
        ("limits: {turn_seconds: 0}", "limits.turn_seconds"),
        ("limits: {stall_seconds: 604801}", "limits.stall_seconds"),
        ("retention: {dedupe_days: 7}", "retention.dedupe_days"),
        ("retention: {turns_days: 0}", "retention.turns_days"),
        ("retention: {months: 1}", "retention.months"),
        ("budget: {usd_per_day: -1}", "budget.usd_per_day"),
        ("budget: {usd_per_month: '5'}", "budget.usd_per_month"),
        ("budget: {usd_per_month: 1000001}", "budget.usd_per_month"),
        ("budget: {tokens_per_day: 1.5}", "budget.tokens_per_day"),
        ("budget: {max_output_tokens: 0}", "budget.max_output_tokens"),
        ("budget: {unpriced: maybe}", "budget.unpriced"),
        ("budget: {usd_per_week: 1}", "budget.usd_per_week"),
        ("budget: 5", "budget"),
        ("budget:", "budget"),
        ("user_budget: {usd_per_day: .nan}", "user_budget.usd_per_day"),
        ("fallback_models: openai/gpt", "fallback_models"),
        ("fallback_models: [a b]", "fallback_models[0]"),
        ("agents: {a: {budget: {usd: 1}}}", "agents.a.budget.usd"),
        ("agents: {a: {fallback_models: [7]}}", "agents.a.fallback_models[0]"),
        (
            "providers: {openai: {prices: {m: {input_usd_per_mtok: 1}}}}",
            "providers.openai.prices.m.output_usd_per_mtok",
        ),
        (
            "providers: {openai: {prices: {m: {input_usd_per_mtok: x, output_usd_per_mtok: 1}}}}",
            "providers.openai.prices.m.input_usd_per_mtok",
        ),
        ("providers: {openai: {prices: [m]}}", "providers.openai.prices"),
        ("timezone: local", "timezone"),
        ("timezone: '+02:00'", "timezone"),
        ("timezone: ../../etc/passwd", "timezone"),
        ("model: ''", "model"),
        ("model: a b", "model"),
        ("model: builtin/magic", "model"),
        ("agents: {a: {base_url: 'file:///etc'}}", "agents.a.base_url"),
        ("agents: {a: {base_url: 'http://u:p@host/'}}", "agents.a.base_url"),
        ("agents: {a: {base_url: 'http://'}}", "agents.a.base_url"),
        ("agents: {a: {home_dir: relative/x}}", "agents.a.home_dir"),
        ("agents: {a: {home_dir: '${HOME}/x'}}", "agents.a.home_dir"),
        ("agents: {a: {enabled_toolsets: web}}", "agents.a.enabled_toolsets"),
        ("agents: {a: {enabled_toolsets: [web, 7]}}", "agents.a.enabled_toolsets[1]"),
        ("agents: {a: [x]}", "agents.a"),
        ("providers: {x: {}}", "providers.x.kind"),
        ("providers: {x: {kind: bard}}", "providers.x.kind"),
        ("providers: {builtin: {kind: openai}}", "providers.builtin"),
        ("providers: {X: {kind: openai}}", "providers.X"),
        ("default_provider: 7", "default_provider"),
        ("platforms: {discord: {}}", "platforms.discord"),
        ("platforms: {telegram: {accounts: {}}}", "platforms.telegram.accounts"),
        ("platforms: {telegram: {accounts: [x]}}", "platforms.telegram.accounts[0]"),
    ] {
        let found = faults(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!((found[0].line, found[0].path.as_str()), (1, path), "{found:?}");
    }
}

#[test]
fn an_account_needs_an_id_one_secret_and_somebody_who_may_talk_to_it() {
    let telegram = |fields: &str| format!("platforms: {{telegram: {{accounts: [{{{fields}}}]}}}}");
    let at = "platforms.telegram.accounts[0]";
    for (fields, path, part) in [
        ("token_env: T, allow_all: true", ".id", "id is missing"),
        ("id: b, allow_all: true", "", "set token_env (a variable) or token_file"),
        ("id: b, token_env: T, token_file: /t, allow_all: true", ".token_file", "keep one"),
        ("id: b, token_env: T, unauthorized_dm: ignore", "", "nobody may talk"),
        ("id: b, token_env: T, unauthorized_dm: deny", ".unauthorized_dm", "write pair"),
        ("id: b, token_env: T, allow_all: true, unauthorized_dm: pair", ".unauthorized_dm", "nobody pairs"),
        ("id: b, token_env: T, allow_all: false, unauthorized_dm: ignore", "", "nobody may talk"),
        ("id: b, token_env: T, allow_users: [], unauthorized_dm: ignore", "", "nobody may talk"),
        ("id: b, token_env: T, allow_users: ['@ada']", ".allow_users[0]", "write the number"),
        ("id: b, token_env: T, allow_chats: [1.5]", ".allow_chats[0]", "quote it"),
        ("id: b, token_env: T, allow_all: true, rate: off", ".rate", "set api_base"),
        ("id: b, token_env: T, allow_all: true, rate: fast", ".rate", "write off or"),
        ("id: b, token_env: T, allow_all: true, rate: {per_chat_per_s: 0}", ".rate.per_chat_per_s", "above 0"),
        ("id: b, token_env: T, allow_all: true, rate: {per_chat_per_s: .inf}", ".rate.per_chat_per_s", "above 0"),
        ("id: b, token_file: t, allow_all: true", ".token_file", "absolute path"),
        ("id: b, token_env: T, allow_all: true, allow_admin_from: [1.5]", ".allow_admin_from[0]", "quote it"),
        ("id: b, token_env: T, allow_all: true, allow_admin_from: {a: 1}", ".allow_admin_from", "text or an integer"),
        ("id: B, token_env: T, allow_all: true", ".id", "not an account id"),
    ] {
        refused(&telegram(fields), &[(1, &format!("{at}{path}"), part)]);
    }
    for (fields, pairs) in [
        ("allow_users: []", true),
        ("allow_users: [1]", false),
        ("allow_chats: [-1]", false),
        ("allow_users: [1], unauthorized_dm: pair", true),
        ("unauthorized_dm: pair", true),
        ("allow_all: true", false),
    ] {
        let account = &load(&telegram(&format!("id: b, token_env: T, {fields}"))).platforms.telegram["b"];
        assert_eq!(account.pairs(), pairs, "{fields}");
    }
    for off in ["off", "'off'", "false", "Off"] {
        let fields = format!("id: b, token_env: T, allow_all: true, api_base: 'http://h', rate: {off}");
        assert_eq!(load(&telegram(&fields)).platforms.telegram["b"].rate, Rate::Off);
    }
    refused(
        "platforms:\n  telegram:\n    accounts:\n    - &x {id: b}\n    - *x\n",
        &[(4, "", "an anchor"), (5, "", "an alias")],
    );
    let twice = "platforms:\n  telegram:\n    accounts:\n    - {id: b, token_env: T, allow_all: true}\n    - {id: b, token_env: T, allow_all: true}\n";
    refused(twice, &[(5, "platforms.telegram.accounts[1].id", "another account")]);
    let webhook = |fields: &str| format!("platforms: {{webhook: {{accounts: [{{{fields}}}]}}}}");
    let at = "platforms.webhook.accounts";
    for (fields, path, part) in [
        ("id: h, secret_env: S", "[0]", "nowhere to go"),
        ("id: h, callback_url: 'http://h/'", "[0]", "set secret_env"),
        ("id: h, secret_env: S, callback_url: 'gopher://h/'", "[0].callback_url", "http://"),
        ("id: h, secret_env: S, callback_url: 'http://h/', deliver: {}", "[0].deliver", "keep one"),
        (
            "id: h, secret_env: S, deliver: {platform: telegram, account: b, chat_id: 1}",
            "[h].deliver.account",
            "no \"telegram\" account",
        ),
        (
            "id: h, secret_env: S, deliver: {platform: slack, account: b, chat_id: 1}",
            "[0].deliver.platform",
            "write telegram",
        ),
        (
            "id: h, secret_env: S, deliver: {platform: telegram, account: b}",
            "[0].deliver.chat_id",
            "chat_id is missing",
        ),
    ] {
        refused(&webhook(fields), &[(1, &format!("{at}{path}"), part)]);
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_refused_and_never_repeated() {
    for text in [
        "platforms: {telegram: {accounts: [{id: b, token: '123:SECRET', token_env: T, allow_all: true}]}}",
        "platforms: {telegram: {accounts: [{id: b, token_env: '123:SECRET', allow_all: true}]}}",
        "platforms: {telegram: {accounts: [{id: b, token_file: '123:SECRET', allow_all: true}]}}",
        "platforms: {webhook: {accounts: [{id: b, secret: SECRET, secret_env: S, callback_url: 'http://h'}]}}",
        "providers: {p: {kind: openai, api_key: sk-SECRET}}",
        "providers: {p: {kind: openai, api_key_env: sk-SECRET}}",
        "providers: {p: {kind: openai, base_url: 'https://me:SECRET@host/'}}",
        "agents: {a: {api_key: sk-SECRET}}",
        "agents: {a: {api_key_env: sk-SECRET}}",
    ] {
        let found = faults(text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(!found[0].message.contains("SECRET"), "{found:?}");
        assert!(found[0].message.contains("_env") || found[0].message.contains("not the secret itself"), "{found:?}");
    }
}

#[test]
fn every_hostile_id_is_refused_as_a_key_too() {
    for id in crate::id::tests::HOSTILE {
        let key: String = id.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect();
        let text = format!("agents:\n  \"{key}\": {{}}\n");
        let found = faults(&text);
        assert!(found.len() == 1 && found[0].line == 2 && found[0].path.starts_with("agents."), "{id:?}: {found:?}");
        assert!(found[0].message.chars().all(|c| !c.is_control()), "{found:?}");
    }
    for id in crate::id::tests::HARMLESS {
        let document =
            load(&format!("agents: {{\"{id}\": {{}}}}\nroutes: [{{match: {{chat_id: 1}}, agent: \"{id}\"}}]"));
        let patch = parse(&to_yaml(&document)).unwrap();
        assert_eq!(document.merged(&patch, true), document, "{id}");
    }
}
