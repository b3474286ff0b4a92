//! What an agent asks another one, with workers and the control plane ending around it: asked once, answered once.

use anyhow::{Result, ensure};
use hermes_tests::drill::Mechanism;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use serde_json::{Value, json};

use super::Scene;

type Without = Option<Mechanism>;

/// `main` asks `other` when it is told so, and says how often that was asked and what it heard.
async fn model() -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.respond(|request| {
        let last = request["messages"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
        let text = last["content"].as_str().unwrap_or_default().to_owned();
        match last["role"].as_str() {
            Some("tool") => {
                Behaviour::Say(if text.contains("\n[other] well?\n") { "heard it" } else { "heard no" }.to_owned())
            }
            _ if text == "ask it" => {
                let arguments = json!({"agent": "other", "message": "well?"}).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", "ask_agent", &arguments)])
            }
            _ if request["model"] == "other" => Behaviour::Say(format!("[other] {text}")),
            _ => Behaviour::Say(format!("[main] {text}")),
        }
    });
    model
}

async fn killed_at(without: Without, point: &str, control_plane: bool) -> Result<()> {
    let model = model().await;
    let base_url = model.base_url();
    let change = |document: &mut Value| {
        document["model"] = json!("mock/mock-1");
        document["providers"] = json!({"mock": {"kind": "openai", "base_url": base_url}});
        document["agents"] = json!({"main": {"may_ask": ["other"]}, "other": {"model": "mock/other"}});
    };
    let mut scene = Scene::start_with(without, &format!("{point}=kill:DIR/killed"), change).await;
    scene.say(1, "ask it");
    scene.ends(control_plane);
    let heard = scene.heard(1).await?;
    ensure!(heard == ["heard it"], "{heard:?}");
    let asked = scene.up.json(["session", "list", "--agent", "other"]);
    ensure!(asked.as_array().is_some_and(|all| all.len() == 1) && asked[0]["turns"] == json!(1), "{asked}");
    Ok(())
}

pub(super) async fn killed_before_it_asks(without: Without) -> Result<()> {
    killed_at(without, "effect.before", false).await
}

pub(super) async fn killed_after_it_was_answered(without: Without) -> Result<()> {
    killed_at(without, "effect.after", false).await
}

pub(super) async fn the_one_that_is_asked_is_killed(without: Without) -> Result<()> {
    killed_at(without, "complete.before", false).await
}

pub(super) async fn the_control_plane_is_killed_before_it_asks(without: Without) -> Result<()> {
    killed_at(without, "call_tool.before", true).await
}

pub(super) async fn the_control_plane_is_killed_after_it_asked(without: Without) -> Result<()> {
    killed_at(without, "call_tool.after", true).await
}
