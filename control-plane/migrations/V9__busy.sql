-- Busy sessions: what is asked of a running turn, and what it took in while it ran.

-- Queued turns right behind the head that the running one has taken in (they have ended, with 6); they leave the queue with it.
ALTER TABLE sessions ADD COLUMN absorbed int NOT NULL DEFAULT 0;

-- Asked of the turn that was at the head when the asking committed: bound to its number, so it never meets the next one. A row whose
-- turn has ended means nothing and is swept. kind: 1 stop it (a person), 2 stop it (a newer message goes first), 3 messages wait that it
-- may take in. The lowest asked stays.
CREATE TABLE turn_signals (
  session_id bigint NOT NULL, seq bigint NOT NULL, kind smallint NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (session_id, seq));

-- `ended` 6: taken in by the turn that `usage` names as `absorbed_by`. What became of that one is what became of this one.
CREATE OR REPLACE VIEW transcripts AS
  SELECT t.session_id, t.seq, t.payload, t.submitter, t.created_at, s.ended, s.body AS reply, s.usage, s.at AS ended_at,
         CASE WHEN s.ended = 6 THEN (s.usage->>'absorbed_by')::bigint END AS absorbed_by
    FROM turns t LEFT JOIN turn_steps s ON s.session_id = t.session_id AND s.seq = t.seq AND s.step = 2147483647 AND s.phase = 1;
