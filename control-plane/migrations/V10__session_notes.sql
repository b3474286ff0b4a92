-- What tools keep for a session from one turn to the next, by the tool's own name for it. It goes with its session.

CREATE TABLE session_notes (
  session_id bigint NOT NULL REFERENCES sessions ON DELETE CASCADE,
  name       text NOT NULL,
  body       bytea NOT NULL,
  PRIMARY KEY (session_id, name));

-- All sessions that one dialogue has had. None of these columns ever changes, so updates of sessions do not touch it.
CREATE INDEX sessions_dialogue ON sessions (agent_no, session_key, session_id);
