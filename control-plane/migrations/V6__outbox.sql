-- Chats that are gone, running answers that a chat already shows, deliveries that wait for their account, and what people did
-- about dead letters.

-- The whole chat is dead for its account since then. A delivery whose turn was accepted later is attempted all the same.
ALTER TABLE lanes ADD COLUMN dead_since timestamptz, ADD COLUMN dead_reason text;
CREATE INDEX lanes_dead ON lanes (dead_since) WHERE dead_since IS NOT NULL;

ALTER TABLE outbox
  ADD COLUMN parked text,                             -- platform/account that is missing; due when it is back
  ADD COLUMN cause text,                              -- why it waits, for people
  ADD COLUMN redriven boolean NOT NULL DEFAULT false; -- a person asked for it: attempted even where the chat is marked dead

-- Whose attempts there are. Few owners: claim_outbox hops from one to the next and takes over those of replicas that live no more.
CREATE INDEX outbox_attempting ON outbox (owner) WHERE head AND state = 1;
CREATE INDEX outbox_parked ON outbox (parked, lane_id) WHERE parked IS NOT NULL;

-- What a dead letter needs to be sent again.
ALTER TABLE deliveries
  ADD COLUMN part int NOT NULL DEFAULT 0,             -- parts that certainly arrived
  ADD COLUMN body bytea,                              -- of a dead letter that is not its turn's reply
  ADD COLUMN redriven_pos bigint,                     -- the delivery in the same lane that took its place
  ADD COLUMN redriven_by text,
  ADD COLUMN redriven_at timestamptz;
CREATE INDEX deliveries_dead ON deliveries (pos) WHERE state = 4;

-- One message that shows a running turn's text. The row is committed before that message is sent and its id right after, so the
-- final text is an edit of it; a row without an id means that nobody knows whether the chat has one.
CREATE TABLE previews (
  session_id bigint, seq bigint, lane_id bigint NOT NULL,
  owner      bigint,                                  -- the replica that may send or edit right now
  message_id text,
  begun_at   timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (session_id, seq));

-- Off the list once somebody has dealt with it; history stays.
ALTER TABLE dead_turns
  ADD COLUMN redrives int NOT NULL DEFAULT 0,
  ADD COLUMN redriven_session bigint,
  ADD COLUMN redriven_seq bigint,
  ADD COLUMN settled text,                            -- redriven or dropped
  ADD COLUMN settled_by text,
  ADD COLUMN settled_at timestamptz;
CREATE INDEX dead_turns_open ON dead_turns (at) WHERE settled IS NULL;
