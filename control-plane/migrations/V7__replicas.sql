-- Which replica receives for an account that one receiver alone may poll. A row is made when a replica first wants the account and
-- is renewed by that replica's poll; nobody has it when `lease_until` has passed. Only accounts that are polled: what pushes to us
-- reaches any replica.
CREATE TABLE account_leases (
  platform    text NOT NULL, account text NOT NULL,
  replica_id  bigint,                                 -- the holder, or the last one
  epoch       bigint NOT NULL DEFAULT 0,              -- +1 with every new holder
  lease_until timestamptz NOT NULL,
  heard_at    timestamptz NOT NULL DEFAULT now(),     -- the platform's last answer to a poll, or when the account appeared
  state       text NOT NULL DEFAULT 'down',           -- up, down or failed, as its holder says
  detail      text NOT NULL DEFAULT '',
  PRIMARY KEY (platform, account)) WITH (fillfactor = 50);
