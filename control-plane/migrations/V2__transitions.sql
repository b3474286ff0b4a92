-- The transitions of turns and deliveries. One call = one statement = one commit = up to 256 rows.
-- A quiet turn is three commits, each shared by a batch:
--   ingest_batch (accept + lease) -> complete_batch (reply + advance + outbox head already `attempting`) -> deliver_batch.
--
-- LOCK ORDER, the same in every function; ascending within a level, so that no two batches wait in a circle:
--   1 session_keys (only new keys)   2 ready rows (SKIP LOCKED only)   3 sessions rows by session_id
--   4 inbound keys                   5 outbox heads by lane_id
-- Out of order on purpose, because rare; Postgres breaks a circle and the caller repeats: a reset updates its key after its
-- session, a session that ran dry locks its successor, and several dead letters or cancellations lock lanes in session order.
-- Every function locks first (statement A) and reads after (statement B): what B reads of a locked session is the truth
-- until commit. Callers repeat a batch on 40001, 40P01 and 23505.

-- ---------- accept, and lease in the same commit ----------
-- p_worker[i]/p_slot[i]: a slot of a worker connected to the calling replica that the caller reserved, or NULL. The caller
-- passes one only while it knows of no session of that agent that waits.
-- p_idle_before/p_daily_before: the session expires when it was last used strictly before that instant.
-- Answer, in input order: the session and turn number, dup, conflict (the key is known with another body), and epoch NOT
-- NULL when this very message now runs on p_worker[i].
CREATE FUNCTION ingest_batch(p_key bytea[], p_hash bytea[], p_agent int[], p_skey text[], p_lane bigint[], p_payload bytea[],
    p_trace text[], p_submitter text[], p_worker bigint[], p_slot smallint[], p_idle_before timestamptz[], p_daily_before timestamptz[], p_ttl_ms bigint)
RETURNS TABLE (o_ord bigint, o_session bigint, o_seq bigint, o_dup boolean, o_conflict boolean, o_epoch bigint, o_waits boolean)
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
          FROM unnest(sid, p_key, p_hash, p_lane, p_payload, p_trace, p_submitter, p_worker, p_slot) WITH ORDINALITY
               i(sid, key, hash, lane, payload, trace, submitter, worker, slot, ord)
          LEFT JOIN inbound b ON b.dedupe_key = i.key),
   n AS (SELECT d.*, row_number() OVER w AS rn, count(*) OVER (PARTITION BY d.sid, d.dup) AS cnt FROM d
          WINDOW w AS (PARTITION BY d.sid, d.dup ORDER BY d.ord)),
   f AS MATERIALIZED (SELECT n.*, s.tail_seq + n.rn AS seq, s.state AS st, s.agent_no, s.worker_id AS prefer,
           CASE WHEN NOT n.dup AND n.rn = 1 AND s.state = 0 AND k.worker_id IS NOT NULL THEN s.epoch + 1 END AS ep
          FROM n JOIN sessions s ON s.session_id = n.sid
          LEFT JOIN workers k ON k.worker_id = n.worker AND k.agent_no = s.agent_no AND NOT k.lost AND NOT k.draining AND k.lease_until > t),
   u AS (UPDATE sessions s SET tail_seq = s.tail_seq + f.cnt, epoch = coalesce(f.ep, s.epoch), updated_at = t,
           state = CASE WHEN f.ep IS NOT NULL THEN 2 WHEN s.state = 0 THEN 1 ELSE s.state END,
           worker_id = CASE WHEN f.ep IS NOT NULL THEN f.worker ELSE s.worker_id END,
           deadline = CASE WHEN f.ep IS NOT NULL THEN t + p_ttl_ms * interval '1 millisecond' ELSE s.deadline END
          FROM f WHERE s.session_id = f.sid AND f.rn = 1 AND NOT f.dup),
   b AS (INSERT INTO inbound(dedupe_key, session_id, seq, body_hash) SELECT f.key, f.sid, f.seq, f.hash FROM f WHERE NOT f.dup ORDER BY f.key),
   q AS (INSERT INTO turns(session_id, seq, lane_id, payload, traceparent, submitter)
          SELECT f.sid, f.seq, f.lane, f.payload, f.trace, f.submitter FROM f WHERE NOT f.dup),
   r AS (INSERT INTO ready(session_id, agent_no, ready_at, prefer) SELECT f.sid, f.agent_no, t, f.prefer FROM f
          WHERE NOT f.dup AND f.rn = 1 AND f.st = 0 AND f.ep IS NULL),
   l AS (UPDATE slots x SET session_id = f.sid FROM f WHERE f.ep IS NOT NULL AND x.worker_id = f.worker AND x.slot = f.slot
          AND x.session_id IS DISTINCT FROM f.sid)
  SELECT f.ord, coalesce(f.bsid, first_value(f.sid) OVER (PARTITION BY f.key ORDER BY f.ord)),
         CASE WHEN f.dup THEN coalesce(f.bseq, first_value(f.seq) OVER (PARTITION BY f.key ORDER BY f.ord)) ELSE f.seq END,
         f.dup, f.dup AND coalesce(f.bhash, f.fhash) IS NOT NULL AND coalesce(f.bhash, f.fhash) IS DISTINCT FROM f.hash,
         f.ep, NOT f.dup AND f.rn = 1 AND f.st = 0 AND f.ep IS NULL FROM f ORDER BY f.ord;
  -- inbound has no ON CONFLICT on purpose: one event routed to two sessions at once by two replicas raises 23505; the
  -- caller repeats the batch and then sees the duplicate. (Same session: its lock already made it visible.)
END $$;

-- ---------- claim what could not be leased at once: many workers of many agents in one call ----------
-- One array entry per free slot. A session that prefers another worker that lives is left alone for p_sticky_ms; a last row
-- without a session says that there are such.
CREATE FUNCTION claim_batch(p_worker bigint[], p_slot smallint[], p_sticky_ms bigint, p_ttl_ms bigint)
RETURNS TABLE (o_worker bigint, o_slot smallint, o_session bigint, o_seq bigint, o_epoch bigint, o_crashes smallint, o_key text,
    o_lane bigint, o_payload bytea, o_trace text, o_created timestamptz)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE sid bigint[]; wid bigint[]; slt smallint[]; t timestamptz := clock_timestamp();
BEGIN
  WITH w AS MATERIALIZED (SELECT i.*, k.agent_no, row_number() OVER (PARTITION BY k.agent_no ORDER BY i.ord) AS rk,
             row_number() OVER (PARTITION BY i.worker ORDER BY i.ord) AS wk
          FROM unnest(p_worker, p_slot) WITH ORDINALITY i(worker, slot, ord) JOIN workers k ON k.worker_id = i.worker
         WHERE NOT k.lost AND NOT k.draining AND k.lease_until > t),
   a AS MATERIALIZED (SELECT agent_no, count(*) AS n, array_agg(worker) AS mine FROM w GROUP BY agent_no),
   c AS MATERIALIZED (SELECT a.agent_no, x.* FROM a CROSS JOIN LATERAL (SELECT r.session_id, r.prefer FROM ready r
          WHERE r.agent_no = a.agent_no AND r.ready_at <= t
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
   u AS (UPDATE sessions s SET state = 2, epoch = s.epoch + 1, worker_id = m.worker, deadline = t + p_ttl_ms * interval '1 millisecond'
          FROM m WHERE s.session_id = m.sid AND s.state = 1
          RETURNING s.session_id, s.head_seq, s.epoch, s.crashes, s.session_key, m.worker, m.slot),
   l AS (UPDATE slots x SET session_id = m.sid FROM m WHERE x.worker_id = m.worker AND x.slot = m.slot AND x.session_id IS DISTINCT FROM m.sid)
  SELECT u.worker, u.slot, u.session_id, u.head_seq, u.epoch, u.crashes, u.session_key, q.lane_id, q.payload, q.traceparent, q.created_at
    FROM u JOIN turns q ON q.session_id = u.session_id AND q.seq = u.head_seq;
  END IF;
  IF EXISTS (SELECT 1 FROM (SELECT DISTINCT k.agent_no FROM workers k WHERE k.worker_id = ANY(p_worker)) a JOIN ready r USING (agent_no)
              WHERE r.prefer IS NOT NULL AND r.ready_at <= t AND r.ready_at > t - p_sticky_ms * interval '1 millisecond') THEN
    RETURN NEXT;
  END IF;
END $$;

-- ---------- journal ----------
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

-- A session that was replaced and has run dry lets its successor begin.
CREATE FUNCTION release_successors(p_session bigint[]) RETURNS SETOF int LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r record; t timestamptz := clock_timestamp();
BEGIN
  FOR r IN SELECT n.session_id, n.agent_no, n.head_seq, n.tail_seq FROM sessions o JOIN sessions n ON n.session_id = o.successor
            WHERE o.session_id = ANY(p_session) AND o.state = 0 AND n.state = 3 ORDER BY n.session_id FOR NO KEY UPDATE OF n LOOP
    UPDATE sessions SET state = CASE WHEN tail_seq >= head_seq THEN 1 ELSE 0 END WHERE session_id = r.session_id;
    IF r.tail_seq >= r.head_seq THEN
      INSERT INTO ready(session_id, agent_no, ready_at) VALUES (r.session_id, r.agent_no, t);
      RETURN NEXT r.agent_no;
    END IF;
  END LOOP;
END $$;

-- ---------- complete ----------
-- One fenced transaction: final reply + turn end (one row), session advances, delivery enters the outbox. If the lane was
-- idle and p_send[i], the delivery is committed as `attempting` by p_replica here, so it may be sent when this call returns.
-- p_next[i]: keep the slot and run the session's next turn if there is one (the caller passes true only if nobody waits for the slot).
-- Per row: ok false = fenced, nothing of that row was written. Repeating a call whose answer was lost gives ok again (the turn was
-- ended by this very epoch) with o_send false; o_pos then names the delivery if it is still `attempting` in p_replica's name.
-- o_send: send it now. o_epoch/o_seq …: the next turn, already leased. o_ready: the session waits in `ready` now.
CREATE FUNCTION complete_batch(p_replica bigint, p_session bigint[], p_epoch bigint[], p_seq bigint[], p_ended smallint[],
    p_reply bytea[], p_usage jsonb[], p_lane bigint[], p_send boolean[], p_next boolean[], p_ttl_ms bigint)
RETURNS TABLE (o_ord bigint, o_ok boolean, o_pos bigint, o_send boolean, o_epoch bigint, o_seq bigint, o_lane bigint, o_payload bytea,
    o_trace text, o_created timestamptz, o_ready boolean) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE ok boolean[]; ps bigint[]; hd bigint[]; nx boolean[]; rd boolean[]; succ boolean; t timestamptz := clock_timestamp();
BEGIN
  PERFORM 1 FROM sessions WHERE session_id = ANY(p_session) ORDER BY session_id FOR NO KEY UPDATE;      -- A
  WITH g AS (SELECT i.*, s.agent_no, s.worker_id, s.successor, s.tail_seq > s.head_seq AS again, coalesce(k.worker_id IS NOT NULL AND i.nxt, false) AS keep,
             s.session_id IS NOT NULL AND row_number() OVER (PARTITION BY i.sid ORDER BY (s.session_id IS NULL), i.ord) = 1 AS ok     -- B
          FROM unnest(p_session, p_epoch, p_seq, p_ended, p_reply, p_usage, p_lane, p_send, p_next) WITH ORDINALITY
               i(sid, epoch, seq, ended, reply, usage, lane, send, nxt, ord)
          LEFT JOIN sessions s ON s.session_id = i.sid AND s.epoch = i.epoch AND s.state = 2 AND s.head_seq = i.seq
          LEFT JOIN workers k ON k.worker_id = s.worker_id AND NOT k.lost AND NOT k.draining AND k.lease_until > t),
   f AS MATERIALIZED (SELECT g.*, CASE WHEN g.ok AND g.lane IS NOT NULL THEN nextval('outbox_positions') END AS pos,
             row_number() OVER (PARTITION BY g.lane, g.ok AND g.lane IS NOT NULL ORDER BY g.ord) AS ln,
             count(*) OVER (PARTITION BY g.lane, g.ok AND g.lane IS NOT NULL) AS lc FROM g),
   u AS (UPDATE sessions s SET head_seq = s.head_seq + 1, crashes = 0, updated_at = t,
             state = CASE WHEN NOT f.again THEN 0 WHEN f.keep THEN 2 ELSE 1 END,
             epoch = s.epoch + (f.again AND f.keep)::int,
             deadline = CASE WHEN f.again AND f.keep THEN t + p_ttl_ms * interval '1 millisecond' END
          FROM f WHERE s.session_id = f.sid AND f.ok),
   j AS (INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, body, usage)
          SELECT f.sid, f.seq, 2147483647, 1, f.epoch, 1, f.ended, f.reply, f.usage FROM f WHERE f.ok),
   r AS (INSERT INTO ready(session_id, agent_no, ready_at, prefer) SELECT f.sid, f.agent_no, t, f.worker_id FROM f WHERE f.ok AND f.again AND NOT f.keep),
   h AS (INSERT INTO outbox(lane_id, pos, head, state, more, owner, next_at, session_id, seq)
          SELECT f.lane, f.pos, true, CASE WHEN f.send THEN 1 ELSE 3 END, f.lc > 1, CASE WHEN f.send THEN p_replica END,
                 CASE WHEN NOT f.send THEN t END, f.sid, f.seq FROM f WHERE f.pos IS NOT NULL AND f.ln = 1 ORDER BY f.lane
          ON CONFLICT (lane_id) WHERE head DO UPDATE SET more = true              -- busy lane: lock its head, so its end sees us
          RETURNING pos)
  SELECT array_agg(f.ok ORDER BY f.ord), array_agg(f.pos ORDER BY f.ord), (SELECT array_agg(h.pos) FROM h),
         array_agg(f.ok AND f.again AND f.keep ORDER BY f.ord), array_agg(f.ok AND f.again AND NOT f.keep ORDER BY f.ord),
         bool_or(f.ok AND f.successor IS NOT NULL)
    INTO ok, ps, hd, nx, rd, succ FROM f;
  IF cardinality(array_remove(ps, NULL)) > (SELECT count(*) FROM unnest(ps) x WHERE x = ANY(hd)) THEN
    INSERT INTO outbox(lane_id, pos, head, state, session_id, seq)
      SELECT i.lane, i.pos, false, 0, i.sid, i.seq FROM unnest(ps, p_lane, p_session, p_seq) i(pos, lane, sid, seq)
       WHERE i.pos IS NOT NULL AND NOT i.pos = ANY(hd);
  END IF;
  IF succ THEN PERFORM release_successors(p_session); END IF;
  RETURN QUERY SELECT i.ord, i.ok OR e.epoch IS NOT NULL, coalesce(i.pos, e.pos), coalesce(i.send AND i.pos = ANY(hd), false),
      CASE WHEN i.nx THEN i.ep + 1 END, CASE WHEN i.nx THEN i.seq + 1 END, q.lane_id, q.payload, q.traceparent, q.created_at,
      i.rd OR coalesce(succ, false)
    FROM unnest(ok, ps, p_send, nx, rd, p_epoch, p_seq, p_session, p_lane) WITH ORDINALITY i(ok, pos, send, nx, rd, ep, seq, sid, lane, ord)
    LEFT JOIN turns q ON i.nx AND q.session_id = i.sid AND q.seq = i.seq + 1
    LEFT JOIN LATERAL (SELECT d.epoch, o.pos FROM turn_steps d LEFT JOIN outbox o ON o.lane_id = i.lane AND o.head AND o.state = 1
           AND o.owner = p_replica AND o.session_id = i.sid AND o.seq = i.seq
         WHERE d.session_id = i.sid AND d.seq = i.seq AND d.step = 2147483647 AND d.phase = 1 AND d.epoch = i.ep AND d.kind = 1) e ON NOT i.ok
   ORDER BY i.ord;
END $$;

-- ---------- deliveries ----------
-- p_result: 2 delivered, 4 dead, 3 retry after p_delay_ms, 6 the same without counting a failure, 5 the first p_part parts arrived and it goes on. Fence: owner + attempt.
-- When a delivery ends, the next one of its lane becomes head and `attempting` by the same replica in the same commit; it is
-- answered with o_pos NOT NULL and may be sent at once.
CREATE FUNCTION deliver_batch(p_replica bigint, p_lane bigint[], p_pos bigint[], p_attempt int[], p_result smallint[], p_part int[],
    p_msg text[], p_reason text[], p_dup boolean[], p_delay_ms bigint[])
RETURNS TABLE (o_ord bigint, o_ok boolean, o_lane bigint, o_pos bigint, o_session bigint, o_seq bigint, o_attempt int, o_part int, o_dup boolean,
    o_body bytea, o_failures int, o_trace text) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE ok boolean[]; mo bigint[]; t timestamptz := clock_timestamp();
BEGIN
  PERFORM 1 FROM outbox WHERE lane_id = ANY(p_lane) AND head ORDER BY lane_id FOR UPDATE;               -- A
  WITH f AS MATERIALIZED (SELECT i.*, o.lane_id IS NOT NULL AND row_number() OVER (PARTITION BY i.lane, i.pos ORDER BY (o.lane_id IS NULL), i.ord) = 1 AS ok,
             o.more, o.session_id, o.seq, o.maybe_dup, o.tid                                            -- B
          FROM unnest(p_lane, p_pos, p_attempt, p_result, p_part, p_msg, p_reason, p_dup, p_delay_ms) WITH ORDINALITY
               i(lane, pos, attempt, result, part, msg, reason, dup, delay, ord)
          LEFT JOIN (SELECT x.ctid AS tid, x.* FROM outbox x WHERE x.lane_id = ANY(p_lane) AND x.head) o   -- ANY: a plain join scans every head
                 ON o.lane_id = i.lane AND o.pos = i.pos AND o.state = 1 AND o.owner = p_replica AND o.attempt = i.attempt),
   d AS (DELETE FROM outbox o USING f WHERE o.ctid = f.tid AND f.ok AND f.result IN (2, 4)),   -- by place: locked in A, so it cannot move
   r AS (UPDATE outbox o SET state = CASE WHEN f.result = 5 THEN 1 ELSE 3 END, owner = CASE WHEN f.result = 5 THEN o.owner END,
             attempt = o.attempt + (f.result <> 5)::int, failures = o.failures + (f.result = 3)::int, part = f.part, maybe_dup = f.dup,
             next_at = CASE WHEN f.result <> 5 THEN t + f.delay * interval '1 millisecond' END FROM f
          WHERE o.ctid = f.tid AND f.ok AND f.result IN (3, 5, 6)),
   e AS (INSERT INTO deliveries(lane_id, pos, session_id, seq, state, attempts, maybe_dup, platform_msg_id, reason)
          SELECT f.lane, f.pos, f.session_id, f.seq, f.result, f.attempt, f.maybe_dup OR f.dup, f.msg, f.reason FROM f WHERE f.ok AND f.result IN (2, 4))
  SELECT array_agg(f.ok ORDER BY f.ord), array_agg(f.lane) FILTER (WHERE f.ok AND f.more AND f.result IN (2, 4)) INTO ok, mo FROM f;
  RETURN QUERY SELECT i.ord, i.ok, NULL::bigint, NULL::bigint, NULL::bigint, NULL::bigint, NULL::int, NULL::int, NULL::boolean, NULL::bytea, NULL::int, NULL::text
    FROM unnest(ok) WITH ORDINALITY i(ok, ord) ORDER BY i.ord;
  IF mo IS NOT NULL THEN
    RETURN QUERY WITH n AS MATERIALIZED (SELECT x.lane, (SELECT o.pos FROM outbox o WHERE o.lane_id = x.lane AND NOT o.head ORDER BY o.pos LIMIT 1) AS pos
            FROM unnest(mo) x(lane)),
     u AS (UPDATE outbox o SET head = true, state = 1, more = true, owner = p_replica FROM n
            WHERE o.lane_id = n.lane AND o.pos = n.pos AND NOT o.head RETURNING o.*)
    SELECT NULL::bigint, NULL::boolean, u.lane_id, u.pos, u.session_id, u.seq, u.attempt, u.part, u.maybe_dup,
           coalesce(u.body, (SELECT s.body FROM turn_steps s WHERE s.session_id = u.session_id AND s.seq = u.seq AND s.step = 2147483647 AND s.phase = 1)), u.failures,
           (SELECT q.traceparent FROM turns q WHERE q.session_id = u.session_id AND q.seq = u.seq)
      FROM u;
  END IF;
END $$;

-- Due retries, and deliveries whose sender died (marked: the platform may have them already).
CREATE FUNCTION claim_outbox(p_replica bigint, p_n int)
RETURNS TABLE (o_lane bigint, o_pos bigint, o_session bigint, o_seq bigint, o_attempt int, o_part int, o_dup boolean, o_body bytea, o_failures int, o_trace text)
LANGUAGE plpgsql AS $$
DECLARE due bigint[]; gone bigint[];
BEGIN
  due := ARRAY(SELECT o.lane_id FROM outbox o WHERE o.head AND o.state = 3 AND o.next_at <= clock_timestamp() ORDER BY o.next_at LIMIT p_n);
  gone := ARRAY(SELECT r.replica_id FROM replicas r WHERE r.lost_at IS NOT NULL AND r.replica_id <> p_replica);
  IF cardinality(gone) > 0 THEN
    due := due || ARRAY(SELECT o.lane_id FROM outbox o WHERE o.head AND o.state = 1 AND o.owner = ANY(gone) LIMIT p_n);
    IF NOT EXISTS (SELECT 1 FROM outbox o WHERE o.state = 1 AND o.owner = ANY(gone)) THEN
      DELETE FROM replicas WHERE replica_id = ANY(gone) AND lost_at < clock_timestamp() - interval '1 minute';
    END IF;
  END IF;
  RETURN QUERY
  WITH c AS MATERIALIZED (SELECT o.lane_id FROM outbox o WHERE o.lane_id = ANY(due) AND o.head
          AND ((o.state = 3 AND o.next_at <= clock_timestamp()) OR (o.state = 1 AND o.owner = ANY(gone)))
          ORDER BY o.lane_id FOR UPDATE SKIP LOCKED)
  UPDATE outbox o SET maybe_dup = o.maybe_dup OR o.state = 1, attempt = o.attempt + (o.state = 1)::int, failures = o.failures + (o.state = 1)::int,
         state = 1, owner = p_replica, next_at = NULL
    FROM c WHERE o.lane_id = c.lane_id AND o.head
  RETURNING o.lane_id, o.pos, o.session_id, o.seq, o.attempt, o.part, o.maybe_dup,
            coalesce(o.body, (SELECT s.body FROM turn_steps s WHERE s.session_id = o.session_id AND s.seq = o.seq AND s.step = 2147483647 AND s.phase = 1)),
            o.failures, (SELECT q.traceparent FROM turns q WHERE q.session_id = o.session_id AND q.seq = o.seq);
END $$;

-- One delivery from outside a turn's completion (a notice): due, to be picked up by claim_outbox.
CREATE FUNCTION enqueue(p_lane bigint, p_session bigint, p_seq bigint, p_body bytea) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE p bigint := nextval('outbox_positions'); h bigint;
BEGIN
  INSERT INTO outbox(lane_id, pos, head, state, next_at, session_id, seq, body) VALUES (p_lane, p, true, 3, clock_timestamp(), p_session, p_seq, p_body)
    ON CONFLICT (lane_id) WHERE head DO UPDATE SET more = true RETURNING pos INTO h;
  IF h <> p THEN INSERT INTO outbox(lane_id, pos, head, state, session_id, seq, body) VALUES (p_lane, p, false, 0, p_session, p_seq, p_body); END IF;
  RETURN p;
END $$;

-- ---------- leases ----------
CREATE FUNCTION register_worker(p_agent int, p_replica bigint, p_identity text, p_pid bigint, p_home text, p_slots int, p_ttl_ms bigint)
RETURNS bigint LANGUAGE sql AS $$
  WITH w AS (INSERT INTO workers(worker_id, agent_no, replica_id, identity, pid, home, slots, lease_until)
             VALUES (nextval('registrations'), p_agent, p_replica, p_identity, p_pid, p_home, p_slots, clock_timestamp() + p_ttl_ms * interval '1 millisecond')
             RETURNING worker_id),
   s AS (INSERT INTO slots(worker_id, slot) SELECT w.worker_id, g FROM w, generate_series(1, p_slots) g)
  SELECT worker_id FROM w $$;

-- The one statement an idle replica sends, every second: renews its own lease and those of the workers that were heard of,
-- and answers for all loops. o_alive: the workers whose lease still holds (an expired one cannot be revived).
CREATE FUNCTION poll(p_replica bigint, p_workers bigint[], p_ttl_ms bigint)
RETURNS TABLE (o_now timestamptz, o_version bigint, o_alive bigint[], o_ready int[], o_outbox boolean, o_lost boolean, o_removed boolean,
    o_homes bigint)
LANGUAGE plpgsql AS $$
DECLARE t timestamptz := clock_timestamp(); alive bigint[];
BEGIN
  INSERT INTO replicas(replica_id, lease_until) VALUES (p_replica, t + p_ttl_ms * interval '1 millisecond')
    ON CONFLICT (replica_id) DO UPDATE SET lease_until = excluded.lease_until, lost_at = NULL;
  -- One that is polling right now is late and not lost; waiting for it could be waiting for each other.
  UPDATE replicas SET lost_at = t WHERE replica_id IN (
    SELECT replica_id FROM replicas WHERE lost_at IS NULL AND lease_until < t FOR UPDATE SKIP LOCKED);
  IF cardinality(p_workers) > 0 THEN
    PERFORM 1 FROM workers WHERE worker_id = ANY(p_workers) ORDER BY worker_id FOR NO KEY UPDATE;
    WITH u AS (UPDATE workers SET lease_until = t + p_ttl_ms * interval '1 millisecond'
                WHERE worker_id = ANY(p_workers) AND NOT lost AND lease_until > t RETURNING worker_id)
    SELECT array_agg(worker_id) INTO alive FROM u;
  END IF;
  RETURN QUERY SELECT t, (SELECT version FROM documents), coalesce(alive, '{}'),
    ARRAY(SELECT a.agent_no FROM agents a WHERE EXISTS (SELECT 1 FROM ready r WHERE r.agent_no = a.agent_no AND r.ready_at <= t)),
    EXISTS (SELECT 1 FROM outbox o WHERE o.head AND o.state = 3 AND o.next_at <= t) OR EXISTS (SELECT 1 FROM replicas WHERE lost_at IS NOT NULL),
    EXISTS (SELECT 1 FROM workers WHERE (NOT lost AND lease_until < t) OR (lost AND lost_at > t - interval '10 minutes')),
    EXISTS (SELECT 1 FROM ready r JOIN agents a USING (agent_no) WHERE a.removed_at IS NOT NULL),
    (SELECT coalesce(sum(home_version), 0)::bigint FROM agents);
END $$;

-- What these workers hold; asked after a lease whose answer was lost. The worker ignores a (session, epoch) it already has.
CREATE FUNCTION assigned(p_workers bigint[]) RETURNS TABLE (o_worker bigint, o_slot smallint, o_session bigint, o_seq bigint, o_epoch bigint,
    o_crashes smallint, o_key text, o_lane bigint, o_payload bytea, o_trace text, o_created timestamptz) LANGUAGE sql STABLE AS $$
  SELECT s.worker_id, x.slot, s.session_id, s.head_seq, s.epoch, s.crashes, s.session_key, q.lane_id, q.payload, q.traceparent, q.created_at
    FROM slots x JOIN sessions s ON s.session_id = x.session_id AND s.state = 2 AND s.worker_id = x.worker_id
    JOIN turns q ON q.session_id = s.session_id AND q.seq = s.head_seq WHERE x.worker_id = ANY(p_workers)
$$;

-- Takes back what lost workers hold. Driven by state, not by the edge "has just been lost": a worker stays under watch for 10 minutes, so a
-- lease that slipped in while it was being marked is taken back on the next tick. The p_max_crashes-th crash of a head turn: dead letter,
-- notice into the outbox and the session moves on, in this same transaction.
CREATE FUNCTION reclaim(p_max_crashes int, p_notice bytea) RETURNS TABLE (o_session bigint, o_seq bigint, o_dead boolean) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE sid bigint[]; t timestamptz := clock_timestamp(); r record;
BEGIN
  UPDATE workers SET lost = true, lost_at = t WHERE worker_id IN (
    SELECT worker_id FROM workers WHERE NOT lost AND lease_until < t ORDER BY worker_id FOR UPDATE SKIP LOCKED);
  sid := ARRAY(SELECT DISTINCT s.session_id FROM workers w JOIN slots x ON x.worker_id = w.worker_id JOIN sessions s ON s.session_id = x.session_id
               WHERE w.lost AND w.lost_at > t - interval '10 minutes' AND s.state = 2 AND s.worker_id = w.worker_id);
  IF cardinality(sid) = 0 THEN RETURN; END IF;
  PERFORM 1 FROM sessions WHERE session_id = ANY(sid) ORDER BY session_id FOR NO KEY UPDATE;            -- A: waits for journal/complete
  FOR r IN SELECT s.* FROM sessions s JOIN workers w ON w.worker_id = s.worker_id                       -- B: still leased, still lost
            WHERE s.session_id = ANY(sid) AND s.state = 2 AND w.lost ORDER BY s.session_id LOOP
    o_session := r.session_id; o_seq := r.head_seq; o_dead := r.crashes + 1 >= p_max_crashes;
    IF o_dead THEN
      INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, body) VALUES (r.session_id, r.head_seq, 2147483647, 1, r.epoch, 3, 4, p_notice);
      INSERT INTO dead_turns(session_id, seq, reason) VALUES (r.session_id, r.head_seq, 'crashed');
      PERFORM enqueue(q.lane_id, q.session_id, q.seq, p_notice) FROM turns q
        WHERE q.session_id = r.session_id AND q.seq = r.head_seq AND q.lane_id IS NOT NULL;
    END IF;
    UPDATE sessions SET epoch = epoch + 1, worker_id = NULL, deadline = NULL, crashes = CASE WHEN o_dead THEN 0 ELSE crashes + 1 END,
           head_seq = head_seq + o_dead::int, state = CASE WHEN o_dead AND tail_seq = head_seq THEN 0 ELSE 1 END WHERE session_id = r.session_id;
    IF NOT o_dead OR r.tail_seq > r.head_seq THEN
      -- The first crash is tried again at once: a worker that died with the machine says nothing about the turn.
      INSERT INTO ready(session_id, agent_no, ready_at) VALUES (r.session_id, r.agent_no,
        CASE WHEN o_dead OR r.crashes = 0 THEN t ELSE t + interval '1 second' * power(2, r.crashes) * (0.5 + random()/2) END);
    END IF;
    IF o_dead AND r.successor IS NOT NULL THEN PERFORM release_successors(ARRAY[r.session_id]); END IF;
    RETURN NEXT;
  END LOOP;
END $$;

-- Ends the waiting turns of removed agents with a notice each. Running ones finish first and bring their session here.
CREATE FUNCTION cancel_removed(p_notice bytea) RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE sid bigint[]; r record; n bigint := 0;
BEGIN
  sid := ARRAY(SELECT x.session_id FROM ready x JOIN agents a USING (agent_no) WHERE a.removed_at IS NOT NULL
               ORDER BY x.session_id LIMIT 256 FOR UPDATE OF x SKIP LOCKED);
  IF cardinality(sid) = 0 THEN RETURN 0; END IF;
  DELETE FROM ready WHERE session_id = ANY(sid);
  PERFORM 1 FROM sessions WHERE session_id = ANY(sid) ORDER BY session_id FOR NO KEY UPDATE;
  FOR r IN SELECT q.session_id, q.seq, q.lane_id, s.epoch FROM sessions s JOIN turns q ON q.session_id = s.session_id AND q.seq BETWEEN s.head_seq AND s.tail_seq
            WHERE s.session_id = ANY(sid) ORDER BY q.session_id, q.seq LOOP
    INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, body) VALUES (r.session_id, r.seq, 2147483647, 1, r.epoch, 3, 5, p_notice);
    IF r.lane_id IS NOT NULL THEN PERFORM enqueue(r.lane_id, r.session_id, r.seq, p_notice); END IF;
    n := n + 1;
  END LOOP;
  UPDATE sessions SET head_seq = tail_seq + 1, state = 0, crashes = 0, epoch = epoch + 1, worker_id = NULL WHERE session_id = ANY(sid);
  PERFORM release_successors(sid);
  RETURN n;
END $$;

-- A worker process registered anew (its stream broke, or another replica took it): what its older, still live registrations
-- hold moves to the new one under the same fence, so that running turns go on. What finds no slot is reclaimed.
CREATE FUNCTION adopt(p_worker bigint, p_identity text) RETURNS TABLE (o_worker bigint, o_slot smallint, o_session bigint, o_seq bigint,
    o_epoch bigint, o_crashes smallint, o_key text, o_lane bigint, o_payload bytea, o_trace text, o_created timestamptz) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE old bigint[]; sid bigint[]; t timestamptz := clock_timestamp();
BEGIN
  WITH w AS (UPDATE workers SET lost = true, lost_at = t WHERE worker_id IN (
      SELECT worker_id FROM workers WHERE identity = p_identity AND worker_id <> p_worker AND NOT lost AND lease_until > t
       ORDER BY worker_id FOR UPDATE) RETURNING worker_id)
  SELECT array_agg(worker_id) INTO old FROM w;
  IF old IS NULL THEN RETURN; END IF;
  sid := ARRAY(SELECT DISTINCT s.session_id FROM slots x JOIN sessions s ON s.session_id = x.session_id
               WHERE x.worker_id = ANY(old) AND s.state = 2 AND s.worker_id = ANY(old));
  PERFORM 1 FROM sessions WHERE session_id = ANY(sid) ORDER BY session_id FOR NO KEY UPDATE;            -- A
  WITH m AS (SELECT s.session_id, row_number() OVER (ORDER BY s.session_id) AS rn FROM sessions s                    -- B
              WHERE s.session_id = ANY(sid) AND s.state = 2 AND s.worker_id = ANY(old)),
   f AS (SELECT m.session_id, x.slot FROM m JOIN slots x ON x.worker_id = p_worker AND x.slot = m.rn),
   u AS (UPDATE sessions s SET worker_id = p_worker FROM f WHERE s.session_id = f.session_id)
  UPDATE slots x SET session_id = f.session_id FROM f WHERE x.worker_id = p_worker AND x.slot = f.slot;
  RETURN QUERY SELECT * FROM assigned(ARRAY[p_worker]);
END $$;
