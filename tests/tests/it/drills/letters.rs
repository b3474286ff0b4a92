//! Replies that cannot arrive: a chat that is gone, an account that is missing; and what an operator sees and does.

use std::time::Duration;

use anyhow::{Result, ensure};
use hermes_tests::drill::Mechanism;
use hermes_tests::fake_telegram::{Bot, Fault};
use hermes_tests::system::until;
use serde_json::{Value, json};

use super::Scene;

type Without = Option<Mechanism>;

const CHAT: i64 = 1;
const SOON: Duration = Duration::from_secs(30);

fn ids(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|one| one["id"].as_str().unwrap_or_default().to_owned()).collect()
}

pub(super) async fn a_chat_that_is_gone_gets_one_attempt_lives_again_and_is_redriven(without: Without) -> Result<()> {
    let scene = Scene::start(without, "send.before=hold:DIR/go").await;
    scene.bot.fail_in(CHAT, "sendMessage", u32::MAX, Fault::answer(403, "Forbidden: bot was blocked by the user"));
    for text in ["one", "two", "three"] {
        scene.say(CHAT, text);
    }
    until(SOON, "three ended turns", || (scene.reached("complete_batch.after") >= 3).then_some(()));
    scene.let_go("go");
    let dead = until(SOON, "three dead letters", || {
        let dead = scene.up.json(["delivery", "list", "--state", "dead"]);
        (dead.as_array().is_some_and(|dead| dead.len() == 3)).then_some(dead)
    });
    ensure!(scene.bot.calls("sendMessage") == 1, "{} attempts", scene.bot.calls("sendMessage"));
    ensure!(dead[0]["chat_dead"].as_str().is_some_and(|why| why.contains("blocked")), "{dead}");

    // Whoever writes again is answered again, and then the chat is not marked any more.
    scene.bot.heal();
    scene.say(CHAT, "back");
    ensure!(scene.bot.wait_until(SOON, |bot| bot.delivered(CHAT).len() == 1).await, "{}", scene.up.log_tail());
    until(SOON, "a chat that lives", || {
        let all = scene.up.json(["delivery", "list", "--chat", "1", "--state", "delivered"]);
        (all.as_array()?.first()?["chat_dead"] == "").then_some(())
    });

    let redriven = scene.up.json(["delivery", "redrive", "--all-dead", "--platform", "telegram", "--account", "front"]);
    ensure!(ids(&redriven) == ids(&dead).into_iter().rev().collect::<Vec<_>>(), "{redriven} of {dead}");
    let texts = |bot: &Bot| bot.delivered(CHAT).into_iter().map(|sent| sent.text).collect::<Vec<_>>();
    let want = ["[main] back", "[main] one", "[main] two", "[main] three"];
    ensure!(scene.bot.wait_until(SOON, |bot| texts(bot) == want).await, "{:?}", texts(&scene.bot));
    let known = ids(&dead).remove(0);
    let refused = scene.up.ctl(["delivery", "redrive", &known, "d1.999"]).refused(1);
    ensure!(refused.contains("redriven before") && refused.contains("no delivery d1.999"), "{refused}");
    let one = scene.up.json(["delivery", "show", &known]);
    ensure!(one["text"] == "[main] three" && one["redriven_by"].as_str().is_some_and(|by| !by.is_empty()), "{one}");
    Ok(())
}

pub(super) async fn a_reply_waits_for_its_account(without: Without) -> Result<()> {
    let scene = Scene::start(without, "complete_batch.before=hold:DIR/go").await;
    let document = scene.up.json(["export"]);
    scene.say(CHAT, "one");
    until(SOON, "a turn about to end", || (scene.reached("complete_batch.before") >= 1).then_some(()));
    let without_it = json!({"platforms": {"telegram": {"accounts": []}}});
    apply(&scene, &without_it, true);
    scene.let_go("go");
    let parked = until(SOON, "a delivery that waits for its account", || {
        let waiting = scene.up.json(["delivery", "list", "--state", "waiting"]);
        waiting.as_array()?.first().cloned()
    });
    ensure!(parked["cause"] == "the account telegram/front is not there" && parked["failures"] == 0, "{parked}");
    apply(&scene, &document, false);
    ensure!(scene.bot.wait_until(SOON, |bot| bot.delivered(CHAT).len() == 1).await, "{}", scene.up.log_tail());
    Ok(())
}

fn apply(scene: &Scene, document: &Value, prune: bool) {
    let file = scene.dir.path().join("document.yaml");
    std::fs::write(&file, document.to_string()).unwrap();
    let mut line = vec!["apply", "-f", file.to_str().unwrap()];
    line.extend(prune.then_some("--prune"));
    scene.up.ctl(line).ok();
}
