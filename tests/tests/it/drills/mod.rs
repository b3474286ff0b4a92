//! Drills: real processes stopped, killed or failed at named points, one promise each; and what happens to each drill when
//! the mechanism behind it is taken away.
//!
//! The processes are the drill binaries (see [`hermes_tests::drill`]). A drill answers an error when a promise broke; as a
//! test it must be green, and in `mutations` it must go red without its mechanism.

mod chats;
mod mutations;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::BoxFuture;
use hermes_tests::drill::{LOG, Mechanism, POINTS, WITHOUT};
use hermes_tests::fake_telegram::{Bot, FakeTelegram};
use hermes_tests::system::{Options, Up};
use serde_json::json;
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
        let fake = FakeTelegram::start().await.unwrap();
        let bot = fake.bot(TOKEN);
        let account = json!({"id": "front", "token_env": "FRONT_TOKEN", "api_base": fake.base(), "allow_all": true, "rate": "off"});
        let document = json!({"platforms": {"telegram": {"accounts": [account]}}});
        let options = Options { drill: true, ..Options::config(document.to_string()) };
        let dir = tempfile::tempdir().unwrap();
        let rules = rules.replace("DIR", dir.path().to_str().unwrap());
        let env = variables(without, &rules, Some(dir.path().join("points")));
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

    /// How often a point was reached until now.
    fn reached(&self, point: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.path().join("points")).unwrap_or_default();
        log.lines().filter(|line| line.split(' ').nth(1) == Some(point)).count()
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
