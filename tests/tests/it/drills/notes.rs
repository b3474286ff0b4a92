//! What an agent notes of itself, with its worker or the control plane ending around it: noted once, told once.

use std::time::Duration;

use anyhow::{Result, ensure};
use hermes_tests::drill::Mechanism;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::until;
use serde_json::{Value, json};

use super::Scene;

type Without = Option<Mechanism>;

const NOTE: &str = "Likes tea.";
const NOTED: &str = r#"so {"success":true,"done":true,"target":"user","usage":"0% — 10/1,375 chars","entry_count":1}"#;

/// A model that notes something of the user when it is told so, and then says what came of it.
async fn model() -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.respond(|request| {
        let messages = request["messages"].as_array().cloned().unwrap_or_default();
        let last = messages.last().cloned().unwrap_or_default();
        let text = last["content"].as_str().unwrap_or_default().to_owned();
        match last["role"].as_str() {
            Some("tool") => Behaviour::Say(format!("so {text}")),
            _ if text == "note it" => {
                let arguments = json!({"action": "add", "target": "user", "content": NOTE}).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", "memory", &arguments)])
            }
            _ => Behaviour::Say(format!("[main] {text}")),
        }
    });
    model
}

/// What a process that ends at `point` leaves behind.
async fn killed_at(without: Without, point: &str, control_plane: bool) -> Result<()> {
    let model = model().await;
    let mut scene = Scene::with_model(without, &format!("{point}=kill:DIR/killed"), &model).await;
    scene.say(1, "note it");
    scene.ends(control_plane);
    let heard = scene.heard(1).await?;
    ensure!(heard == [NOTED], "{heard:?}");
    // The transcript says so once: the call, its result, and the answer of the turn.
    let asked = model.last().json();
    let told = asked["messages"].as_array().cloned().unwrap_or_default();
    let told: Vec<_> = told.iter().skip(1).map(|said| said["content"].clone()).collect();
    let result = json!(NOTED.trim_start_matches("so "));
    ensure!(told == [json!("note it"), json!(""), result, json!(NOTED), json!("end")], "{told:?}");
    let turns = scene.up.json(["turn", "show", "t1.1"]);
    let results: Vec<&Value> = turns["steps"].as_array().map(|steps| steps.iter().collect()).unwrap_or_default();
    let calls = results.iter().filter(|step| step["kind"] == "tool_call").count();
    ensure!(calls == 1, "{turns}");
    // A later session begins with the note, once.
    scene.say(2, "hello");
    let asked = until(Duration::from_secs(30), "the next session", || {
        Some(model.last().json()).filter(|asked| {
            asked["messages"].as_array().is_some_and(|all| all.iter().any(|said| said["content"] == "hello"))
        })
    });
    let prompt = asked["messages"][0]["content"].as_str().unwrap_or_default().to_owned();
    ensure!(prompt.matches(NOTE).count() == 1, "{prompt}");
    Ok(())
}

pub(super) async fn killed_before_it_notes_something(without: Without) -> Result<()> {
    killed_at(without, "effect.before", false).await
}

pub(super) async fn killed_after_it_noted_something(without: Without) -> Result<()> {
    killed_at(without, "effect.after", false).await
}

pub(super) async fn killed_before_it_says_what_it_noted(without: Without) -> Result<()> {
    killed_at(without, "complete.before", false).await
}

pub(super) async fn the_control_plane_is_killed_before_a_note_is_committed(without: Without) -> Result<()> {
    killed_at(without, "call_tool.before", true).await
}

pub(super) async fn the_control_plane_is_killed_after_a_note_is_committed(without: Without) -> Result<()> {
    killed_at(without, "call_tool.after", true).await
}
