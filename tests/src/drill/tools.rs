//! Tools of each effect class for drills: what they do is one line in a file that only ever grows.
//!
//! Used by `hermes-drill-worker`. Always true: the line is written with one call, before the tool answers, so a worker that
//! is killed in between has had the effect and journaled nothing of it.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_worker::tools::{Effect, ToolCall, ToolResult, ToolSpec, Toolbox};

/// How long a tool takes after its effect.
const TAKES: Duration = Duration::from_millis(10);

const TOOLS: [(&str, &str, Effect); 3] = [
    ("note_pure", "pure", Effect::Pure),
    ("note_keyed", "keyed", Effect::Idempotent),
    ("note_once", "once", Effect::AtMostOnce),
];

/// `note_pure`, `note_keyed` and `note_once`: each appends `<class> <session>.<turn>.<step> <key or -> <text>` to a file.
#[derive(Debug)]
pub struct Notes {
    file: PathBuf,
    specs: Arc<[ToolSpec]>,
}

impl Notes {
    /// Notes go into this file.
    pub fn new(file: PathBuf) -> Self {
        let spec = |(name, _, effect): (&str, &str, Effect)| ToolSpec {
            name: name.to_owned(),
            description: "Notes a text.".to_owned(),
            parameters: r#"{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}"#.to_owned(),
            toolset: "drill".to_owned(),
            effect,
            time_limit: Duration::from_secs(30),
            max_output: 4096,
        };
        Self { file, specs: TOOLS.map(spec).into() }
    }
}

impl Toolbox for Notes {
    fn specs(&self) -> Arc<[ToolSpec]> {
        Arc::clone(&self.specs)
    }

    fn call(&self, call: ToolCall) -> BoxFuture<'_, ToolResult> {
        Box::pin(async move {
            let class = TOOLS.iter().find(|(name, ..)| *name == call.name).map_or("?", |(_, class, _)| class);
            let text = call.arguments.get("text").and_then(|text| text.as_str()).ok_or("say a text")?;
            let key = call.idempotency_key.as_deref().unwrap_or("-");
            let turn = call.turn;
            let line = format!("{class} {}.{}.{} {key} {text}\n", turn.session_id, turn.seq, call.step);
            let noted = File::options().create(true).append(true).open(&self.file);
            noted.and_then(|mut file| file.write_all(line.as_bytes())).map_err(|error| error.to_string())?;
            tokio::time::sleep(TAKES).await;
            Ok(format!("noted {text}"))
        })
    }
}
