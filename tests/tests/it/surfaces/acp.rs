//! A real agent of the Agent Client Protocol, as its registry has it, behind a chat: the example agent of the protocol's own package, which
//! says that it reads, asks whether it may change a file, and does what it is told.

use std::path::PathBuf;
use std::time::Duration;

use hermes_tests::fake_telegram::FakeTelegram;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{SOON, account, start, stop, texts};
use crate::node;

const BOT: &str = "760:acp-secret";
const ADA: i64 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_agent_answers_in_a_chat_and_asks_there_what_it_may_do() {
    let fake = FakeTelegram::start().await.unwrap();
    let bot = fake.bot(BOT);
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}}});
    let up = start(&document, &[("FRONT_TOKEN", BOT), ("OUTSIDER_KEY", "not-for-anybody")]);
    let home = PathBuf::from(up.json(["agent", "show", "main"])["home"].as_str().unwrap());
    let (program, modules) = node::packages("acp", &home);
    let example = modules.join("@agentclientprotocol/sdk/dist/examples/agent.js");
    let flag =
        format!("kind=acp,command={} {},secret.MODEL_KEY=env:OUTSIDER_KEY", program.display(), example.display());
    up.ctl(["agent", "update", "main", "--runtime", &flag, "--sandbox", "network=open,pids=512,memory_mb=2048"]).ok();

    // Asked in the chat, allowed there.
    bot.push_text(ADA, ADA, "please tidy up");
    let question = texts(&bot, ADA, 1).await.remove(0);
    assert!(
        question
            .starts_with("Question 1: may I do this?\n\nacp_tool_call: Modifying critical configuration file (edit)"),
        "{question}"
    );
    assert!(question.contains("/home/user/project/config.json") && question.contains("change a file"), "{question}");
    bot.push_text(ADA, ADA, "yes");
    let allowed = texts(&bot, ADA, 3).await;
    assert!(allowed[2].contains("I've successfully updated the configuration"), "{allowed:?}");
    // Denied by an operator.
    bot.push_text(ADA, ADA, "and once more");
    texts(&bot, ADA, 4).await;
    let waiting = up.json(["approval", "list"]);
    up.ctl(["approval", "deny", &waiting[0]["id"].to_string()]).ok();
    let denied = texts(&bot, ADA, 5).await;
    assert!(denied[4].contains("I understand you prefer not to make that change"), "{denied:?}");

    // Its worker is killed while it works: said as it is, and the next message runs.
    bot.push_text(ADA, ADA, "a third time");
    texts(&bot, ADA, 6).await;
    let workers = up.json(["worker", "list"]);
    let pid = i32::try_from(workers[0]["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let interrupted = texts(&bot, ADA, 7).await;
    assert!(interrupted[6].contains("nobody knows how far it came"), "{interrupted:?}");
    bot.push_text(ADA, ADA, "and now?");
    texts(&bot, ADA, 8).await;
    let id = until(SOON, "the question", || up.json(["approval", "list"])[0]["id"].as_u64());
    up.ctl(["approval", "approve", &id.to_string()]).ok();
    let after = texts(&bot, ADA, 9).await;
    assert!(after[8].contains("successfully updated"), "{after:?}");
    assert!(!up.log().contains("not-for-anybody"));
    // Nothing of it outlives the system, and it has nothing to say after its last word.
    assert!(bot.wait_for(ADA, 10, Duration::from_millis(1)).await.is_err());
    stop(up);
}

/// OpenCode, unmodified, with a model behind it that is ours: it asks before it runs a command, goes on with its session in another
/// process, and has its key.
#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_agent_that_others_wrote_works_with_a_model_of_its_own() {
    let model = MockModel::start().await.unwrap();
    model.respond(|body| {
        let messages = body["messages"].as_array().cloned().unwrap_or_default();
        let last = messages.last().cloned().unwrap_or_default();
        let has_bash = body["tools"].to_string().contains("\"bash\"");
        match (last["role"].as_str(), has_bash && last.to_string().contains("make the file")) {
            (Some("user"), true) => {
                let arguments = json!({"command": "echo made > made.txt", "description": "makes a file"}).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", "bash", &arguments)])
            }
            (Some("tool"), _) => Behaviour::Say("I have made it.".to_owned()),
            _ => Behaviour::Say(format!("I have heard {} messages.", messages.len())),
        }
    });
    let fake = FakeTelegram::start().await.unwrap();
    let bot = fake.bot(BOT);
    let accounts = [account("front", "FRONT_TOKEN", &fake)];
    let document = json!({"platforms": {"telegram": {"accounts": accounts}}});
    let up = start(&document, &[("FRONT_TOKEN", BOT), ("OUTSIDER_KEY", "not-for-anybody")]);
    let home = PathBuf::from(up.json(["agent", "show", "main"])["home"].as_str().unwrap());
    let (_, modules) = node::packages("opencode", &home);
    let settings = json!({
        "autoupdate": false, "share": "disabled", "permission": {"bash": "ask"}, "model": "mock/m", "small_model": "mock/m",
        "provider": {"mock": {
            "npm": "@ai-sdk/openai-compatible", "name": "Mock", "options": {"baseURL": model.base_url(), "apiKey": "{env:MODEL_KEY}"},
            "models": {"m": {"name": "m", "tool_call": true, "limit": {"context": 100_000, "output": 4_000}}},
        }},
    });
    let runtime = json!({
        "kind": "acp",
        "command": [modules.join("opencode-linux-x64-baseline/bin/opencode"), "acp"],
        "env": {"OPENCODE_CONFIG_CONTENT": settings.to_string(), "OPENCODE_DISABLE_MODELS_FETCH": "1"},
        "secrets": {"MODEL_KEY": {"env": "OUTSIDER_KEY"}},
        "start_timeout_seconds": 120,
    });
    let sandbox = json!({"network": "open", "memory_mb": 4096, "pids": 1024});
    let document = json!({"agents": {"main": {"runtime": runtime, "sandbox": sandbox}}}).to_string();
    let file = up.file("opencode.yaml", document);
    up.ctl(["apply".as_ref(), "-f".as_ref(), file.as_os_str()]).ok();

    let slowly = Duration::from_secs(120);
    bot.push_text(ADA, ADA, "hello");
    let heard = bot.wait_for(ADA, 1, slowly).await.unwrap();
    assert!(heard[0].text.starts_with("I have heard "), "{heard:?}");
    assert_eq!(model.last().bearer(), Some("not-for-anybody"));
    bot.push_text(ADA, ADA, "make the file");
    let question = texts(&bot, ADA, 2).await.remove(1);
    assert!(question.contains("acp_tool_call: echo made > made.txt (execute)"), "{question}");
    assert!(!home.join("workspace/made.txt").try_exists().unwrap());
    bot.push_text(ADA, ADA, "yes");
    assert_eq!(texts(&bot, ADA, 4).await[3], "I have made it.");
    assert_eq!(std::fs::read_to_string(home.join("workspace/made.txt")).unwrap(), "made\n");

    // In another process of it the conversation goes on: more was said than this message.
    let workers = up.json(["worker", "list"]);
    let pid = i32::try_from(workers[0]["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    bot.push_text(ADA, ADA, "what did you hear?");
    let heard = bot.wait_for(ADA, 5, slowly).await.unwrap();
    let count = heard[4].text.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>();
    assert!(count.is_ok_and(|count| count > 5), "{heard:?}");
    assert!(!up.log().contains("not-for-anybody"));
    stop(up);
}
