-- Tables of the control plane. Everything lives in schema `hermes`; connections carry search_path=hermes.
-- The hot path is described where its functions are (V2). No foreign keys on hot tables: each one would be a row lock.

CREATE SEQUENCE session_ids;
CREATE SEQUENCE registrations;
CREATE SEQUENCE replica_ids;
CREATE SEQUENCE outbox_positions;

-- ---------- registry ----------

-- One row: the document without its agents and routes. `version` moves with every change of document, agents or routes.
CREATE TABLE documents (
  only_one   boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  version    bigint NOT NULL DEFAULT 0,
  settings   jsonb NOT NULL DEFAULT '{}',
  file_hash  bytea,                                   -- of the last --config that was applied at a start
  updated_at timestamptz NOT NULL DEFAULT now());
INSERT INTO documents DEFAULT VALUES;

CREATE TABLE agents (
  agent_no     int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  agent_id     text NOT NULL UNIQUE CHECK (agent_id ~ '^[a-z0-9]([a-z0-9_-]{0,38}[a-z0-9])?$'),
  revision     bigint NOT NULL,
  home_version bigint NOT NULL DEFAULT 0,             -- moves with every change of its home_documents
  created_at   timestamptz NOT NULL DEFAULT now(),
  removed_at   timestamptz);                          -- a tombstone: no new messages, home and sessions stay

-- Immutable: a rollback is a new revision that equals an old one.
CREATE TABLE agent_revisions (
  agent_no   int NOT NULL REFERENCES agents,
  revision   bigint NOT NULL,
  spec       jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  created_by text NOT NULL,
  PRIMARY KEY (agent_no, revision));

CREATE TABLE routes (
  position int PRIMARY KEY,
  keys     jsonb NOT NULL,                            -- [[key, value], …] in the order written
  agent_no int NOT NULL REFERENCES agents);

CREATE TABLE home_documents (
  agent_no     int NOT NULL REFERENCES agents,
  path         text NOT NULL CHECK (octet_length(path) BETWEEN 1 AND 512),
  version      bigint NOT NULL,                       -- compare-and-swap
  home_version bigint NOT NULL,                       -- agents.home_version when this version was stored
  deleted      boolean NOT NULL DEFAULT false,
  sha256       bytea NOT NULL,
  body         bytea NOT NULL,
  updated_at   timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (agent_no, path));

-- ---------- identity ----------

CREATE TABLE authorities (
  only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  certificate bytea NOT NULL,
  private_key bytea NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now());

-- Only hashes of tokens are kept: 256 random bits need no salt.
CREATE TABLE tokens (
  token_id     uuid PRIMARY KEY,
  role         text NOT NULL,
  agent_id     text,
  name         text NOT NULL DEFAULT '',
  hash         bytea NOT NULL UNIQUE,
  uses_left    int,
  created_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz,
  last_used_at timestamptz,
  revoked_at   timestamptz);

-- ---------- who is there ----------

-- A registration is a row with a new number, so worker_id alone names the holder of a lease.
CREATE TABLE workers (
  worker_id     bigint PRIMARY KEY,
  agent_no      int NOT NULL,
  replica_id    bigint NOT NULL,
  identity      text NOT NULL,                        -- the worker's uuid from its certificate
  pid           bigint NOT NULL,
  home          text NOT NULL,
  slots         int NOT NULL,
  draining      boolean NOT NULL DEFAULT false,
  lost          boolean NOT NULL DEFAULT false,
  lease_until   timestamptz NOT NULL,
  lost_at       timestamptz,
  registered_at timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 50);

CREATE TABLE replicas (
  replica_id  bigint PRIMARY KEY,
  lease_until timestamptz NOT NULL,
  lost_at     timestamptz) WITH (fillfactor = 50);

-- One row per slot, made at registration: which session was put there last. It is how reclaim finds a dead worker's
-- sessions without an index on sessions. Never authority; a session that stays in its slot leaves it untouched.
CREATE TABLE slots (
  worker_id  bigint, slot smallint, session_id bigint,
  PRIMARY KEY (worker_id, slot)) WITH (fillfactor = 20);

-- ---------- sessions and turns ----------

-- Identity, lock, FIFO cursor, lease and fence in one row. No index on anything that changes: every update is HOT.
CREATE TABLE sessions (
  session_id  bigint PRIMARY KEY,
  head_seq    bigint NOT NULL DEFAULT 1,              -- running or next
  tail_seq    bigint NOT NULL DEFAULT 0,              -- last accepted
  epoch       bigint NOT NULL DEFAULT 0,              -- fence: +1 on every lease and every reclaim
  worker_id   bigint,                                 -- lease holder while state = 2, sticky hint otherwise
  deadline    timestamptz,
  agent_no    int NOT NULL,
  state       smallint NOT NULL DEFAULT 0,            -- 0 idle 1 ready (has a row in `ready`) 2 leased 3 waits for the session it replaced
  crashes     smallint NOT NULL DEFAULT 0,
  successor   bigint,                                 -- set when a reset moved the key to another session
  created_at  timestamptz NOT NULL DEFAULT now(),
  updated_at  timestamptz NOT NULL DEFAULT now(),     -- last accepted or ended turn
  ended_at    timestamptz,
  end_reason  text,
  session_key text NOT NULL) WITH (fillfactor = 50);

-- A key points to its current session.
CREATE TABLE session_keys (
  agent_no    int NOT NULL,
  session_key text NOT NULL CHECK (octet_length(session_key) BETWEEN 1 AND 2048),
  session_id  bigint NOT NULL,
  PRIMARY KEY (agent_no, session_key));

-- The backlog only: a row exists exactly while sessions.state = 1.
CREATE TABLE ready (
  session_id bigint PRIMARY KEY, agent_no int NOT NULL, ready_at timestamptz NOT NULL, prefer bigint)
  WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ready_next ON ready (agent_no, ready_at, session_id);

-- History is insert-only: nothing below is updated on the hot path.
CREATE TABLE inbound (
  dedupe_key  bytea PRIMARY KEY, session_id bigint NOT NULL, seq bigint NOT NULL,
  body_hash   bytea,                                  -- where the caller chose the key: another body under it is refused
  received_at timestamptz NOT NULL DEFAULT now());

CREATE TABLE turns (
  session_id bigint NOT NULL, seq bigint NOT NULL,
  lane_id    bigint,                                  -- where the reply goes; NULL: it is kept for its caller only
  payload    bytea NOT NULL,                          -- JSON of hermes_core::turn::TurnInput
  traceparent text,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (session_id, seq));

-- `ended` (2 succeeded 3 failed 4 dead 5 cancelled) is set on the one row that ends a turn; it has the largest step number, which
-- no worker may journal, so nothing can collide with a completion. Its body is the reply.
CREATE TABLE turn_steps (
  session_id bigint NOT NULL, seq bigint NOT NULL, epoch bigint NOT NULL, at timestamptz NOT NULL DEFAULT now(),
  step int NOT NULL, phase smallint NOT NULL, kind smallint NOT NULL, effect smallint NOT NULL DEFAULT 0, ended smallint,
  idem_key text, body bytea, usage jsonb,
  PRIMARY KEY (session_id, seq, step, phase));

CREATE TABLE dead_turns (
  session_id bigint, seq bigint, reason text NOT NULL, at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (session_id, seq));

-- What a session's dialogue is: derived, never written twice.
CREATE VIEW transcripts AS
  SELECT t.session_id, t.seq, t.payload, t.created_at, s.ended, s.body AS reply, s.usage, s.at AS ended_at
    FROM turns t LEFT JOIN turn_steps s ON s.session_id = t.session_id AND s.seq = t.seq AND s.step = 2147483647 AND s.phase = 1;

-- ---------- deliveries ----------

-- The ordered deliveries of one chat. Cold.
CREATE TABLE lanes (
  lane_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  platform  text NOT NULL, account text NOT NULL, chat_id text NOT NULL, thread_id text NOT NULL DEFAULT '',
  UNIQUE (platform, account, chat_id, thread_id));

-- Undelivered only. The unique index on heads is the lane lock: at most one delivery of a lane is in a sender's hands.
CREATE TABLE outbox (
  lane_id bigint NOT NULL, pos bigint NOT NULL, head boolean NOT NULL,
  state smallint NOT NULL,                            -- 0 waits behind the head 1 attempting 3 due at next_at
  more boolean NOT NULL DEFAULT false,                -- others may wait behind this head
  maybe_dup boolean NOT NULL DEFAULT false, attempt int NOT NULL DEFAULT 1,
  failures int NOT NULL DEFAULT 0,                    -- attempts that went wrong; being asked to wait is none
  part int NOT NULL DEFAULT 0,                        -- parts of the text that certainly arrived
  owner bigint, next_at timestamptz,
  session_id bigint NOT NULL, seq bigint NOT NULL,
  body bytea)                                         -- NULL: the text is the turn's reply
  WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX outbox_head ON outbox (lane_id) WHERE head;
CREATE INDEX outbox_wait ON outbox (lane_id, pos) WHERE NOT head;
CREATE INDEX outbox_due ON outbox (next_at) WHERE head AND state = 3;

-- Written once, when the delivery ends (2 delivered 4 dead).
CREATE TABLE deliveries (
  lane_id bigint NOT NULL, pos bigint NOT NULL, session_id bigint NOT NULL, seq bigint NOT NULL,
  state smallint NOT NULL, attempts int NOT NULL, maybe_dup boolean NOT NULL, platform_msg_id text, reason text,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (lane_id, pos));
