//! The configurations under `deploy/` are read by the same reader as a user's.

use std::fs;
use std::path::{Path, PathBuf};

use hermes_core::approvals::Approvals;
use hermes_core::budget::{Budget, Price};
use hermes_core::busy::{Busy, BusyPolicy};
use hermes_core::command::AccessLists;
use hermes_core::config::{
    AgentSpec, Document, Limits, Platforms, Provider, Rate, Retention, SecretRef, Streaming, TelegramAccount,
    WebhookAccount, WebhookReply, load_offline,
};
use hermes_core::cron::{Job, Missed, Overlap};
use hermes_core::egress::{Search, Web};
use hermes_core::mcp::McpServer;
use hermes_core::reset::{ResetMode, ResetPolicy};
use hermes_home::curator::Settings;
use hermes_home::sandbox::Sandbox;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn configurations(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            configurations(&path, found);
        } else if path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("hermes") && name.ends_with(".yaml")
        }) {
            found.push(path);
        }
    }
}

#[test]
fn every_configuration_is_accepted_without_a_warning() {
    let mut found = Vec::new();
    configurations(&deploy(), &mut found);
    assert!(found.len() >= 4, "{found:?}");
    for path in found {
        let (_, warnings) = load_offline(&fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|faults| panic!("{} is refused: {faults:?}", path.display()));
        assert!(warnings.is_empty(), "{}: {warnings:?}", path.display());
    }
}

/// Taken apart without `..`: a new field does not compile until it stands here, and then has to stand in the example.
#[test]
fn the_example_sets_every_key() {
    let text = fs::read_to_string(deploy().join("config/hermes.example.yaml")).unwrap();
    let (document, _) = load_offline(&text).unwrap();
    let Document {
        default_agent: _,
        model,
        fallback_models,
        timezone,
        group_sessions_per_user: _,
        thread_sessions_per_user: _,
        session_reset: ResetPolicy { mode, at_hour: _, idle_minutes: _ },
        reset_by_type,
        reset_by_platform,
        busy: Busy { policy: BusyPolicy { mode: _, notice: _ }, rules },
        limits:
            Limits {
                message_bytes: _,
                history_bytes: _,
                turn_seconds: _,
                stall_seconds: _,
                queued_per_agent: _,
                queued_per_session: _,
                shed_after_seconds: _,
                inbound_per_second: _,
            },
        retention:
            Retention { dedupe_days: _, steps_days: _, deliveries_days: _, attachments_days: _, dead_days: _, turns_days },
        approvals: Approvals { mode: _, smart_model: _, timeout_seconds: _, allow: _, deny: _ },
        curator:
            Settings {
                enabled: _,
                interval_hours: _,
                min_idle_hours: _,
                stale_after_days: _,
                archive_after_days: _,
                consolidate: _,
            },
        sandbox: Sandbox { level: _, network: _, memory_mb: _, pids: _, cpu_seconds: _, disk_mb: _ },
        mcp_servers,
        budget,
        user_budget,
        web: Web { allow_private, ports, search },
        providers,
        default_provider,
        platforms: Platforms { telegram, webhook },
        agents,
        routes,
        cron,
    } = document;
    assert!(model != "builtin/echo" && timezone != "UTC" && mode != ResetMode::None);
    assert!(!reset_by_type.is_empty() && !reset_by_platform.is_empty() && !routes.is_empty());
    let Job {
        schedule: _,
        timezone: zone,
        prompt: _,
        skills,
        deliver,
        repeat,
        paused: _,
        model: own_model,
        workdir,
        script,
        no_agent: _,
        context_from,
        missed,
        overlap,
        jitter_seconds,
        timeout_seconds,
        session: _,
        bare,
        mirror: _,
    } = &cron["coder"]["morning report"];
    assert!(
        zone.is_some() && own_model.is_some() && workdir.is_some() && script.is_some() && timeout_seconds.is_some()
    );
    assert!(!skills.is_empty() && !context_from.is_empty() && !deliver.is_local() && repeat.is_some());
    assert!(*missed != Missed::default() && *overlap != Overlap::default() && *jitter_seconds > 0 && *bare);
    assert!(default_provider.is_some() && turns_days.is_some());
    assert!(rules.iter().any(|rule| rule.agent.is_some() && rule.platform.is_some()));
    let Budget { usd_per_day, usd_per_month, tokens_per_day, max_output_tokens, unpriced: _ } = &budget;
    assert!(
        usd_per_day.is_some() && usd_per_month.is_some() && tokens_per_day.is_some() && max_output_tokens.is_some()
    );
    assert!(!allow_private.is_empty() && !ports.is_empty());
    assert!(search.is_some_and(|Search { provider: _, base_url, key }| base_url.is_some() && key.is_some()));
    assert!(user_budget.binds() && !fallback_models.is_empty());
    // Keys whose value may be their default are looked for in the text.
    for key in [
        "default_agent",
        "group_sessions_per_user",
        "thread_sessions_per_user",
        "at_hour",
        "idle_minutes",
        "message_bytes",
        "history_bytes",
        "queued_per_agent",
        "queued_per_session",
        "shed_after_seconds",
        "inbound_per_second",
        "mode",
        "notice",
        "turn_seconds",
        "stall_seconds",
        "dedupe_days",
        "steps_days",
        "deliveries_days",
        "attachments_days",
        "dead_days",
        "level",
        "network",
        "memory_mb",
        "pids",
        "cpu_seconds",
        "disk_mb",
        "timeout_seconds",
        "allow",
        "deny",
        "kind",
        "paused",
        "no_agent",
        "session",
        "mirror",
        "unpriced",
        "command",
        "args",
        "timeout_seconds",
        "connect_timeout_seconds",
        "enabled",
    ] {
        let written = |line: &str| line.trim_start().starts_with(&format!("{key}:"));
        assert!(text.lines().any(written), "{key} is not in the example");
    }
    let server = |get: fn(&McpServer) -> bool| mcp_servers.values().any(get);
    assert!(server(
        |McpServer {
             command,
             url: _,
             headers: _,
             env,
             include,
             exclude,
             timeout_seconds: _,
             connect_timeout_seconds: _,
             enabled: _,
         }| { command.len() > 1 && !env.is_empty() && include.is_some() && !exclude.is_empty() }
    ));
    assert!(server(|server| server.url.is_some() && server.headers.len() > 1));
    let provider = |get: fn(&Provider) -> bool| providers.values().any(get);
    assert!(provider(
        |Provider { kind: _, base_url, api_key_env, prices: _ }| base_url.is_some() && api_key_env.is_some()
    ));
    assert!(provider(|provider| provider
        .prices
        .values()
        .any(|Price { input: _, output: _, cached }| cached.is_some())));
    let field = |get: fn(&AgentSpec) -> bool| agents.values().any(get);
    let AgentSpec {
        model: _,
        provider: _,
        base_url: _,
        api_key_env: _,
        home_dir: _,
        enabled_toolsets: _,
        disabled_toolsets: _,
        sandbox: _,
        approvals: _,
        curator: _,
        mcp_servers: _,
        fallback_models: _,
        budget: _,
        may_ask: _,
        runtime: _,
    } = AgentSpec::default();
    assert!(field(|agent| agent.fallback_models.is_some()) && field(|agent| agent.budget.is_some()));
    assert!(field(|agent| agent.may_ask.is_some()));
    assert!(field(|agent| {
        agent.acp().is_some_and(|acp| !acp.env.is_empty() && acp.secrets.len() == 2 && acp.start_timeout_seconds != 60)
    }));
    assert!(field(|agent| agent.model.is_some()) && field(|agent| agent.provider.is_some()));
    assert!(field(|agent| agent.base_url.is_some()) && field(|agent| agent.api_key_env.is_some()));
    assert!(field(|agent| agent.mcp_servers.is_some()));
    assert!(field(|agent| agent.home_dir.is_some()) && field(|agent| agent.sandbox.is_some()));
    assert!(field(|agent| agent.approvals.is_some()) && field(|agent| agent.curator.is_some()));
    assert!(field(|agent| agent.enabled_toolsets.is_some()) && field(|agent| agent.disabled_toolsets.is_some()));
    let bot = |get: fn(&TelegramAccount) -> bool| telegram.values().any(get);
    let TelegramAccount {
        token: _,
        api_base: _,
        allow_users: _,
        allow_chats: _,
        allow_all: _,
        unauthorized_dm: _,
        rate: _,
        streaming: _,
        homes: _,
        access:
            AccessLists { allow_admin_from, user_allowed_commands, group_allow_admin_from, group_user_allowed_commands },
    } = &telegram[0];
    let lists = [allow_admin_from, user_allowed_commands, group_allow_admin_from, group_user_allowed_commands];
    assert!(lists.iter().all(|list| !list.is_empty()));
    assert!(bot(|bot| bot.streaming == Streaming::Off) && bot(|bot| bot.streaming == Streaming::Edit));
    assert!(bot(|bot| matches!(bot.token, SecretRef::Env(_))) && bot(|bot| matches!(bot.token, SecretRef::File(_))));
    assert!(bot(|bot| bot.unauthorized_dm.is_some()));
    assert!(bot(|bot| bot.homes.values().any(|home| home.thread_id.is_some())));
    assert!(bot(|bot| bot.api_base.is_some()) && bot(|bot| bot.allow_all));
    assert!(bot(|bot| !bot.allow_users.is_empty()) && bot(|bot| !bot.allow_chats.is_empty()));
    assert!(bot(|bot| bot.rate == Rate::Off) && bot(|bot| matches!(bot.rate, Rate::Limited { .. })));
    let WebhookAccount { secret: _, reply: _, access: _ } = &webhook[0];
    let hook = |get: fn(&WebhookAccount) -> bool| webhook.values().any(get);
    assert!(
        hook(|hook| matches!(hook.secret, SecretRef::Env(_))) && hook(|hook| matches!(hook.secret, SecretRef::File(_)))
    );
    assert!(hook(|hook| matches!(hook.reply, WebhookReply::Callback { .. })));
    assert!(hook(|hook| matches!(hook.reply, WebhookReply::Chat { thread_id: Some(_), .. })));
}

/// What a worker's container gets for the boundary around tools, and that it is no wider than that: `hermes-worker doctor` needs the first list, and
/// none of the second is let through for any container.
#[test]
fn the_workers_system_calls_are_those_of_its_boundary_and_none_that_reach_the_host() {
    let text = |path: &str| fs::read_to_string(deploy().join(path)).unwrap();
    let profile: serde_json::Value = serde_json::from_str(&text("seccomp/hermes-worker.json")).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().unwrap();
    let is_free = |name: &str| {
        let named = |rule: &&serde_json::Value| rule["names"].as_array().unwrap().iter().any(|known| known == name);
        rules.iter().filter(named).any(|rule| rule["args"].is_null())
    };
    for name in [
        "unshare",
        "clone",
        "clone3",
        "mount",
        "umount2",
        "pivot_root",
        "seccomp",
        "prctl",
        "landlock_create_ruleset",
        "landlock_add_rule",
        "landlock_restrict_self",
    ] {
        assert!(is_free(name), "{name}");
    }
    for name in [
        "setns",
        "keyctl",
        "add_key",
        "request_key",
        "bpf",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "pidfd_getfd",
        "perf_event_open",
        "userfaultfd",
        "io_uring_setup",
        "open_by_handle_at",
        "init_module",
        "finit_module",
        "kexec_load",
        "reboot",
        "swapon",
        "acct",
        "settimeofday",
        "clock_settime",
        "fsopen",
        "move_mount",
        "open_tree",
        "mount_setattr",
        "chroot",
        "personality",
        "syslog",
        "quotactl",
    ] {
        assert!(!is_free(name), "{name}");
    }
    let compose: serde_yaml::Value = serde_yaml::from_str(&text("compose/compose.yaml")).unwrap();
    let options = compose["services"]["worker-main"]["security_opt"].as_sequence().unwrap();
    let options: Vec<&str> = options.iter().filter_map(serde_yaml::Value::as_str).collect();
    for needed in ["no-new-privileges:true", "apparmor=unconfined", "systempaths=unconfined"] {
        assert!(options.contains(&needed), "{options:?}");
    }
    let file = options.iter().find_map(|option| option.strip_prefix("seccomp=")).unwrap();
    assert!(deploy().join("compose").join(file).is_file(), "{file}");
}
