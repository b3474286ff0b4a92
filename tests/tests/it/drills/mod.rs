//! Drills: real processes stopped, killed or failed at named points, one promise each; and what happens to each drill when
//! the mechanism behind it is taken away.
//!
//! The processes are the drill binaries (see [`hermes_tests::drill`]). A drill answers an error when a promise broke; as a
//! test it must be green, and in `mutations` it must go red without its mechanism.

mod asks;
mod chats;
mod effects;
mod letters;
mod mutations;
mod notes;
mod sends;
mod stale;
mod streams;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::BoxFuture;
use hermes_tests::drill::{EFFECTS, LOG, Mechanism, POINTS, WITHOUT};
use hermes_tests::fake_telegram::{Bot, FakeTelegram};
use hermes_tests::mock_model::MockModel;
use hermes_tests::system::{Options, Up, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A drill; the mechanism it does without, when any.
type Drill = fn(Option<Mechanism>) -> BoxFuture<'static, Result<()>>;

/// All drills by name, and a test of each.
macro_rules! drills {
    ($($module:ident :: { $($name:ident),* $(,)? })*) => {
        const DRILLS: &[(&str, Drill)] = &[$($((stringify!($name), |without| Box::pin($module::$name(without)))),*),*];
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $module::$name(None).await.unwrap();
            }
        )*)*
    };
}

drills! {
    chats::{
        the_answer_of_an_intake_commit_is_lost,
        killed_before_the_intake_commit,
        killed_after_the_intake_commit,
        the_answer_of_a_completion_is_lost,
        killed_before_the_completion,
        killed_after_the_completion,
        killed_before_a_platform_call,
        killed_after_a_platform_call,
        replies_wait_behind_a_slow_one_in_order,
        the_answer_of_a_delivery_is_lost,
    }
    letters::{
        a_chat_that_is_gone_gets_one_attempt_lives_again_and_is_redriven,
        a_reply_waits_for_its_account,
    }
    streams::{
        a_shown_answer_becomes_the_answer,
        killed_with_the_intent_to_show,
        killed_before_the_first_text_is_sent,
        killed_after_the_first_text_was_sent,
        killed_while_a_shown_answer_grows,
        killed_before_the_last_edit,
        killed_after_the_last_edit,
        killed_with_the_last_edit_not_recorded,
        a_shown_message_that_was_deleted_comes_anew,
        a_flood_stops_the_edits_of_a_turn_and_not_its_answer,
    }
    effects::{
        killed_before_an_intent_it_happens_once,
        killed_between_an_intent_and_its_effect_nobody_knows,
        killed_between_an_effect_and_its_result_it_is_not_repeated,
        killed_after_a_result_it_is_not_repeated,
        an_idempotent_effect_is_repeated_under_its_key,
        a_pure_tool_is_run_again,
        a_worker_out_of_touch_stops_before_its_lease_ends,
    }
    notes::{
        killed_before_it_notes_something,
        killed_after_it_noted_something,
        killed_before_it_says_what_it_noted,
        the_control_plane_is_killed_before_a_note_is_committed,
        the_control_plane_is_killed_after_a_note_is_committed,
    }
    sends::{
        killed_before_it_sends_something,
        killed_after_it_sent_something,
        the_control_plane_is_killed_after_a_text_is_committed,
    }
    asks::{
        killed_before_it_asks,
        killed_after_it_was_answered,
        the_one_that_is_asked_is_killed,
        the_control_plane_is_killed_before_it_asks,
        the_control_plane_is_killed_after_it_asked,
    }
    stale::{
        a_worker_whose_turn_is_anothers_appends_and_ends_nothing,
    }
}

const TOKEN: &str = "700:a-secret-of-the-bot";
/// What stands before a copy that may be one.
const MARK: &str = "(may be a duplicate)\n";

/// A plane of drill binaries with one Telegram bot, answered by the agent `main`.
struct Scene {
    up: Up,
    bot: Bot,
    options: Options,
    without: Option<Mechanism>,
    dir: TempDir,
    _fake: FakeTelegram,
}

impl Scene {
    /// Starts it with these rules for its processes; `DIR` in them is a directory of its own.
    async fn start(without: Option<Mechanism>, rules: &str) -> Self {
        Self::start_with(without, rules, |_| {}).await
    }

    /// [`Scene::start`] with another model than the offline one.
    async fn with_model(without: Option<Mechanism>, rules: &str, model: &MockModel) -> Self {
        let base_url = model.base_url();
        let change = |document: &mut Value| {
            document["model"] = json!("mock/mock-1");
            document["providers"] = json!({"mock": {"kind": "openai", "base_url": base_url}});
        };
        Self::start_with(without, rules, change).await
    }

    /// As [`Scene::start`], with a document that `change` had a hand in; the account is the only one of its platform.
    async fn start_with(without: Option<Mechanism>, rules: &str, change: impl FnOnce(&mut Value)) -> Self {
        let fake = FakeTelegram::start().await.unwrap();
        let bot = fake.bot(TOKEN);
        let account = json!({"id": "front", "token_env": "FRONT_TOKEN", "api_base": fake.base(), "allow_all": true, "rate": "off"});
        let mut document = json!({"platforms": {"telegram": {"accounts": [account]}}});
        change(&mut document);
        let options = Options { drill: true, ..Options::config(document.to_string()) };
        let dir = tempfile::tempdir().unwrap();
        let rules = rules.replace("DIR", dir.path().to_str().unwrap());
        let mut env = variables(without, &rules, Some(dir.path().join("points")));
        env.push((EFFECTS.to_owned(), dir.path().join("effects").into()));
        let up = Up::start(Options { env, ..options.clone() });
        Self { up, bot, options, without, dir, _fake: fake }
    }

    /// Says it in the chat.
    fn say(&self, chat: i64, text: &str) {
        self.bot.push_text(chat, chat, text);
    }

    /// Waits until the control plane killed itself, and starts it again without rules.
    fn restart_after_its_end(&mut self) {
        self.up.until_it_ends();
        let env = variables(self.without, "", None);
        self.up.restart_with(Options { env, ..self.options.clone() });
    }

    /// Waits until a process ended by the rule that leaves `killed`, and starts the control plane again, where it was that one.
    fn ends(&mut self, control_plane: bool) {
        until(Duration::from_secs(30), "the end of a process", || self.happened("killed").then_some(()));
        if control_plane {
            self.restart_after_its_end();
        }
    }

    /// How often a point was reached until now.
    fn reached(&self, point: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.path().join("points")).unwrap_or_default();
        log.lines().filter(|line| line.split(' ').nth(1) == Some(point)).count()
    }

    /// Whether the rule that acts once and leaves this file has acted.
    fn happened(&self, file: &str) -> bool {
        self.dir.path().join(file).try_exists().unwrap()
    }

    /// What tools did, a line each.
    fn effects(&self) -> Vec<String> {
        let notes = std::fs::read_to_string(self.dir.path().join("effects")).unwrap_or_default();
        notes.lines().map(str::to_owned).collect()
    }

    /// The control plane stands still.
    fn stop_control_plane(&self) {
        kill(Pid::from_raw(self.up.pid()), Signal::SIGSTOP).unwrap();
    }

    /// It goes on.
    fn continue_control_plane(&self) {
        kill(Pid::from_raw(self.up.pid()), Signal::SIGCONT).unwrap();
    }

    /// Lets what is held for this file go on.
    fn let_go(&self, file: &str) {
        std::fs::write(self.dir.path().join(file), "").unwrap();
    }

    /// Says a last word and answers what was heard before its reply.
    async fn heard(&self, chat: i64) -> Result<Vec<String>> {
        self.say(chat, "end");
        let ended = |bot: &Bot| bot.delivered(chat).iter().any(|one| one.text == "[main] end");
        let patience = Duration::from_secs(if self.without.is_some() { 8 } else { 40 });
        let all: Vec<String> = if self.bot.wait_until(patience, ended).await {
            self.bot.delivered(chat).into_iter().map(|one| one.text).collect()
        } else {
            bail!("no reply to the last word: {:?}\n{}", self.bot.delivered(chat), self.up.log_tail())
        };
        Ok(all.into_iter().filter(|text| text != "[main] end").collect())
    }
}

fn variables(without: Option<Mechanism>, rules: &str, log: Option<PathBuf>) -> Vec<(String, std::ffi::OsString)> {
    let mut env = vec![("FRONT_TOKEN".to_owned(), TOKEN.into()), (POINTS.to_owned(), rules.into())];
    env.extend(without.map(|mechanism| (WITHOUT.to_owned(), mechanism.name().into())));
    env.extend(log.map(|log| (LOG.to_owned(), log.into())));
    env
}
