//! `skills_consolidate`: which skills of an agent another one says all of now, or that are of no use, so that they go into the archive.
//!
//! Only for the turn that merges skills. The jobs that name them are changed here, with the journal of the call; what lies in the home, its worker
//! moves, which has looked whether these skills are its agent's to merge. Always true: the jobs change before the skills go, so no job names a
//! skill that this put away, and name one that is a document, so that it is in every home of the agent; whichever names a worker makes up, only jobs
//! of its own agent change, and the journal of the call says which.

use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_home::skill::is_name;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{CONSOLIDATION, Plan, Spec, Tool};
use crate::store::{self, CallEffect, CallScope};

/// The tool.
pub(super) struct SkillsConsolidate;

const DESCRIPTION: &str = "Put skills of yours away because another one says all that they say, or because nothing in them is of use any more. They go \
    into the archive, from where people bring them back, and jobs that name them name the other one from then on. Write the other one first, \
    with skill_manage, and carry over all that is worth knowing.";

const PARAMETERS: &str = r#"{"type":"object","properties":{
"skills":{"type":"array","minItems":1,"maxItems":50,"items":{"type":"string"},"description":"Names of those that go, without category."},
"into":{"type":"string","description":"Name of the one that says it all now. Leave out only where there is nothing worth keeping."}},
"required":["skills"]}"#;

/// Most skills of a call.
const MOST: usize = 50;

impl Tool for SkillsConsolidate {
    fn spec(&self) -> Spec {
        Spec {
            name: "skills_consolidate",
            description: DESCRIPTION,
            parameters: PARAMETERS,
            toolset: CONSOLIDATION,
            time_limit: Duration::from_secs(30),
            max_output: 16 << 10,
        }
    }

    fn plan(&self, arguments: Map<String, Value>) -> Result<Plan, String> {
        judged(arguments).map(|wish| Plan::Effect(Box::new(wish) as Box<dyn CallEffect>))
    }
}

/// A judged call.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Wish {
    skills: Vec<String>,
    into: Option<String>,
}

fn judged(arguments: Map<String, Value>) -> Result<Wish, String> {
    let wish: Wish = serde_json::from_value(Value::Object(arguments))
        .map_err(|error| format!("Error: the arguments do not fit: {error}"))?;
    if wish.skills.is_empty() || wish.skills.len() > MOST {
        return Err(format!("Error: name 1 to {MOST} skills."));
    }
    if let Some(odd) = wish.skills.iter().chain(&wish.into).find(|skill| !is_name(skill)) {
        return Err(format!("Error: \"{}\" is no name of a skill; give it without its category.", odd.escape_debug()));
    }
    if wish.into.as_ref().is_some_and(|into| wish.skills.contains(into)) {
        return Err("Error: a skill cannot be merged into itself; leave the one that stays out of skills.".to_owned());
    }
    Ok(wish)
}

impl CallEffect for Wish {
    fn run<'a>(&'a self, scope: &'a mut CallScope<'_>) -> BoxFuture<'a, store::Result<String>> {
        Box::pin(async {
            if let Some(into) = &self.into
                && !scope.has_skill(into).await?
            {
                let error = format!("there is no skill {into}; write it first, with skill_manage");
                return Ok(json!({"success": false, "error": error}).to_string());
            }
            let answer = match scope.cron_replace_skills(&self.skills, self.into.as_deref()).await? {
                Ok(jobs) => json!({"success": true, "archived": self.skills, "into": self.into, "jobs_changed": jobs}),
                Err(job) => json!({"success": false, "error": format!(
                    "the job \"{job}\" has nothing to do without them; say in into which skill it is to have"
                )}),
            };
            Ok(answer.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_skill_is_called_is_refused() {
        let judged = |arguments: Value| judged(arguments.as_object().unwrap().clone());
        let wish = Wish { skills: vec!["a".to_owned()], into: Some("b".to_owned()) };
        assert_eq!(judged(json!({"skills": ["a"], "into": "b"})), Ok(wish));
        for wrong in [
            json!({}),
            json!({"skills": []}),
            json!({"skills": vec!["a"; MOST + 1]}),
            json!({"skills": ["../a"]}),
            json!({"skills": ["web/a"]}),
            json!({"skills": ["a"], "into": ""}),
            json!({"skills": ["a", "b"], "into": "b"}),
        ] {
            assert!(judged(wrong.clone()).unwrap_err().starts_with("Error: "), "{wrong}");
        }
    }
}
