//! What a start remembers of the `--config` file it applied.

use super::{Result, Store};

impl Store {
    /// Hash of the file that the last start applied.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`].
    pub async fn config_file_hash(&self) -> Result<Option<Vec<u8>>> {
        let row = self.query_opt("SELECT file_hash FROM documents", &[]).await?;
        Ok(row.and_then(|row| row.get(0)))
    }

    /// Remembers it.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`].
    pub async fn config_file_hash_set(&self, hash: &[u8]) -> Result<()> {
        self.execute("UPDATE documents SET file_hash = $1", &[&hash]).await.map(|_| ())
    }
}
