-- The steps of a turn, written while it runs.

-- Per row: 1 stored (or the same row again from the same epoch), 0 fenced, -1 divergent replay. One bad row fails alone.
CREATE FUNCTION journal_batch(p_session bigint[], p_epoch bigint[], p_seq bigint[], p_step int[], p_phase smallint[], p_kind smallint[],
    p_effect smallint[], p_idem text[], p_body bytea[])
RETURNS TABLE (o_ord bigint, o_result int) LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
  PERFORM 1 FROM sessions WHERE session_id = ANY(p_session) ORDER BY session_id FOR NO KEY UPDATE;      -- A: a reclaim waits for us
  RETURN QUERY                                                                                          -- B
  WITH f AS MATERIALIZED (SELECT i.*, s.session_id IS NOT NULL AS ok, t.epoch AS tep, t.body AS tbody,
             row_number() OVER (PARTITION BY i.sid, i.seq, i.step, i.phase ORDER BY (s.session_id IS NULL), i.ord) AS rn,
             first_value(i.body) OVER (PARTITION BY i.sid, i.seq, i.step, i.phase ORDER BY (s.session_id IS NULL), i.ord) AS fbody
          FROM unnest(p_session, p_epoch, p_seq, p_step, p_phase, p_kind, p_effect, p_idem, p_body) WITH ORDINALITY
               i(sid, epoch, seq, step, phase, kind, effect, idem, body, ord)
          LEFT JOIN sessions s ON s.session_id = i.sid AND s.epoch = i.epoch AND s.state = 2 AND s.head_seq = i.seq
          LEFT JOIN turn_steps t ON t.session_id = i.sid AND t.seq = i.seq AND t.step = i.step AND t.phase = i.phase),
   n AS (INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, effect, idem_key, body)
          SELECT f.sid, f.seq, f.step, f.phase, f.epoch, f.kind, f.effect, f.idem, f.body FROM f
           WHERE f.ok AND f.tep IS NULL AND f.rn = 1 AND f.step < 2147483647)
  SELECT f.ord, CASE WHEN f.step = 2147483647 THEN -1 WHEN NOT f.ok THEN 0
                     WHEN f.tep IS NULL THEN CASE WHEN f.rn = 1 OR f.body IS NOT DISTINCT FROM f.fbody THEN 1 ELSE -1 END
                     WHEN f.tep = f.epoch AND f.tbody IS NOT DISTINCT FROM f.body THEN 1 ELSE -1 END FROM f ORDER BY f.ord;
END $$;
