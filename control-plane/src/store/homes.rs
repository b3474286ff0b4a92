//! Home documents: SOUL.md, memories and skills with versions, compared and swapped.
//!
//! Always true: a document's version and its agent's `home_version` move together, and two pushes that started from the same
//! version cannot both win. A change of a document holds its agent's row: all changes of one agent follow each other. Each version is
//! kept with who wrote it, in the transaction that wrote it; of one document the newest 50, and of those as many as 4 MiB hold.

use jiff::Timestamp;

use super::{CallScope, Error, Result, Store};

/// A document without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeDocumentInfo {
    /// Path relative to the home, `/` separated.
    pub path: String,
    /// Its version, from 1.
    pub version: i64,
    /// Of its body.
    pub sha256: Vec<u8>,
    /// It was deleted in this version.
    pub deleted: bool,
}

/// A document.
#[derive(Clone, Debug)]
pub struct HomeDocument {
    /// What it is.
    pub info: HomeDocumentInfo,
    /// Its bytes.
    pub body: Vec<u8>,
}

/// A version of a document, as people are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeRevision {
    /// Path relative to the home, `/` separated.
    pub path: String,
    /// Its version, from 1.
    pub version: i64,
    /// The document was deleted in this version.
    pub deleted: bool,
    /// Of its body, in bytes.
    pub size: i64,
    /// When it was written.
    pub written_at: Timestamp,
    /// By whom: an operator's token, a worker or a turn; empty when nobody wrote it down.
    pub written_by: String,
}

/// What an import does, or would do, with one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Path relative to the home.
    pub path: String,
    /// The version before; 0 when the document is new or was deleted.
    pub before: i64,
    /// The version now: another one, unless the document had this content already.
    pub version: i64,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushOutcome {
    /// False: somebody was faster; nothing was written.
    pub stored: bool,
    /// The document's version now.
    pub version: i64,
    /// The agent's home version now.
    pub home_version: i64,
}

impl Store {
    /// All documents of an agent, deleted ones included, with the home version they belong to.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn home_manifest(&self, agent_no: i32) -> Result<(i64, Vec<HomeDocumentInfo>)> {
        let sql = "SELECT a.home_version, d.path, d.version, d.sha256, d.deleted FROM agents a \
                   LEFT JOIN home_documents d USING (agent_no) WHERE a.agent_no = $1 ORDER BY d.path";
        let rows = self.query(sql, &[&agent_no]).await?;
        let version = rows.first().map_or(0, |row| row.get(0));
        let documents = rows.iter().filter_map(|row| {
            Some(HomeDocumentInfo {
                path: row.get::<_, Option<String>>(1)?,
                version: row.get(2),
                sha256: row.get(3),
                deleted: row.get(4),
            })
        });
        Ok((version, documents.collect()))
    }

    /// One document's body, if it exists and is not deleted.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn home_document(&self, agent_no: i32, path: &str) -> Result<Option<HomeDocument>> {
        let sql = "SELECT version, sha256, body FROM home_documents WHERE agent_no = $1 AND path = $2 AND NOT deleted";
        let row = self.query_opt(sql, &[&agent_no, &path]).await?;
        Ok(row.map(|row| HomeDocument {
            info: HomeDocumentInfo { path: path.to_owned(), version: row.get(0), sha256: row.get(1), deleted: false },
            body: row.get(2),
        }))
    }

    /// Stores a version that was made from `base` (0: the document is new; `None`: whatever is there). `by` says who wrote it.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an agent that does not exist; [`Error::Unavailable`].
    pub async fn home_push(
        &self,
        agent_no: i32,
        path: &str,
        base: impl Into<Option<i64>> + Send,
        body: &[u8],
        deleted: bool,
        by: &str,
    ) -> Result<PushOutcome> {
        let base = base.into();
        let rows = self.query(PUT, &[&agent_no, &path, &base, &deleted, &body, &by]).await?;
        let row = rows.first().ok_or_else(|| Error::NotFound("the agent does not exist".to_owned()))?;
        Ok(PushOutcome { stored: row.get(0), version: row.get(1), home_version: row.get(2) })
    }

    /// All documents of an agent that are there, with who wrote them; by path, after `after`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn home_files(&self, agent_no: i32, after: &str, limit: i64) -> Result<Vec<HomeRevision>> {
        let sql = "SELECT d.path, d.version, d.deleted, octet_length(d.body), d.updated_at, coalesce(r.written_by, '') \
                   FROM home_documents d LEFT JOIN home_revisions r USING (agent_no, path, version) \
                   WHERE d.agent_no = $1 AND NOT d.deleted AND d.path COLLATE \"C\" > $2 ORDER BY d.path COLLATE \"C\" LIMIT $3";
        let rows = self.query(sql, &[&agent_no, &after, &limit]).await?;
        Ok(rows.iter().map(revision_row).collect())
    }

    /// The kept versions of a document below `before`, newest first; the present one is among them, whether it is deleted or not.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn home_revisions(
        &self,
        agent_no: i32,
        path: &str,
        before: i64,
        limit: i64,
    ) -> Result<Vec<HomeRevision>> {
        let sql = "SELECT path, version, deleted, octet_length(body), written_at, written_by FROM home_revisions \
                   WHERE agent_no = $1 AND path = $2 AND version < $3 \
                   UNION ALL SELECT path, version, deleted, octet_length(body), updated_at, '' FROM home_documents d \
                   WHERE agent_no = $1 AND path = $2 AND version < $3 AND NOT EXISTS (SELECT 1 FROM home_revisions r \
                         WHERE r.agent_no = d.agent_no AND r.path = d.path AND r.version = d.version) \
                   ORDER BY version DESC LIMIT $4";
        let rows = self.query(sql, &[&agent_no, &path, &before, &limit]).await?;
        Ok(rows.iter().map(revision_row).collect())
    }

    /// A kept version of a document, or the present one, with its body.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn home_revision(
        &self,
        agent_no: i32,
        path: &str,
        version: Option<i64>,
    ) -> Result<Option<(HomeRevision, Vec<u8>)>> {
        let sql = "SELECT d.path, d.version, d.deleted, octet_length(d.body), coalesce(r.written_at, d.updated_at), coalesce(r.written_by, ''), d.body \
                   FROM home_documents d LEFT JOIN home_revisions r USING (agent_no, path, version) \
                   WHERE d.agent_no = $1 AND d.path = $2 AND d.version = coalesce($3, d.version) \
                   UNION ALL SELECT path, version, deleted, octet_length(body), written_at, written_by, body FROM home_revisions \
                   WHERE agent_no = $1 AND path = $2 AND version = $3 LIMIT 1";
        let row = self.query_opt(sql, &[&agent_no, &path, &version]).await?;
        Ok(row.map(|row| (revision_row(&row), row.get(6))))
    }

    /// All documents that are there, at one moment; `None` where they are larger together than `most` bytes.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn home_export(&self, agent_no: i32, most: i64) -> Result<Option<Vec<(String, Vec<u8>)>>> {
        let sql = "SELECT path, CASE WHEN sum(octet_length(body)) OVER () <= $2 THEN body END FROM home_documents \
                   WHERE agent_no = $1 AND NOT deleted ORDER BY path COLLATE \"C\"";
        let rows = self.query(sql, &[&agent_no, &most]).await?;
        Ok(rows.iter().map(|row| Some((row.get(0), row.get::<_, Option<Vec<u8>>>(1)?))).collect())
    }

    /// Stores documents, all or none; what has its content already stays as it is, and so does what is not among them. With
    /// `dry` nothing is stored. Answers the home version, too.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an agent that does not exist; [`Error::Conflict`] when the home would have more than `most` documents.
    pub async fn home_import(
        &self,
        agent_no: i32,
        documents: &[(String, Vec<u8>)],
        (by, most, dry): (&str, usize, bool),
    ) -> Result<(Vec<Imported>, i64)> {
        let mut client = self.client().await?;
        let tx = client.transaction().await?;
        let lock = "SELECT home_version FROM agents WHERE agent_no = $1 FOR NO KEY UPDATE";
        let row = tx.query_opt(lock, &[&agent_no]).await?;
        let mut home_version =
            row.ok_or_else(|| Error::NotFound("the agent does not exist".to_owned()))?.get::<_, i64>(0);
        let look = tx
            .prepare_cached(
                "SELECT version, deleted, sha256 = sha256($3) FROM home_documents WHERE agent_no = $1 AND path = $2",
            )
            .await?;
        let put = tx.prepare_cached(PUT).await?;
        let mut imported = Vec::with_capacity(documents.len());
        for (path, body) in documents {
            let there = tx.query_opt(&look, &[&agent_no, path, body]).await?;
            let (version, deleted, same) = there
                .map_or((0, true, false), |row| (row.get::<_, i64>(0), row.get::<_, bool>(1), row.get::<_, bool>(2)));
            let before = if deleted { 0 } else { version };
            if same && !deleted {
                imported.push(Imported { path: path.clone(), before, version });
                continue;
            }
            let row = tx.query_one(&put, &[&agent_no, path, &Some(version), &false, body, &by]).await?;
            home_version = row.get(2);
            imported.push(Imported { path: path.clone(), before, version: row.get(1) });
        }
        let count = "SELECT count(*) FROM home_documents WHERE agent_no = $1";
        let count: i64 = tx.query_one(count, &[&agent_no]).await?.get(0);
        if usize::try_from(count).is_ok_and(|count| count > most) {
            return Err(Error::Conflict(format!("the home would have {count} documents; it holds {most}")));
        }
        if dry {
            tx.rollback().await?;
        } else {
            tx.commit().await?;
        }
        Ok((imported, home_version))
    }

    /// The home versions of all agents, in one look.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn home_versions(&self) -> Result<Vec<(i32, i64)>> {
        let rows = self.query("SELECT agent_no, home_version FROM agents", &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// Writes the next version of a document and its revision; the function is the one place that does.
const PUT: &str = "SELECT o_stored, o_version, o_home_version FROM put_document($1, $2, $3, $4, $5, $6)";

fn revision_row(row: &tokio_postgres::Row) -> HomeRevision {
    HomeRevision {
        path: row.get(0),
        version: row.get(1),
        deleted: row.get(2),
        size: i64::from(row.get::<_, i32>(3)),
        written_at: row.get(4),
        written_by: row.get(5),
    }
}

/// A document that is being changed.
#[derive(Clone, Debug)]
pub struct OpenDocument {
    path: String,
    version: i64,
    /// Its bytes; empty where it is not there.
    pub body: Vec<u8>,
}

impl CallScope<'_> {
    /// Opens a document of the agent; until the call has ended nobody else changes one of them.
    ///
    /// # Errors
    /// As of the call.
    pub async fn open_document(&mut self, path: &str) -> Result<OpenDocument> {
        let agent_no = self.caller().agent_no;
        let lock = self.tx.prepare_cached("SELECT 1 FROM agents WHERE agent_no = $1 FOR NO KEY UPDATE").await?;
        self.tx.execute(&lock, &[&agent_no]).await?;
        let sql = "SELECT version, CASE WHEN deleted THEN ''::bytea ELSE body END FROM home_documents WHERE agent_no = $1 AND path = $2";
        let statement = self.tx.prepare_cached(sql).await?;
        let row = self.tx.query_opt(&statement, &[&agent_no, &path]).await?;
        let (version, body) = row.map_or((0, Vec::new()), |row| (row.get(0), row.get(1)));
        Ok(OpenDocument { path: path.to_owned(), version, body })
    }

    /// Writes its next version, in the name of the turn.
    ///
    /// # Errors
    /// As of the call.
    pub async fn write_document(&mut self, open: OpenDocument, body: &[u8]) -> Result<()> {
        let caller = self.caller();
        let statement = self.tx.prepare_cached(PUT).await?;
        let (base, by) = (Some(open.version), format!("turn {}", caller.turn));
        let row = self.tx.query_one(&statement, &[&caller.agent_no, &open.path, &base, &false, &body, &by]).await?;
        if !row.get::<_, bool>(0) {
            return Err(Error::Conflict(format!("{} was changed while it was open", open.path)));
        }
        self.moved = Some(row.get(2));
        Ok(())
    }
}
