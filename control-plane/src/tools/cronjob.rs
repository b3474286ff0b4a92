//! `cronjob`: an agent looks after jobs of its own that run without anybody writing.
//!
//! Always true: an agent finds no job but its agent's, and changes none but those it made itself, because what people made may go to chats
//! that the agent does not reach; whatever it makes goes only to chats that it reaches, now and when it runs (the store confines a job made `by_agent`); a run of
//! a job makes no jobs, not even through another agent; a job is there exactly when its call is journaled, once. Whether a job is any
//! good says [`judged`](crate::cron::judged), as for those of people. It deliberately does not know when and how jobs run.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_core::cron::{Fault, Job};
use hermes_core::target::Target;
use hermes_core::turn::TurnInput;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::send_message::written;
use super::{Plan, Spec, Tool};
use crate::cron::{self, Wanted, changed, judged, new_id};
use crate::registry::Snapshot;
use crate::store::{self, CallEffect, CallScope, CronJobRow, CronRunRow, NewCronJob};

/// The tool.
pub(super) struct CronJob;

const DESCRIPTION: &str = "Schedule jobs that run later or again and again without anybody writing. Each run is a new conversation with you \
    that knows nothing of this one, so say in prompt all that it has to know. What a run answers is delivered by itself. Actions: create, list, show, \
    update (only what you name changes), pause, resume, run (now, beside the schedule), remove, runs (what its last runs came to). You can look \
    at jobs that people made for you, and change those that you made. A run itself cannot use this tool.";

const PARAMETERS: &str = r#"{"type":"object","properties":{
"action":{"type":"string","enum":["create","list","show","update","pause","resume","run","remove","runs"]},
"job":{"type":"string","description":"Name or id of the job, for all but create and list."},
"name":{"type":"string","description":"What it is called; for update its new name."},
"schedule":{"type":"string","description":"'30m' or '2h' (once, after that time), 'every 2h', '0 9 * * mon-fri' (minute, hour, day, month, weekday), or '2027-01-31T09:00' (once)."},
"timezone":{"type":"string","description":"IANA name of the zone of the schedule's times. Default: yours."},
"prompt":{"type":"string","description":"What a run is told."},
"deliver":{"type":"string","description":"Where the answer goes: origin (this chat, the default), local (only kept, see runs), a platform for your home chat there, platform:chat_id, all (every home), or several with commas."},
"repeat":{"type":"integer","minimum":0,"description":"How often it runs in all; 0: without end."},
"skills":{"type":"array","items":{"type":"string"},"description":"Skills whose texts a run is given."},
"script":{"type":"string","description":"A file of scripts/ in your home that is run first; what it prints is given to the run."},
"no_agent":{"type":"boolean","description":"Only the script runs; what it prints is the answer."},
"context_from":{"type":"array","items":{"type":"string"},"description":"Jobs of yours, by name or id, whose last answers a run is given."},
"model":{"type":"string","description":"provider/model in place of yours."},
"workdir":{"type":"string","description":"A folder below workspace/ where its commands begin."},
"missed":{"type":"string","description":"What becomes of runs that nobody made in time: once (default), skip, all, 'all 5' or 'within 2h'."},
"overlap":{"type":"string","enum":["skip","queue","cancel"],"description":"What becomes of a run while an earlier one still goes. Default: skip."},
"jitter_seconds":{"type":"integer","minimum":0,"description":"Each run begins up to so much later."},
"timeout_seconds":{"type":"integer","description":"How long a run may take."},
"session":{"type":"string","enum":["fresh","continue"],"description":"continue: all runs are in one conversation. Default: fresh."},
"bare":{"type":"boolean","description":"Deliver the answer without the lines that say which job it is from."},
"mirror":{"type":"boolean","description":"What is delivered to the chat that it was made in becomes part of the conversation there."}},
"required":["action"]}"#;

/// Most jobs that an agent has made itself.
const MOST_JOBS: i64 = 50;
/// Most jobs that one turn makes, and runs that it wants, together.
const MOST_BEGUN: u32 = 10;
/// Shortest distance of two runs, seconds.
const SHORTEST: i64 = 60;
/// Jobs in a list, runs in a history, chats that a refusal names.
const LISTED: i64 = 100;
const RUNS: i64 = 10;
const NAMED: i64 = 8;
/// As much of a prompt as a list shows, and of an answer a history, characters.
const SHOWN: usize = 100;
const SAID: usize = 2000;
/// Under which the session keeps how much its turn has begun.
const NOTE: &str = "cronjob";

impl Tool for CronJob {
    fn spec(&self) -> Spec {
        Spec {
            name: "cronjob",
            description: DESCRIPTION,
            parameters: PARAMETERS,
            toolset: "cronjob",
            time_limit: Duration::from_secs(30),
            max_output: 128 << 10,
        }
    }

    fn plan(&self, arguments: Map<String, Value>) -> Result<Plan, String> {
        wish(arguments).map(|wish| Plan::Jobs(Box::new(wish)))
    }
}

/// What is to become of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Show,
    Update,
    Pause,
    Resume,
    Run,
    Remove,
    Runs,
}

/// A judged call.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wish {
    List,
    Create(Fields),
    One { act: Act, job: String, fields: Fields },
}

/// What a call says of a job: only what it names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields {
    name: Option<String>,
    /// Keys of [`Job`]; an empty text takes away what is there.
    job: Map<String, Value>,
}

impl Fields {
    /// A job with these in place of its own.
    fn over(&self, job: &Job) -> Result<Job, String> {
        let Ok(Value::Object(mut all)) = serde_json::to_value(job) else { return Ok(job.clone()) };
        for (name, value) in &self.job {
            if value == "" {
                all.remove(name);
            } else {
                all.insert(name.clone(), value.clone());
            }
        }
        serde_json::from_value(Value::Object(all)).map_err(|error| format!("the arguments do not fit: {error}"))
    }
}

fn wish(mut arguments: Map<String, Value>) -> Result<Wish, String> {
    arguments.retain(|_, value| !value.is_null());
    let mut text = |name: &str| match arguments.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
        Some(_) => Err(format!("Error: {name} is a text.")),
    };
    let (action, job, name) = (text("action")?, text("job")?, text("name")?);
    let fields = Fields { name, job: arguments };
    fields.over(&Job::default()).map_err(|sentence| format!("Error: {sentence}"))?;
    let act = match action.as_deref().unwrap_or_default() {
        "list" => return Ok(Wish::List),
        "create" => {
            let given = fields.job.into_iter().filter(|(_, value)| value != "").collect();
            return Ok(Wish::Create(Fields { name: fields.name.or(job), job: given }));
        }
        "show" => Act::Show,
        "update" => Act::Update,
        "pause" => Act::Pause,
        "resume" => Act::Resume,
        "run" => Act::Run,
        "remove" => Act::Remove,
        "runs" => Act::Runs,
        other => {
            let other = other.escape_debug();
            return Err(format!(
                "Error: there is no action \"{other}\". Use create, list, show, update, pause, resume, run, remove or runs."
            ));
        }
    };
    let job = job.ok_or("Error: say in job which one, by its name or id; action list shows them.")?;
    Ok(Wish::One { act, job, fields })
}

impl Wish {
    /// The call, under the document that counts now.
    pub(super) fn under(self: Box<Self>, snapshot: Arc<Snapshot>) -> Change {
        Change { wish: self, snapshot }
    }
}

/// A call, with what it is judged by.
pub(super) struct Change {
    wish: Box<Wish>,
    snapshot: Arc<Snapshot>,
}

/// Why a call is not done.
enum Refusal {
    /// For the model.
    Said(String),
    /// It is not known what became of it, or nothing was done.
    Store(store::Error),
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Conflict(sentence) | store::Error::NotFound(sentence) => Self::Said(sentence),
            error => Self::Store(error),
        }
    }
}

impl From<cron::Error> for Refusal {
    fn from(error: cron::Error) -> Self {
        match error {
            cron::Error::Store(error) => error.into(),
            error => Self::Said(error.to_string()),
        }
    }
}

impl From<Vec<Fault>> for Refusal {
    fn from(faults: Vec<Fault>) -> Self {
        cron::Error::Faults(faults).into()
    }
}

/// How much the session's turn has begun.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Begun {
    turn: i64,
    count: u32,
}

impl Change {
    async fn run(&self, scope: &mut CallScope<'_>) -> store::Result<String> {
        let input: TurnInput = serde_json::from_slice(&scope.input().await?).unwrap_or_default();
        if cron::is_run(&input) {
            return Ok(refused(
                "This is a run of a scheduled job, and runs do not look after jobs. Say in your answer what should change.",
            ));
        }
        match self.answer(scope).await {
            Ok(answer) => Ok(answer.to_string()),
            Err(Refusal::Said(sentence)) => Ok(refused(&sentence)),
            Err(Refusal::Store(error)) => Err(error),
        }
    }

    async fn answer(&self, scope: &mut CallScope<'_>) -> Result<Value, Refusal> {
        let agent_no = scope.caller().agent_no;
        let (act, job, fields) = match self.wish.as_ref() {
            Wish::List => {
                let rows = scope.cron_list(Some(agent_no), 0, LISTED + 1).await?;
                let more = rows.len() > usize::try_from(LISTED).unwrap_or(usize::MAX);
                let jobs: Vec<Value> = rows
                    .iter()
                    .take(usize::try_from(LISTED).unwrap_or(usize::MAX))
                    .map(|row| self.listed(row))
                    .collect();
                let mut answer = json!({"success": true, "jobs": jobs});
                if more {
                    answer["more"] = format!("only the first {LISTED} are listed; show finds others by name").into();
                }
                return Ok(answer);
            }
            Wish::Create(fields) => return self.create(scope, fields).await,
            Wish::One { act, job, fields } => (*act, job, fields),
        };
        let row = scope.cron_find(Some(agent_no), job).await?;
        match act {
            Act::Show => return Ok(self.done(&row, true)),
            Act::Runs => {
                let runs = scope.cron_runs(row.no, None, RUNS).await?;
                let zone = self.zone(&row);
                let runs: Vec<Value> = runs.iter().map(|run| ran(run, &zone)).collect();
                return Ok(json!({"success": true, "job": row.name, "runs": runs}));
            }
            Act::Update | Act::Pause | Act::Resume | Act::Run | Act::Remove => {}
        }
        if row.removed_at.is_some() {
            return Err(Refusal::Said(format!(
                "The job \"{}\" was removed; only its runs can be looked at.",
                row.name
            )));
        }
        if !row.by_agent {
            return Err(Refusal::Said(format!(
                "You did not make the job \"{}\", so you can only look at it. Whoever made it changes it.",
                row.name
            )));
        }
        match act {
            Act::Remove => {
                scope.cron_remove(row.no).await?;
                Ok(json!({"success": true, "removed": row.name, "id": row.id}))
            }
            Act::Run => {
                let begun = one_more(scope).await?;
                scope.cron_run_now(row.no).await?;
                count(scope, begun).await?;
                Ok(
                    json!({"success": true, "job": row.name, "state": "it begins at once; action runs shows what comes of it"}),
                )
            }
            Act::Pause | Act::Resume => {
                self.edit(scope, row, |job| {
                    job.paused = act == Act::Pause;
                    Ok(())
                })
                .await
            }
            _ => self.update(scope, row, fields).await,
        }
    }

    async fn create(&self, scope: &mut CallScope<'_>, fields: &Fields) -> Result<Value, Refusal> {
        let caller = scope.caller();
        let Some(agent) = self.snapshot.by_no(caller.agent_no) else {
            return Err(Refusal::Said("You are not registered any more.".to_owned()));
        };
        let usual = Job { deliver: hermes_core::cron::Deliver::parse("origin"), ..Job::default() };
        let job = fields.over(&usual).map_err(Refusal::Said)?;
        let wanted = Wanted { name: fields.name.clone().unwrap_or_default(), job }.named();
        let (id, now) = (new_id(), scope.now().await?);
        let times = judged(&self.snapshot, &id, &wanted, None, now)?;
        let origin = scope.origin().await?.map(|chat| (chat.lane, caller.turn.session));
        self.confined(scope, &wanted.job, None, origin.is_some(), now).await?;
        let begun = one_more(scope).await?;
        let new = NewCronJob {
            agent_no: caller.agent_no,
            id,
            name: wanted.name,
            job: wanted.job,
            by_agent: true,
            confined: true,
            origin,
            by: format!("agent {}", agent.id),
            times,
        };
        let row = scope.cron_create(&new, MOST_JOBS).await?;
        count(scope, begun).await?;
        Ok(self.done(&row, false))
    }

    async fn update(&self, scope: &mut CallScope<'_>, row: CronJobRow, fields: &Fields) -> Result<Value, Refusal> {
        if *fields == Fields::default() {
            return Err(Refusal::Said("Name what is to change, such as schedule or prompt.".to_owned()));
        }
        if let Some(before) = &row.job {
            let wanted = fields.over(before).map_err(Refusal::Said)?;
            let now = scope.now().await?;
            self.confined(scope, &wanted, Some(before), row.origin.is_some(), now).await?;
        }
        let name = fields.name.clone();
        self.edit_named(scope, row, name, |job| {
            *job = fields.over(job)?;
            Ok(())
        })
        .await
    }

    async fn edit(
        &self,
        scope: &mut CallScope<'_>,
        row: CronJobRow,
        edit: impl FnOnce(&mut Job) -> Result<(), String>,
    ) -> Result<Value, Refusal> {
        self.edit_named(scope, row, None, edit).await
    }

    async fn edit_named(
        &self,
        scope: &mut CallScope<'_>,
        row: CronJobRow,
        name: Option<String>,
        edit: impl FnOnce(&mut Job) -> Result<(), String>,
    ) -> Result<Value, Refusal> {
        let now = scope.now().await?;
        let change = changed(&self.snapshot, row, None, now, |wanted| {
            if let Some(name) = name {
                wanted.name = name;
            }
            edit(&mut wanted.job).map_err(|message| vec![Fault { field: "arguments", message }])
        })?;
        let row = scope.cron_edit(&change).await?;
        Ok(self.done(&row, false))
    }

    /// Refuses what an agent may not want by itself, where it was not so `before`.
    async fn confined(
        &self,
        scope: &mut CallScope<'_>,
        job: &Job,
        before: Option<&Job>,
        has_origin: bool,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if before.is_none_or(|before| (&before.schedule, &before.timezone) != (&job.schedule, &job.timezone))
            && let Ok(schedule) = job.schedule(now, &self.snapshot.zone)
        {
            let slots: Vec<Timestamp> = schedule.upcoming(now).take(3).map(|slot| slot.at).collect();
            if slots.windows(2).any(|two| two[1].as_second() - two[0].as_second() < SHORTEST) {
                return Err(Refusal::Said(
                    "schedule: once a minute is the most often; leave the seconds out".to_owned(),
                ));
            }
        }
        if before.is_none_or(|before| before.deliver != job.deliver) {
            for target in job.deliver.targets() {
                if let Some(why) = unreached(scope, target, has_origin).await? {
                    let chats: Vec<String> = scope.chats(NAMED).await?.iter().map(|chat| written(&chat.key)).collect();
                    let chats = if chats.is_empty() { "none".to_owned() } else { chats.join(", ") };
                    return Err(Refusal::Said(format!(
                        "deliver: {why}. Chats that you reach: {chats}. With local the answer is only kept, and action runs shows it."
                    )));
                }
            }
        }
        let known = |name: &String| before.is_some_and(|before| before.context_from.contains(name));
        for name in job.context_from.iter().filter(|name| !known(name)) {
            let found = scope.cron_find(Some(scope.caller().agent_no), name).await;
            if !matches!(&found, Ok(row) if row.removed_at.is_none()) {
                let name = name.escape_debug();
                return Err(Refusal::Said(format!(
                    "context_from: you have no job \"{name}\"; action list shows yours"
                )));
            }
        }
        Ok(())
    }

    fn zone(&self, row: &CronJobRow) -> TimeZone {
        let schedule = row.job.as_ref().and_then(|job| job.schedule(row.anchored_at, &self.snapshot.zone).ok());
        schedule.map_or_else(|| self.snapshot.zone.clone(), |schedule| schedule.zone().clone())
    }

    fn done(&self, row: &CronJobRow, whole: bool) -> Value {
        let mut shown = self.shown(row);
        if whole {
            shown["settings"] = json!(row.job);
            shown["failures_in_a_row"] = row.failures.into();
        }
        json!({"success": true, "job": shown})
    }

    fn listed(&self, row: &CronJobRow) -> Value {
        let mut shown = self.shown(row);
        let prompt = row.job.as_ref().map(|job| job.prompt.as_str()).unwrap_or_default();
        shown["prompt"] = prompt.chars().take(SHOWN).collect::<String>().into();
        shown
    }

    fn shown(&self, row: &CronJobRow) -> Value {
        let zone = self.zone(row);
        let paused = row.job.as_ref().is_some_and(|job| job.paused);
        let state = match (&row.removed_at, &row.stopped) {
            (Some(_), _) => "removed".to_owned(),
            (None, Some(reason)) => format!("stopped: {reason}"),
            (None, None) if paused => "paused".to_owned(),
            (None, None) => "scheduled".to_owned(),
        };
        let mut shown = json!({
            "id": row.id,
            "name": row.name,
            "state": state,
            "next_run": row.slot.map(|slot| at(slot, &zone)),
            "timezone": zone.iana_name().unwrap_or("UTC"),
            "made_by_you": row.by_agent,
            "ran": row.fired,
        });
        if let Some(job) = &row.job {
            shown["schedule"] = job.schedule.as_str().into();
            shown["deliver"] = job.deliver.to_string().into();
        }
        if let Some((slot, state)) = row.last {
            shown["last_run"] = json!({"at": at(slot, &zone), "state": state.as_str()});
        }
        shown
    }
}

impl CallEffect for Change {
    fn run<'a>(&'a self, scope: &'a mut CallScope<'_>) -> BoxFuture<'a, store::Result<String>> {
        Box::pin(self.run(scope))
    }
}

/// How much the turn has begun with one more, if it may.
async fn one_more(scope: &CallScope<'_>) -> Result<Begun, Refusal> {
    let turn = scope.caller().turn.seq;
    let before = scope.note(NOTE).await?.and_then(|body| serde_json::from_slice::<Begun>(&body).ok());
    let count = before.filter(|begun| begun.turn == turn).map_or(0, |begun| begun.count);
    if count >= MOST_BEGUN {
        return Err(Refusal::Said(format!(
            "This turn has made or run {MOST_BEGUN} jobs, and more are not allowed. Go on when you are asked again."
        )));
    }
    Ok(Begun { turn, count: count + 1 })
}

async fn count(scope: &CallScope<'_>, begun: Begun) -> Result<(), Refusal> {
    Ok(scope.set_note(NOTE, &serde_json::to_vec(&begun).unwrap_or_default()).await?)
}

/// Why a part of `deliver` leads nowhere for the agent, if it does.
async fn unreached(scope: &CallScope<'_>, target: &Target, has_origin: bool) -> Result<Option<String>, Refusal> {
    Ok(match target {
        Target::Origin if !has_origin => Some("there is no chat here that origin could mean".to_owned()),
        Target::Origin | Target::Local => None,
        Target::Home { platform } => scope.home(platform).await?.is_none().then(|| {
            format!(
                "you have no home chat on {platform}; somebody makes a chat your home by writing /sethome in it, or names it in the configuration, under homes of an account"
            )
        }),
        Target::Chat { platform, chat_id, thread_id } => {
            let reading = (chat_id.clone(), thread_id.clone().unwrap_or_default());
            let reached = scope.chat(platform, &[reading]).await?.is_some();
            (!reached).then(|| format!("you may not write to {target}"))
        }
    })
}

/// A time, by the clock of a zone.
fn at(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

fn ran(run: &CronRunRow, zone: &TimeZone) -> Value {
    let mut shown = json!({"at": at(run.slot, zone), "state": run.state.as_str()});
    for (name, text) in [("reason", &run.reason), ("undelivered", &run.undelivered)] {
        if let Some(text) = text {
            shown[name] = text.as_str().into();
        }
    }
    if let Some(output) = &run.output {
        let text: String = String::from_utf8_lossy(output).chars().take(SAID).collect();
        shown["answer"] = text.into();
    }
    if !run.deliveries.is_empty() {
        let chats = run.deliveries.iter().map(|(key, state)| json!({"target": written(key), "state": state}));
        shown["delivered"] = chats.collect();
    }
    shown
}

fn refused(error: &str) -> String {
    json!({"success": false, "error": error}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(arguments: Value) -> Result<Wish, String> {
        wish(arguments.as_object().unwrap().clone())
    }

    #[test]
    fn a_call_is_judged_before_anything_is_done() {
        assert_eq!(judged(json!({"action": "list", "job": null, "name": ""})), Ok(Wish::List));
        let Ok(Wish::Create(fields)) = judged(
            json!({"action": "create", "name": " tea ", "schedule": "every 2h", "prompt": "brew", "script": ""}),
        ) else {
            panic!("it is a creation");
        };
        assert_eq!(fields.name.as_deref(), Some("tea"));
        let usual = Job { deliver: hermes_core::cron::Deliver::parse("origin"), ..Job::default() };
        let job = fields.over(&usual).unwrap();
        assert_eq!((job.prompt.as_str(), job.script, job.deliver.to_string().as_str()), ("brew", None, "origin"));
        for wrong in [
            json!({}),
            json!({"action": "fly", "job": "x"}),
            json!({"action": "show"}),
            json!({"action": "pause", "job": 7}),
            json!({"action": "create", "schedule": 7}),
            json!({"action": "create", "schedule": "1h", "agent": "other"}),
            json!({"action": "update", "job": "x", "missed": "sometimes"}),
        ] {
            assert!(judged(wrong.clone()).is_err_and(|sentence| sentence.starts_with("Error: ")), "{wrong}");
        }
    }

    #[test]
    fn an_update_changes_what_it_names_and_an_empty_text_takes_away() {
        let Ok(Wish::One { act: Act::Update, fields, .. }) =
            judged(json!({"action": "update", "job": "x", "prompt": "more", "script": "", "skills": []}))
        else {
            panic!("it is an update");
        };
        let before = Job {
            schedule: "1h".to_owned(),
            prompt: "less".to_owned(),
            script: Some("a.sh".to_owned()),
            skills: vec!["maps".to_owned()],
            bare: true,
            ..Job::default()
        };
        let wanted = Job { prompt: "more".to_owned(), script: None, skills: Vec::new(), ..before.clone() };
        assert_eq!(fields.over(&before), Ok(wanted));
    }
}
