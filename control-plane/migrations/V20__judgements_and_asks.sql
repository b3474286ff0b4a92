-- Calls that a model judges before a person is asked, and questions to agents that nobody waits for any more.

-- judge_until: a model is being asked about the call, and nobody else was yet; if there is no verdict by then, whoever comes next asks the
-- person. judgement: what the model said, or why it said nothing; NULL: none was asked.
ALTER TABLE approvals ADD COLUMN judge_until timestamptz, ADD COLUMN judgement text;

-- settled: the asked turn has ended, so nothing is to be done about it any more.
ALTER TABLE asks ADD COLUMN settled boolean NOT NULL DEFAULT false;
CREATE INDEX asks_unsettled ON asks (asked_session, asked_seq) WHERE NOT settled;
