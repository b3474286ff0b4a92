-- Claim what could not be leased at once: many workers of many agents in one call.

-- One array entry per free slot. Of each agent only sessions are taken that the oldest worker offered of it can go on with, so offer
-- workers of different protocols in calls of their own. p_limit_ms: how long a turn may run. A session that prefers another worker
-- that lives is left alone for p_sticky_ms; a last row without a session says that there are such. o_journal: what an earlier attempt
-- journaled, for whichever reason it came back.
CREATE FUNCTION claim_batch(p_worker bigint[], p_slot smallint[], p_sticky_ms bigint, p_limit_ms bigint)
RETURNS TABLE (o_worker bigint, o_slot smallint, o_session bigint, o_seq bigint, o_epoch bigint, o_crashes smallint, o_key text,
    o_lane bigint, o_payload bytea, o_trace text, o_created timestamptz, o_journal bigint,
    o_rewinds int, o_model text)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE sid bigint[]; wid bigint[]; slt smallint[]; t timestamptz := clock_timestamp();
BEGIN
  WITH w AS MATERIALIZED (SELECT i.*, k.agent_no, k.protocol, row_number() OVER (PARTITION BY k.agent_no ORDER BY i.ord) AS rk,
             row_number() OVER (PARTITION BY i.worker ORDER BY i.ord) AS wk
          FROM unnest(p_worker, p_slot) WITH ORDINALITY i(worker, slot, ord) JOIN workers k ON k.worker_id = i.worker
         WHERE NOT k.lost AND NOT k.draining AND k.lease_until > t),
   a AS MATERIALIZED (SELECT agent_no, count(*) AS n, array_agg(worker) AS mine, min(protocol) AS speaks FROM w GROUP BY agent_no),
   c AS MATERIALIZED (SELECT a.agent_no, x.* FROM a CROSS JOIN LATERAL (SELECT r.session_id, r.prefer FROM ready r
          WHERE r.agent_no = a.agent_no AND r.ready_at <= t AND (r.needs IS NULL OR r.needs <= a.speaks)
            AND (r.prefer IS NULL OR r.prefer = ANY(a.mine) OR r.ready_at <= t - p_sticky_ms * interval '1 millisecond'
                 OR NOT EXISTS (SELECT 1 FROM workers p WHERE p.worker_id = r.prefer AND NOT p.lost AND NOT p.draining AND p.lease_until > t))
          ORDER BY r.ready_at, r.session_id LIMIT a.n FOR UPDATE SKIP LOCKED) x),
   del AS (DELETE FROM ready r USING c WHERE r.session_id = c.session_id),
   ck AS (SELECT c.*, row_number() OVER (PARTITION BY agent_no, prefer) AS pk FROM c),
   hit AS MATERIALIZED (SELECT ck.session_id, w.worker, w.slot, w.ord FROM ck JOIN w ON w.worker = ck.prefer AND w.wk = ck.pk),
   cr AS (SELECT c.*, row_number() OVER (PARTITION BY agent_no) AS rn FROM c WHERE NOT EXISTS (SELECT 1 FROM hit WHERE hit.session_id = c.session_id)),
   wr AS (SELECT w.*, row_number() OVER (PARTITION BY agent_no ORDER BY ord) AS rn FROM w WHERE NOT EXISTS (SELECT 1 FROM hit WHERE hit.ord = w.ord)),
   m AS (SELECT session_id, worker, slot FROM hit UNION ALL SELECT cr.session_id, wr.worker, wr.slot FROM cr JOIN wr USING (agent_no, rn))
  SELECT array_agg(m.session_id), array_agg(m.worker), array_agg(m.slot) INTO sid, wid, slt FROM m;
  IF sid IS NOT NULL THEN
  PERFORM 1 FROM sessions WHERE session_id = ANY(sid) ORDER BY session_id FOR NO KEY UPDATE;            -- A
  RETURN QUERY                                                                                          -- B
  WITH m AS MATERIALIZED (SELECT * FROM unnest(sid, wid, slt) m(sid, worker, slot)),
   u AS (UPDATE sessions s SET state = 2, epoch = s.epoch + 1, worker_id = m.worker, deadline = t + p_limit_ms * interval '1 millisecond'
          FROM m WHERE s.session_id = m.sid AND s.state = 1
          RETURNING s.session_id, s.head_seq, s.epoch, s.crashes, s.session_key, s.rewinds, s.model, m.worker, m.slot),
   l AS (UPDATE slots x SET session_id = m.sid FROM m WHERE x.worker_id = m.worker AND x.slot = m.slot AND x.session_id IS DISTINCT FROM m.sid)
  SELECT u.worker, u.slot, u.session_id, u.head_seq, u.epoch, u.crashes, u.session_key, q.lane_id, q.payload, q.traceparent, q.created_at,
         (SELECT count(*) FROM turn_steps t WHERE t.session_id = u.session_id AND t.seq = u.head_seq), u.rewinds, u.model
    FROM u JOIN turns q ON q.session_id = u.session_id AND q.seq = u.head_seq;
  END IF;
  IF EXISTS (SELECT 1 FROM (SELECT DISTINCT k.agent_no FROM workers k WHERE k.worker_id = ANY(p_worker)) a JOIN ready r USING (agent_no)
              WHERE r.prefer IS NOT NULL AND r.ready_at <= t AND r.ready_at > t - p_sticky_ms * interval '1 millisecond') THEN
    RETURN NEXT;
  END IF;
END $$;
