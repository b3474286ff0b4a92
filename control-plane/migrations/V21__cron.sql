-- Scheduled jobs of agents, and what became of each of their slots.

CREATE TABLE cron_jobs (
  job_no      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job_id      text NOT NULL UNIQUE CHECK (job_id ~ '^[0-9a-f]{12}$'),
  agent_no    int NOT NULL REFERENCES agents,
  name        text NOT NULL,
  version     bigint NOT NULL DEFAULT 1,               -- compare-and-swap of what its owner says
  spec        jsonb NOT NULL,                          -- JSON of hermes_core::cron::Job
  by_agent    boolean NOT NULL DEFAULT false,          -- the agent made it by itself, so it reaches no chat that the agent does not
  confined    boolean NOT NULL DEFAULT false,          -- whoever said last where it delivers reaches no other chats either
  origin      bigint,                                  -- lane of the chat that it was made in
  origin_session bigint,                               -- and its session then
  created_by  text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  anchored_at timestamptz NOT NULL DEFAULT clock_timestamp(),  -- when its schedule was written: "in 30m" counts from there
  slot        timestamptz,                             -- the next one
  due_at      timestamptz,                             -- when that begins; NULL: none does by itself
  fired       int NOT NULL DEFAULT 0,                  -- slots that ran, towards `repeat`
  failures    int NOT NULL DEFAULT 0,                  -- runs that failed in a row
  told        boolean NOT NULL DEFAULT false,          -- whoever made it knows that its answers reach nobody
  stopped     text,                                    -- why it runs no more by itself
  removed_at  timestamptz);                            -- a tombstone: its history stays for a while
CREATE UNIQUE INDEX cron_jobs_name ON cron_jobs (agent_no, lower(name)) WHERE removed_at IS NULL;
CREATE INDEX cron_jobs_due ON cron_jobs (due_at) WHERE due_at IS NOT NULL;

-- One row for each slot that came due; slots in a row that were missed share one.
CREATE TABLE cron_runs (
  job_no     bigint NOT NULL,
  slot       timestamptz NOT NULL,
  state      smallint NOT NULL,                        -- 0 waits 1 runs 2 ran 3 failed 4 missed 5 skipped 6 cancelled
  by_hand    boolean NOT NULL DEFAULT false,           -- somebody wanted it; it is beside the schedule
  slots      int NOT NULL DEFAULT 1,                   -- missed: how many, at least; the last one in `until`
  until      timestamptz,
  reason     text,
  session_id bigint, seq bigint,                       -- the turn; its end is the run's
  limit_at   timestamptz,                              -- when it is stopped
  at         timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at   timestamptz,
  lanes      bigint[], positions bigint[],             -- what was delivered, and where it stands there
  undelivered text,                                    -- what was to be delivered and found nobody
  mirrors    boolean NOT NULL DEFAULT false,           -- is yet to become part of the conversation that the job was made in
  PRIMARY KEY (job_no, slot));
CREATE INDEX cron_runs_open ON cron_runs (job_no, slot) WHERE state IN (0, 1) OR mirrors;

INSERT INTO retention(what) VALUES ('cron_runs');
