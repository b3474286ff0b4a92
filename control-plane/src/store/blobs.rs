//! Files that came with messages, by the hash of their content.
//!
//! Always true: a file is here whole or not at all; the same content is kept once, whoever sent it; it stays for as long as the document says after
//! it came last. Who may have it is not decided here: a turn's input names its files, and nobody else is given them.

use hermes_core::attachment::{Attachment, Kind};
use sha2::{Digest as _, Sha256};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{Error, Result, SessionId, Store, TurnId};

/// Size of a piece, bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// Who names the files of a turn. No caller's name: those are ids of tokens.
fn of_turn(turn: TurnId) -> String {
    format!("turn {turn}")
}

/// The hash of a file's content.
pub fn hash_of(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

/// A file as the functions take it: its hash, its size and its pieces.
fn parts_of(content: &[u8]) -> ([u8; 32], i64, Vec<&[u8]>) {
    (hash_of(content), i64::try_from(content.len()).unwrap_or(i64::MAX), content.chunks(CHUNK_BYTES).collect())
}

/// Whether a file was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// Under this id.
    Yes(Uuid),
    /// No: its submitter has so many bytes left, and the file is larger.
    Full {
        /// Bytes.
        left: u64,
    },
}

/// The id of the file that a turn names by this path.
pub fn turn_file_id(turn: TurnId, path: &str) -> Uuid {
    let digest = Sha256::digest(format!("{turn}\n{path}").as_bytes());
    let mut id = [0; 16];
    id.iter_mut().zip(digest).for_each(|(byte, of)| *byte = of);
    Uuid::from_bytes(id)
}

/// Keeps a text as the file that a turn names by this path, in a transaction.
///
/// # Errors
/// As of the transaction.
pub(super) async fn put_text(
    tx: &deadpool_postgres::Transaction<'_>,
    turn: TurnId,
    path: &str,
    text: &str,
) -> Result<()> {
    let (sha256, bytes, chunks) = parts_of(text.as_bytes());
    let file = Attachment::new(Kind::Document, path, "text/plain", bytes.unsigned_abs(), hex::encode(sha256));
    let body = serde_json::to_vec(&file).unwrap_or_default();
    let statement = tx.prepare_cached("SELECT o_left FROM put_upload($1,$2,$3,$4,$5,$6,$7)").await?;
    let params: [&(dyn ToSql + Sync); 7] =
        [&of_turn(turn), &turn_file_id(turn, path), &body, &sha256.as_slice(), &bytes, &chunks, &i64::MAX];
    tx.query(&statement, &params).await?;
    Ok(())
}

impl Store {
    /// Keeps a file; the hash of its content.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: repeat it.
    pub async fn blob_put(&self, content: &[u8]) -> Result<[u8; 32]> {
        let (sha256, bytes, chunks) = parts_of(content);
        self.query_retrying("SELECT put_blob($1,$2,$3)", &[&sha256.as_slice(), &bytes, &chunks]).await?;
        Ok(sha256)
    }

    /// A piece of a file, from 1; nothing behind the last one, and when the file is not kept (any more).
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn blob_chunk(&self, sha256: &str, number: i32) -> Result<Option<Vec<u8>>> {
        let sql = "SELECT body FROM blob_chunks WHERE sha256 = decode($1, 'hex') AND n = $2";
        Ok(self.query_opt(sql, &[&sha256, &number]).await?.map(|row| row.get(0)))
    }

    /// A whole file; nothing when it is not kept (any more).
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn blob(&self, sha256: &str) -> Result<Option<Vec<u8>>> {
        let sql = "SELECT b.bytes, c.body FROM blobs b LEFT JOIN blob_chunks c USING (sha256) WHERE b.sha256 = decode($1, 'hex') ORDER BY c.n";
        let rows = self.query(sql, &[&sha256]).await?;
        let pieces = rows.iter().filter_map(|row| row.get::<_, Option<Vec<u8>>>(1));
        Ok((!rows.is_empty()).then(|| pieces.flatten().collect()))
    }

    /// Keeps a file for a caller, who may send it with a message under the id, if what they have that no message names stays within `most` bytes.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn upload_put(&self, submitter: &str, file: &Attachment, content: &[u8], most: u64) -> Result<Noted> {
        self.noted(submitter, Uuid::new_v4(), file, content, most).await
    }

    /// Keeps the file that a turn names by this path, if all of the turn's stay within `most` bytes; the last one of a path counts.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn turn_file_put(
        &self,
        turn: TurnId,
        path: &str,
        file: &Attachment,
        content: &[u8],
        most: u64,
    ) -> Result<Noted> {
        self.noted(&of_turn(turn), turn_file_id(turn, path), file, content, most).await
    }

    async fn noted(&self, submitter: &str, id: Uuid, file: &Attachment, content: &[u8], most: u64) -> Result<Noted> {
        let (sha256, bytes, chunks) = parts_of(content);
        let (body, most) = (serde_json::to_vec(file).unwrap_or_default(), i64::try_from(most).unwrap_or(i64::MAX));
        let sql = "SELECT o_left FROM put_upload($1,$2,$3,$4,$5,$6,$7)";
        let params: [&(dyn ToSql + Sync); 7] = [&submitter, &id, &body, &sha256.as_slice(), &bytes, &chunks, &most];
        let rows = self.query_retrying(sql, &params).await?;
        let left: i64 = rows.first().map_or(0, |row| row.get(0));
        if left >= bytes {
            return Ok(Noted::Yes(id));
        }
        Ok(Noted::Full { left: u64::try_from(left).unwrap_or(0) })
    }

    /// A file that a turn of this session named, by its id; nothing when there is none, or it is not kept any more.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn turn_file(&self, session: SessionId, id: Uuid) -> Result<Option<Attachment>> {
        let sql = "SELECT attachment FROM uploads WHERE upload_id = $1 AND split_part(submitter, '.', 1) = $2";
        let of_session = format!("turn t{}", session.0);
        let row = self.query_opt(sql, &[&id, &of_session]).await?;
        Ok(row.and_then(|row| serde_json::from_slice(row.get::<_, &[u8]>(0)).ok()))
    }

    /// The files that a caller uploaded under these ids, in their order.
    ///
    /// # Errors
    /// [`Error::NotFound`] naming the first that is not theirs or not kept any more, [`Error::Unavailable`].
    pub async fn uploads(&self, submitter: &str, ids: &[Uuid]) -> Result<Vec<Attachment>> {
        let rows = self.query_retrying("SELECT o_attachment FROM use_uploads($1,$2)", &[&submitter, &ids]).await?;
        let found = ids.iter().zip(&rows).map(|(id, row)| {
            let body = row.get::<_, Option<Vec<u8>>>(0);
            let file = body.and_then(|body| serde_json::from_slice(&body).ok());
            file.ok_or_else(|| {
                Error::NotFound(format!("there is no upload {id} of yours (any more); upload the file again"))
            })
        });
        found.collect()
    }
}
