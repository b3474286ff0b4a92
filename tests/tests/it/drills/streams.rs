//! An answer that its chat sees while it is written, with the control plane killed at each step: there is exactly one final text.

use std::time::Duration;

use anyhow::{Result, ensure};
use hermes_tests::drill::Mechanism;
use hermes_tests::fake_telegram::{Bot, Delivery, Fault};
use hermes_tests::mock_model::{Behaviour, LAST_WORD, MockModel};
use serde_json::json;

use super::{MARK, Scene};

type Without = Option<Mechanism>;

const CHAT: i64 = 1;
/// What stands behind a text that still grows.
const CURSOR: &str = "\u{2589}";
/// Longer than anything here takes, a lost worker included.
const PATIENCE: Duration = Duration::from_secs(60);

/// A plane whose chats see answers grow, and a model that takes its time.
async fn start(without: Without, rules: &str) -> (Scene, MockModel) {
    let model = MockModel::start().await.unwrap();
    model.otherwise(Behaviour::Slow(Duration::from_millis(60)));
    let base = model.base_url();
    let scene = Scene::start_with(without, rules, |document| {
        document["model"] = json!("mock/mock-1");
        document["providers"] = json!({"mock": {"kind": "openai", "base_url": base}});
        document["platforms"]["telegram"]["accounts"][0]["streaming"] = json!("edit");
    })
    .await;
    (scene, model)
}

fn is_final(delivery: &Delivery) -> bool {
    delivery.text.ends_with(LAST_WORD)
}

/// Waits for the final text, then for the one of a second message, so that whatever would come has come; answers what stands in
/// the chat of the first one.
async fn shown(scene: &Scene) -> Result<Vec<Delivery>> {
    let patience = if scene.without.is_some() { Duration::from_secs(15) } else { PATIENCE };
    let has = |count: usize| move |bot: &Bot| bot.delivered(CHAT).iter().filter(|sent| is_final(sent)).count() >= count;
    ensure!(
        scene.bot.wait_until(patience, has(1)).await,
        "no answer: {:?}\n{}",
        scene.bot.delivered(CHAT),
        scene.up.log_tail()
    );
    scene.say(CHAT, "the last word of all");
    let last = |bot: &Bot| bot.delivered(CHAT).iter().any(|sent| is_final(sent) && sent.text.contains("the last"));
    ensure!(scene.bot.wait_until(patience, last).await, "no second answer: {:?}", scene.bot.delivered(CHAT));
    Ok(scene.bot.delivered(CHAT).into_iter().filter(|sent| !sent.text.contains("the last")).collect())
}

/// One message that grew into the answer, without a mark.
fn one_message(shown: &[Delivery]) -> Result<()> {
    ensure!(shown.len() == 1, "not one message: {shown:?}");
    let whole =
        shown.first().is_some_and(|sent| is_final(sent) && !sent.text.contains(CURSOR) && !sent.text.starts_with(MARK));
    ensure!(whole, "not the answer: {shown:?}");
    Ok(())
}

/// What was seen of the first one is unfinished, and the answer says that it may be a copy.
fn marked(shown: &[Delivery], unfinished: usize) -> Result<()> {
    let (finals, rest): (Vec<&Delivery>, Vec<&Delivery>) = shown.iter().partition(|sent| is_final(sent));
    ensure!(finals.len() == 1 && rest.len() == unfinished, "{shown:?}");
    ensure!(finals.iter().all(|sent| sent.text.starts_with(MARK)), "no mark: {shown:?}");
    ensure!(rest.iter().all(|sent| sent.text.contains(CURSOR)), "no cursor: {shown:?}");
    Ok(())
}

async fn killed_at(without: Without, rules: &str) -> Result<Vec<Delivery>> {
    let (mut scene, _model) = start(without, rules).await;
    scene.say(CHAT, "one question");
    scene.restart_after_its_end();
    shown(&scene).await
}

pub(super) async fn a_shown_answer_becomes_the_answer(without: Without) -> Result<()> {
    let (scene, _model) = start(without, "").await;
    scene.say(CHAT, "one question");
    let shown = shown(&scene).await?;
    one_message(&shown)?;
    ensure!(
        shown.iter().all(|sent| sent.earlier.iter().all(|text| text.contains(CURSOR)) && sent.earlier.len() >= 2),
        "{shown:?}"
    );
    Ok(())
}

pub(super) async fn killed_with_the_intent_to_show(without: Without) -> Result<()> {
    marked(&killed_at(without, "preview_begin.after=kill").await?, 0)
}

pub(super) async fn killed_before_the_first_text_is_sent(without: Without) -> Result<()> {
    marked(&killed_at(without, "preview.before=kill").await?, 0)
}

pub(super) async fn killed_after_the_first_text_was_sent(without: Without) -> Result<()> {
    marked(&killed_at(without, "preview.after=kill").await?, 1)
}

pub(super) async fn killed_while_a_shown_answer_grows(without: Without) -> Result<()> {
    one_message(&killed_at(without, "passing.after=kill").await?)
}

pub(super) async fn killed_before_the_last_edit(without: Without) -> Result<()> {
    one_message(&killed_at(without, "edit.before=kill").await?)
}

pub(super) async fn killed_after_the_last_edit(without: Without) -> Result<()> {
    one_message(&killed_at(without, "edit.after=kill").await?)
}

pub(super) async fn killed_with_the_last_edit_not_recorded(without: Without) -> Result<()> {
    one_message(&killed_at(without, "deliver_batch.before=kill").await?)
}

pub(super) async fn a_shown_message_that_was_deleted_comes_anew(without: Without) -> Result<()> {
    let (scene, _model) = start(without, "").await;
    scene.say(CHAT, "one question");
    ensure!(scene.bot.wait_until(PATIENCE, |bot| !bot.delivered(CHAT).is_empty()).await, "nothing is shown");
    let first = scene.bot.delivered(CHAT)[0].message_id;
    scene.bot.delete(first);
    let mut shown = shown(&scene).await?;
    shown.retain(|sent| sent.message_id != first);
    one_message(&shown)
}

pub(super) async fn a_flood_stops_the_edits_of_a_turn_and_not_its_answer(without: Without) -> Result<()> {
    let (scene, _model) = start(without, "").await;
    scene.bot.fail("editMessageText", 2, Fault::flood(1));
    scene.say(CHAT, "one question");
    one_message(&shown(&scene).await?)
}
