-- How far retention is with each kind of rows, and what it did last. One row each, locked while a step works, so that one replica at a
-- time does. A pass goes through a table page by page: no index helps it, so none costs the hot path anything.
CREATE TABLE retention (
  what        text PRIMARY KEY,                       -- as functions/retention.sql names it
  page        bigint NOT NULL DEFAULT 0,              -- where the pass that is on its way goes on
  started_at  timestamptz, finished_at timestamptz,   -- of the pass; finished: of the last whole one
  removed     bigint NOT NULL DEFAULT 0,              -- rows of this pass, of the last one when none is on its way
  total       bigint NOT NULL DEFAULT 0);
INSERT INTO retention(what) VALUES ('inbound'), ('steps'), ('turns'), ('sessions'), ('deliveries'), ('leases');
