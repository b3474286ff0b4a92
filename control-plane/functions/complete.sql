-- The end of a turn that its worker reported.

-- A session that was replaced and has run dry lets its successor begin.
CREATE FUNCTION release_successors(p_session bigint[]) RETURNS SETOF int LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r record; t timestamptz := clock_timestamp();
BEGIN
  FOR r IN SELECT n.session_id, n.agent_no, n.head_seq, n.tail_seq, n.successor FROM sessions o JOIN sessions n ON n.session_id = o.successor
            WHERE o.session_id = ANY(p_session) AND o.state = 0 AND n.state = 3 ORDER BY n.session_id FOR NO KEY UPDATE OF n LOOP
    UPDATE sessions SET state = CASE WHEN tail_seq >= head_seq THEN 1 ELSE 0 END WHERE session_id = r.session_id;
    IF r.tail_seq >= r.head_seq THEN
      INSERT INTO ready(session_id, agent_no, ready_at) VALUES (r.session_id, r.agent_no, t);
      RETURN NEXT r.agent_no;
    ELSIF r.successor IS NOT NULL THEN
      -- All it had was cancelled before it could begin.
      RETURN QUERY SELECT release_successors(ARRAY[r.session_id]);
    END IF;
  END LOOP;
END $$;

-- One fenced transaction: final reply + turn end (one row), session advances, delivery enters the outbox. If the lane was
-- idle and p_send[i], the delivery is committed as `attempting` by p_replica here, so it may be sent when this call returns; a replica
-- that counts as lost hands itself nothing: its deliveries are due for whoever lives.
-- p_next[i]: keep the slot and run the session's next turn if there is one (the caller passes true only if nobody waits for the slot);
-- not when the worker has registered with another replica meanwhile and brought the turn along.
-- Per row: ok false = fenced, nothing of that row was written. Repeating a call whose answer was lost gives ok again (the turn was
-- ended by this very epoch) with o_send false; o_pos then names the delivery if it is still `attempting` in p_replica's name.
-- o_send: send it now. o_epoch/o_seq …: the next turn, already leased. o_ready: the session waits in `ready` now.
CREATE FUNCTION complete_batch(p_replica bigint, p_session bigint[], p_epoch bigint[], p_seq bigint[], p_ended smallint[],
    p_reply bytea[], p_usage jsonb[], p_lane bigint[], p_send boolean[], p_next boolean[], p_ttl_ms bigint)
RETURNS TABLE (o_ord bigint, o_ok boolean, o_pos bigint, o_send boolean, o_epoch bigint, o_seq bigint, o_lane bigint, o_payload bytea,
    o_trace text, o_created timestamptz, o_ready boolean, o_rewinds int, o_model text) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE ok boolean[]; ps bigint[]; hd bigint[]; nx bigint[]; rd boolean[]; succ boolean; t timestamptz := clock_timestamp();
  alive boolean := NOT EXISTS (SELECT 1 FROM replicas WHERE replica_id = p_replica AND lost_at IS NOT NULL);
BEGIN
  PERFORM 1 FROM sessions WHERE session_id = ANY(p_session) ORDER BY session_id FOR NO KEY UPDATE;      -- A
  WITH g AS (SELECT i.*, s.agent_no, s.worker_id, s.successor, s.absorbed, s.tail_seq > s.head_seq + s.absorbed AS again, coalesce(k.worker_id IS NOT NULL AND i.nxt, false) AS keep,
             s.session_id IS NOT NULL AND row_number() OVER (PARTITION BY i.sid ORDER BY (s.session_id IS NULL), i.ord) = 1 AS ok     -- B
          FROM unnest(p_session, p_epoch, p_seq, p_ended, p_reply, p_usage, p_lane, p_send, p_next) WITH ORDINALITY
               i(sid, epoch, seq, ended, reply, usage, lane, send, nxt, ord)
          LEFT JOIN sessions s ON s.session_id = i.sid AND s.epoch = i.epoch AND s.state = 2 AND s.head_seq = i.seq
          -- Only a worker of the caller: another replica would never hear that the next turn was leased to its worker.
          LEFT JOIN workers k ON k.worker_id = s.worker_id AND k.replica_id = p_replica AND NOT k.lost AND NOT k.draining AND k.lease_until > t),
   -- An empty reply is no message, unless its chat already shows one that must be brought to an end.
   q AS (SELECT g.*, g.ok AND g.lane IS NOT NULL AND (octet_length(g.reply) > 0
             OR EXISTS (SELECT 1 FROM previews p WHERE p.session_id = g.sid AND p.seq = g.seq)) AS says FROM g),
   f AS MATERIALIZED (SELECT q.*, CASE WHEN q.says THEN nextval('outbox_positions') END AS pos,
             row_number() OVER (PARTITION BY q.lane, q.says ORDER BY q.ord) AS ln, count(*) OVER (PARTITION BY q.lane, q.says) AS lc FROM q),
   u AS (UPDATE sessions s SET head_seq = s.head_seq + 1 + s.absorbed, absorbed = 0, crashes = 0, updated_at = t,
             state = CASE WHEN NOT f.again THEN 0 WHEN f.keep THEN 2 ELSE 1 END,
             epoch = s.epoch + (f.again AND f.keep)::int,
             deadline = CASE WHEN f.again AND f.keep THEN t + p_ttl_ms * interval '1 millisecond' END
          FROM f WHERE s.session_id = f.sid AND f.ok),
   j AS (INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, body, usage)
          SELECT f.sid, f.seq, 2147483647, 1, f.epoch, 1, f.ended, f.reply, f.usage FROM f WHERE f.ok),
   r AS (INSERT INTO ready(session_id, agent_no, ready_at, prefer) SELECT f.sid, f.agent_no, t, f.worker_id FROM f WHERE f.ok AND f.again AND NOT f.keep),
   h AS (INSERT INTO outbox(lane_id, pos, head, state, more, owner, next_at, session_id, seq)
          SELECT f.lane, f.pos, true, CASE WHEN f.send AND alive THEN 1 ELSE 3 END, f.lc > 1, CASE WHEN f.send AND alive THEN p_replica END,
                 CASE WHEN NOT (f.send AND alive) THEN t END, f.sid, f.seq FROM f WHERE f.pos IS NOT NULL AND f.ln = 1 ORDER BY f.lane
          ON CONFLICT (lane_id) WHERE head DO UPDATE SET more = true              -- busy lane: lock its head, so its end sees us
          RETURNING pos)
  SELECT array_agg(f.ok ORDER BY f.ord), array_agg(f.pos ORDER BY f.ord), (SELECT array_agg(h.pos) FROM h),
         array_agg(CASE WHEN f.ok AND f.again AND f.keep THEN f.seq + 1 + f.absorbed END ORDER BY f.ord), array_agg(f.ok AND f.again AND NOT f.keep ORDER BY f.ord),
         bool_or(f.ok AND f.successor IS NOT NULL)
    INTO ok, ps, hd, nx, rd, succ FROM f;
  IF cardinality(array_remove(ps, NULL)) > (SELECT count(*) FROM unnest(ps) x WHERE x = ANY(hd)) THEN
    INSERT INTO outbox(lane_id, pos, head, state, session_id, seq)
      SELECT i.lane, i.pos, false, 0, i.sid, i.seq FROM unnest(ps, p_lane, p_session, p_seq) i(pos, lane, sid, seq)
       WHERE i.pos IS NOT NULL AND NOT i.pos = ANY(hd);
  END IF;
  IF succ THEN PERFORM release_successors(p_session); END IF;
  RETURN QUERY SELECT i.ord, i.ok OR e.epoch IS NOT NULL, coalesce(i.pos, e.pos), coalesce(i.send AND alive AND i.pos = ANY(hd), false),
      CASE WHEN i.nx IS NOT NULL THEN i.ep + 1 END, i.nx, q.lane_id, q.payload, q.traceparent, q.created_at,
      i.rd OR coalesce(succ, false), z.rewinds, z.model
    FROM unnest(ok, ps, p_send, nx, rd, p_epoch, p_seq, p_session, p_lane) WITH ORDINALITY i(ok, pos, send, nx, rd, ep, seq, sid, lane, ord)
    LEFT JOIN turns q ON q.session_id = i.sid AND q.seq = i.nx
    LEFT JOIN sessions z ON i.nx IS NOT NULL AND z.session_id = i.sid
    LEFT JOIN LATERAL (SELECT d.epoch, o.pos FROM turn_steps d LEFT JOIN outbox o ON o.lane_id = i.lane AND o.head AND o.state = 1
           AND o.owner = p_replica AND o.session_id = i.sid AND o.seq = i.seq
         WHERE d.session_id = i.sid AND d.seq = i.seq AND d.step = 2147483647 AND d.phase = 1 AND d.epoch = i.ep AND d.kind = 1) e ON NOT i.ok
   ORDER BY i.ord;
END $$;
