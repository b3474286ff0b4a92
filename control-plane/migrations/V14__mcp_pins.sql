-- The tools of agents' MCP servers as they were first seen, or accepted: what a worker may offer. A server can change what it says of
-- itself; these rows it cannot change, nor can the agent's tools.

CREATE TABLE mcp_pins (
  agent_no int NOT NULL REFERENCES agents,
  server   text NOT NULL,
  config   bytea NOT NULL,                            -- hash of what operators wrote; another one begins anew
  pinned   jsonb,                                     -- {tool: {sha256, description}}; NULL: none was seen yet
  seen     jsonb,                                     -- the same, as last seen
  problem  text NOT NULL DEFAULT '',                  -- for people
  seen_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (agent_no, server));
