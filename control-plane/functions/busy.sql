-- What is asked of a running turn: to stop, to give way, to take in what was said meanwhile.

-- The head of a session whose lock the caller holds ends as cancelled; its chat is told p_notice, where there is one.
CREATE FUNCTION cancel_head(p_session bigint, p_notice bytea) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r sessions; more boolean; t timestamptz := clock_timestamp();
BEGIN
  SELECT * INTO r FROM sessions WHERE session_id = p_session;
  more := r.tail_seq > r.head_seq + r.absorbed;
  IF r.state = 1 THEN
    -- A claim locks the row of `ready` first and the session next: it must not be waited for with the session in hand.
    PERFORM 1 FROM ready WHERE session_id = r.session_id FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN RAISE serialization_failure USING MESSAGE = 'the session is being claimed, repeat the call'; END IF;
  END IF;
  INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, body) VALUES (r.session_id, r.head_seq, 2147483647, 1, r.epoch, 3, 5, coalesce(p_notice, ''));
  -- Without a notice there is nothing to say, unless its chat shows a part of an answer that must be brought to an end.
  PERFORM enqueue(q.lane_id, q.session_id, q.seq, coalesce(p_notice, '')) FROM turns q
    WHERE q.session_id = r.session_id AND q.seq = r.head_seq AND q.lane_id IS NOT NULL
      AND (p_notice IS NOT NULL OR EXISTS (SELECT 1 FROM previews p WHERE p.session_id = q.session_id AND p.seq = q.seq));
  UPDATE sessions SET epoch = epoch + 1, worker_id = CASE WHEN r.state = 2 THEN NULL ELSE worker_id END, deadline = NULL, crashes = 0, updated_at = t,
         head_seq = head_seq + 1 + absorbed, absorbed = 0, state = CASE WHEN r.state = 3 THEN 3 WHEN more THEN 1 ELSE 0 END
   WHERE session_id = r.session_id;
  -- A waiting session has its row in `ready` already; what is next there need not wait out the last one's backoff, and has no journal.
  IF r.state = 1 AND NOT more THEN
    DELETE FROM ready WHERE session_id = r.session_id;
  ELSIF r.state = 1 THEN
    UPDATE ready SET ready_at = least(ready_at, t), needs = NULL WHERE session_id = r.session_id;
  ELSIF r.state = 2 AND more THEN
    INSERT INTO ready(session_id, agent_no, ready_at) VALUES (r.session_id, r.agent_no, t);
  END IF;
  IF NOT more AND r.successor IS NOT NULL THEN PERFORM release_successors(ARRAY[r.session_id]); END IF;
END $$;

-- Stops the head of a session, or turn p_seq of it if that is the head. o_result: 0 nothing runs or waits there, 1 its worker is told,
-- 2 it had not begun (or waits for another worker) and has ended as cancelled, 3 the turn has ended before, 4 it waits behind another one,
-- 5 it was taken in by the head.
CREATE FUNCTION stop_head(p_session bigint, p_seq bigint, p_notice bytea) RETURNS TABLE (o_result int, o_seq bigint) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE r sessions;
BEGIN
  PERFORM 1 FROM sessions WHERE session_id = p_session FOR NO KEY UPDATE;                               -- A
  SELECT * INTO r FROM sessions WHERE session_id = p_session;                                           -- B
  o_seq := coalesce(p_seq, r.head_seq);
  o_result := CASE WHEN r.session_id IS NULL THEN 0 WHEN o_seq < r.head_seq THEN 3
    WHEN o_seq > r.tail_seq THEN 0 WHEN o_seq > r.head_seq + r.absorbed THEN 4 WHEN o_seq > r.head_seq THEN 5 WHEN r.state = 2 THEN 1 ELSE 2 END;
  IF o_result = 1 THEN
    INSERT INTO turn_signals(session_id, seq, kind) VALUES (p_session, o_seq, 1) ON CONFLICT (session_id, seq) DO UPDATE SET kind = 1;
  ELSIF o_result = 2 THEN
    PERFORM cancel_head(p_session, p_notice);
  END IF;
  RETURN NEXT;
END $$;

-- What is asked of the turns that these workers run; for kind 3 with the next message each may take in. Sweeps what has become void.
CREATE FUNCTION signals(p_workers bigint[]) RETURNS TABLE (o_worker bigint, o_session bigint, o_seq bigint, o_epoch bigint, o_kind smallint,
    o_next bigint, o_payload bytea) LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
  DELETE FROM turn_signals WHERE (session_id, seq) IN (
    SELECT g.session_id, g.seq FROM turn_signals g LEFT JOIN sessions s USING (session_id)
     WHERE s.session_id IS NULL OR s.head_seq > g.seq ORDER BY g.session_id, g.seq LIMIT 256 FOR UPDATE OF g SKIP LOCKED);
  RETURN QUERY SELECT s.worker_id, s.session_id, s.head_seq, s.epoch, g.kind, q.seq, q.payload
    FROM turn_signals g JOIN sessions s ON s.session_id = g.session_id AND s.head_seq = g.seq AND s.state = 2 AND s.worker_id = ANY(p_workers)
    LEFT JOIN turns q ON g.kind = 3 AND q.session_id = s.session_id AND q.seq = s.head_seq + s.absorbed + 1;
END $$;

-- Ends what was asked to stop and cannot say so itself: a turn that lost its worker, and one whose worker does not answer within p_patience_ms.
CREATE FUNCTION settle_signals(p_patience_ms bigint, p_notice bytea) RETURNS TABLE (o_session bigint, o_seq bigint, o_worker bigint, o_epoch bigint)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE sid bigint[]; r record; t timestamptz := clock_timestamp() - p_patience_ms * interval '1 millisecond';
BEGIN
  sid := ARRAY(SELECT g.session_id FROM turn_signals g JOIN sessions s ON s.session_id = g.session_id AND s.head_seq = g.seq
                WHERE g.kind < 3 AND (s.state = 1 OR (s.state = 2 AND g.at < t)) ORDER BY 1 LIMIT 256);
  IF cardinality(sid) = 0 THEN RETURN; END IF;
  PERFORM 1 FROM sessions WHERE session_id = ANY(sid) ORDER BY session_id FOR NO KEY UPDATE;            -- A
  FOR r IN SELECT s.session_id, s.head_seq, s.worker_id, s.epoch, s.state, g.kind FROM sessions s                     -- B
             JOIN turn_signals g ON g.session_id = s.session_id AND g.seq = s.head_seq
            WHERE s.session_id = ANY(sid) AND g.kind < 3 AND (s.state = 1 OR (s.state = 2 AND g.at < t)) ORDER BY s.session_id LOOP
    o_session := r.session_id; o_seq := r.head_seq; o_epoch := r.epoch; o_worker := CASE WHEN r.state = 2 THEN r.worker_id END;
    PERFORM cancel_head(r.session_id, CASE WHEN r.kind = 1 THEN p_notice END);
    RETURN NEXT;
  END LOOP;
END $$;

-- A running turn takes in the queued turn right behind it (and behind those it took in before): one journal row, the queued turn's end and
-- the count on the session, under the fence. 1 stored (now, or before with the same words), 0 fenced, -1 another row is there, 2 that
-- turn cannot be taken in (any more): it is not the next one, or the running turn was asked to stop.
CREATE FUNCTION absorb(p_session bigint, p_epoch bigint, p_seq bigint, p_step int, p_phase smallint, p_absorbs bigint, p_body bytea)
RETURNS int LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r sessions; k turn_steps;
BEGIN
  PERFORM 1 FROM sessions WHERE session_id = p_session FOR NO KEY UPDATE;                               -- A
  SELECT * INTO r FROM sessions WHERE session_id = p_session AND epoch = p_epoch AND state = 2 AND head_seq = p_seq;         -- B
  IF r.session_id IS NULL THEN RETURN 0; END IF;
  SELECT * INTO k FROM turn_steps WHERE session_id = p_session AND seq = p_seq AND step = p_step AND phase = p_phase;
  IF k.session_id IS NOT NULL THEN
    RETURN CASE WHEN k.kind = 6 AND k.idem_key = p_absorbs::text AND k.body IS NOT DISTINCT FROM p_body THEN 1 ELSE -1 END;
  END IF;
  IF p_step = 2147483647 THEN RETURN -1; END IF;
  IF p_absorbs <> r.head_seq + r.absorbed + 1 OR p_absorbs > r.tail_seq
     OR EXISTS (SELECT 1 FROM turn_signals g WHERE g.session_id = p_session AND g.seq = p_seq AND g.kind < 3) THEN RETURN 2; END IF;
  INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, idem_key, body) VALUES (p_session, p_seq, p_step, p_phase, p_epoch, 6, p_absorbs::text, p_body);
  INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, usage)
    VALUES (p_session, p_absorbs, 2147483647, 1, p_epoch, 3, 6, jsonb_build_object('absorbed_by', p_seq));
  UPDATE sessions SET absorbed = absorbed + 1, updated_at = clock_timestamp() WHERE session_id = p_session;
  RETURN 1;
END $$;

-- How much waits, of each agent of which something does: the turns of its waiting sessions (no more than p_most sessions are looked at) and
-- how long the first of them has been due. What waits behind running turns is not counted.
CREATE FUNCTION backlog(p_most bigint) RETURNS TABLE (o_agent int, o_queued bigint, o_oldest_ms bigint) LANGUAGE sql STABLE
SET enable_seqscan = off AS $$
  SELECT a.agent_no, n.queued, greatest(extract(epoch FROM clock_timestamp() - f.ready_at) * 1000, 0)::bigint
    FROM agents a
    CROSS JOIN LATERAL (SELECT r.ready_at FROM ready r WHERE r.agent_no = a.agent_no ORDER BY r.ready_at LIMIT 1) f
    CROSS JOIN LATERAL (SELECT coalesce(sum(s.tail_seq - s.head_seq + 1 - s.absorbed), 0)::bigint AS queued
      FROM (SELECT r.session_id FROM ready r WHERE r.agent_no = a.agent_no ORDER BY r.ready_at LIMIT p_most) w
      JOIN sessions s ON s.session_id = w.session_id) n
$$;
