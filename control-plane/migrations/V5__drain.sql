-- Parting with workers, what they speak, and telling a restored database from its original.

-- protocol: a worker below `ready.needs` is not given that session. build: for people.
-- drain_until: until then running turns of a draining worker may end by themselves; NULL: as its replica sees fit.
-- left_in_order: it said goodbye, or its launcher ended it on purpose; what it held goes back without a crash.
-- suspected_at: its lease lapsed together with too many others. Until one more lease is over it may still be heard of.
ALTER TABLE workers
  ADD COLUMN protocol      int NOT NULL DEFAULT 1,
  ADD COLUMN build         text NOT NULL DEFAULT '',
  ADD COLUMN drain_until   timestamptz,
  ADD COLUMN left_in_order boolean NOT NULL DEFAULT false,
  ADD COLUMN suspected_at  timestamptz;

-- The oldest worker protocol that can go on with the session's turn; NULL: any.
ALTER TABLE ready ADD COLUMN needs int;

-- Which cluster this database lives in and which transaction wrote so. A copy has another cluster, timeline or writer.
CREATE TABLE origins (
  only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  cluster  bigint,                                    -- system identifier; NULL: the server does not tell
  timeline bigint,                                    -- of its log; NULL: the server does not tell
  writer   bigint NOT NULL,                           -- the transaction that wrote this row, whose number the row has too
  fenced   int NOT NULL DEFAULT 0,                    -- how often `fence` was run
  at       timestamptz NOT NULL DEFAULT now());

-- How often a worker token could be used when it was made. One that can be used once names its worker: the certificate's uuid is the
-- token's id, so whoever made it for one start of a process knows that process by it.
ALTER TABLE tokens ADD COLUMN uses int;
