-- What home documents were, for whoever looks back or goes back. A revision never changes; the newest ones of a document stay.
CREATE TABLE home_revisions (
  agent_no   int NOT NULL REFERENCES agents,
  path       text NOT NULL,
  version    bigint NOT NULL,
  deleted    boolean NOT NULL,
  sha256     bytea NOT NULL,
  body       bytea NOT NULL,
  written_by text NOT NULL,                           -- 'operator <token>', 'worker <id>', 'turn <id>'; '' when nobody wrote it down
  written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (agent_no, path, version));
