-- What tools keep for a session from one turn to the next, by the tool's own name for it. It goes with its session.

CREATE TABLE session_notes (
  session_id bigint NOT NULL REFERENCES sessions ON DELETE CASCADE,
  name       text NOT NULL,
  body       bytea NOT NULL,
  PRIMARY KEY (session_id, name));
