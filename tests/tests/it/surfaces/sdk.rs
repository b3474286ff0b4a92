//! The OpenAI-compatible API as the unmodified Python SDK sees it.
//!
//! `HERMES_TEST_PYTHON` names an interpreter with `deploy/requirements.txt`; without it one is made in the build directory
//! once, as `deploy/local/test.sh` does. Without Python the test fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hermes_tests::mock_model::{Behaviour, LAST_WORD, MockModel};
use hermes_tests::system::{Up, binary};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{http, start, stop, with_model};

/// Two calls that share nothing, the second one streamed.
const STATELESS: &str = r#"
import openai
client = openai.OpenAI(max_retries=0)
def ask(text, **more):
    return client.chat.completions.create(model="main", messages=[{"role": "user", "content": text}], **more)
print(ask("my name is Ada").choices[0].message.content)
chunks = [chunk.choices[0].delta.content for chunk in ask("what is my name?", stream=True) if chunk.choices]
print(len([chunk for chunk in chunks if chunk]))
"#;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

async fn run(mut command: Command) -> String {
    command.kill_on_drop(true);
    let done = tokio::time::timeout(Duration::from_secs(180), command.output()).await;
    let done = done.unwrap_or_else(|_| panic!("{command:?} did not end"));
    let done = done.unwrap_or_else(|error| {
        panic!("{command:?}: {error}; install Python with `apt-get install python3 python3-venv`, or set HERMES_TEST_PYTHON")
    });
    let (said, error) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{command:?}: {}\n{said}{error}", done.status);
    said.into_owned()
}

/// An interpreter with the pinned SDK.
async fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("HERMES_TEST_PYTHON") {
        return python.into();
    }
    let target = binary("hermesctl").ancestors().nth(2).unwrap().to_owned();
    let venv = target.join("test-venv");
    let (pinned, installed) = (repository().join("deploy/requirements.txt"), venv.join("installed.txt"));
    let lock = File::create(target.join("test-venv.lock")).unwrap();
    lock.lock().unwrap();
    let wanted = fs::read(&pinned).unwrap();
    if fs::read(&installed).ok() != Some(wanted) {
        let mut make = Command::new("python3");
        make.args(["-m", "venv", "--clear"]).arg(&venv);
        run(make).await;
        let mut install = Command::new(venv.join("bin/pip"));
        install.args(["install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&pinned);
        run(install).await;
        fs::copy(&pinned, &installed).unwrap();
    }
    venv.join("bin/python")
}

/// Python with the SDK's own variables and no others of its kind.
fn sdk(python: &Path, up: &Up, key: &str) -> Command {
    let mut command = Command::new(python);
    command.env("OPENAI_BASE_URL", format!("{}/v1", http(up))).env("OPENAI_API_KEY", key).env("NO_PROXY", "127.0.0.1");
    for variable in ["OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "PYTHONPATH", "PYTHONHOME"] {
        command.env_remove(variable);
    }
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openai_sdk_lists_models_and_chats_as_with_any_other_server() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let python = python().await;
    let mock = MockModel::start().await.unwrap();
    let up = start(&with_model(&mock, json!({"agents": {"echo": {"model": "builtin/echo"}}})), &[]);
    let key = up.json(["token", "create", "--role", "api"])["token"].as_str().unwrap().to_owned();

    for agent in ["echo", "main"] {
        let mut script = sdk(&python, &up, &key);
        script.arg(repository().join("tests/sdk/openai_chat.py")).arg(agent);
        assert_eq!(run(script).await.trim(), "ok", "{agent}");
    }

    // What the model was shown is the whole truth about statelessness.
    mock.script([Behaviour::Answer, Behaviour::Slow(Duration::from_millis(20))]);
    let mut script = sdk(&python, &up, &key);
    script.args(["-c", STATELESS]);
    let said = run(script).await;
    let (first, pieces) = said.trim().rsplit_once('\n').unwrap();
    assert!(first.starts_with("my name is Ada") && first.ends_with(LAST_WORD), "{first}");
    assert!(pieces.parse::<usize>().unwrap() > 2, "streamed, not sent as a whole: {pieces}");
    let shown = mock.last().json();
    let messages = shown["messages"].as_array().unwrap();
    let conversation: Vec<&Value> = messages.iter().filter(|message| message["role"] != "system").collect();
    assert_eq!(conversation.len(), 1, "{shown}");
    assert!(!shown.to_string().contains("Ada") && shown.to_string().contains("what is my name?"), "{shown}");

    // A revoked key is no key.
    let info = up.json(["token", "list"]);
    let id = info.as_array().unwrap().iter().find(|token| token["role"] == "api").unwrap()["id"].clone();
    up.ctl(["token", "revoke", id.as_str().unwrap()]).ok();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let refused = client.get(format!("{}/v1/models", http(&up))).bearer_auth(&key).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    stop(up);
}
