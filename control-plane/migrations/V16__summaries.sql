-- Compression: what stands in a model's history for the turns up to `through`. The turns stay; the summary with the largest `through` counts.
CREATE TABLE summaries (
  session_id bigint NOT NULL REFERENCES sessions ON DELETE CASCADE,
  through    bigint NOT NULL,
  made_in    bigint NOT NULL,                         -- the turn that made it, at most one each
  body       bytea NOT NULL,
  at         timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (session_id, through));
