//! The document as its users meet it: text in, faults or a document out.

mod approvals;
mod budgets;
mod cron;
mod curator;
mod home_chats;
mod mcp;
mod runtime;
mod sandbox;
mod strict;

use proptest::prelude::*;

use super::*;
use crate::busy::{BusyMode, BusyPolicy};
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
fallback_models: [local/small, anthropic/claude-haiku]
timezone: Europe/Berlin
group_sessions_per_user: false
thread_sessions_per_user: true
session_reset: {mode: both, at_hour: 5, idle_minutes: 90}
reset_by_type:
  dm: {mode: none}
reset_by_platform:
  slack: {mode: idle, idle_minutes: 30}
busy:
  mode: interrupt
  notice: false
  rules:
    - {platform: slack, mode: queue}
    - {agent: coder, platform: slack, mode: steer, notice: false}
limits: {message_bytes: 1000, history_bytes: 5000, turn_seconds: 60, stall_seconds: 30, queued_per_agent: 9, queued_per_session: 3, shed_after_seconds: 0, inbound_per_second: 7}
retention: {dedupe_days: 9, steps_days: 3, deliveries_days: 4, attachments_days: 7, dead_days: 5, turns_days: 6}
budget: {usd_per_day: 2.5, usd_per_month: 40, tokens_per_day: 90000, max_output_tokens: 500, unpriced: allow}
user_budget: {usd_per_day: 0}
providers:
  anthropic:
    api_key_env: ANTHROPIC_API_KEY
    prices:
      claude-haiku: {input_usd_per_mtok: 1, output_usd_per_mtok: 5, cached_usd_per_mtok: 0.1}
  local: {kind: openai, base_url: "http://127.0.0.1:8080/v1"}
default_provider: local
platforms:
  telegram:
    accounts:
      - id: bot1
        token_env: BOT1
        allow_users: [1, "2"]
        allow_chats: [-1001234]
        unauthorized_dm: pair
        homes: {coder: "-1001234:7", plain: 12}
        allow_admin_from: 1
        user_allowed_commands: "/Status , new"
        group_allow_admin_from: [9, "10"]
        group_user_allowed_commands: [usage]
      - {id: bot2, token_file: /run/secrets/bot2, api_base: "http://127.0.0.1:8081", allow_all: true, rate: off}
      - {id: bot3, token_env: B3, allow_all: true, rate: {per_chat_per_s: 0.5}}
  webhook:
    accounts:
      - {id: hook, secret_env: HOOK, callback_url: "https://example.org/reply", allow_admin_from: ["ci, bot"]}
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
    fallback_models: []
    budget: {tokens_per_day: 7}
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
    let limits = Limits {
        message_bytes: 1000,
        history_bytes: 5000,
        turn_seconds: 60,
        stall_seconds: 30,
        queued_per_agent: 9,
        queued_per_session: 3,
        shed_after_seconds: 0,
        inbound_per_second: 7,
    };
    assert_eq!(document.limits, limits);
    let coder = AgentId::parse("coder").unwrap();
    let busy = |agent: &AgentId, platform| document.busy.select(agent, platform);
    assert_eq!(busy(&AgentId::main(), "irc"), BusyPolicy { mode: BusyMode::Interrupt, notice: false });
    assert_eq!(busy(&AgentId::main(), "slack"), BusyPolicy { mode: BusyMode::Queue, notice: false });
    assert_eq!(busy(&coder, "slack"), BusyPolicy { mode: BusyMode::Steer, notice: false });
    let kept = Retention {
        dedupe_days: 9,
        steps_days: 3,
        deliveries_days: 4,
        attachments_days: 7,
        dead_days: 5,
        turns_days: Some(6),
    };
    assert_eq!(document.retention, kept);
    assert_eq!(document.providers["anthropic"].kind, ProviderKind::Anthropic);
    assert_eq!(document.platforms.telegram["bot1"].allow_users, ["1", "2"]);
    assert_eq!(document.platforms.telegram["bot1"].rate, Rate::default());
    let lists = document.platforms.access("telegram", "bot1").unwrap();
    assert_eq!(lists.allow_admin_from, ["1"]);
    assert_eq!(lists.user_allowed_commands, ["/Status", "new"]);
    assert_eq!(lists.group_allow_admin_from, ["9", "10"]);
    assert_eq!(lists.group_user_allowed_commands, ["usage"]);
    assert_eq!(document.platforms.access("webhook", "hook").unwrap().allow_admin_from, ["ci, bot"]);
    assert_eq!(document.platforms.access("telegram", "bot2"), Some(&AccessLists::default()));
    assert_eq!(document.platforms.access("irc", "bot1"), None);
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
fn json_and_other_layouts_of_the_same_document_read_alike() {
    let expected = load("agents: {a: {}}\nroutes: [{match: {chat_id: '1'}, agent: a}]\n");
    for text in [
        "{\"agents\": {\"a\": {}}, \"routes\": [{\"match\": {\"chat_id\": \"1\"}, \"agent\": \"a\"}]}",
        "{\n  \"agents\": {\n    \"a\": {}\n  },\n  \"routes\": [\n    {\"match\": {\"chat_id\": 1}, \"agent\": \"a\"}\n  ]\n}\n",
        "agents: {\n  a: {},\n}\nroutes: [\n  {match: {chat_id: 1}, agent: a}, # one\n]\n",
        "---\nagents:\r\n  a:\r\nroutes:\r\n- match:\r\n    chat_id: 1\r\n  agent: a\r\n...\n",
        "'agents':\n  ? a\n  : {}\nroutes:\n- agent: >-\n    a\n  match: {\"chat_id\":1}\n",
    ] {
        assert_eq!(load(text), expected, "{text}");
    }
}

#[test]
fn an_empty_text_says_nothing() {
    for text in ["", "\n\n", "# only a comment\n", "---\n", "null", "~", "\u{feff}", "{}"] {
        assert_eq!(parse(text), Ok(Patch::default()), "{text:?}");
    }
    assert_eq!(load("\u{feff}default_agent: main\r\n"), Document::default());
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
fn a_flood_of_faults_is_counted_not_listed() {
    let agents: String = (0..50).map(|n| format!("  agent-{n}: {{}}\n")).collect();
    let routes: String = (0..5000).map(|n| format!("- {{match: {{chat_id: {n}}}, agent: agnt-{n}}}\n")).collect();
    let found = faults(&format!("agents:\n{agents}routes:\n{routes}"));
    assert_eq!(found.len(), 1001);
    assert_eq!(found[0].to_string(), "line 53: routes[0].agent: agent agnt-0 is not registered; did you mean agent-0?");
    assert_eq!(found[1000].to_string(), "4000 more faults are not listed");
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
        parse("agents: {coder: {}}\nreset_by_type: {}\nlimits: {message_bytes: 7}\ndefault_provider: null\nretention: {turns_days: null}")
            .unwrap();
    let merged = stored.merged(&patch, false);
    assert_eq!(merged.agents["coder"], AgentSpec::default(), "named: becomes as written");
    assert!(merged.agents.contains_key("plain") && merged.platforms.telegram.contains_key("bot3"));
    assert_eq!((merged.limits.message_bytes, merged.limits.history_bytes), (7, 5000));
    assert_eq!(merged.retention, Retention { turns_days: None, ..stored.retention.clone() });
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
    let lists = "allow_admin_from: 1, group_user_allowed_commands: [statsu]";
    let text = format!(
        "platforms:\n  telegram:\n    accounts:\n    - {{id: b, token_env: T, allow_all: true, {lists}}}\n    - {{id: c, token_env: T, allow_all: true, user_allowed_commands: stop}}\n"
    );
    let told: Vec<String> = load_offline(&text).unwrap().1.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            r#"line 4: platforms.telegram.accounts[b].group_user_allowed_commands[0]: "statsu" is no command; did you mean status?"#,
            "line 5: platforms.telegram.accounts[c].user_allowed_commands: has no effect without allow_admin_from: everybody may give every command",
        ]
    );
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
            r#"Remove agents.coder.fallback_models Some("[]") None"#,
            r#"Remove agents.coder.budget Some("{tokens_per_day: 7}") None"#,
            r#"Add agents.plain.model None Some("z")"#,
            r#"Add routes[0] None Some("{match: {chat_id: \"1\"}, agent: plain}")"#,
        ]
    );
}

#[test]
fn the_guides_examples_are_true() {
    let guide = include_str!("../../../README.md");
    let blocks = |language: &'static str| {
        guide.split("```").skip(1).step_by(2).filter_map(move |block| block.strip_prefix(language))
    };
    let (document, warnings) = load_offline(blocks("yaml\n").next().unwrap()).unwrap();
    assert_eq!(warnings, Vec::new());
    let table = RouteTable::compile(document.routes.as_slice().into());
    let source = Source {
        platform: "telegram".into(),
        chat_id: "-1001234".into(),
        thread_id: Some("43".into()),
        ..Source::default()
    };
    let explained = explain(&table, &document.default_agent, None, None, &source);
    let shown: serde_json::Value = serde_json::from_str(blocks("json\n").next().unwrap()).unwrap();
    assert_eq!(serde_json::to_value(&explained).unwrap(), shown);
    let mut told = Vec::new();
    let faulty = "agents: {coder: {}}\nroutes:\n- {match: {chatid: 1}, agent: coder}\n- {match: {}, agent: coder}\n";
    told.extend(faults(faulty).iter().map(|fault| format!("{}: {}", fault.path, fault.message)));
    let dangling = "agents: {coder: {}}\nroutes: [{match: {chat_id: 1}, agent: coder}, {match: {chat_id: 2}, agent: coder}, {match: {chat_id: 3}, agent: codr}]\n";
    told.extend(faults(dangling).iter().map(|fault| format!("{}: {}", fault.path, fault.message)));
    let printed: Vec<&str> =
        blocks("text\n").next().unwrap().lines().filter_map(|l| Some(l.split_once(": ")?.1)).collect();
    assert_eq!(told, printed);
    assert_eq!(
        faults(faulty)[0].to_string(),
        "line 3: routes[0].match.chatid: unknown match key \"chatid\"; did you mean chat_id?"
    );
    for key in MatchKey::ALL {
        assert!(guide.contains(&format!("| `{key}` |")), "{key}");
    }
}

fn any_platforms() -> impl Strategy<Value = Platforms> {
    let chat = ("-?[1-9][0-9]{0,12}", prop::option::of("[2-9][0-9]{0,9}"))
        .prop_map(|(chat_id, thread_id)| HomeChat { chat_id, thread_id });
    prop::option::of(chat).prop_map(|home| {
        let mut platforms = load("platforms: {telegram: {accounts: [{id: b, token_env: T}]}}").platforms;
        platforms.telegram["b"].homes.extend(home.map(|home| (AgentId::main(), home)));
        platforms
    })
}

fn any_document() -> impl Strategy<Value = Document> {
    let value = prop_oneof![
        any::<String>().prop_map(|text| text.replace('\0', "")),
        "[0-9:_.xoe+-]{1,6}",
        "(?i)(yes|no|on|off|y|n|true|null|~)"
    ];
    let routes = prop::collection::vec((prop::sample::select(MatchKey::ALL.to_vec()), value), 0..20);
    (routes, any::<bool>(), 1u64..1000, any_platforms()).prop_map(|(keys, flag, bytes, platforms)| Document {
        platforms,
        group_sessions_per_user: flag,
        limits: Limits {
            message_bytes: bytes,
            history_bytes: bytes,
            turn_seconds: bytes,
            stall_seconds: bytes,
            queued_per_agent: bytes,
            queued_per_session: bytes,
            shed_after_seconds: bytes,
            inbound_per_second: bytes,
        },
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
    fn any_agent_survives_alone(document in any_document()) {
        for (id, spec) in &document.agents {
            let alone = agent_to_yaml(id, spec);
            let read = agent_from_yaml(&alone).map_err(|faults| TestCaseError::fail(format!("{faults:?}\n{alone}")))?;
            prop_assert_eq!(read, (id.clone(), AgentSpec { home_dir: None, ..spec.clone() }));
        }
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
