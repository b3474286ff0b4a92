-- What agents reach by themselves: chats that they may write to, and other agents.

-- That a chat has written to an agent, and when last, to the hour.
CREATE TABLE agent_chats (
  agent_no int NOT NULL,
  lane_id  bigint NOT NULL,
  heard_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (agent_no, lane_id)) WITH (fillfactor = 70);
INSERT INTO agent_chats(agent_no, lane_id, heard_at)
  SELECT s.agent_no, q.lane_id, max(q.created_at) FROM turns q JOIN sessions s USING (session_id) WHERE q.lane_id IS NOT NULL GROUP BY 1, 2;

-- A chat by its id, whatever its account.
CREATE INDEX lanes_chat ON lanes (chat_id, platform);

-- What an agent's turn has asked another agent, and the turn that answers. depth: how many askers stand before the answer.
CREATE TABLE asks (
  session_id bigint, seq bigint, step int,            -- the call
  call          text NOT NULL,                        -- equal for equal calls alone
  agent_no      int NOT NULL,
  asked_no      int NOT NULL,
  asked_session bigint NOT NULL, asked_seq bigint NOT NULL,
  depth         int NOT NULL,
  wait_until    timestamptz NOT NULL,
  done          boolean NOT NULL DEFAULT false,       -- its answer is journaled
  PRIMARY KEY (session_id, seq, step));
CREATE INDEX asks_answer ON asks (asked_session, asked_seq);
CREATE INDEX asks_open ON asks (agent_no) WHERE NOT done;
