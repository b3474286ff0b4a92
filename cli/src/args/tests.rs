use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use clap::{CommandFactory as _, error::ErrorKind};

use super::*;

fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once(&"hermesctl").chain(line))
}

fn kind(line: &[&str]) -> ErrorKind {
    parse(line).expect_err("is refused").kind()
}

fn every_command(command: &clap::Command, path: &str, into: &mut Vec<(String, clap::Command)>) {
    into.push((path.to_owned(), command.clone()));
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        every_command(sub, &format!("{path}_{}", sub.get_name()), into);
    }
}

fn all_commands() -> Vec<(String, clap::Command)> {
    let mut root = Cli::command().term_width(100);
    root.build();
    let mut all = Vec::new();
    every_command(&root, "hermesctl", &mut all);
    all
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_its_help_with_an_example() {
    let commands = all_commands();
    assert!(commands.len() > 30, "{}", commands.len());
    for (path, command) in commands {
        let help = command.term_width(100).render_long_help().to_string();
        assert!(help.contains("Example"), "{path} has no example");
        insta::assert_snapshot!(format!("help_{path}"), help);
    }
}

#[test]
fn ids_may_be_negative_and_values_may_look_like_flags() {
    let line =
        ["session", "key", "--platform", "telegram", "--chat-id", "-1001234", "--thread-id", "-7", "--user-id", "--x"];
    let Command::Session(SessionCommand::Key(args)) = parse(&line).unwrap().command else { panic!("not key") };
    assert_eq!(args.source.chat_id, "-1001234");
    assert_eq!(args.source.thread_id.as_deref(), Some("-7"));
    assert_eq!(args.source.user_id.as_deref(), Some("--x"));
    assert_eq!(args.source.chat_type, "dm");
    assert_eq!(
        (args.agent.as_str(), args.group_sessions_per_user, args.thread_sessions_per_user),
        ("main", true, false)
    );
}

#[test]
fn an_empty_value_is_a_value_and_an_absent_one_is_none() {
    let line = ["route", "explain", "--platform", "x", "--chat-id", "1", "--thread-id", "", "-o", "json"];
    let cli = parse(&line).unwrap();
    assert_eq!(cli.global.output, Format::Json);
    let Command::Route(RouteCommand::Explain(args)) = cli.command else { panic!("not explain") };
    assert_eq!(args.source.thread_id.as_deref(), Some(""));
    assert_eq!(args.source.guild_id, None);
}

#[test]
fn a_match_is_cut_at_its_first_equals_sign() {
    let line = [
        "route",
        "add",
        "--agent",
        "coder",
        "--match",
        "chat_id=-1001234",
        "--match",
        "user_id=a=b=",
        "--match=guild_id=",
    ];
    let Command::Route(RouteCommand::Add(args)) = parse(&line).unwrap().command else { panic!("not add") };
    let expected = [("chat_id", "-1001234"), ("user_id", "a=b="), ("guild_id", "")];
    assert_eq!(args.matches, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!(kind(&["route", "add", "--agent", "coder", "--match", "chat_id"]), ErrorKind::ValueValidation);
    assert_eq!(kind(&["route", "add", "--agent", "coder", "--match", "=x"]), ErrorKind::ValueValidation);
    assert_eq!(kind(&["route", "add", "--agent", "coder"]), ErrorKind::MissingRequiredArgument);
}

#[test]
fn booleans_and_durations_are_read_strictly() {
    let key = |flag: &str| parse(&["session", "key", "--platform", "x", flag]);
    for (flag, expected) in [("--group-sessions-per-user=false", false), ("--group-sessions-per-user=True", true)] {
        let Command::Session(SessionCommand::Key(args)) = key(flag).unwrap().command else { panic!("not key") };
        assert_eq!(args.group_sessions_per_user, expected);
    }
    assert!(key("--thread-sessions-per-user=perhaps").is_err());
    for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("12h", 43_200), ("7d", 604_800)] {
        assert_eq!(duration(text).unwrap(), Duration::from_secs(seconds), "{text}");
    }
    for text in ["", "0", "0s", "-1", "1.5h", "1w", "m", "1 m", "１m", "99999999999999999999d", "400000d", "1h30m"] {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn hostile_agent_ids_reach_the_control_plane_as_written() {
    for id in ["-rf", "--help-me", "../x", "a b", "$(id)", "раypal", ""] {
        let Command::Agent(AgentCommand::Show { id: parsed }) = parse(&["agent", "show", "--", id]).unwrap().command
        else {
            panic!("not show")
        };
        assert_eq!(parsed, id);
    }
    let Command::Agent(AgentCommand::Add(args)) = parse(&["agent", "add", "-rf"]).unwrap().command else {
        panic!("not add")
    };
    assert_eq!(args.id, "-rf");
}

#[test]
fn flags_that_exclude_each_other_are_wrong_usage() {
    assert_eq!(kind(&["agent", "remove", "x", "--yes", "--reroute-to", "y"]), ErrorKind::ArgumentConflict);
    assert_eq!(kind(&["token", "create", "--role", "worker"]), ErrorKind::MissingRequiredArgument);
    assert_eq!(kind(&["token", "create", "--role", "king"]), ErrorKind::InvalidValue);
    assert_eq!(kind(&["agent", "list", "--limit", "0"]), ErrorKind::ValueValidation);
    assert_eq!(kind(&["apply"]), ErrorKind::MissingRequiredArgument);
    assert_eq!(kind(&["nonsense"]), ErrorKind::InvalidSubcommand);
}

#[test]
fn the_reference_spelling_of_from_agent_works() {
    let Command::Agent(AgentCommand::Add(args)) = parse(&["agent", "add", "b", "--from-profile", "a"]).unwrap().command
    else {
        panic!("not add")
    };
    assert_eq!(args.from_agent.as_deref(), Some("a"));
}

#[test]
fn arguments_that_are_no_utf8_are_refused() {
    let line = ["hermesctl", "send", "--platform", "x", "--chat-id", "1", "--text"].map(OsStr::new);
    let refused = Cli::try_parse_from(line.into_iter().chain([OsStr::from_bytes(b"\xff\xfe")])).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidUtf8);
}

#[test]
fn chat_takes_words_and_keeps_global_flags() {
    let cli = parse(&["chat", "main", "hello", "there", "-o", "json"]).unwrap();
    assert_eq!(cli.global.output, Format::Json);
    let Command::Chat(args) = cli.command else { panic!("not chat") };
    assert_eq!(args.text, ["hello", "there"]);
    let Command::Chat(args) = parse(&["chat", "main", "--", "-5"]).unwrap().command else { panic!("not chat") };
    assert_eq!(args.text, ["-5"]);
}

#[test]
fn help_never_shows_the_environment() {
    for (path, command) in all_commands() {
        for arg in command.get_arguments().filter(|arg| arg.get_env().is_some()) {
            assert!(arg.is_hide_env_values_set(), "{path} {}", arg.get_id());
        }
    }
}
