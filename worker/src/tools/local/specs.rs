//! What models are told of the tools on this machine.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::{Effect, ToolSpec};
use super::terminal::{LONGEST_WAIT, USUAL_WAIT};

/// All of them, in the order in which they are offered.
pub(super) fn all() -> Vec<ToolSpec> {
    let wait = LONGEST_WAIT + Duration::from_secs(10);
    let quick = Duration::from_secs(60);
    vec![
        spec(
            "terminal",
            "terminal",
            "Run a shell command (bash) in your workspace and get its output and exit code. Each command starts afresh: \
             directory and variables do not carry over, files do. Everything a command started ends with it; use background \
             for servers and long work, and the process tool to look after them. /tmp is empty each time. Prefer read_file, write_file, patch and \
             search_files for files.",
            json!({
                "command": {"type": "string", "description": "The command, as for bash -c."},
                "workdir": {"type": "string", "description": "Where it begins; a path in the workspace. Default: the workspace."},
                "timeout": {"type": "integer", "minimum": 1, "maximum": LONGEST_WAIT.as_secs(),
                    "description": format!("Seconds after which it is ended. Default: {}. Not for background.", USUAL_WAIT.as_secs())},
                "background": {"type": "boolean", "description": "Start it and come back at once with an id for the process tool."},
            }),
            &["command"],
            Effect::AtMostOnce,
            wait,
        ),
        spec(
            "terminal",
            "process",
            "Look after commands that terminal started in the background: list them, poll (is it running, what did it write), \
             wait for its end, write to its stdin, or kill it.",
            json!({
                "action": {"type": "string", "enum": ["list", "poll", "wait", "write", "kill"]},
                "id": {"type": "string", "description": "The id that terminal gave. Not for list."},
                "timeout": {"type": "integer", "minimum": 1, "maximum": LONGEST_WAIT.as_secs(), "description": "For wait: seconds at most."},
                "data": {"type": "string", "description": "For write: what its stdin gets, line ends included."},
            }),
            &["action"],
            Effect::AtMostOnce,
            wait,
        ),
        spec(
            "file",
            "read_file",
            "Read lines of a text file, numbered as LINE|TEXT. Paths are relative to your workspace; ../SOUL.md, ../memories and \
             ../skills are yours too.",
            json!({
                "path": {"type": "string"},
                "offset": {"type": "integer", "minimum": 1, "description": "The first line. Default: 1."},
                "limit": {"type": "integer", "minimum": 1, "maximum": 2000, "description": "Lines at most. Default: 500."},
            }),
            &["path"],
            Effect::Pure,
            quick,
        ),
        spec(
            "file",
            "write_file",
            "Write a whole file, in the place of what was there. Directories are made. To change a part, use patch.",
            json!({"path": {"type": "string"}, "content": {"type": "string"}}),
            &["path", "content"],
            Effect::Idempotent,
            quick,
        ),
        spec(
            "file",
            "patch",
            "Change a file: old_string (copied exactly, with enough lines around it to stand there once) becomes new_string; or \
             apply a unified diff of that file. Answers with the diff that was made.",
            json!({
                "path": {"type": "string"},
                "old_string": {"type": "string"},
                "new_string": {"type": "string"},
                "replace_all": {"type": "boolean", "description": "Everywhere. Default: false."},
                "diff": {"type": "string", "description": "Instead of old_string and new_string."},
            }),
            &["path"],
            Effect::AtMostOnce,
            quick,
        ),
        spec(
            "file",
            "search_files",
            "Find lines by a regular expression (target content), or files by a glob (target files, newest first). Hidden files and \
             what .gitignore names are left out.",
            json!({
                "pattern": {"type": "string"},
                "target": {"type": "string", "enum": ["content", "files"], "description": "Default: content."},
                "path": {"type": "string", "description": "Where. Default: the workspace."},
                "file_glob": {"type": "string", "description": "Only files like this, for example *.py."},
                "output_mode": {"type": "string", "enum": ["content", "files_only", "count"], "description": "Default: content."},
                "context": {"type": "integer", "minimum": 0, "maximum": 20, "description": "Lines around each hit. Default: 0."},
                "limit": {"type": "integer", "minimum": 1, "maximum": 500, "description": "Default: 50."},
                "offset": {"type": "integer", "minimum": 0},
            }),
            &["pattern"],
            Effect::Pure,
            quick,
        ),
        spec(
            "skills",
            "skills_list",
            "List your skills: names, descriptions and categories. skill_view shows one.",
            json!({"category": {"type": "string", "description": "Only those of this category."}}),
            &[],
            Effect::Pure,
            quick,
        ),
        spec(
            "skills",
            "skill_view",
            "Read a skill before you do what it is about, or one of the files that belong to it.",
            json!({
                "name": {"type": "string", "description": "Its name, or category/name."},
                "file_path": {"type": "string", "description": "One of its linked_files instead of SKILL.md."},
            }),
            &["name"],
            Effect::Pure,
            quick,
        ),
        spec(
            "skills",
            "skill_manage",
            "Keep what you learned as a skill: create one (SKILL.md with frontmatter name and description), edit or patch it when it \
             was wrong or incomplete, write or remove files in its references/, templates/, scripts/ and assets/, or delete it.",
            json!({
                "action": {"type": "string", "enum": ["create", "edit", "patch", "delete", "write_file", "remove_file"]},
                "name": {"type": "string", "description": "1 to 64 of a-z, 0-9, -, . and _."},
                "category": {"type": "string", "description": "For create."},
                "content": {"type": "string", "description": "For create and edit: all of SKILL.md."},
                "old_string": {"type": "string", "description": "For patch."},
                "new_string": {"type": "string", "description": "For patch."},
                "replace_all": {"type": "boolean", "description": "For patch."},
                "file_path": {"type": "string", "description": "For write_file, remove_file and patch."},
                "file_content": {"type": "string", "description": "For write_file."},
            }),
            &["action", "name"],
            Effect::AtMostOnce,
            quick,
        ),
    ]
}

fn spec(
    toolset: &str,
    name: &str,
    description: &str,
    properties: Value,
    required: &[&str],
    effect: Effect,
    time_limit: Duration,
) -> ToolSpec {
    let parameters = json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    });
    ToolSpec {
        name: name.to_owned(),
        description: description.to_owned(),
        parameters: parameters.to_string(),
        toolset: toolset.to_owned(),
        effect,
        time_limit,
        max_output: super::MAX_FILES_ANSWER,
    }
}
