//! Effects of tools, with the worker ending between any two steps of them.

use std::time::Duration;

use anyhow::{Result, ensure};
use hermes_tests::drill::Mechanism;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::until;
use serde_json::Value;

use super::Scene;

type Without = Option<Mechanism>;

/// A model that asks for the tool that the message names, and then says what the tool answered.
async fn model() -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.respond(|request| {
        let messages = request["messages"].as_array().cloned().unwrap_or_default();
        let last = messages.last().cloned().unwrap_or_default();
        let text = last["content"].as_str().unwrap_or_default().to_owned();
        if last["role"] == "tool" {
            return Behaviour::Say(format!("so {text}"));
        }
        match text.split_once(' ') {
            Some((tool, what)) if tool.starts_with("note_") => {
                let arguments = serde_json::json!({ "text": what }).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", tool, &arguments)])
            }
            _ => Behaviour::Say(format!("[main] {text}")),
        }
    });
    model
}

/// The worker is killed once at `point` while it runs a message that asks for `tool`; answers the effects, and what was said.
async fn killed_at(without: Without, point: &str, tool: &str) -> Result<(Vec<String>, Vec<String>, Value)> {
    let model = model().await;
    let mut scene = Scene::with_model(without, &format!("{point}=kill:DIR/killed"), &model).await;
    scene.say(1, &format!("{tool} thing"));
    scene.ends(false);
    let heard = scene.heard(1).await?;
    Ok((scene.effects(), heard, model.last().json()))
}

/// The first words of each effect: class and key.
fn kinds(effects: &[String]) -> Vec<(String, String)> {
    let kind = |line: &String| {
        let mut words = line.split(' ');
        let class = words.next().unwrap_or_default().to_owned();
        (class, words.nth(1).unwrap_or_default().to_owned())
    };
    effects.iter().map(kind).collect()
}

pub(super) async fn killed_between_an_effect_and_its_result_it_is_not_repeated(without: Without) -> Result<()> {
    let (effects, heard, _) = killed_at(without, "effect.after", "note_once").await?;
    ensure!(effects.len() == 1, "it happened {} times: {effects:?}", effects.len());
    ensure!(heard.len() == 1 && heard[0].starts_with("so UNKNOWN"), "the model was not told: {heard:?}");
    Ok(())
}

pub(super) async fn killed_between_an_intent_and_its_effect_nobody_knows(without: Without) -> Result<()> {
    let (effects, heard, _) = killed_at(without, "effect.before", "note_once").await?;
    ensure!(effects.is_empty(), "{effects:?}");
    ensure!(heard.len() == 1 && heard[0].starts_with("so UNKNOWN"), "the model was not told: {heard:?}");
    Ok(())
}

pub(super) async fn killed_before_an_intent_it_happens_once(without: Without) -> Result<()> {
    let (effects, heard, _) = killed_at(without, "intent.before", "note_once").await?;
    ensure!(effects.len() == 1 && heard == ["so noted thing"], "{effects:?} {heard:?}");
    Ok(())
}

pub(super) async fn killed_after_a_result_it_is_not_repeated(without: Without) -> Result<()> {
    let (effects, heard, _) = killed_at(without, "result.after", "note_once").await?;
    ensure!(effects.len() == 1 && heard == ["so noted thing"], "{effects:?} {heard:?}");
    Ok(())
}

pub(super) async fn an_idempotent_effect_is_repeated_under_its_key(without: Without) -> Result<()> {
    let (effects, heard, _) = killed_at(without, "effect.after", "note_keyed").await?;
    let kinds = kinds(&effects);
    ensure!(kinds.len() == 2 && kinds[0] == kinds[1] && kinds[0].1 != "-", "{effects:?}");
    ensure!(heard == ["so noted thing"], "{heard:?}");
    Ok(())
}

pub(super) async fn a_pure_tool_is_run_again(without: Without) -> Result<()> {
    let (effects, heard, _) = killed_at(without, "effect.after", "note_pure").await?;
    ensure!(effects.len() == 2 && heard == ["so noted thing"], "{effects:?} {heard:?}");
    Ok(())
}

/// A worker that cannot be heard of does nothing any more once its lease may have been given away.
pub(super) async fn a_worker_out_of_touch_stops_before_its_lease_ends(without: Without) -> Result<()> {
    let model = model().await;
    let scene = Scene::with_model(without, "effect.before=hold:DIR/go", &model).await;
    scene.say(1, "note_once thing");
    until(Duration::from_secs(30), "a tool about to begin", || (scene.reached("effect.before") >= 1).then_some(()));
    // The control plane stands still; the worker has heard of it for the last time.
    scene.stop_control_plane();
    tokio::time::sleep(FENCED).await;
    scene.let_go("go");
    // Long enough for an effect that nothing holds back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let effects = scene.effects();
    scene.continue_control_plane();
    ensure!(effects.is_empty(), "after its lease: {effects:?}");
    Ok(())
}

/// Longer than four fifths of a lease of 15 s, after which a worker begins nothing.
const FENCED: Duration = Duration::from_secs(13);
