//! What is refused, over argv and gRPC alike: with a message that names the place, and nothing changed.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use hermes_proto::v1;
use hermes_tests::system::{Grpc, Options, Up};
use serde_json::json;
use tonic::{Code, Status};

use super::export;

/// A system with something in it that could change.
#[track_caller]
fn furnished(more: &str) -> Up {
    let document = format!(
        "agents: {{coder: {{}}}}\nroutes: [{{match: {{platform: telegram, chat_id: -5}}, agent: coder}}]\n{more}\n"
    );
    Up::start(Options::config(document))
}

/// The document's version: it moves with every change of document, agents or routes.
async fn version(grpc: &Grpc) -> u64 {
    grpc.system().get_status(v1::GetStatusRequest {}).await.unwrap().into_inner().document_version
}

async fn apply(grpc: &Grpc, text: &str) -> v1::ApplyResponse {
    // In pieces, as any client may send it.
    let pieces: Vec<String> =
        text.chars().collect::<Vec<_>>().chunks(50_000).map(|piece| piece.iter().collect()).collect();
    let requests = pieces.into_iter().map(|text| v1::ApplyRequest { text, prune: false });
    grpc.system().apply(tokio_stream::iter(requests.collect::<Vec<_>>())).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_document_is_refused_whole_with_the_line_and_path_of_every_fault() {
    let mut laughs = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for (this, last) in "bcdefghi".chars().zip("abcdefgh".chars()) {
        let _ = writeln!(laughs, "{this}: &{this} [{}]", vec![format!("*{last}"); 9].join(", "));
    }
    let deep = format!("routes: {}{}", "[".repeat(100_000), "]".repeat(100_000));
    let cases: Vec<(String, u32, &str, &str)> = vec![
        (
            "routes:\n- match: {plattform: telegram}\n  agent: coder\n".into(),
            2,
            "routes[0].match.plattform",
            "platform",
        ),
        ("routes:\n- match: {}\n  agent: coder\n".into(), 2, "routes[0].match", "empty match"),
        ("routes:\n- match: {platform: irc}\n  agent: ghost\n".into(), 3, "routes[0].agent", "ghost"),
        ("default_agent: ghost\n".into(), 1, "default_agent", "ghost"),
        ("routes:\n- match: {platform: irc}\n  agent: 7\n".into(), 3, "routes[0].agent", "quote it"),
        ("routes:\n- match: {chat_id: true}\n  agent: coder\n".into(), 2, "routes[0].match.chat_id", "boolean"),
        ("agents:\n  coder: {}\n  coder: {model: x/y}\n".into(), 3, "agents.coder", "line 2"),
        ("model: a/b\nmodel: c/d\n".into(), 2, "model", "line 1"),
        (laughs, 1, "", "anchor"),
        (deep, 1, "", ""),
        ("agents:\n  coder: {<<: {model: x}}\n".into(), 2, "agents.coder", "merge keys"),
        ("agents:\n  x: !!python/object:os.system {}\n".into(), 2, "", "tag"),
        ("routes:\n- match: {chat_id: 1e999}\n  agent: coder\n".into(), 2, "routes[0].match.chat_id", "quote it"),
        ("limits:\n\tmessage_bytes: 1\n".into(), 2, "", ""),
        ("model: a\0b\n".into(), 1, "", "U+0000"),
        ("limits: {message_bytes: -1}\n".into(), 1, "limits.message_bytes", "whole number"),
        ("surprise: 1\n".into(), 1, "surprise", "unknown key"),
        (
            "platforms: {telegram: {accounts: [{id: b, token: '1:a'}]}}\n".into(),
            1,
            "platforms.telegram.accounts[0].token",
            "token_env",
        ),
    ];
    let up = furnished("");
    let grpc = up.grpc();
    let (before, stored) = (version(&grpc).await, export(&up));
    for (number, (text, line, path, part)) in cases.iter().enumerate() {
        // A good part beside the bad one must not be taken either.
        let text = &format!("{text}timezone: Europe/Berlin\n");
        let answer = apply(&grpc, text).await;
        let fault = answer.faults.iter().find(|fault| fault.line == *line && fault.path.contains(path));
        let fault = fault.unwrap_or_else(|| panic!("case {number}, gRPC: {:?}", answer.faults));
        assert!(fault.message.contains(part), "case {number}: {fault:?}");
        assert!(answer.changes.is_empty());

        let file = up.file("bad.yaml", text);
        for command in ["apply", "diff"] {
            let error = up.ctl([OsStr::new(command), OsStr::new("-f"), file.as_os_str()]).refused(1);
            assert!(error.contains(&format!("bad.yaml:{line}")), "case {number}, {command}: {error}");
            assert!(error.contains(path) && error.contains(part), "case {number}, {command}: {error}");
        }
    }
    let file = up.file("bytes.yaml", b"timezone: Europe/Berlin\nmodel: \xff\xfe\n");
    let error = up.ctl([OsStr::new("apply"), OsStr::new("-f"), file.as_os_str()]).refused(1);
    assert!(error.contains("bytes.yaml:2") && error.contains("UTF-8"), "{error}");

    let all = "routes:\n- match: {x: 1}\n  agent: ghost\nagents: {A: {}}\nmodel: [1]\n";
    let error = up.ctl_with_input(["apply", "-f", "-"], all.as_bytes()).refused(1);
    for place in ["<stdin>:2", "<stdin>:3", "<stdin>:4", "<stdin>:5"] {
        assert!(error.contains(place), "all faults at once: {error}");
    }
    assert_eq!((version(&grpc).await, export(&up)), (before, stored));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_route_is_refused_over_argv_and_grpc() {
    let up = furnished("");
    let grpc = up.grpc();
    let (before, stored) = (version(&grpc).await, export(&up));
    for (pairs, agent, part) in [
        (vec![("plattform", "telegram")], "coder", "plattform"),
        (vec![], "coder", "match"),
        (vec![("platform", "irc")], "ghost", "ghost"),
        (vec![("platform", "irc")], "7!", "7!"),
        (vec![("platform", "irc"), ("platform", "slack")], "coder", "platform"),
    ] {
        let matches = pairs.iter().flat_map(|(key, value)| ["--match".to_owned(), format!("{key}={value}")]);
        let ran = up.ctl(["route", "add", "--agent", agent].map(str::to_owned).into_iter().chain(matches));
        assert!(matches!(ran.code, Some(1 | 2)), "{ran:?}");
        assert!(ran.out.is_empty() && ran.err.contains(part), "{ran:?}");

        let pair =
            |(key, value): &(&str, &str)| v1::route::Match { key: (*key).to_owned(), value: (*value).to_owned() };
        let route = v1::Route { r#match: pairs.iter().map(pair).collect(), agent: agent.to_owned() };
        let refused = grpc.routes().add_route(v1::AddRouteRequest { route: Some(route), at: None }).await.unwrap_err();
        let judged = [Code::InvalidArgument, Code::NotFound, Code::FailedPrecondition];
        assert!(judged.contains(&refused.code()), "{refused:?}");
        assert!(refused.message().contains(part), "{refused:?}");
    }
    let ran = up.ctl(["route", "add", "--agent", "coder", "--match", "platform"]);
    assert!(ran.refused(2).contains("KEY=VALUE"));
    let ran = up.ctl(["route", "add", "--agent", "coder", "--match", "platform=irc", "--at", "7"]);
    assert!(ran.refused(1).contains('7'));
    assert_eq!((version(&grpc).await, export(&up)), (before, stored));
}

fn submit(text: impl Into<String>) -> v1::SubmitRequest {
    v1::SubmitRequest {
        source: Some(v1::Source { platform: "irc".into(), chat_id: "1".into(), ..v1::Source::default() }),
        text: text.into(),
        ..v1::SubmitRequest::default()
    }
}

/// [`v1::SubmitRequest`] on the wire, for text that is none.
#[derive(Clone, PartialEq, prost::Message)]
struct RawSubmit {
    #[prost(message, optional, tag = "1")]
    source: Option<v1::Source>,
    #[prost(bytes = "vec", tag = "2")]
    text: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_one_byte_too_many_or_of_no_text_is_refused_and_the_largest_is_answered() {
    for limit in [262_144, 1000] {
        let up = furnished(&if limit == 1000 { "limits: {message_bytes: 1000}".to_owned() } else { String::new() });
        let grpc = up.grpc();
        let text = |bytes: usize| "é".repeat(bytes / 2) + &"x".repeat(bytes % 2);
        let send = |text: &[u8]| {
            let args = ["send", "--platform", "irc", "--chat-id", "1", "--wait", "--text", "-", "-o", "json"];
            up.ctl_with_input(args, text)
        };
        let error = send(text(limit + 1).as_bytes()).refused(1);
        assert!(error.contains("limits.message_bytes") && error.contains(&limit.to_string()), "{error}");
        let refused = grpc.messages().submit(submit(text(limit + 1))).await.unwrap_err();
        assert!(refused.message().contains("limits.message_bytes"), "{refused:?}");
        let refused = grpc.messages().submit_and_stream(submit(text(limit + 1))).await.unwrap_err();
        assert!(refused.message().contains("limits.message_bytes"), "{refused:?}");
        // Far beyond what a message of the protocol may be.
        let refused = grpc.messages().submit(submit(text(9 << 20))).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");

        let error = send(b"ab\nc\xffd").refused(1);
        assert!(error.contains("<stdin>:2") && error.contains("UTF-8"), "{error}");
        let argv = ["send", "--platform", "irc", "--chat-id", "1", "--text"].map(OsString::from);
        let error = up.ctl(argv.iter().map(OsString::as_os_str).chain([OsStr::from_bytes(b"c\xffd")])).refused(2);
        assert!(error.contains("UTF-8"), "{error}");
        let refused = raw_submit(&grpc, b"c\xffd".to_vec()).await.unwrap_err();
        assert!(refused.message().contains("UTF-8"), "{refused:?}");
        assert_eq!(up.json(["session", "list"]), json!([]), "none of them was accepted");

        let largest = send(text(limit).as_bytes()).ok().json();
        assert_eq!(largest["state"], "succeeded");
        assert_eq!(largest["reply"].as_str().unwrap().len(), "[main] ".len() + limit);
        grpc.messages().submit(submit(text(limit))).await.unwrap();
    }
}

async fn raw_submit(grpc: &Grpc, text: Vec<u8>) -> Result<v1::SubmitResponse, Status> {
    let mut client = tonic::client::Grpc::new(grpc.transport());
    client.ready().await.unwrap();
    let message = RawSubmit { source: submit("").source, text };
    let path = http::uri::PathAndQuery::from_static("/hermes.v1.MessageService/Submit");
    let codec = tonic_prost::ProstCodec::<RawSubmit, v1::SubmitResponse>::default();
    client.unary(tonic::Request::new(message), path, codec).await.map(tonic::Response::into_inner)
}

/// Names that must never become an id.
fn hostile() -> Vec<String> {
    let mut ids: Vec<String> = [
        "",
        ".",
        "..",
        "../x",
        "..%2f",
        "%2e%2e/",
        "..\\x",
        "/etc/passwd",
        "C:\\x",
        "\\\\h\\s",
        "a/b",
        "a\0b",
        "-rf",
        "--help",
        "a b",
        " a",
        "a ",
        "a\n",
        "$(id)",
        "`id`",
        "${IFS}",
        ";id",
        "a'--",
        "a\" OR 1=1",
        "A",
        "\u{e9}",
        "e\u{301}",
        "\u{440}\u{430}ypal",
        "a\u{202e}b",
        "a\u{200d}b",
        "\u{130}",
        "\u{ff0e}\u{ff0e}\u{ff0f}",
        "\u{1f600}",
        "\u{fffd}",
        "__proto__",
        "-x",
        "x-",
        "x_",
        "_",
        "a.b",
    ]
    .map(str::to_owned)
    .into();
    ids.extend([41, 64, 65, 100_000].map(|length| "a".repeat(length)));
    ids
}

/// Names of the same lists that are words to other programs and plain ids to us.
const HARMLESS: [&str; 11] = ["con", "nul", "default", "system", "null", "true", "0x10", "on", "y", "0", "1e3"];

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_agent_id_is_refused_wherever_an_id_is_written() {
    let up = furnished("");
    let grpc = up.grpc();
    let (before, stored) = (version(&grpc).await, export(&up));
    let mut ids = hostile();
    for id in ids.iter().filter(|id| !id.contains('\0')) {
        // Behind `--`, so that it is an id to the parser and not a flag.
        let ran = up.ctl(["agent", "add", "--", id]);
        assert!(ran.refused(1).contains("is not an agent id"), "{id:?}");
    }
    for bytes in [&b"\xed\xa0\x80"[..], b"\xc0\xaf", b"\xff\xfe"] {
        let ran = up.ctl([OsStr::new("agent"), OsStr::new("add"), OsStr::from_bytes(bytes)]);
        assert!(ran.refused(2).contains("UTF-8"), "{bytes:?}");
    }
    let ran = up.ctl(["agent", "remove", "../x", "--yes"]).refused(1);
    assert!(ran.contains("is not an agent id"), "{ran}");

    ids.push("a".repeat(1_000_000));
    for id in &ids {
        let spec = Some(v1::AgentSpec::default());
        let mut agents = grpc.agents();
        let add = v1::AddAgentRequest { id: id.clone(), spec: spec.clone(), ..v1::AddAgentRequest::default() };
        let copy = v1::AddAgentRequest { id: "x1".into(), from_agent: Some(id.clone()), ..add.clone() };
        let update = v1::UpdateAgentRequest { id: id.clone(), spec, ..v1::UpdateAgentRequest::default() };
        let remove = v1::RemoveAgentRequest { id: id.clone(), ..v1::RemoveAgentRequest::default() };
        let reroute = v1::RemoveAgentRequest {
            id: "coder".into(),
            reroute_to: Some(id.clone()),
            ..v1::RemoveAgentRequest::default()
        };
        let message = v1::SubmitRequest { agent: Some(id.clone()), ..submit("x") };
        let document = json!({"agents": {id.as_str(): {}}}).to_string();
        for refused in [
            agents.add_agent(add).await.map(drop),
            agents.add_agent(copy).await.map(drop),
            agents.update_agent(update).await.map(drop),
            agents.get_agent(v1::GetAgentRequest { id: id.clone() }).await.map(drop),
            agents.remove_agent(remove).await.map(drop),
            agents.remove_agent(reroute).await.map(drop),
            agents.rollback_agent(v1::RollbackAgentRequest { id: id.clone(), revision: 1 }).await.map(drop),
            grpc.messages().submit(message).await.map(drop),
        ] {
            let refused = refused.unwrap_err();
            let shown: String = id.chars().take(20).collect();
            assert_eq!(refused.code(), Code::InvalidArgument, "{shown:?}: {refused:?}");
            assert!(refused.message().contains("is not an agent id"), "{shown:?}: {refused:?}");
            assert!(refused.message().len() < 400 && !refused.message().chars().any(char::is_control), "{shown:?}");
        }
        let faults = apply(&grpc, &document).await.faults;
        assert!(!faults.is_empty(), "{:?}", id.chars().take(20).collect::<String>());
    }
    assert_eq!((version(&grpc).await, export(&up)), (before, stored));
    assert_eq!(up.json(["session", "list"]), json!([]));
}

#[test]
fn an_id_that_is_a_word_elsewhere_is_plain_here_and_quoted_in_the_export() {
    let up = Up::start(Options::default());
    for id in HARMLESS {
        up.ctl(["agent", "add", id]).ok();
        let sent = up.json(["send", "--platform", "irc", "--chat-id", "1", "--agent", id, "--text", "hi"]);
        assert_eq!(sent["session_key"], format!("agent:{id}:irc:dm:1"));
    }
    let exported = export(&up);
    for id in ["null", "true", "0x10", "on", "y", "0", "1e3"] {
        let quoted = exported.contains(&format!("  \"{id}\":")) || exported.contains(&format!("  '{id}':"));
        assert!(quoted, "{id} must be quoted in\n{exported}");
    }
    let file = up.file("exported.yaml", exported);
    up.ctl(["diff", "-f", file.to_str().unwrap()]).ok();
}
