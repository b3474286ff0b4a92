//! The document as its users meet it: text in, faults or a document out.

use proptest::prelude::*;

use super::*;
use crate::reset::ResetMode;
use crate::routing::{MatchKey, RouteTable, explain};
use crate::source::Source;

/// The example of the project's founding page, as it stands there.
const SEED: &str = r#"default_agent: main
agents:
  coder:
    model: "anthropic/claude-opus-4-6"
    home_dir: ~/.hermes/profiles/coder
  research:
    model: "anthropic/claude-sonnet-4-6"
routes:
  - match: { platform: telegram, chat_id: "-1001234", thread_id: "42" }
    agent: coder
  - match: { platform: slack, guild_id: "T0ABC" }
    agent: coder
"#;

/// Every key of the document.
const FULL: &str = r#"
default_agent: coder
model: anthropic/claude-haiku
timezone: Europe/Berlin
group_sessions_per_user: false
thread_sessions_per_user: true
session_reset: {mode: both, at_hour: 5, idle_minutes: 90}
reset_by_type:
  dm: {mode: none}
reset_by_platform:
  slack: {mode: idle, idle_minutes: 30}
limits: {message_bytes: 1000, history_bytes: 5000}
providers:
  anthropic: {api_key_env: ANTHROPIC_API_KEY}
  local: {kind: openai, base_url: "http://127.0.0.1:8080/v1"}
default_provider: local
platforms:
  telegram:
    accounts:
      - id: bot1
        token_env: BOT1
        allow_users: [1, "2"]
        allow_chats: [-1001234]
      - {id: bot2, token_file: /run/secrets/bot2, api_base: "http://127.0.0.1:8081", allow_all: true, rate: off}
      - {id: bot3, token_env: B3, allow_all: true, rate: {per_chat_per_s: 0.5}}
  webhook:
    accounts:
      - {id: hook, secret_env: HOOK, callback_url: "https://example.org/reply"}
      - {id: mail, secret_file: /run/s, deliver: {platform: telegram, account: bot1, chat_id: -1001234, thread_id: "7"}}
agents:
  coder:
    model: openai/gpt-x
    provider: local
    base_url: http://127.0.0.1:9/v1
    api_key_env: CODER_KEY
    home_dir: /srv/coder
    enabled_toolsets: []
    disabled_toolsets: [web]
  plain:
  braces: {}
routes:
  - match: {account: bot1, chat_type: group, user_id: "on", user_id_alt: "0x10", parent_chat_id: -100}
    agent: plain
"#;

fn faults(text: &str) -> Vec<Fault> {
    match load_offline(text) {
        Ok((document, _)) => panic!("accepted: {document:?}"),
        Err(faults) => faults,
    }
}

fn load(text: &str) -> Document {
    load_offline(text).unwrap().0
}

/// Asserts that a text has exactly the faults whose `(line, path)` are given, each saying what its text says.
#[track_caller]
fn refused(text: &str, expected: &[(u32, &str, &str)]) {
    let found = faults(text);
    let places: Vec<(u32, &str)> = found.iter().map(|fault| (fault.line, fault.path.as_str())).collect();
    let wanted: Vec<(u32, &str)> = expected.iter().map(|(line, path, _)| (*line, *path)).collect();
    assert_eq!(places, wanted, "{found:#?}");
    for (fault, (_, _, part)) in found.iter().zip(expected) {
        assert!(fault.message.contains(part), "{fault:?} does not say {part:?}");
    }
}

#[test]
fn the_seeds_example_works_unchanged_and_warns_about_its_models() {
    let (document, warnings) = load_offline(SEED).unwrap();
    let told: Vec<(u32, &str, &str)> = warnings.iter().map(|w| (w.line, w.path.as_str(), w.message.as_str())).collect();
    assert_eq!(
        told,
        [
            (
                4,
                "agents.coder.model",
                "no provider is configured for anthropic/claude-opus-4-6; set providers.anthropic or default_provider"
            ),
            (
                7,
                "agents.research.model",
                "no provider is configured for anthropic/claude-sonnet-4-6; set providers.anthropic or default_provider"
            ),
        ]
    );
    let table = RouteTable::compile(document.routes.as_slice().into());
    let agent = |platform: &str, chat: &str, thread: Option<&str>, guild: Option<&str>| {
        let source = Source {
            platform: platform.into(),
            chat_id: chat.into(),
            thread_id: thread.map(Into::into),
            guild_id: guild.map(Into::into),
            ..Source::default()
        };
        explain(&table, &document.default_agent, None, None, &source).decision.agent
    };
    assert_eq!(agent("telegram", "-1001234", Some("42"), None).as_str(), "coder");
    assert_eq!(agent("telegram", "-1001234", Some("43"), None).as_str(), "main");
    assert_eq!(agent("slack", "C1", None, Some("T0ABC")).as_str(), "coder");
    assert_eq!(document.agents.len(), 3);
    assert_eq!(document.model, ECHO_MODEL);
}

#[test]
fn every_key_is_read() {
    let document = load(FULL);
    assert_eq!(document.default_agent.as_str(), "coder");
    assert_eq!(document.timezone, "Europe/Berlin");
    assert!(!document.isolation().group_per_user && document.isolation().thread_per_user);
    assert_eq!(document.session_reset, ResetPolicy { mode: ResetMode::Both, at_hour: 5, idle_minutes: 90 });
    assert_eq!(document.reset_by_platform["slack"].at_hour, 4);
    assert_eq!(document.limits, Limits { message_bytes: 1000, history_bytes: 5000 });
    assert_eq!(document.providers["anthropic"].kind, ProviderKind::Anthropic);
    assert_eq!(document.platforms.telegram["bot1"].allow_users, ["1", "2"]);
    assert_eq!(document.platforms.telegram["bot1"].rate, Rate::default());
    assert_eq!(document.platforms.telegram["bot2"].rate, Rate::Off);
    let rate = Rate::Limited { per_chat_per_s: 0.5, per_account_per_s: 30.0 };
    assert_eq!(document.platforms.telegram["bot3"].rate, rate);
    let reply = WebhookReply::Chat {
        platform: "telegram".into(),
        account: "bot1".into(),
        chat_id: "-1001234".into(),
        thread_id: Some("7".into()),
    };
    assert_eq!(document.platforms.webhook["mail"].reply, reply);
    assert_eq!(document.agents["coder"].enabled_toolsets, Some(Vec::new()));
    assert_eq!(document.agents["plain"], AgentSpec::default());
    assert_eq!(document.agents["braces"], AgentSpec::default());
    assert_eq!(document.routes[0].keys[4], (MatchKey::ParentChatId, "-100".to_owned()));
}

#[test]
fn an_empty_text_says_nothing() {
    for text in ["", "\n\n", "# only a comment\n", "---\n", "null", "~", "\u{feff}", "{}"] {
        assert_eq!(parse(text), Ok(Patch::default()), "{text:?}");
    }
    assert_eq!(load("\u{feff}default_agent: main\r\n"), Document::default());
}

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
        ("\"a\\u0000b\"", "a\0b"),
        ("  padded  ", "padded"),
        ("' padded '", " padded "),
    ] {
        let document = load(&format!("routes: [{{match: {{chat_id: {spelled}}}, agent: main}}]"));
        assert_eq!(document.routes[0].keys, [(MatchKey::ChatId, value.to_owned())], "{spelled}");
    }
    for spelled in [
        "042", "0x10", "0o7", "0b1", "1_000", "+5", "-0", "7:36", "1.0", "1e3", "1e999", ".nan", ".inf", "true",
        "False", "yes", "No", "on", "OFF", "null", "~", "", "[1]", "{a: 1}",
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
        ("limits: {message_bytes: 0}", "limits.message_bytes"),
        ("limits: {message_bytes: 10000000}", "limits.message_bytes"),
        ("limits: {history_bytes: 99999999999999999999}", "limits.history_bytes"),
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
        ("id: b, token_env: T", "", "nobody may talk"),
        ("id: b, token_env: T, allow_all: false", "", "nobody may talk"),
        ("id: b, token_env: T, allow_users: []", "", "nobody may talk"),
        ("id: b, token_env: T, allow_users: ['@ada']", ".allow_users[0]", "write the number"),
        ("id: b, token_env: T, allow_chats: [1.5]", ".allow_chats[0]", "quote it"),
        ("id: b, token_env: T, allow_all: true, rate: off", ".rate", "set api_base"),
        ("id: b, token_env: T, allow_all: true, rate: fast", ".rate", "write off or"),
        ("id: b, token_env: T, allow_all: true, rate: {per_chat_per_s: 0}", ".rate.per_chat_per_s", "above 0"),
        ("id: b, token_env: T, allow_all: true, rate: {per_chat_per_s: .inf}", ".rate.per_chat_per_s", "above 0"),
        ("id: b, token_file: t, allow_all: true", ".token_file", "absolute path"),
        ("id: B, token_env: T, allow_all: true", ".id", "not an account id"),
    ] {
        refused(&telegram(fields), &[(1, &format!("{at}{path}"), part)]);
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
fn references_are_checked_against_the_merged_document() {
    refused(
        "default_agent: codr\ndefault_provider: nope\nagents:\n  coder: {provider: opena}\n  other: {home_dir: /srv/x/}\n  third: {home_dir: /srv/./x}\nproviders: {openai: {}}\nroutes:\n- match: {chat_id: 1}\n  agent: missing\n",
        &[
            (1, "default_agent", "did you mean coder?"),
            (2, "default_provider", "add it under providers"),
            (4, "agents.coder.provider", "did you mean openai?"),
            (6, "agents.third.home_dir", "is the home of other"),
            (10, "routes[0].agent", "agent missing is not registered; add it under agents"),
        ],
    );
    let stored = load("agents: {coder: {}}\nproviders: {openai: {}}");
    let patch = parse("default_provider: openai\nroutes: [{match: {chat_id: 1}, agent: coder}]").unwrap();
    assert_eq!(check(&stored.merged(&patch, false), &patch.positions).0, Vec::new());
    let (faults, _) = check(&stored.merged(&patch, true), &patch.positions);
    let places: Vec<(u32, &str)> = faults.iter().map(|fault| (fault.line, fault.path.as_str())).collect();
    assert_eq!(places, [(1, "default_provider"), (2, "routes[0].agent")], "pruned away what is still named");
}

#[test]
fn fields_of_a_spec_are_judged_like_text() {
    let id = AgentId::parse("coder").unwrap();
    let good = load(FULL).agents["coder"].clone();
    assert_eq!(check_spec(&id, &good), Vec::new());
    let bad = AgentSpec {
        model: Some("a b".into()),
        home_dir: Some("x".into()),
        api_key_env: Some("sk-SECRET".into()),
        enabled_toolsets: Some(vec!["ok".into(), String::new()]),
        ..AgentSpec::default()
    };
    let found = check_spec(&id, &bad);
    let paths: Vec<&str> = found.iter().map(|fault| fault.path.as_str()).collect();
    assert_eq!(
        paths,
        ["agents.coder.model", "agents.coder.api_key_env", "agents.coder.home_dir", "agents.coder.enabled_toolsets[1]"]
    );
}

#[test]
fn merging_replaces_what_is_named_and_keeps_the_rest() {
    let stored = load(FULL);
    let patch =
        parse("agents: {coder: {}}\nreset_by_type: {}\nlimits: {message_bytes: 7}\ndefault_provider: null").unwrap();
    let merged = stored.merged(&patch, false);
    assert_eq!(merged.agents["coder"], AgentSpec::default(), "named: becomes as written");
    assert!(merged.agents.contains_key("plain") && merged.platforms.telegram.contains_key("bot3"));
    assert_eq!((merged.limits.message_bytes, merged.limits.history_bytes), (7, 5000));
    assert!(merged.reset_by_type.is_empty());
    assert_eq!(merged.default_provider, None);
    assert_eq!((&merged.routes, &merged.model), (&stored.routes, &stored.model));
    let pruned = stored.merged(&patch, true);
    assert_eq!(pruned.agents.keys().map(AgentId::as_str).collect::<Vec<_>>(), ["coder", "main"]);
    assert!(pruned.providers.is_empty() && pruned.platforms == Platforms::default());
    assert_eq!(pruned.routes, stored.routes, "routes are replaced by presence, not by pruning");
    let main = load("agents: {main: {model: x}}").merged(&parse("agents: {a: {}}").unwrap(), true);
    assert_eq!(main.agents["main"].model.as_deref(), Some("x"), "main is never pruned");
}

#[test]
fn routes_that_cannot_win_are_warned_about() {
    let text = "agents: {a: {}}\nroutes:\n- {match: {platform: x}, agent: a}\n- {match: {chat_id: 1, platform: x}, agent: main}\n";
    let (_, warnings) = load_offline(text).unwrap();
    let expected = Warning { line: 4, path: "routes[1]".into(), message: "can never win: route 0 covers it".into() };
    assert_eq!(warnings, [expected]);
    let (_, warnings) = load_offline("session_reset: {idle_minutes: 5}").unwrap();
    assert_eq!(warnings[0].message, "idle_minutes has no effect with mode none");
}

#[test]
fn models_find_their_provider_as_the_issue_says() {
    let document = load(
        "providers:\n  anthropic: {api_key_env: A}\n  router: {kind: openai, base_url: 'https://r/v1', api_key_env: R}\n",
    );
    let with_default = Document { default_provider: Some("router".into()), ..document.clone() };
    let spec = |model: &str, provider: Option<&str>, base_url: Option<&str>| AgentSpec {
        model: Some(model.into()),
        provider: provider.map(Into::into),
        base_url: base_url.map(Into::into),
        api_key_env: base_url.map(|_| "OWN".into()),
        ..AgentSpec::default()
    };
    let show = |document: &Document, spec: &AgentSpec| match resolve_model(document, spec) {
        Resolved::Echo => "echo".to_owned(),
        Resolved::Unserved => "unserved".to_owned(),
        Resolved::Endpoint(e) => format!(
            "{} {} {} {} {}",
            e.provider.as_deref().unwrap_or("-"),
            e.kind.as_str(),
            e.base_url.as_deref().unwrap_or("-"),
            e.api_key_env.as_deref().unwrap_or("-"),
            e.model
        ),
    };
    let own = Some("http://own");
    for (spec, without, with) in [
        (AgentSpec::default(), "echo", "echo"),
        (spec("builtin/echo", Some("router"), None), "echo", "echo"),
        (spec("anthropic/claude", None, None), "anthropic anthropic - A claude", "anthropic anthropic - A claude"),
        (spec("openai/gpt", None, None), "unserved", "router openai https://r/v1 R openai/gpt"),
        (spec("gpt", None, None), "unserved", "router openai https://r/v1 R gpt"),
        (
            spec("anthropic/claude", Some("router"), None),
            "router openai https://r/v1 R anthropic/claude",
            "router openai https://r/v1 R anthropic/claude",
        ),
        (spec("router/a/b", None, None), "router openai https://r/v1 R a/b", "router openai https://r/v1 R a/b"),
        (spec("gpt", Some("gone"), None), "unserved", "unserved"),
        (spec("gpt", None, own), "- openai http://own OWN gpt", "- openai http://own OWN gpt"),
        (spec("meta/llama", None, own), "- openai http://own OWN meta/llama", "- openai http://own OWN meta/llama"),
        (
            spec("claude", Some("anthropic"), own),
            "anthropic anthropic http://own OWN claude",
            "anthropic anthropic http://own OWN claude",
        ),
    ] {
        assert_eq!(show(&document, &spec), without);
        assert_eq!(show(&with_default, &spec), with);
    }
    let keyless = AgentSpec { api_key_env: None, ..spec("anthropic/claude", None, own) };
    assert_eq!(show(&document, &keyless), "anthropic anthropic http://own - claude", "no provider's key leaves for it");
}

#[test]
fn an_export_applied_again_is_no_change() {
    for text in [SEED, FULL, "", "agents: {null-ish: {}}"] {
        let document = load(text);
        let exported = to_yaml(&document);
        let patch = parse(&exported).unwrap_or_else(|faults| panic!("{faults:?}\n{exported}"));
        assert_eq!(document.merged(&patch, true), document, "{exported}");
        assert_eq!(Document::default().merged(&patch, false), document, "{exported}");
        assert_eq!(diff(&document, &document.merged(&patch, false)), Vec::new());
    }
    let exported = to_yaml(&load(SEED));
    assert!(
        exported.ends_with(
            "routes:\n  - match: {platform: telegram, chat_id: \"-1001234\", thread_id: \"42\"}\n    agent: coder\n  - match: {platform: slack, guild_id: T0ABC}\n    agent: coder\n"
        ),
        "{exported}"
    );
}

#[test]
fn text_that_looks_like_something_else_is_quoted() {
    for text in [
        "y", "n", "yes", "No", "on", "off", "true", "NULL", "~", "1", "1e3", "0x10", "042", "7:36", "-x", "", " a",
        "a: b", "#c", "é",
    ] {
        assert!(export::scalar(text).starts_with('"'), "{text}");
    }
    for text in ["coder", "anthropic/claude-opus-4-6", "T0ABC", "~/.hermes/x", "/srv/x"] {
        assert_eq!(export::scalar(text), text);
    }
    assert_eq!(export::scalar("a\u{202e}b\u{1b}\u{85}"), "\"a\\u202eb\\u001b\\u0085\"");
}

#[test]
fn a_diff_names_each_changed_path() {
    let before = load(FULL);
    let patch = parse(
        "model: x\nproviders: {new: {kind: openai}}\nagents: {coder: {model: openai/gpt-x}, plain: {model: z}}\nplatforms: {telegram: {accounts: [{id: bot3, token_env: B3, allow_all: true, rate: {per_chat_per_s: 2}}]}}\nroutes:\n- {match: {chat_id: 1}, agent: plain}\n- {match: {account: bot1, chat_type: group, user_id: 'on', user_id_alt: '0x10', parent_chat_id: -100}, agent: plain}\n",
    )
    .unwrap();
    let changes = diff(&before, &before.merged(&patch, false));
    let lines: Vec<String> = changes
        .iter()
        .map(|c| format!("{:?} {} {:?} {:?}", c.kind, c.path, c.before.as_deref(), c.after.as_deref()))
        .collect();
    assert_eq!(
        lines,
        [
            r#"Change model Some("anthropic/claude-haiku") Some("x")"#,
            r#"Add providers.new None Some("{kind: openai}")"#,
            r#"Change platforms.telegram.accounts[bot3].rate.per_chat_per_s Some("0.5") Some("2")"#,
            r#"Remove agents.coder.provider Some("local") None"#,
            r#"Remove agents.coder.base_url Some("\"http://127.0.0.1:9/v1\"") None"#,
            r#"Remove agents.coder.api_key_env Some("CODER_KEY") None"#,
            r#"Remove agents.coder.home_dir Some("/srv/coder") None"#,
            r#"Remove agents.coder.enabled_toolsets Some("[]") None"#,
            r#"Remove agents.coder.disabled_toolsets Some("[web]") None"#,
            r#"Add agents.plain.model None Some("z")"#,
            r#"Add routes[0] None Some("{match: {chat_id: \"1\"}, agent: plain}")"#,
        ]
    );
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

fn any_document() -> impl Strategy<Value = Document> {
    let value = prop_oneof![any::<String>(), "[0-9:_.xoe+-]{1,6}", "(?i)(yes|no|on|off|y|n|true|null|~)"];
    let routes = prop::collection::vec((prop::sample::select(MatchKey::ALL.to_vec()), value), 0..20);
    (routes, any::<bool>(), 1u64..1000).prop_map(|(keys, flag, bytes)| Document {
        group_sessions_per_user: flag,
        limits: Limits { message_bytes: bytes, history_bytes: bytes },
        routes: keys.into_iter().map(|pair| Route { keys: vec![pair], agent: AgentId::main() }).collect(),
        ..Document::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_value_survives_export_and_apply(document in any_document()) {
        let exported = to_yaml(&document);
        let patch = parse(&exported).map_err(|faults| TestCaseError::fail(format!("{faults:?}\n{exported}")))?;
        prop_assert_eq!(Document::default().merged(&patch, true), document);
    }

    #[test]
    fn any_text_is_read_or_refused_but_never_harmful(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn any_yaml_like_text_is_read_or_refused_but_never_harmful(
        text in "([a-z]{1,8}: |routes:\n|- |match: |[\\[\\]{},&*!|>'\"#\n :-]|agent: |main|  ){0,40}"
    ) {
        if let Err(faults) = parse(&text) {
            prop_assert!(!faults.is_empty());
        }
    }
}
