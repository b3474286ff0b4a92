-- A result that only says that nobody knows whether the call happened.
ALTER TABLE turn_steps ADD COLUMN unknown boolean NOT NULL DEFAULT false;
