-- Accept, and lease in the same commit.

-- p_worker[i]/p_slot[i]: a slot of a worker connected to the calling replica that the caller reserved, or NULL. The caller
-- passes one only while it knows of no session of that agent that waits.
-- p_idle_before/p_daily_before: the session expires when it was last used strictly before that instant.
-- p_busy: what a message does to the turn that runs in its session: 0 nothing, 2 asks it to give way, 3 offers itself to it.
-- p_most: a session holds at most so many turns that have not ended; what is beyond is not kept (full), the first come is.
-- Answer, in input order: the session and turn number, dup, conflict (the key is known with another body), and epoch NOT
-- NULL when this very message now runs on p_worker[i]; busy: the turn that it found running, if it waits behind one; full: it
-- was not kept, nothing of it was stored; o_rewinds and o_model: of the session, as its columns.
CREATE FUNCTION ingest_batch(p_key bytea[], p_hash bytea[], p_agent int[], p_skey text[], p_lane bigint[], p_payload bytea[],
    p_trace text[], p_submitter text[], p_worker bigint[], p_slot smallint[], p_idle_before timestamptz[], p_daily_before timestamptz[], p_busy smallint[],
    p_most bigint, p_ttl_ms bigint)
RETURNS TABLE (o_ord bigint, o_session bigint, o_seq bigint, o_dup boolean, o_conflict boolean, o_epoch bigint, o_waits boolean,
    o_busy bigint, o_full boolean, o_rewinds int, o_model text)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE sid bigint[]; t timestamptz := clock_timestamp(); r record; fresh bigint;
BEGIN
  sid := ARRAY(SELECT k.session_id FROM unnest(p_agent, p_skey) WITH ORDINALITY i(a, k, ord)
               LEFT JOIN session_keys k ON k.agent_no = i.a AND k.session_key = i.k ORDER BY i.ord);
  IF array_position(sid, NULL) IS NOT NULL THEN
    WITH n AS (INSERT INTO session_keys(agent_no, session_key, session_id)
               SELECT x.a, x.k, nextval('session_ids') FROM (
                 SELECT DISTINCT i.a, i.k FROM unnest(p_agent, p_skey, sid) i(a, k, s) WHERE i.s IS NULL ORDER BY i.a, i.k) x
               ON CONFLICT DO NOTHING RETURNING agent_no, session_key, session_id)
    INSERT INTO sessions(session_id, agent_no, session_key) SELECT n.session_id, n.agent_no, n.session_key FROM n;
    sid := ARRAY(SELECT k.session_id FROM unnest(p_agent, p_skey) WITH ORDINALITY i(a, k, ord)
                 LEFT JOIN session_keys k ON k.agent_no = i.a AND k.session_key = i.k ORDER BY i.ord);
  END IF;
  PERFORM 1 FROM sessions WHERE session_id = ANY(sid) ORDER BY session_id FOR NO KEY UPDATE;            -- A
  -- A reset moved the key, or a purge took key or session, while we waited. (A row without its session would shift all behind it.)
  IF EXISTS (SELECT 1 FROM unnest(sid) i(id) LEFT JOIN sessions s ON s.session_id = i.id WHERE s.session_id IS NULL OR s.ended_at IS NOT NULL) THEN
    RAISE serialization_failure USING MESSAGE = 'the session key moved, repeat the batch';
  END IF;
  IF cardinality(array_remove(p_idle_before, NULL)) + cardinality(array_remove(p_daily_before, NULL)) > 0 THEN
    FOR r IN SELECT DISTINCT ON (s.session_id) s.*, CASE WHEN s.updated_at < i.idle THEN 'idle' ELSE 'daily' END AS why
               FROM unnest(sid, p_key, p_idle_before, p_daily_before) i(sid, key, idle, daily)
               JOIN sessions s ON s.session_id = i.sid AND s.tail_seq > 0 AND (s.updated_at < i.idle OR s.updated_at < i.daily)
              WHERE NOT EXISTS (SELECT 1 FROM inbound b WHERE b.dedupe_key = i.key) ORDER BY s.session_id LOOP
      fresh := nextval('session_ids');
      INSERT INTO sessions(session_id, agent_no, session_key, state)
        VALUES (fresh, r.agent_no, r.session_key, CASE WHEN r.state = 0 THEN 0 ELSE 3 END);
      UPDATE sessions SET ended_at = t, end_reason = r.why, successor = fresh WHERE session_id = r.session_id;
      UPDATE session_keys SET session_id = fresh WHERE agent_no = r.agent_no AND session_key = r.session_key;
      sid := array_replace(sid, r.session_id, fresh);
    END LOOP;
  END IF;
  RETURN QUERY                                                                                          -- B
  WITH d AS (SELECT i.*, b.session_id AS bsid, b.seq AS bseq, b.body_hash AS bhash,
               b.dedupe_key IS NOT NULL OR row_number() OVER (PARTITION BY i.key ORDER BY i.ord) > 1 AS dup,
               first_value(i.hash) OVER (PARTITION BY i.key ORDER BY i.ord) AS fhash
          FROM unnest(sid, p_key, p_hash, p_lane, p_payload, p_trace, p_submitter, p_worker, p_slot, p_busy) WITH ORDINALITY
               i(sid, key, hash, lane, payload, trace, submitter, worker, slot, busy, ord)
          LEFT JOIN inbound b ON b.dedupe_key = i.key),
   n AS (SELECT d.*, row_number() OVER w AS rn, count(*) OVER (PARTITION BY d.sid, d.dup) AS cnt FROM d
          WINDOW w AS (PARTITION BY d.sid, d.dup ORDER BY d.ord)),
   f AS MATERIALIZED (SELECT n.*, s.tail_seq + n.rn AS seq, s.state AS st, s.agent_no, s.worker_id AS prefer, s.rewinds, s.model,
           NOT n.dup AND n.rn <= m.room AS new, NOT n.dup AND n.rn > m.room AS full, least(n.cnt, m.room) AS kept,
           CASE WHEN NOT n.dup AND s.state = 2 THEN s.head_seq END AS behind,
           CASE WHEN NOT n.dup AND n.rn = 1 AND s.state = 0 AND k.worker_id IS NOT NULL AND m.room > 0 THEN s.epoch + 1 END AS ep
          FROM n JOIN sessions s ON s.session_id = n.sid
          CROSS JOIN LATERAL (SELECT greatest(p_most - (s.tail_seq - s.head_seq + 1 - s.absorbed), 0) AS room) m
          LEFT JOIN workers k ON k.worker_id = n.worker AND k.agent_no = s.agent_no AND NOT k.lost AND NOT k.draining AND k.lease_until > t),
   u AS (UPDATE sessions s SET tail_seq = s.tail_seq + f.kept, epoch = coalesce(f.ep, s.epoch), updated_at = t,
           state = CASE WHEN f.ep IS NOT NULL THEN 2 WHEN s.state = 0 THEN 1 ELSE s.state END,
           worker_id = CASE WHEN f.ep IS NOT NULL THEN f.worker ELSE s.worker_id END,
           deadline = CASE WHEN f.ep IS NOT NULL THEN t + p_ttl_ms * interval '1 millisecond' ELSE s.deadline END
          FROM f WHERE s.session_id = f.sid AND f.rn = 1 AND f.new),
   b AS (INSERT INTO inbound(dedupe_key, session_id, seq, body_hash) SELECT f.key, f.sid, f.seq, f.hash FROM f WHERE f.new ORDER BY f.key),
   q AS (INSERT INTO turns(session_id, seq, lane_id, payload, traceparent, submitter)
          SELECT f.sid, f.seq, f.lane, f.payload, f.trace, f.submitter FROM f WHERE f.new),
   g AS (INSERT INTO turn_signals(session_id, seq, kind) SELECT f.sid, f.behind, min(f.busy) FROM f WHERE f.new AND f.busy > 0 AND f.behind IS NOT NULL
          GROUP BY f.sid, f.behind ORDER BY f.sid ON CONFLICT (session_id, seq) DO UPDATE SET kind = least(turn_signals.kind, excluded.kind)),
   r AS (INSERT INTO ready(session_id, agent_no, ready_at, prefer) SELECT f.sid, f.agent_no, t, f.prefer FROM f
          WHERE f.new AND f.rn = 1 AND f.st = 0 AND f.ep IS NULL),
   l AS (UPDATE slots x SET session_id = f.sid FROM f WHERE f.ep IS NOT NULL AND x.worker_id = f.worker AND x.slot = f.slot
          AND x.session_id IS DISTINCT FROM f.sid)
  SELECT f.ord, coalesce(f.bsid, first_value(f.sid) OVER (PARTITION BY f.key ORDER BY f.ord)),
         CASE WHEN f.dup THEN coalesce(f.bseq, first_value(f.seq) OVER (PARTITION BY f.key ORDER BY f.ord)) ELSE f.seq END,
         f.dup, f.dup AND coalesce(f.bhash, f.fhash) IS NOT NULL AND coalesce(f.bhash, f.fhash) IS DISTINCT FROM f.hash,
         f.ep, f.new AND f.rn = 1 AND f.st = 0 AND f.ep IS NULL, CASE WHEN f.new THEN f.behind END,
         f.full OR (f.dup AND f.bsid IS NULL AND first_value(f.full) OVER (PARTITION BY f.key ORDER BY f.ord)), f.rewinds, f.model FROM f ORDER BY f.ord;
  -- inbound has no ON CONFLICT on purpose: one event routed to two sessions at once by two replicas raises 23505; the
  -- caller repeats the batch and then sees the duplicate. (Same session: its lock already made it visible.)
END $$;
