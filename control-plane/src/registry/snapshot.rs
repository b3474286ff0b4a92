//! One version of the registry, compiled for answering.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use hermes_core::AgentId;
use hermes_core::config::{AgentSpec, Document, Positions, Provider, Warning, check};
use hermes_core::routing::{Route, RouteTable};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::store::{self, PauseRow, RaiseRow, RegistryRows};

/// A registered agent.
#[derive(Clone, Debug)]
pub struct AgentEntry {
    /// Its number, for ever.
    pub no: i32,
    /// Its id.
    pub id: AgentId,
    /// Current profile revision.
    pub revision: i64,
    /// What it is.
    pub spec: AgentSpec,
    /// When it was first added.
    pub created_at: Timestamp,
    home: Arc<AtomicI64>,
}

impl AgentEntry {
    /// The newest home version this replica knows of.
    pub fn home_version(&self) -> i64 {
        self.home.load(Ordering::Relaxed)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Version of document, agents and routes.
    pub version: i64,
    /// The whole document.
    pub document: Document,
    /// Its routes, compiled.
    pub table: RouteTable,
    /// Its time zone.
    pub zone: TimeZone,
    /// The settings that say who answers for a model; without agents and routes.
    pub models: Document,
    agents: HashMap<AgentId, Arc<AgentEntry>>,
    by_no: HashMap<i32, Arc<AgentEntry>>,
    /// Removed agents: their history comes back when the id is added again.
    removed: HashMap<String, i32>,
    pauses: HashMap<i32, PauseRow>,
    raises: HashMap<i32, Vec<RaiseRow>>,
    warnings: OnceLock<Vec<Warning>>,
}

impl Default for Snapshot {
    fn default() -> Self {
        let document = Document::default();
        Self {
            version: -1,
            table: RouteTable::compile(Arc::from([])),
            zone: TimeZone::UTC,
            models: document.clone(),
            document,
            agents: HashMap::new(),
            by_no: HashMap::new(),
            removed: HashMap::new(),
            pauses: HashMap::new(),
            raises: HashMap::new(),
            warnings: OnceLock::new(),
        }
    }
}

impl Snapshot {
    pub(super) fn from_rows(
        rows: RegistryRows,
        homes: &HashMap<i32, Arc<AtomicI64>>,
        fallback: &BTreeMap<String, Provider>,
    ) -> store::Result<Self> {
        let unreadable = |what: &str, error: &dyn std::fmt::Display| {
            store::Error::Schema(format!("the stored {what} cannot be read by this build: {error}"))
        };
        let mut agents = HashMap::new();
        let mut by_no = HashMap::new();
        let mut removed = HashMap::new();
        let mut ids = HashMap::new();
        for row in rows.agents {
            let id = AgentId::parse(&row.agent_id).map_err(|error| unreadable("agent", &error))?;
            ids.insert(row.agent_no, id.clone());
            let entry = Arc::new(AgentEntry {
                no: row.agent_no,
                id: id.clone(),
                revision: row.revision,
                spec: serde_json::from_value(row.spec).map_err(|error| unreadable("agent spec", &error))?,
                created_at: row.created_at,
                home: homes.get(&row.agent_no).cloned().unwrap_or_default(),
            });
            by_no.insert(row.agent_no, entry.clone());
            if row.removed_at.is_some() {
                removed.insert(row.agent_id, row.agent_no);
            } else {
                agents.insert(id, entry);
            }
        }
        let mut routes = Vec::with_capacity(rows.routes.len());
        for (keys, agent_no) in rows.routes {
            let keys = serde_json::from_value(keys).map_err(|error| unreadable("route", &error))?;
            let agent = ids.get(&agent_no).cloned().ok_or_else(|| unreadable("route", &"its agent is missing"))?;
            routes.push(Route { keys, agent });
        }
        let routes: Arc<[Route]> = routes.into();
        let mut document: Document = document_from(rows.settings).map_err(|error| unreadable("document", &error))?;
        let models = super::with_fallback(document.clone(), fallback);
        document.agents = agents.iter().map(|(id, entry)| (id.clone(), entry.spec.clone())).collect();
        document.agents.entry(AgentId::main()).or_default();
        document.routes = routes.to_vec();
        let mut raises: HashMap<i32, Vec<RaiseRow>> = HashMap::new();
        for raise in rows.raises {
            raises.entry(raise.agent_no).or_default().push(raise);
        }
        let zone = TimeZone::get(&document.timezone).map_err(|error| unreadable("time zone", &error))?;
        Ok(Self {
            version: rows.version,
            table: RouteTable::compile(routes),
            zone,
            models,
            document,
            agents,
            by_no,
            removed,
            pauses: rows.pauses.into_iter().map(|pause| (pause.agent_no, pause)).collect(),
            raises,
            warnings: OnceLock::new(),
        })
    }

    /// A registered agent.
    pub fn agent(&self, id: &AgentId) -> Option<&Arc<AgentEntry>> {
        self.agents.get(id)
    }

    /// An agent by number, removed ones included.
    pub fn by_no(&self, no: i32) -> Option<&Arc<AgentEntry>> {
        self.by_no.get(&no)
    }

    /// An agent by id, removed ones included: its running turns finish.
    pub fn agent_or_removed(&self, id: &AgentId) -> Option<&Arc<AgentEntry>> {
        self.agent(id).or_else(|| self.by_no(self.removed(id.as_str())?))
    }

    /// The number of a removed agent.
    pub fn removed(&self, id: &str) -> Option<i32> {
        self.removed.get(id).copied()
    }

    /// Who paused an agent and when, where it asks no model.
    pub fn pause_of(&self, agent_no: i32) -> Option<&PauseRow> {
        self.pauses.get(&agent_no)
    }

    /// The limits of an agent that were raised; some may be over.
    pub fn raises_of(&self, agent_no: i32) -> &[RaiseRow] {
        self.raises.get(&agent_no).map_or(&[], Vec::as_slice)
    }

    /// All registered agents, by id.
    pub fn agents(&self) -> Vec<&Arc<AgentEntry>> {
        let mut all: Vec<_> = self.agents.values().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// What is accepted in the document but probably not meant; judged once.
    pub fn warnings(&self) -> &[Warning] {
        self.warnings.get_or_init(|| {
            let mut document = self.document.clone();
            document.providers.clone_from(&self.models.providers);
            document.default_provider.clone_from(&self.models.default_provider);
            check(&document, &Positions::default()).1
        })
    }

    /// The model of a spec, after defaults.
    pub fn model_of<'a>(&'a self, spec: &'a AgentSpec) -> &'a str {
        spec.model.as_deref().unwrap_or(&self.document.model)
    }
}

/// The document's settings as stored: everything but agents and routes.
pub(super) fn settings_of(document: &Document) -> Result<Value, serde_json::Error> {
    let mut lean = document.clone();
    lean.routes = Vec::new();
    lean.agents.clear();
    let mut value = serde_json::to_value(lean)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("agents");
        fields.remove("routes");
    }
    Ok(value)
}

/// Stored settings over the defaults, so that a document of an older release gets the defaults of what it did not know.
fn document_from(settings: Value) -> Result<Document, serde_json::Error> {
    let mut value = serde_json::to_value(Document::default())?;
    if let (Some(fields), Value::Object(stored)) = (value.as_object_mut(), settings) {
        fields.extend(stored);
    }
    serde_json::from_value(value)
}

/// The first lines of a SOUL that say something (spec h.1): at most eight, joined, 200 characters.
pub(crate) fn soul_preview(soul: &str) -> String {
    let lines = soul.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let joined = lines.take(8).collect::<Vec<_>>().join(" ");
    joined.chars().take(200).collect()
}

/// Where the reference keeps things under a home.
pub(crate) fn paths_under(home: &Path) -> [String; 3] {
    ["memories", "skills", "sessions/sessions.json"].map(|path| home.join(path).display().to_string())
}
