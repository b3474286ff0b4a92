-- Budgets of model use: what was spent, what is reserved for calls on their way, and what operators said about it.

-- A payer is 'agent:<agent_no>' or 'user:<platform>:<user id>'. One row a day, reservations of calls on their way included; its lock
-- decides which call is let in next. Only payers with a budget have rows.
CREATE TABLE budget_days (
  payer  text NOT NULL,
  day    date NOT NULL,                               -- of the document's time zone
  usd    bigint NOT NULL DEFAULT 0,                   -- nano-dollars
  tokens bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (payer, day)) WITH (fillfactor = 50);

-- One model call on its way, at the most that it may take. It is in budget_days already: what is never settled stays spent.
CREATE TABLE budget_reservations (
  session_id bigint NOT NULL, seq bigint NOT NULL, step int NOT NULL,
  epoch  bigint NOT NULL,                             -- of the attempt that holds it
  call   uuid NOT NULL,                               -- of that attempt's call: nobody else settles it
  payers text[] NOT NULL, day date NOT NULL, usd bigint NOT NULL, tokens bigint NOT NULL,
  until  timestamptz NOT NULL,                        -- later nobody waits for its end any more
  PRIMARY KEY (session_id, seq, step));

-- A limit that was raised for a time, apart from the document. `value` is nano-dollars or tokens.
CREATE TABLE budget_raises (
  agent_no int NOT NULL REFERENCES agents,
  what     text NOT NULL,                             -- usd_per_day, usd_per_month or tokens_per_day
  value    bigint NOT NULL, until timestamptz NOT NULL, by text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (agent_no, what));

-- Agents that ask no model until they are resumed.
CREATE TABLE budget_pauses (
  agent_no int PRIMARY KEY REFERENCES agents,
  by text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());

-- That a limit was hit: once a payer, limit and period.
CREATE TABLE budget_alerts (
  payer text NOT NULL, what text NOT NULL, period date NOT NULL,      -- the first day of the period
  session_id bigint NOT NULL, seq bigint NOT NULL,                    -- the turn that hit it first
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (payer, what, period));
