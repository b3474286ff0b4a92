//! A turn that merges skills, through the real control plane and with a worker that says what it likes: when there is one, what such a turn may
//! use, and whose jobs change.

use hermes_proto::v1;
use hermes_tests::mock_model::MockModel;
use serde_json::{Value, json};
use tonic::Code;

use super::plane::{Plane, Tool};

fn apply(plane: &Plane, text: &str) {
    let file = plane.file("merging.yaml");
    std::fs::write(&file, text).unwrap();
    plane.hermesctl(&["apply", "-f", file.to_str().unwrap()]).ok();
}

async fn asked(tool: &Tool, order: u64, skills: &[&str]) -> Result<String, (Code, String)> {
    let answer = tool.consolidate(order, skills).await;
    answer.map_err(|status| (status.code(), status.message().to_owned()))
}

async fn called(tool: &Tool, turn: Option<v1::TurnRef>, (step, name): (u32, &str), arguments: &Value) -> String {
    let call = v1::ToolCall { id: "call".to_owned(), name: name.to_owned(), arguments: arguments.to_string() };
    let answer = tool.call(turn, step, call).await.unwrap();
    assert_eq!(answer.outcome(), v1::StepOutcome::Stored, "{arguments}");
    String::from_utf8(answer.text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_has_skills_merged_only_where_that_is_wanted_and_changes_jobs_of_its_own_agent_alone() {
    let mock = MockModel::start().await.unwrap();
    let plane = Plane::start(&mock).await;
    let mut worker = plane.worker("coder").await;
    let tool = worker.tool();
    let unwanted = |answer: Result<String, (Code, String)>| {
        let (code, message) = answer.unwrap_err();
        assert!(
            code == Code::FailedPrecondition && message.contains("while the operator who asked"),
            "{code:?} {message}"
        );
    };
    unwanted(asked(&tool, 0, &["a", "b"]).await);
    apply(&plane, "curator: {consolidate: true, enabled: false}");
    unwanted(asked(&tool, 0, &["a", "b"]).await);
    apply(&plane, "curator: {consolidate: true}");
    unwanted(asked(&tool, 7, &["a", "b"]).await);
    for wrong in [&["a"][..], &["a", "../b"], &["a", "web/b"], &["a"; 201]] {
        assert_eq!(asked(&tool, 0, wrong).await.unwrap_err().0, Code::InvalidArgument, "{}", wrong.len());
    }
    for agent in ["coder", "other"] {
        plane.json(&["cron", "add", agent, "0 9 * * *", "brew", "--name", "tea", "--skill", "a", "--paused"]);
        plane.json(&["cron", "add", agent, "0 9 * * *", "--name", "bare", "--skill", "web/b", "--paused"]);
    }
    let first = asked(&tool, 0, &["a", "b"]).await.unwrap();
    assert_eq!(asked(&tool, 0, &["a", "b", "c"]).await.unwrap(), first, "it is not time for another one");
    let given = worker.assignment().await;
    let input: Value = serde_json::from_slice(&given.input).unwrap();
    assert_eq!(input["consolidates"], json!(["a", "b"]));
    assert!(input["text"].as_str().unwrap().contains("use no tool"), "what an older worker's model is told");

    let turn = given.turn;
    let wish = |skills: Value, into: &str| json!({"skills": skills, "into": into});
    let ghost = called(&tool, turn, (0, "skills_consolidate"), &wish(json!(["a"]), "ghost")).await;
    assert!(ghost.contains("there is no skill ghost"), "{ghost}");
    let other = called(&tool, turn, (1, "memory"), &json!({"action": "add", "content": "x"})).await;
    assert_eq!(other, "Error: memory is not there for a turn that merges skills.");
    let bare = called(&tool, turn, (2, "skills_consolidate"), &json!({"skills": ["b"]})).await;
    assert!(bare.contains(r#"the job \"bare\" has nothing to do without them"#), "{bare}");
    let skill = plane.file("SKILL.md");
    std::fs::write(&skill, "---\nname: v1.2\ndescription: d\n---\nText.\n").unwrap();
    plane.json(&["agent", "edit", "coder", "skills/web/v1.2/SKILL.md", "--from", skill.to_str().unwrap()]);
    let near = called(&tool, turn, (3, "skills_consolidate"), &wish(json!(["a"]), "v1x2")).await;
    assert!(near.contains("there is no skill v1x2"), "{near}");
    let arguments = wish(json!(["a", "b"]), "v1.2");
    let done = called(&tool, turn, (4, "skills_consolidate"), &arguments).await;
    assert_eq!(done, r#"{"success":true,"archived":["a","b"],"into":"v1.2","jobs_changed":["tea","bare"]}"#);
    assert_eq!(called(&tool, turn, (4, "skills_consolidate"), &arguments).await, done, "once");
    let sql = plane.sql().await;
    let rows = "SELECT string_agg(a.agent_id || ' ' || j.name || ' ' || (j.spec->>'skills') || ' ' || j.version, ', ' ORDER BY a.agent_id, j.job_no) \
         FROM cron_jobs j JOIN agents a USING (agent_no)";
    let rows: String = sql.query_one(rows, &[]).await.unwrap().get(0);
    let mut versions = rows.split(", ").map(|row| row.rsplit_once(' ').unwrap());
    assert_eq!(versions.next().unwrap().0, r#"coder tea ["v1.2"]"#);
    assert_eq!(versions.next().unwrap().0, r#"coder bare ["v1.2"]"#);
    assert_eq!(versions.next().unwrap().0, r#"other tea ["a"]"#);
    assert_eq!(versions.next().unwrap().0, r#"other bare ["web/b"]"#);
    assert!(worker.complete(turn, "Merged.").await);

    // In a conversation it is not there.
    plane.tell("hello");
    let turn = worker.assignment().await.turn;
    let refused = called(&tool, turn, (0, "skills_consolidate"), &arguments).await;
    assert_eq!(refused, "Error: skills_consolidate is not there but for a turn that merges skills.");
}
