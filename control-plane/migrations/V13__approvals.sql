-- Calls that a person has to allow, and what was allowed beyond one call.

-- One question: bound to the step of a turn and to the hash of the exact call. asker: whoever sent the turn's message.
CREATE TABLE approvals (
  approval_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  session_id bigint NOT NULL, seq bigint NOT NULL, step int NOT NULL,
  agent_no   int NOT NULL,
  lane_id    bigint, pos bigint,                      -- where it was asked, and the delivery that asks; NULL: in no chat
  call_hash  bytea NOT NULL,
  asker      text NOT NULL,
  tool text NOT NULL, shown text NOT NULL, reason text NOT NULL, patterns text[] NOT NULL,
  state      smallint NOT NULL DEFAULT 0,             -- 0 waits 1 allowed 2 denied 3 nobody answered in time
  asked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  expires_at timestamptz NOT NULL,
  answered_at timestamptz, answered_by text,
  UNIQUE (session_id, seq, step));
CREATE INDEX approvals_asked ON approvals (lane_id, pos) WHERE state = 0;

-- What need not be asked for again. Holds for one asker: nobody else's word counts for them.
CREATE TABLE approval_grants (
  agent_no   int NOT NULL,
  session_id bigint NOT NULL,                         -- 0: in every conversation with this agent
  asker      text NOT NULL, pattern text NOT NULL,
  granted_by text NOT NULL, granted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (agent_no, asker, session_id, pattern));
