-- Deliveries: recorded, taken up again, added from outside a turn's completion.

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
