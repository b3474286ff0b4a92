//! A turn that is a run of a scheduled job: its script first, then what its model is told, and its answer kept.
//!
//! Called by `flow` before the model, or the program that answers, is asked. Always true: the script is step 0, journaled as a call that is made at most
//! once, so a run whose worker was lost in the middle of it does not run it again; without an agent nothing but the script answers; a
//! prompt, or what goes with it, that would speak in somebody else's name ends the run before a model reads it. What the run may not use is taken
//! from its offer, and nobody is waited for, because nobody is there (`steps`).

use std::borrow::Cow;
use std::sync::Arc;

use hermes_proto::v1::{ModelRole, ToolCall as Asked};

use super::consolidation;
use super::flow::Course;
use super::input::Input;
use super::orders::Halt;
use super::past::PastCall;
use crate::beneath::Folder;
use crate::cron::{self, Run, SILENT, Skill, archive};
use crate::model::Message;
use crate::sandbox::SCRATCH;
use crate::tools::local::script::{self, Printed, SCRIPT};
use crate::tools::local::{files, on_files};

/// What is to be done with a turn.
pub(super) enum Told<'a> {
    /// The model, or the program, is told this.
    Message(Cow<'a, str>),
    /// Nobody is asked: this is the reply.
    Answered(String),
}

impl Course {
    /// What the turn's input comes to; of a run of a job after its script.
    pub(super) async fn told<'a>(&mut self, input: &'a Input) -> Result<Told<'a>, Halt> {
        match &input.cron {
            None if !input.consolidates.is_empty() => {
                Ok(Told::Message(consolidation::message(&input.consolidates).into()))
            }
            None => Ok(Told::Message(Cow::Owned(self.said(input)))),
            // Boxed, so that other turns are not the larger for it.
            Some(run) => Box::pin(self.begun_run(run, &input.text)).await,
        }
    }

    async fn begun_run(&mut self, run: &Run, prompt: &str) -> Result<Told<'static>, Halt> {
        if !run.no_agent
            && let Some(why) = cron::threat_in_prompt(prompt)
        {
            return Err(Halt::Failed(why));
        }
        if let Some(workdir) = &run.workdir {
            self.begin_in(workdir).await?;
        }
        let printed = match &run.script {
            Some(script) => Some(self.script_step(script).await?),
            None => None,
        };
        if let Some(Printed::Output(text)) = &printed
            && cron::is_silent(text)
        {
            return Ok(Told::Answered(SILENT.to_owned()));
        }
        if run.no_agent {
            return match printed {
                Some(Printed::Output(text)) => Ok(Told::Answered(text.trim().to_owned())),
                Some(Printed::Failed(why)) => Err(Halt::Failed(sentence(&why))),
                Some(Printed::Unknown) => Err(Halt::Failed(format!(
                    "The script {} was begun, and then its process ended. What it did may or may not have happened, and it is not run again.",
                    run.script.as_deref().unwrap_or_default()
                ))),
                None => Err(Halt::Failed(
                    "This job has neither an agent nor a script, so there is nothing to run.".to_owned(),
                )),
            };
        }
        let (home, names) = (self.shared.documents.home().to_owned(), run.skills.clone());
        let skills = tokio::task::spawn_blocking(move || cron::read_skills(&home, &names)).await;
        let skills = skills.map_err(|_| Halt::Failed("I could not read the skills of this job.".to_owned()))?;
        self.used(&skills).await;
        let message = cron::message(run, printed.as_ref(), &skills, prompt);
        message.map(|message| Told::Message(Cow::Owned(message))).map_err(Halt::Failed)
    }

    /// Notes that skills were used, so that the curator leaves them where they are.
    async fn used(&self, skills: &[Skill]) {
        let Some(boundary) = &self.shared.boundary else { return };
        let policy = self.policy();
        for name in skills.iter().filter_map(Skill::found) {
            let view = files::ViewSkill { name: name.to_owned(), file_path: None };
            let request = files::Request::Skills(files::Skills::View(view), (self.shared.now)());
            // It counts, and no more: what it says was read already.
            if let Err(why) = on_files(boundary, &policy, request, None).await {
                tracing::debug!(skill = name, why, "that a skill was used could not be noted");
            }
        }
    }

    /// Makes the folder that the run's work begins in.
    async fn begin_in(&mut self, workdir: &str) -> Result<(), Halt> {
        let plain =
            workdir.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'));
        let (home, folder) = (self.shared.documents.home().to_owned(), format!("{SCRATCH}/{workdir}"));
        let made = match plain {
            true => {
                tokio::task::spawn_blocking(move || Folder::make(&home, &folder).map_err(|error| error.to_string()))
                    .await
                    .unwrap_or_else(|error| Err(error.to_string()))
            }
            false => Err("it has to be a path below it".to_owned()),
        };
        if let Err(why) = made {
            return Err(Halt::Failed(format!(
                "The folder {workdir} of {SCRATCH}/, where this job begins, cannot be had: {why}."
            )));
        }
        self.workdir = Some(workdir.to_owned());
        Ok(())
    }

    /// Runs the script, or finds out what became of it.
    async fn script_step(&mut self, name: &str) -> Result<Printed, Halt> {
        let call = Asked { id: SCRIPT.to_owned(), name: SCRIPT.to_owned(), arguments: script::arguments(name) };
        let text = match self.past.tool_call(self.step, &call)? {
            PastCall::Ended(text) => text,
            past => {
                if let Some(halt) = self.inbox.halt() {
                    return Err(halt);
                }
                let outcome = self.call_tool(Some(&script::spec()), &call, past).await?;
                self.store_result(outcome).await?
            }
        };
        self.step += 1;
        self.inbox.end().map_or(Ok(()), Err)?;
        Ok(Printed::read(&text))
    }

    /// What later turns of the session are told of this one begins with the prompt alone.
    pub(super) fn only_prompt(messages: &mut Vec<Message>, prompt: &str) {
        match messages.first_mut() {
            Some(first) if first.role == ModelRole::User => first.text = prompt.into(),
            _ => messages.insert(0, Message::new(ModelRole::User, prompt)),
        }
    }

    /// Keeps the answer in the home, as far as that is possible.
    pub(super) async fn keep_answer(&self, run: &Run, answer: &str) {
        let shared = Arc::clone(&self.shared);
        let (run, answer, now) = (run.clone(), answer.to_owned(), (shared.now)());
        let home = shared.documents.home().to_owned();
        let job = run.job.clone();
        match tokio::task::spawn_blocking(move || archive::keep(&home, &run, &answer, now)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(job, %error, "the answer of a job could not be kept in the home"),
            Err(error) => tracing::warn!(job, %error, "the answer of a job could not be kept in the home"),
        }
    }
}

/// A clause of a failure as a sentence for the chat.
fn sentence(why: &str) -> String {
    let mut chars = why.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::super::steps::UNKNOWN;
    use super::*;

    #[test]
    fn an_unknown_call_is_known_by_its_text() {
        assert_eq!(Printed::read(UNKNOWN), Printed::Unknown);
    }
}
