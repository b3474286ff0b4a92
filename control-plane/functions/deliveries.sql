-- Deliveries: recorded, taken up again, added from outside a turn's completion.

-- Why a delivery of this turn would find nobody: the chat died after the turn was accepted, and nothing has arrived there since. NULL: send it.
CREATE FUNCTION lane_gone(p_lane bigint, p_session bigint, p_seq bigint) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT coalesce(l.dead_reason, '') FROM lanes l WHERE l.lane_id = p_lane AND l.dead_since IS NOT NULL
     AND (SELECT q.created_at FROM turns q WHERE q.session_id = p_session AND q.seq = p_seq) <= l.dead_since
     AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.lane_id = l.lane_id AND d.state = 2 AND d.at > l.dead_since)
$$;

-- p_result: 2 delivered, 8 delivered where the lane was marked dead (the mark goes), 4 dead, 7 dead because the chat is gone (the lane is
-- marked; p_delay_ms = how long ago the attempt began), 3 retry after p_delay_ms, 6 the same without counting a failure, 9 parked until
-- the account p_msg is back, 5 the first p_part parts arrived and it goes on. Fence: owner + attempt.
-- When a delivery ends, the next one of its lane becomes head and `attempting` by the same replica in the same commit; it is
-- answered with o_pos NOT NULL and may be sent at once. A replica that counts as lost gets none: they are due for whoever lives.
CREATE FUNCTION deliver_batch(p_replica bigint, p_lane bigint[], p_pos bigint[], p_attempt int[], p_result smallint[], p_part int[],
    p_msg text[], p_reason text[], p_dup boolean[], p_delay_ms bigint[])
RETURNS TABLE (o_ord bigint, o_ok boolean, o_lane bigint, o_pos bigint, o_session bigint, o_seq bigint, o_attempt int, o_part int, o_dup boolean,
    o_body bytea, o_failures int, o_trace text, o_gone text) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE ok boolean[]; mo bigint[]; t timestamptz := clock_timestamp(); lost boolean;
BEGIN
  PERFORM 1 FROM outbox WHERE lane_id = ANY(p_lane) AND head ORDER BY lane_id FOR UPDATE;               -- A
  WITH f AS MATERIALIZED (SELECT i.*, o.lane_id IS NOT NULL AND row_number() OVER (PARTITION BY i.lane, i.pos ORDER BY (o.lane_id IS NULL), i.ord) = 1 AS ok,
             i.result IN (2, 4, 7, 8) AS ends, CASE i.result WHEN 7 THEN 4 WHEN 8 THEN 2 ELSE i.result END AS state,
             o.more, o.session_id, o.seq, o.maybe_dup, o.body, o.tid                                    -- B
          FROM unnest(p_lane, p_pos, p_attempt, p_result, p_part, p_msg, p_reason, p_dup, p_delay_ms) WITH ORDINALITY
               i(lane, pos, attempt, result, part, msg, reason, dup, delay, ord)
          LEFT JOIN (SELECT x.ctid AS tid, x.* FROM outbox x WHERE x.lane_id = ANY(p_lane) AND x.head) o   -- ANY: a plain join scans every head
                 ON o.lane_id = i.lane AND o.pos = i.pos AND o.state = 1 AND o.owner = p_replica AND o.attempt = i.attempt),
   d AS (DELETE FROM outbox o USING f WHERE o.ctid = f.tid AND f.ok AND f.ends),                -- by place: locked in A, so it cannot move
   r AS (UPDATE outbox o SET state = CASE WHEN f.result = 5 THEN 1 ELSE 3 END, owner = CASE WHEN f.result = 5 THEN o.owner END,
             attempt = o.attempt + (f.result <> 5)::int, failures = o.failures + (f.result = 3)::int, part = f.part, maybe_dup = f.dup,
             next_at = CASE WHEN f.result = 9 THEN 'infinity' WHEN f.result <> 5 THEN t + f.delay * interval '1 millisecond' END,
             parked = CASE WHEN f.result = 9 THEN f.msg END, cause = f.reason FROM f
          WHERE o.ctid = f.tid AND f.ok AND NOT f.ends),
   e AS (INSERT INTO deliveries(lane_id, pos, session_id, seq, state, attempts, maybe_dup, platform_msg_id, reason, part, body)
          SELECT f.lane, f.pos, f.session_id, f.seq, f.state, f.attempt, f.maybe_dup OR f.dup, f.msg, f.reason, f.part,
                 CASE WHEN f.state = 4 THEN f.body END FROM f WHERE f.ok AND f.ends)
  SELECT array_agg(f.ok ORDER BY f.ord), array_agg(f.lane) FILTER (WHERE f.ok AND f.more AND f.ends) INTO ok, mo FROM f;
  IF p_result && '{7,8}' THEN
    UPDATE lanes l SET dead_since = CASE WHEN i.result = 7 THEN t - i.delay * interval '1 millisecond' END,
           dead_reason = CASE WHEN i.result = 7 THEN i.reason END
      FROM unnest(p_lane, p_result, p_reason, p_delay_ms, ok) i(lane, result, reason, delay, ok) WHERE l.lane_id = i.lane AND i.ok AND i.result IN (7, 8);
  END IF;
  RETURN QUERY SELECT i.ord, i.ok, NULL::bigint, NULL::bigint, NULL::bigint, NULL::bigint, NULL::int, NULL::int, NULL::boolean, NULL::bytea, NULL::int, NULL::text,
      NULL::text FROM unnest(ok) WITH ORDINALITY i(ok, ord) ORDER BY i.ord;
  IF mo IS NOT NULL THEN
    lost := EXISTS (SELECT 1 FROM replicas r WHERE r.replica_id = p_replica AND r.lost_at IS NOT NULL);
    RETURN QUERY WITH n AS MATERIALIZED (SELECT x.lane, (SELECT o.pos FROM outbox o WHERE o.lane_id = x.lane AND NOT o.head ORDER BY o.pos LIMIT 1) AS pos
            FROM unnest(mo) x(lane)),
     u AS (UPDATE outbox o SET head = true, state = CASE WHEN lost THEN 3 ELSE 1 END, more = true, owner = CASE WHEN NOT lost THEN p_replica END,
             next_at = CASE WHEN lost THEN t END FROM n
            WHERE o.lane_id = n.lane AND o.pos = n.pos AND NOT o.head RETURNING o.*)
    SELECT NULL::bigint, NULL::boolean, u.lane_id, u.pos, u.session_id, u.seq, u.attempt, u.part, u.maybe_dup,
           coalesce(u.body, (SELECT s.body FROM turn_steps s WHERE s.session_id = u.session_id AND s.seq = u.seq AND s.step = 2147483647 AND s.phase = 1)), u.failures,
           (SELECT q.traceparent FROM turns q WHERE q.session_id = u.session_id AND q.seq = u.seq),
           CASE WHEN NOT u.redriven THEN lane_gone(u.lane_id, u.session_id, u.seq) END
      FROM u WHERE NOT lost;
  END IF;
END $$;

-- Due retries, and deliveries whose sender is nobody who lives (marked: the platform may have them already). Driven by state: whatever a
-- replica committed in its name, before or after it was lost, is found as long as it is there. Nothing here reads more of the outbox
-- than it takes, plus one entry per owner.
CREATE FUNCTION claim_outbox(p_replica bigint, p_n int)
RETURNS TABLE (o_lane bigint, o_pos bigint, o_session bigint, o_seq bigint, o_attempt int, o_part int, o_dup boolean, o_body bytea, o_failures int, o_trace text,
    o_gone text)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE due bigint[]; gone bigint[];
BEGIN
  due := ARRAY(SELECT o.lane_id FROM outbox o WHERE o.head AND o.state = 3 AND o.next_at <= (SELECT clock_timestamp()) ORDER BY o.next_at LIMIT p_n);
  gone := ARRAY(WITH RECURSIVE w AS (
      (SELECT o.owner FROM outbox o WHERE o.head AND o.state = 1 ORDER BY o.owner LIMIT 1)
      UNION ALL
      SELECT (SELECT o.owner FROM outbox o WHERE o.head AND o.state = 1 AND o.owner > w.owner ORDER BY o.owner LIMIT 1) FROM w WHERE w.owner IS NOT NULL)
    SELECT w.owner FROM w WHERE w.owner IS NOT NULL AND is_orphaned(w.owner, p_replica));
  IF cardinality(gone) > 0 THEN
    due := due || ARRAY(SELECT o.lane_id FROM outbox o WHERE o.head AND o.state = 1 AND o.owner = ANY(gone) LIMIT p_n);
  END IF;
  -- Kept for a day, because its number alone says that it may not hand itself anything any more.
  DELETE FROM replicas WHERE replica_id <> p_replica AND lost_at < clock_timestamp() - interval '1 day';
  RETURN QUERY
  WITH c AS MATERIALIZED (SELECT o.lane_id FROM outbox o WHERE o.lane_id = ANY(due) AND o.head
          AND ((o.state = 3 AND o.next_at <= clock_timestamp()) OR (o.state = 1 AND o.owner = ANY(gone)))
          ORDER BY o.lane_id FOR UPDATE SKIP LOCKED)
  UPDATE outbox o SET maybe_dup = o.maybe_dup OR o.state = 1, attempt = o.attempt + (o.state = 1)::int, failures = o.failures + (o.state = 1)::int,
         state = 1, owner = p_replica, next_at = NULL, parked = NULL
    FROM c WHERE o.lane_id = c.lane_id AND o.head
  RETURNING o.lane_id, o.pos, o.session_id, o.seq, o.attempt, o.part, o.maybe_dup,
            coalesce(o.body, (SELECT s.body FROM turn_steps s WHERE s.session_id = o.session_id AND s.seq = o.seq AND s.step = 2147483647 AND s.phase = 1)),
            o.failures, (SELECT q.traceparent FROM turns q WHERE q.session_id = o.session_id AND q.seq = o.seq),
            CASE WHEN NOT o.redriven THEN lane_gone(o.lane_id, o.session_id, o.seq) END;
END $$;

-- Up to p_n deliveries that wait for one of these accounts (platform/account) are due. Answers how many.
CREATE FUNCTION unpark(p_accounts text[], p_n int) RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE n bigint;
BEGIN
  WITH c AS MATERIALIZED (SELECT o.lane_id FROM outbox o WHERE o.parked = ANY(p_accounts) LIMIT p_n FOR UPDATE SKIP LOCKED)
  UPDATE outbox o SET parked = NULL, next_at = clock_timestamp() FROM c WHERE o.lane_id = c.lane_id AND o.head;
  GET DIAGNOSTICS n = ROW_COUNT;
  RETURN n;
END $$;

-- A dead letter is sent once more: behind what its lane has now, from the first part that did not arrive, marked when an attempt at that
-- part may have arrived. o_what: 1 done (o_pos), 2 it was delivered, 3 it was redriven before (as o_pos), 4 there is none, 5 it is not over.
CREATE FUNCTION redrive(p_lane bigint, p_pos bigint, p_by text) RETURNS TABLE (o_what int, o_pos bigint) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE d deliveries; p bigint; h bigint;
BEGIN
  SELECT * INTO d FROM deliveries WHERE lane_id = p_lane AND pos = p_pos FOR UPDATE;                    -- A
  IF NOT FOUND THEN
    RETURN QUERY SELECT CASE WHEN EXISTS (SELECT 1 FROM outbox o WHERE o.lane_id = p_lane AND o.pos = p_pos) THEN 5 ELSE 4 END, NULL::bigint;
  ELSIF d.state <> 4 THEN
    RETURN QUERY SELECT 2, NULL::bigint;
  ELSIF d.redriven_pos IS NOT NULL THEN
    RETURN QUERY SELECT 3, d.redriven_pos;
  ELSE
    p := nextval('outbox_positions');
    INSERT INTO outbox(lane_id, pos, head, state, next_at, session_id, seq, body, maybe_dup, part, redriven)
      VALUES (p_lane, p, true, 3, clock_timestamp(), d.session_id, d.seq, d.body, d.maybe_dup, d.part, true)
      ON CONFLICT (lane_id) WHERE head DO UPDATE SET more = true RETURNING outbox.pos INTO h;
    IF h <> p THEN
      INSERT INTO outbox(lane_id, pos, head, state, session_id, seq, body, maybe_dup, part, redriven)
        VALUES (p_lane, p, false, 0, d.session_id, d.seq, d.body, d.maybe_dup, d.part, true);
    END IF;
    UPDATE deliveries SET redriven_pos = p, redriven_by = p_by, redriven_at = clock_timestamp() WHERE lane_id = p_lane AND pos = p_pos;
    RETURN QUERY SELECT 1, p;
  END IF;
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
