//! From a chat's message to its reply, with the control plane failing at each step.

use std::time::Duration;

use anyhow::{Result, ensure};
use hermes_tests::drill::Mechanism;
use hermes_tests::system::until;

use super::{MARK, Scene};

type Without = Option<Mechanism>;

/// One message, one reply, unmarked.
async fn answered_once(scene: &Scene) -> Result<()> {
    let heard = scene.heard(1).await?;
    ensure!(heard == ["[main] one"], "heard {heard:?}");
    Ok(())
}

/// One message, one reply; a copy or the reply itself may say that it may be a copy.
async fn answered(scene: &Scene, marked: bool) -> Result<()> {
    let heard = scene.heard(1).await?;
    let plain = heard.iter().filter(|text| *text == "[main] one").count();
    let copies = heard.iter().filter(|text| **text == format!("{MARK}[main] one")).count();
    ensure!(heard.len() == plain + copies && plain <= 1 && copies <= usize::from(marked), "heard {heard:?}");
    ensure!(plain + copies >= 1, "no reply");
    Ok(())
}

pub(super) async fn the_answer_of_an_intake_commit_is_lost(without: Without) -> Result<()> {
    let scene = Scene::start(without, "ingest_batch.after=fail").await;
    scene.say(1, "one");
    // The chat's platform offers it again before it hears anything else.
    until(Duration::from_secs(30), "a second commit", || (scene.reached("ingest_batch.after") >= 2).then_some(()));
    answered_once(&scene).await
}

pub(super) async fn killed_before_the_intake_commit(without: Without) -> Result<()> {
    let mut scene = Scene::start(without, "ingest_batch.before=kill").await;
    scene.say(1, "one");
    scene.restart_after_its_end();
    answered_once(&scene).await
}

pub(super) async fn killed_after_the_intake_commit(without: Without) -> Result<()> {
    let mut scene = Scene::start(without, "ingest_batch.after=kill").await;
    scene.say(1, "one");
    scene.restart_after_its_end();
    answered_once(&scene).await
}

pub(super) async fn the_answer_of_a_completion_is_lost(without: Without) -> Result<()> {
    let scene = Scene::start(without, "complete_batch.after=fail").await;
    scene.say(1, "one");
    // Whoever was to send it never heard of it, and nobody knows whether it was sent.
    answered(&scene, true).await
}

pub(super) async fn killed_before_the_completion(without: Without) -> Result<()> {
    let mut scene = Scene::start(without, "complete_batch.before=kill").await;
    scene.say(1, "one");
    scene.restart_after_its_end();
    answered_once(&scene).await
}

pub(super) async fn killed_after_the_completion(without: Without) -> Result<()> {
    let mut scene = Scene::start(without, "complete_batch.after=kill").await;
    scene.say(1, "one");
    scene.restart_after_its_end();
    answered(&scene, true).await
}

pub(super) async fn killed_before_a_platform_call(without: Without) -> Result<()> {
    let mut scene = Scene::start(without, "send.before=kill").await;
    scene.say(1, "one");
    scene.restart_after_its_end();
    answered(&scene, true).await
}

pub(super) async fn killed_after_a_platform_call(without: Without) -> Result<()> {
    let mut scene = Scene::start(without, "send.after=kill").await;
    scene.say(1, "one");
    scene.restart_after_its_end();
    let heard = scene.heard(1).await?;
    ensure!(heard == ["[main] one".to_owned(), format!("{MARK}[main] one")], "heard {heard:?}");
    Ok(())
}

pub(super) async fn the_answer_of_a_delivery_is_lost(without: Without) -> Result<()> {
    let scene = Scene::start(without, "send.before=hold:DIR/go;deliver_batch.after=fail").await;
    for text in ["one", "two", "three"] {
        scene.say(1, text);
    }
    until(Duration::from_secs(30), "three ended turns", || (scene.reached("complete_batch.after") >= 3).then_some(()));
    let begun = std::time::Instant::now();
    scene.let_go("go");
    // The second reply was handed over in the answer that got lost, and was never begun.
    let heard = scene.heard(1).await?;
    ensure!(heard == ["[main] one", "[main] two", "[main] three"], "heard {heard:?}");
    ensure!(begun.elapsed() < Duration::from_secs(30), "found after {:?} only", begun.elapsed());
    Ok(())
}

pub(super) async fn replies_wait_behind_a_slow_one_in_order(without: Without) -> Result<()> {
    let scene = Scene::start(without, "send.before=hold:DIR/go").await;
    for text in ["one", "two", "three"] {
        scene.say(1, text);
    }
    // All three have ended, and two replies wait behind the first one.
    until(Duration::from_secs(30), "three ended turns", || (scene.reached("complete_batch.after") >= 3).then_some(()));
    scene.let_go("go");
    let heard = scene.heard(1).await?;
    ensure!(heard == ["[main] one", "[main] two", "[main] three"], "heard {heard:?}");
    Ok(())
}
