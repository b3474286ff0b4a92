-- The transitions are no migrations any more: each text of `functions/` gets a schema of its own.
-- Those of V2 go; no release was made with them.
DROP FUNCTION IF EXISTS ingest_batch, claim_batch, journal_batch, release_successors, complete_batch, deliver_batch, claim_outbox, enqueue,
  register_worker, poll, assigned, reclaim, cancel_removed, adopt;

-- Which sets there are, and when a build last started with each.
CREATE TABLE function_sets (
  name       text PRIMARY KEY,
  created_at timestamptz NOT NULL DEFAULT now(),
  used_at    timestamptz NOT NULL DEFAULT now());
