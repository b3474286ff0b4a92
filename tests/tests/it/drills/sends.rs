//! What an agent sends beside its answer, with its worker or the control plane ending around it: once, before the answer.

use anyhow::{Result, ensure};
use hermes_tests::drill::Mechanism;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use serde_json::json;

use super::Scene;

type Without = Option<Mechanism>;

/// A model that sends a word to this chat when it is told so, and then says what came of it.
async fn model() -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.respond(|request| {
        let last = request["messages"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
        let text = last["content"].as_str().unwrap_or_default().to_owned();
        match last["role"].as_str() {
            Some("tool") => Behaviour::Say("sent".to_owned()),
            _ if text == "send it" => {
                let arguments = json!({"target": "origin", "message": "wait a moment"}).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", "send_message", &arguments)])
            }
            _ => Behaviour::Say(format!("[main] {text}")),
        }
    });
    model
}

async fn killed_at(without: Without, point: &str, control_plane: bool) -> Result<()> {
    let model = model().await;
    let mut scene = Scene::with_model(without, &format!("{point}=kill:DIR/killed"), &model).await;
    scene.say(1, "send it");
    scene.ends(control_plane);
    let heard = scene.heard(1).await?;
    ensure!(heard == ["wait a moment", "sent"], "{heard:?}");
    Ok(())
}

pub(super) async fn killed_before_it_sends_something(without: Without) -> Result<()> {
    killed_at(without, "effect.before", false).await
}

pub(super) async fn killed_after_it_sent_something(without: Without) -> Result<()> {
    killed_at(without, "effect.after", false).await
}

pub(super) async fn the_control_plane_is_killed_after_a_text_is_committed(without: Without) -> Result<()> {
    killed_at(without, "call_tool.after", true).await
}
