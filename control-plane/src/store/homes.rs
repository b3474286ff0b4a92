//! Home documents: SOUL.md, memories and skills with versions, compared and swapped.
//!
//! Always true: a document's version and its agent's `home_version` move together, and two pushes that started from the same
//! version cannot both win. A change of a document holds its agent's row: all changes of one agent follow each other.

use deadpool_postgres::Transaction;

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

    /// Stores a version that was made from `base` (0: the document is new).
    ///
    /// # Errors
    /// [`Error::NotFound`] for an agent that does not exist; [`Error::Unavailable`].
    pub async fn home_push(
        &self,
        agent_no: i32,
        path: &str,
        base: i64,
        body: &[u8],
        deleted: bool,
    ) -> Result<PushOutcome> {
        let mut client = self.client().await?;
        let tx = client.transaction().await?;
        // The agent's row is the lock: pushes of one agent follow each other.
        let sql = "UPDATE agents SET home_version = home_version + 1 WHERE agent_no = $1 RETURNING home_version";
        let Some(row) = tx.query_opt(sql, &[&agent_no]).await? else {
            return Err(Error::NotFound("the agent does not exist".to_owned()));
        };
        let home_version: i64 = row.get(0);
        let sql = "SELECT version FROM home_documents WHERE agent_no = $1 AND path = $2";
        let version: i64 = tx.query_opt(sql, &[&agent_no, &path]).await?.map_or(0, |row| row.get(0));
        if version != base {
            tx.rollback().await?;
            return Ok(PushOutcome { stored: false, version, home_version: home_version - 1 });
        }
        put(&tx, agent_no, path, (version + 1, home_version), deleted, body).await?;
        tx.commit().await?;
        Ok(PushOutcome { stored: true, version: version + 1, home_version })
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

/// Writes the next version of a document.
async fn put(
    tx: &Transaction<'_>,
    agent_no: i32,
    path: &str,
    (version, home_version): (i64, i64),
    deleted: bool,
    body: &[u8],
) -> Result<()> {
    let sql = "INSERT INTO home_documents(agent_no, path, version, home_version, deleted, sha256, body) VALUES ($1,$2,$3,$4,$5,sha256($6),$6) \
               ON CONFLICT (agent_no, path) DO UPDATE SET version = excluded.version, home_version = excluded.home_version, \
                  deleted = excluded.deleted, sha256 = excluded.sha256, body = excluded.body, updated_at = now()";
    tx.execute(sql, &[&agent_no, &path, &version, &home_version, &deleted, &body]).await?;
    Ok(())
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

    /// Writes its next version.
    ///
    /// # Errors
    /// As of the call.
    pub async fn write_document(&mut self, open: OpenDocument, body: &[u8]) -> Result<()> {
        let agent_no = self.caller().agent_no;
        let sql = "UPDATE agents SET home_version = home_version + 1 WHERE agent_no = $1 RETURNING home_version";
        let statement = self.tx.prepare_cached(sql).await?;
        let home_version = self.tx.query_one(&statement, &[&agent_no]).await?.get(0);
        put(&self.tx, agent_no, &open.path, (open.version + 1, home_version), false, body).await?;
        self.moved = Some(home_version);
        Ok(())
    }
}
