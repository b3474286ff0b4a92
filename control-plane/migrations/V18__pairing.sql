-- Strangers who may talk to an account once an operator has approved them.

-- Locked first by whoever asks or approves: what is counted per account is counted one after another.
CREATE TABLE pairing_accounts (
  platform text NOT NULL, account text NOT NULL,
  wrong        int NOT NULL DEFAULT 0,                -- wrong codes since the last right one or the last lock-out
  locked_until timestamptz,                           -- no code is approved or made before
  PRIMARY KEY (platform, account));

-- The last request of a sender who is not approved. Of the code only a hash is kept.
CREATE TABLE pairing_requests (
  platform text NOT NULL, account text NOT NULL, user_id text NOT NULL,
  user_name  text NOT NULL,
  event      text NOT NULL,                           -- the message that asked, so that it does not ask twice
  salt bytea NOT NULL, hash bytea NOT NULL,           -- sha256(salt || code)
  asked_at   timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (platform, account, user_id));

CREATE TABLE pairing_senders (
  platform text NOT NULL, account text NOT NULL, user_id text NOT NULL,
  user_name   text NOT NULL,
  approved_by text NOT NULL,
  approved_at timestamptz NOT NULL,
  PRIMARY KEY (platform, account, user_id));
