-- The steps of a turn, written while it runs.

-- Phase 0 is the intent, 1 the result; kind 4 a model's reply, 5 a tool call, 6 steering (by `absorb`); effect 1 pure, 2 idempotent, 3 at most once.
-- Per row: 1 stored, 2 the same row was there, 0 fenced, -1 another row was there. One bad row fails alone.
-- An intent that may act once only is never found "there" by a later epoch: whoever reads the answer 2 would act again.
CREATE FUNCTION journal_batch(p_session bigint[], p_epoch bigint[], p_seq bigint[], p_step int[], p_phase smallint[], p_kind smallint[],
    p_effect smallint[], p_idem text[], p_body bytea[], p_unknown boolean[])
RETURNS TABLE (o_ord bigint, o_result int) LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
  PERFORM 1 FROM sessions WHERE session_id = ANY(p_session) ORDER BY session_id FOR NO KEY UPDATE;      -- A: a reclaim waits for us
  RETURN QUERY                                                                                          -- B
  WITH f AS MATERIALIZED (SELECT i.*, s.session_id IS NOT NULL AS ok, t.epoch AS tep,
             t.epoch = i.epoch OR i.phase = 1 OR i.effect IN (1, 2) AS again,
             (t.kind, t.effect, t.unknown) = (i.kind, i.effect, i.unknown) AND t.idem_key IS NOT DISTINCT FROM i.idem
               AND t.body IS NOT DISTINCT FROM i.body AS same,
             first_value(i.ord) OVER (PARTITION BY i.sid, i.seq, i.step, i.phase ORDER BY (s.session_id IS NULL), i.ord) AS first
          FROM unnest(p_session, p_epoch, p_seq, p_step, p_phase, p_kind, p_effect, p_idem, p_body, p_unknown) WITH ORDINALITY
               i(sid, epoch, seq, step, phase, kind, effect, idem, body, unknown, ord)
          LEFT JOIN sessions s ON s.session_id = i.sid AND s.epoch = i.epoch AND s.state = 2 AND s.head_seq = i.seq
          LEFT JOIN turn_steps t ON t.session_id = i.sid AND t.seq = i.seq AND t.step = i.step AND t.phase = i.phase),
   n AS (INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, effect, idem_key, body, unknown)
          SELECT f.sid, f.seq, f.step, f.phase, f.epoch, f.kind, f.effect, f.idem, f.body, f.unknown FROM f
           WHERE f.ok AND f.tep IS NULL AND f.first = f.ord AND f.step < 2147483647)
  SELECT f.ord, CASE WHEN f.step = 2147483647 THEN -1 WHEN NOT f.ok THEN 0
                     WHEN f.tep IS NOT NULL THEN CASE WHEN f.same AND f.again THEN 2 ELSE -1 END
                     WHEN f.first = f.ord THEN 1
                     WHEN (f.kind, f.effect, f.unknown) = (g.kind, g.effect, g.unknown) AND f.idem IS NOT DISTINCT FROM g.idem
                          AND f.body IS NOT DISTINCT FROM g.body THEN 2
                     ELSE -1 END FROM f JOIN f g ON g.ord = f.first ORDER BY f.ord;
END $$;
