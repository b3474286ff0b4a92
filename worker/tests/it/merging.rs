//! The turn that merges skills: what its model is told and may use, what goes into the archive, and that an interrupted one ends what it began.

use std::sync::Arc;

use hermes_proto::v1::*;
use hermes_worker::seams::{Seams, Without};
use serde_json::{Value, json};

use crate::Worker;
use crate::fake::{Fake, soon, turn};
use crate::jobs::serve;
use crate::journal::{Line, ask, say};
use crate::offered::tool;
use crate::plane::{Plane, World};

const INPUT: &str = r#"{"text":"Merge the skills that overlap.","consolidates":["east","junk","north"]}"#;
const NEW: &str = "---\nname: maps\ndescription: all about maps\n---\nLook north, or east.\n";

fn worker() -> Worker {
    let worker = Worker::new();
    for skill in ["north", "web/east", "people", "kept", "junk"] {
        let name = skill.rsplit('/').next().unwrap();
        worker.write(&format!("skills/{skill}/SKILL.md"), &format!("---\nname: {name}\ndescription: d\n---\nText.\n"));
    }
    let own = json!({"created_by": "agent", "state": "active", "use_count": 1});
    let kept = json!({"created_by": "agent", "pinned": true});
    let rows = json!({"north": own, "east": own, "junk": own, "kept": kept, "gone": own});
    worker.write("skills/.usage.json", &rows.to_string());
    worker
}

async fn fake(script: &[(u32, Line)]) -> Fake {
    let fake = Fake::start().await;
    *fake.state.script.lock().unwrap() = script.iter().cloned().collect();
    let tools = vec![tool("skills_consolidate", "skill_consolidation"), tool("memory", "memory")];
    *fake.state.offered.tools.lock().unwrap() = Some(tools);
    fake
}

fn call(id: &str, arguments: &Value) -> (String, &'static str, String) {
    (id.to_owned(), "skills_consolidate", arguments.to_string())
}

fn manage(id: &str, arguments: &Value) -> (String, &'static str, String) {
    (id.to_owned(), "skill_manage", arguments.to_string())
}

/// Each of these calls in a step of its own, and then an answer.
fn script(calls: &[(String, &'static str, String)]) -> Vec<(u32, Line)> {
    let steps = (0_u32..).step_by(2);
    let asked = calls.iter().map(|(id, name, arguments)| ask("", &[(id.as_str(), *name, arguments.as_str())]));
    steps.zip(asked.chain([say("Merged.")])).collect()
}

#[tokio::test]
async fn a_model_merges_what_is_its_agents_own_and_nothing_else() {
    let calls = [
        manage("a", &json!({"action": "edit", "name": "people", "content": "x"})),
        manage("b", &json!({"action": "delete", "name": "north"})),
        call("c", &json!({"skills": ["people"]})),
        call("d", &json!({"skills": ["kept"], "into": "north"})),
        call("e", &json!({"skills": ["north"], "into": "maps"})),
        manage("f", &json!({"action": "create", "name": "maps", "content": NEW})),
        call("g", &json!({"skills": ["north", "east"], "into": "maps"})),
        call("h", &json!({"skills": ["junk"]})),
        manage("i", &json!({"action": "create", "name": "junk", "content": NEW.replace("maps", "junk")})),
    ];
    let mut fake = fake(&script(&calls)).await;
    let mut worker = worker();
    serve(&mut worker, &fake, Seams::default());
    let mut plane = Plane::attach(&mut fake).await;
    plane.assign_input(&fake.state, turn(1, 1, 1), INPUT).await;
    assert_eq!(plane.completed().await, (Outcome::Succeeded, "Merged.".into()));
    assert_eq!(fake.state.tools_told(0), ["skills_list", "skill_view", "skill_manage", "skills_consolidate"]);
    let asked = fake.state.asked(18).pop().unwrap();
    let told = |id: &str| {
        let before = format!("tool {id}: ");
        asked.iter().find_map(|line| line.strip_prefix(&before)).unwrap_or_else(|| panic!("{id}: {asked:?}")).to_owned()
    };
    assert!(asked[0].contains("\n- east\n- junk\n- north\n"), "{}", asked[0]);
    assert!(told("a").contains("people is not one of yours to change"), "{}", told("a"));
    assert!(told("b").contains("skills_consolidate puts a skill into the archive"), "{}", told("b"));
    for (id, why) in
        [("c", "people is not one of yours"), ("d", "kept is not one of yours"), ("e", "has no skill maps")]
    {
        assert!(told(id).starts_with("Error: ") && told(id).contains(why), "{}", told(id));
    }
    assert!(told("i").contains("a skill junk lies in the archive"), "{}", told("i"));
    for gone in ["north", "east", "junk"] {
        assert!(worker.has(&format!("skills/.archive/{gone}/SKILL.md")), "{gone}");
    }
    assert!(!worker.has("skills/north") && !worker.has("skills/web/east") && !worker.has("skills/junk"));
    assert!(worker.has("skills/people/SKILL.md") && worker.has("skills/kept/SKILL.md"));
    let usage: Value = serde_json::from_str(&worker.read("skills/.usage.json")).unwrap();
    assert_eq!((&usage["maps"]["created_by"], &usage["north"]["state"]), (&json!("agent"), &json!("archived")));

    // Who is asked about something else has the usual tools.
    *fake.state.script.lock().unwrap() = [(0, say("Hello."))].into();
    plane.assign(&fake.state, turn(2, 1, 1), "hi").await;
    plane.completed().await;
    let usual = fake.state.tools_told(0);
    assert!(usual.contains(&"memory".to_owned()) && !usual.contains(&"skills_consolidate".to_owned()), "{usual:?}");
}

#[tokio::test]
async fn what_cannot_be_told_apart_or_shown_whole_is_left_alone_and_nothing_is_deleted() {
    let calls = [
        manage("a", &json!({"action": "remove_file", "name": "north", "file_path": "references/more.md"})),
        manage("b", &json!({"action": "edit", "name": "old/east", "content": NEW.replace("maps", "east")})),
        call("c", &json!({"skills": ["east"], "into": "north"})),
        call("d", &json!({"skills": ["junk"], "into": "north"})),
        call("e", &json!({"skills": ["junk"]})),
    ];
    let mut fake = fake(&script(&calls)).await;
    let mut worker = worker();
    worker.write("skills/north/references/more.md", "more");
    worker.write("skills/old/east/SKILL.md", "---\nname: east\ndescription: d\n---\nOf people.\n");
    worker.write("skills/junk/references/long.md", &"x".repeat(200_000));
    serve(&mut worker, &fake, Seams::default());
    let mut plane = Plane::attach(&mut fake).await;
    plane.assign_input(&fake.state, turn(1, 1, 1), INPUT).await;
    assert_eq!(plane.completed().await, (Outcome::Succeeded, "Merged.".into()));
    let asked = fake.state.asked(10).pop().unwrap();
    for (id, why) in [
        ("a", "nothing is deleted here"),
        ("b", "east is in several categories"),
        ("c", "east is in several categories"),
        ("d", "junk cannot be shown to you as a whole"),
    ] {
        let before = format!("tool {id}: Error: ");
        let told = asked.iter().find(|line| line.starts_with(&before));
        assert!(told.is_some_and(|told| told.contains(why)), "{id}: {asked:?}");
    }
    assert!(
        worker.has("skills/north/references/more.md") && worker.read("skills/old/east/SKILL.md").contains("Of people.")
    );
    assert!(worker.has("skills/.archive/junk"), "what is of no use need not be read to the end");
}

#[tokio::test]
async fn what_was_interrupted_before_the_skills_were_moved_is_ended_by_who_takes_it_up() {
    // Lost before the call is made, when it is journaled, and when the skills are moved.
    let input = r#"{"text":"Merge the skills that overlap.","consolidates":["east","north"]}"#;
    let points = [("effect.before", 2), ("effect.after", 2), ("model.before", 3)];
    for (elsewhere, (point, nth)) in [false, true].into_iter().flat_map(|other| points.map(|point| (other, point))) {
        let calls = [
            manage("a", &json!({"action": "create", "name": "maps", "content": NEW})),
            call("b", &json!({"skills": ["north", "east"], "into": "maps"})),
        ];
        let mut fake = fake(&script(&calls)).await;
        *fake.state.joins_left.lock().unwrap() = 2;
        let mut worker = worker();
        let world = Arc::new(World::default());
        let seams = || Seams { toolbox: None, ..world.seams(Without::default()) };
        world.hold_at(point, nth);
        serve(&mut worker, &fake, seams());
        let mut plane = Plane::attach(&mut fake).await;
        plane.assign_input(&fake.state, turn(1, 1, 1), input).await;
        soon(point, world.held.notified()).await;
        assert_eq!(worker.has("skills/north"), point != "model.before", "{point}");
        worker.task.abort_all();
        while worker.task.join_next().await.is_some() {}
        if elsewhere {
            // Another home of the agent, which knows nothing of who made what.
            worker = Worker::new();
        }
        serve(&mut worker, &fake, seams());
        plane = Plane::attach(&mut fake).await;
        plane.assign_input(&fake.state, turn(1, 1, 2), input).await;
        assert_eq!(plane.completed().await, (Outcome::Succeeded, "Merged.".into()), "{point}");
        // What jobs name now is in every home, and what they named is in none.
        let stored = |path: &str| fake.state.document(path).and_then(|(_, body)| body);
        assert_eq!(stored("skills/maps/SKILL.md").as_deref(), Some(NEW), "{point}");
        assert_eq!((stored("skills/north/SKILL.md"), stored("skills/web/east/SKILL.md")), (None, None), "{point}");
        let archive = std::fs::read_dir(worker.home().join("skills/.archive")).into_iter().flatten();
        let mut archive: Vec<_> = archive.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        archive.sort();
        // The home that did it before has them.
        let moved = if elsewhere && point == "model.before" { Vec::new() } else { vec!["east", "north"] };
        assert_eq!(archive, moved, "{point}");
        assert!(!worker.has("skills/north") && !worker.has("skills/web/east"), "{point}");
    }
}
