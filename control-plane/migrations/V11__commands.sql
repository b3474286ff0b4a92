-- Slash commands: what a session has of its own, and which chat is whose home.

-- title: as its people call it. model: answers instead of the agent's. hidden: turns that are left out of its history from now on;
-- they stay. rewinds: how often some were, so that whoever knows the history by its length notices.
ALTER TABLE sessions
  ADD COLUMN title   text,
  ADD COLUMN model   text,
  ADD COLUMN hidden  int8multirange,
  ADD COLUMN rewinds int NOT NULL DEFAULT 0;

-- Where an account's agent finds its people when nobody has just written.
CREATE TABLE home_channels (
  platform text NOT NULL, account text NOT NULL, agent_no int NOT NULL,
  lane_id  bigint NOT NULL,
  set_by   text NOT NULL,                             -- id of the sender, for people
  set_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (platform, account, agent_no));
