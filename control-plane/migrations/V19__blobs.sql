-- Files that came with messages, by the hash of their content. Which turn has which stands in the turn's input.
CREATE TABLE blobs (
  sha256  bytea PRIMARY KEY,
  bytes   bigint NOT NULL,
  used_at timestamptz NOT NULL DEFAULT clock_timestamp());  -- when it came last: retention counts from there

-- Its content, in pieces of 256 KiB.
CREATE TABLE blob_chunks (
  sha256 bytea NOT NULL REFERENCES blobs ON DELETE CASCADE,
  n      int NOT NULL,
  body   bytea NOT NULL,
  PRIMARY KEY (sha256, n));
ALTER TABLE blob_chunks ALTER COLUMN body SET STORAGE EXTERNAL;

-- Files that somebody may send: a caller with a message, a turn with what it says. They go with their content.
CREATE TABLE uploads (
  upload_id  uuid PRIMARY KEY,
  submitter  text NOT NULL,                          -- a callers token, or turn <id>: only they may name it
  attachment bytea NOT NULL,                         -- JSON of hermes_core::attachment::Attachment
  sha256     bytea NOT NULL REFERENCES blobs ON DELETE CASCADE,
  at         timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE INDEX uploads_by_blob ON uploads (sha256);

INSERT INTO retention(what) VALUES ('blobs');
