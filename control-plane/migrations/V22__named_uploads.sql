-- named: a message has it. What no message has yet is counted for its submitter.
ALTER TABLE uploads ADD COLUMN named boolean NOT NULL DEFAULT false;
CREATE INDEX uploads_unnamed ON uploads (submitter) WHERE NOT named;
