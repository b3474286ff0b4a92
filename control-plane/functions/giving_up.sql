-- Turns taken from workers that are gone, and turns that nobody will run.

-- The running turn of a session whose lock the caller holds becomes a dead letter: the chat is told, the session moves on.
CREATE FUNCTION bury(p_session bigint, p_reason text, p_notice bytea) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r sessions;
BEGIN
  SELECT * INTO r FROM sessions WHERE session_id = p_session;
  INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, body) VALUES (r.session_id, r.head_seq, 2147483647, 1, r.epoch, 3, 4, p_notice);
  INSERT INTO dead_turns(session_id, seq, reason) VALUES (r.session_id, r.head_seq, p_reason);
  PERFORM enqueue(q.lane_id, q.session_id, q.seq, p_notice) FROM turns q
    WHERE q.session_id = r.session_id AND q.seq = r.head_seq AND q.lane_id IS NOT NULL;
  UPDATE sessions SET epoch = epoch + 1, worker_id = NULL, deadline = NULL, crashes = 0, head_seq = head_seq + 1 + absorbed, absorbed = 0,
         state = CASE WHEN tail_seq = head_seq + absorbed THEN 0 ELSE 1 END WHERE session_id = r.session_id;
  IF r.tail_seq > r.head_seq + r.absorbed THEN
    INSERT INTO ready(session_id, agent_no, ready_at) VALUES (r.session_id, r.agent_no, clock_timestamp());
  ELSIF r.successor IS NOT NULL THEN
    PERFORM release_successors(ARRAY[r.session_id]);
  END IF;
END $$;

-- Gives up running turns for a reason, whatever their workers still do: fenced like a report. Per row: false = it runs no more under
-- that epoch, and nothing was written.
CREATE FUNCTION give_up(p_session bigint[], p_epoch bigint[], p_seq bigint[], p_reason text[], p_notice bytea[])
RETURNS TABLE (o_ord bigint, o_ok boolean) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r record;
BEGIN
  PERFORM 1 FROM sessions WHERE session_id = ANY(p_session) ORDER BY session_id FOR NO KEY UPDATE;      -- A
  FOR r IN SELECT i.* FROM unnest(p_session, p_epoch, p_seq, p_reason, p_notice) WITH ORDINALITY i(sid, epoch, seq, reason, notice, ord) ORDER BY i.sid LOOP
    o_ord := r.ord;                                                                                     -- B, row by row: a row may have moved the next one's
    o_ok := EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = r.sid AND s.epoch = r.epoch AND s.state = 2 AND s.head_seq = r.seq);
    IF o_ok THEN PERFORM bury(r.sid, r.reason, r.notice); END IF;
    RETURN NEXT;
  END LOOP;
END $$;

-- Of a session whose lock the caller holds: its running turn waits again, as if it had never been leased, under a new fence.
-- p_at: when it may be claimed; NULL: at once, before younger turns.
CREATE FUNCTION put_back(p_session bigint, p_at timestamptz, p_crashed int) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
  WITH u AS (UPDATE sessions SET epoch = epoch + 1, worker_id = NULL, deadline = NULL, crashes = crashes + p_crashed, state = 1
              WHERE session_id = p_session RETURNING session_id, agent_no, head_seq)
  INSERT INTO ready(session_id, agent_no, ready_at, needs)
    SELECT u.session_id, u.agent_no, coalesce(p_at, q.created_at),
           CASE WHEN EXISTS (SELECT 1 FROM turn_steps d WHERE d.session_id = u.session_id AND d.seq = u.head_seq) THEN 2 END
      FROM u JOIN turns q ON q.session_id = u.session_id AND q.seq = u.head_seq;
END $$;

-- Turns that their workers give back: they wait again at once, before younger ones, without a crash. Fenced like a report. Per row:
-- false = it runs no more under that epoch, and nothing was written.
CREATE FUNCTION release_batch(p_session bigint[], p_epoch bigint[], p_seq bigint[]) RETURNS TABLE (o_ord bigint, o_ok boolean)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r record;
BEGIN
  PERFORM 1 FROM sessions WHERE session_id = ANY(p_session) ORDER BY session_id FOR NO KEY UPDATE;      -- A
  FOR r IN SELECT i.* FROM unnest(p_session, p_epoch, p_seq) WITH ORDINALITY i(sid, epoch, seq, ord) ORDER BY i.sid, i.ord LOOP
    o_ord := r.ord;                                                                                     -- B
    o_ok := EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = r.sid AND s.epoch = r.epoch AND s.state = 2 AND s.head_seq = r.seq);
    IF o_ok THEN PERFORM put_back(r.sid, NULL, 0); END IF;
    RETURN NEXT;
  END LOOP;
END $$;

-- A lease lapses because its worker is silent, or because nobody was there to renew it: the clock jumped, the database stood still, every
-- replica was away. The second is so where no replica has polled for a fifth of a lease; then workers whose lease is over, or nearly, are
-- only suspected: whoever is heard of within one more lease goes on. Ask before the caller's own lease is renewed. One caller at a time,
-- because polls that suspected each other's workers would wait in a circle.
CREATE FUNCTION suspect(p_ttl_ms bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE t timestamptz := clock_timestamp(); ttl interval := p_ttl_ms * interval '1 millisecond';
BEGIN
  IF EXISTS (SELECT 1 FROM workers WHERE NOT lost AND suspected_at IS NULL AND lease_until < t + ttl / 5)
     AND NOT EXISTS (SELECT 1 FROM replicas WHERE lost_at IS NULL AND lease_until > t + ttl * 4 / 5) THEN
    PERFORM pg_advisory_xact_lock(hashtext('hermes.suspect'));
    UPDATE workers SET suspected_at = t WHERE worker_id IN (
      SELECT worker_id FROM workers WHERE NOT lost AND suspected_at IS NULL AND lease_until < t + ttl / 5 ORDER BY worker_id FOR UPDATE);
  END IF;
END $$;

-- Takes back what lost workers hold. Driven by state, not by the edge "has just been lost": a worker stays under watch for 10 minutes, so a
-- lease that slipped in while it was being marked is taken back on the next tick. The p_max_crashes-th crash of a head turn: dead letter,
-- notice into the outbox and the session moves on, in this same transaction. A worker that left in order crashed nothing.
CREATE FUNCTION reclaim(p_max_crashes int, p_notice bytea, p_ttl_ms bigint) RETURNS TABLE (o_session bigint, o_seq bigint, o_dead boolean) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE sid bigint[]; t timestamptz := clock_timestamp(); r record;
BEGIN
  PERFORM suspect(p_ttl_ms);
  UPDATE workers SET lost = true, lost_at = t WHERE worker_id IN (
    SELECT worker_id FROM workers WHERE NOT lost AND lease_until < t AND (suspected_at IS NULL OR suspected_at < t - p_ttl_ms * interval '1 millisecond')
     ORDER BY worker_id FOR UPDATE SKIP LOCKED);
  sid := ARRAY(SELECT DISTINCT s.session_id FROM workers w JOIN slots x ON x.worker_id = w.worker_id JOIN sessions s ON s.session_id = x.session_id
               WHERE w.lost AND w.lost_at > t - interval '10 minutes' AND s.state = 2 AND s.worker_id = w.worker_id);
  IF cardinality(sid) = 0 THEN RETURN; END IF;
  PERFORM 1 FROM sessions WHERE session_id = ANY(sid) ORDER BY session_id FOR NO KEY UPDATE;            -- A: waits for journal/complete
  FOR r IN SELECT s.*, w.left_in_order FROM sessions s JOIN workers w ON w.worker_id = s.worker_id                       -- B: still leased, still lost
            WHERE s.session_id = ANY(sid) AND s.state = 2 AND w.lost ORDER BY s.session_id LOOP
    o_session := r.session_id; o_seq := r.head_seq; o_dead := NOT r.left_in_order AND r.crashes + 1 >= p_max_crashes;
    IF o_dead THEN
      PERFORM bury(r.session_id, 'crashed', p_notice);
    ELSIF r.left_in_order THEN
      PERFORM put_back(r.session_id, NULL, 0);
    ELSE
      -- The first crash is tried again at once: a worker that died with the machine says nothing about the turn.
      PERFORM put_back(r.session_id, CASE WHEN r.crashes = 0 THEN t ELSE t + interval '1 second' * power(2, r.crashes) * (0.5 + random()/2) END, 1);
    END IF;
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
            WHERE s.session_id = ANY(sid) AND (q.seq = s.head_seq OR q.seq > s.head_seq + s.absorbed) ORDER BY q.session_id, q.seq LOOP
    INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, body) VALUES (r.session_id, r.seq, 2147483647, 1, r.epoch, 3, 5, p_notice);
    IF r.lane_id IS NOT NULL THEN PERFORM enqueue(r.lane_id, r.session_id, r.seq, p_notice); END IF;
    n := n + 1;
  END LOOP;
  UPDATE sessions SET head_seq = tail_seq + 1, absorbed = 0, state = 0, crashes = 0, epoch = epoch + 1, worker_id = NULL WHERE session_id = ANY(sid);
  PERFORM release_successors(sid);
  RETURN n;
END $$;

-- After a restore: what was handed out since the backup is forgotten here and must never look valid again. No lease survives, every fence
-- and every number that is handed out jumps beyond what the lost time can have used, and what waits to be delivered may have been.
CREATE FUNCTION fence_all() RETURNS TABLE (o_sessions bigint, o_workers bigint) LANGUAGE plpgsql AS $$
DECLARE t timestamptz := clock_timestamp();
BEGIN
  UPDATE workers SET lost = true, lost_at = t WHERE NOT lost;
  GET DIAGNOSTICS o_workers = ROW_COUNT;
  UPDATE replicas SET lost_at = t WHERE lost_at IS NULL;
  INSERT INTO ready(session_id, agent_no, ready_at, needs)
    SELECT s.session_id, s.agent_no, q.created_at,
           CASE WHEN EXISTS (SELECT 1 FROM turn_steps d WHERE d.session_id = s.session_id AND d.seq = s.head_seq) THEN 2 END
      FROM sessions s JOIN turns q ON q.session_id = s.session_id AND q.seq = s.head_seq WHERE s.state = 2;
  UPDATE sessions SET epoch = epoch + 4294967296, worker_id = NULL, deadline = NULL, state = CASE state WHEN 2 THEN 1 ELSE state END;
  GET DIAGNOSTICS o_sessions = ROW_COUNT;
  UPDATE outbox SET maybe_dup = true;
  PERFORM setval('registrations', nextval('registrations') + 1000000), setval('replica_ids', nextval('replica_ids') + 1000000),
          setval('session_ids', nextval('session_ids') + 1000000000), setval('outbox_positions', nextval('outbox_positions') + 1000000000);
  RETURN NEXT;
END $$;
