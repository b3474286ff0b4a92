//! The one way the registry changes: a closure edits a copy of the document, `hermes-core` judges the result, the store
//! compares and swaps. Where a whole text is applied or compared, the jobs that are stored beside the document are part of it.

use hermes_core::config::{Change, Document, Fault, NamedHome, Warning, check, diff};
use jiff::Timestamp;
use serde_json::Value;

use super::snapshot::settings_of;
use super::{Registry, Snapshot};
use crate::cron;
use crate::store::{self, CronChanges, CronJobRow, DocumentedHome, LaneKey, RegistryChange};

/// What goes along with a change of the document, in the same transaction.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// The document to change.
    pub document: Document,
    /// Copy SOUL, memories and skills: from, to.
    pub home_copy: Option<(String, String)>,
    /// Home documents to set: agent id, path, body.
    pub home_documents: Vec<(String, String, Vec<u8>)>,
    /// Give these agents a new revision even when their spec is the same.
    pub touch: Vec<String>,
    /// Where fields stand in the text this came from.
    pub positions: hermes_core::config::Positions,
    /// The jobs that are stored, and the database's time; none but for a whole text.
    pub stored: Vec<CronJobRow>,
    /// See [`Edit::stored`].
    pub now: Timestamp,
    /// What becomes of them.
    pub jobs: CronChanges,
    /// What is wrong with that.
    pub faults: Vec<Fault>,
}

/// Whether jobs, which are stored beside the document, are part of an edit.
#[derive(Clone, Copy)]
enum Jobs {
    Aside,
    Within,
}

/// Why a change was refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The result would be invalid.
    #[error("{}", first_of(.0))]
    Faults(Vec<Fault>),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It exists already.
    #[error("{0}")]
    Exists(String),
    /// Something else must be done or said first.
    #[error("{0}")]
    Precondition(String),
    /// What was asked is malformed.
    #[error("{0}")]
    Invalid(String),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

fn first_of(faults: &[Fault]) -> String {
    let rest = faults.len().saturating_sub(1);
    match faults.first() {
        Some(fault) if rest == 0 => format!("{}: {}", fault.path, fault.message),
        Some(fault) => format!("{}: {} (and {rest} more)", fault.path, fault.message),
        None => "refused".to_owned(),
    }
}

/// A change that was carried out (or, for a dry run, would be).
#[derive(Clone, Debug)]
pub struct Edited<T> {
    /// What the closure answered.
    pub answer: T,
    /// Version afterwards.
    pub version: i64,
    /// What changed.
    pub changes: Vec<Change>,
    /// Accepted, but probably not meant.
    pub warnings: Vec<Warning>,
}

impl Registry {
    /// Changes the registry. `edit` may run more than once and must be free of outside effects.
    ///
    /// # Errors
    /// [`EditError`]; nothing was changed then.
    pub async fn edit<T>(
        &self,
        by: &str,
        edit: impl Fn(&Snapshot, &mut Edit) -> Result<T, EditError>,
    ) -> Result<Edited<T>, EditError> {
        self.edit_with(by, Jobs::Aside, edit).await
    }

    /// [`Registry::edit`] by a whole text, which may change jobs, too.
    ///
    /// # Errors
    /// [`EditError`]; nothing was changed then.
    pub async fn apply<T>(
        &self,
        by: &str,
        edit: impl Fn(&Snapshot, &mut Edit) -> Result<T, EditError>,
    ) -> Result<Edited<T>, EditError> {
        self.edit_with(by, Jobs::Within, edit).await
    }

    async fn edit_with<T>(
        &self,
        by: &str,
        jobs: Jobs,
        edit: impl Fn(&Snapshot, &mut Edit) -> Result<T, EditError>,
    ) -> Result<Edited<T>, EditError> {
        for _ in 0..8 {
            let snapshot = self.current();
            let (answer, result, changes, warnings) =
                self.decide(&snapshot, self.begun(&snapshot, jobs).await?, &edit)?;
            let change = change_of(&snapshot, &result, by)?;
            let Some(change) = change else {
                return Ok(Edited { answer, version: snapshot.version, changes, warnings });
            };
            match self.inner.store.registry_change(snapshot.version, &change).await {
                Ok(version) => {
                    self.moved().await?;
                    return Ok(Edited { answer, version, changes, warnings });
                }
                Err(store::Error::Conflict(_)) => self.reload().await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(EditError::Store(store::Error::Conflict(
            "others keep changing the configuration; nothing was changed, try again".to_owned(),
        )))
    }

    /// What [`Registry::edit`] would do.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn edit_dry<T>(
        &self,
        edit: impl Fn(&Snapshot, &mut Edit) -> Result<T, EditError>,
    ) -> Result<Edited<T>, EditError> {
        let snapshot = self.current();
        let begun = Edit { document: snapshot.document.clone(), ..Edit::default() };
        let (answer, _, changes, warnings) = self.decide(&snapshot, begun, &edit)?;
        Ok(Edited { answer, version: snapshot.version, changes, warnings })
    }

    /// What [`Registry::apply`] would do.
    ///
    /// # Errors
    /// [`EditError`].
    pub async fn apply_dry<T>(
        &self,
        edit: impl Fn(&Snapshot, &mut Edit) -> Result<T, EditError>,
    ) -> Result<Edited<T>, EditError> {
        let snapshot = self.current();
        let (answer, _, changes, warnings) =
            self.decide(&snapshot, self.begun(&snapshot, Jobs::Within).await?, &edit)?;
        Ok(Edited { answer, version: snapshot.version, changes, warnings })
    }

    /// The document with the jobs that people made, as exports show it.
    ///
    /// # Errors
    /// [`store::Error`].
    pub async fn exported(&self) -> store::Result<Document> {
        let snapshot = self.current();
        let rows = self.inner.store.cron_list(None, 0, i64::MAX).await?;
        Ok(Document { cron: cron::exported(&rows, &snapshot), ..snapshot.document.clone() })
    }

    /// An edit before anything is changed.
    async fn begun(&self, snapshot: &Snapshot, jobs: Jobs) -> store::Result<Edit> {
        let mut edit = Edit { document: snapshot.document.clone(), ..Edit::default() };
        if let Jobs::Within = jobs {
            edit.now = self.inner.store.now().await?;
            edit.stored = self.inner.store.cron_list(None, 0, i64::MAX).await?;
            edit.document.cron = cron::documented(&edit.stored, snapshot);
        }
        Ok(edit)
    }

    fn decide<T>(
        &self,
        snapshot: &Snapshot,
        mut result: Edit,
        edit: &impl Fn(&Snapshot, &mut Edit) -> Result<T, EditError>,
    ) -> Result<(T, Edit, Vec<Change>, Vec<Warning>), EditError> {
        let jobs = result.document.cron.clone();
        let answer = edit(snapshot, &mut result)?;
        let (mut faults, warnings) = if result.document.providers.is_empty() && !self.inner.fallback.is_empty() {
            check(&super::with_fallback(result.document.clone(), &self.inner.fallback), &result.positions)
        } else {
            check(&result.document, &result.positions)
        };
        if faults.is_empty() {
            faults = self.inner.homes.check(&result.document);
        }
        faults.append(&mut result.faults);
        if !faults.is_empty() {
            faults.sort_by_key(|fault| if fault.line == 0 { u32::MAX } else { fault.line });
            return Err(EditError::Faults(faults));
        }
        let changes = if jobs.is_empty() {
            diff(&snapshot.document, &result.document)
        } else {
            diff(&Document { cron: jobs, ..snapshot.document.clone() }, &result.document)
        };
        Ok((answer, result, changes, warnings))
    }
}

/// The homes that a document names, as they are stored.
pub(super) fn homes_of(document: &Document) -> Vec<DocumentedHome> {
    document.platforms.homes().map(home_row).collect()
}

fn home_row(home: NamedHome<'_>) -> DocumentedHome {
    let chat = LaneKey {
        platform: home.platform.to_owned(),
        account: home.account.to_owned(),
        chat_id: home.chat.chat_id.clone(),
        thread_id: home.chat.thread_id.clone().unwrap_or_default(),
    };
    DocumentedHome { agent: home.agent.to_string(), chat }
}

/// The rows that differ; `None` when nothing does.
fn change_of(snapshot: &Snapshot, result: &Edit, by: &str) -> Result<Option<RegistryChange>, EditError> {
    let json = |error: serde_json::Error| EditError::Invalid(format!("the document cannot be stored: {error}"));
    let (old, new) = (&snapshot.document, &result.document);
    let mut revised = Vec::new();
    for (id, spec) in &new.agents {
        let same = snapshot.agent(id).is_some_and(|entry| entry.spec == *spec);
        if !same || result.touch.iter().any(|touched| touched == id.as_str()) {
            revised.push((id.to_string(), serde_json::to_value(spec).map_err(json)?));
        }
    }
    let removed: Vec<String> = snapshot
        .agents()
        .iter()
        .filter(|entry| !new.agents.contains_key(&entry.id))
        .map(|entry| entry.id.to_string())
        .collect();
    let routes = if old.routes == new.routes {
        None
    } else {
        let row = |route: &hermes_core::routing::Route| -> Result<(Value, String), EditError> {
            Ok((serde_json::to_value(&route.keys).map_err(json)?, route.agent.to_string()))
        };
        Some(new.routes.iter().map(row).collect::<Result<_, _>>()?)
    };
    let settings = settings_of(new).map_err(json)?;
    let quiet = revised.is_empty()
        && removed.is_empty()
        && routes.is_none()
        && result.home_copy.is_none()
        && result.home_documents.is_empty()
        && result.jobs.is_empty()
        && settings_of(old).map_err(json)? == settings;
    Ok((!quiet).then(|| RegistryChange {
        settings,
        revised,
        removed,
        routes,
        home_copy: result.home_copy.clone(),
        home_documents: result.home_documents.clone(),
        jobs: result.jobs.clone(),
        homes: homes_of(new),
        by: by.to_owned(),
    }))
}
