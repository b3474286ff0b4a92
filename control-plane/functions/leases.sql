-- Workers and replicas: registration, the poll, what workers hold.

CREATE FUNCTION register_worker(p_agent int, p_replica bigint, p_identity text, p_pid bigint, p_home text, p_slots int, p_protocol int, p_build text,
    p_ttl_ms bigint) RETURNS bigint LANGUAGE sql AS $$
  WITH w AS (INSERT INTO workers(worker_id, agent_no, replica_id, identity, pid, home, slots, protocol, build, lease_until)
             VALUES (nextval('registrations'), p_agent, p_replica, p_identity, p_pid, p_home, p_slots, p_protocol, p_build,
                     clock_timestamp() + p_ttl_ms * interval '1 millisecond')
             RETURNING worker_id),
   s AS (INSERT INTO slots(worker_id, slot) SELECT w.worker_id, g FROM w, generate_series(1, p_slots) g)
  SELECT worker_id FROM w $$;

-- The one statement an idle replica sends, every second: renews its own lease and those of the workers that were heard of,
-- and answers for all loops. o_alive: the workers whose lease still holds (an expired one cannot be revived, unless it expired in
-- a storm and is only suspected). o_draining: workers of this replica that somebody wants to part with, and o_grace_ms what is left to each.
CREATE FUNCTION poll(p_replica bigint, p_workers bigint[], p_ttl_ms bigint)
RETURNS TABLE (o_now timestamptz, o_version bigint, o_alive bigint[], o_ready int[], o_outbox boolean, o_lost boolean, o_removed boolean,
    o_homes bigint, o_draining bigint[], o_grace_ms bigint[])
LANGUAGE plpgsql AS $$
DECLARE t timestamptz := clock_timestamp(); alive bigint[];
BEGIN
  INSERT INTO replicas(replica_id, lease_until) VALUES (p_replica, t + p_ttl_ms * interval '1 millisecond')
    ON CONFLICT (replica_id) DO UPDATE SET lease_until = excluded.lease_until, lost_at = NULL;
  -- One that is polling right now is late and not lost; waiting for it could be waiting for each other.
  UPDATE replicas SET lost_at = t WHERE replica_id IN (
    SELECT replica_id FROM replicas WHERE lost_at IS NULL AND lease_until < t FOR UPDATE SKIP LOCKED);
  PERFORM suspect();
  IF cardinality(p_workers) > 0 THEN
    PERFORM 1 FROM workers WHERE worker_id = ANY(p_workers) ORDER BY worker_id FOR NO KEY UPDATE;
    WITH u AS (UPDATE workers SET lease_until = t + p_ttl_ms * interval '1 millisecond', suspected_at = NULL
                WHERE worker_id = ANY(p_workers) AND NOT lost AND (lease_until > t OR suspected_at IS NOT NULL) RETURNING worker_id)
    SELECT array_agg(worker_id) INTO alive FROM u;
  END IF;
  RETURN QUERY SELECT t, (SELECT version FROM documents), coalesce(alive, '{}'),
    ARRAY(SELECT a.agent_no FROM agents a WHERE EXISTS (SELECT 1 FROM ready r WHERE r.agent_no = a.agent_no AND r.ready_at <= t)),
    EXISTS (SELECT 1 FROM outbox o WHERE o.head AND o.state = 3 AND o.next_at <= t) OR EXISTS (SELECT 1 FROM replicas WHERE lost_at IS NOT NULL),
    EXISTS (SELECT 1 FROM workers WHERE (NOT lost AND lease_until < t) OR (lost AND lost_at > t - interval '10 minutes')),
    EXISTS (SELECT 1 FROM ready r JOIN agents a USING (agent_no) WHERE a.removed_at IS NOT NULL),
    (SELECT coalesce(sum(home_version), 0)::bigint FROM agents), d.workers, d.grace_ms
    FROM (SELECT coalesce(array_agg(worker_id ORDER BY worker_id), '{}') AS workers, coalesce(array_agg(
            greatest(0, extract(epoch FROM drain_until - t) * 1000)::bigint ORDER BY worker_id), '{}') AS grace_ms
            FROM workers WHERE replica_id = p_replica AND drain_until IS NOT NULL AND NOT lost) d;
END $$;

-- What these workers hold; asked after a lease whose answer was lost. The worker ignores a (session, epoch) it already has.
-- o_left_ms: what is left until the turn's deadline.
CREATE FUNCTION assigned(p_workers bigint[]) RETURNS TABLE (o_worker bigint, o_slot smallint, o_session bigint, o_seq bigint, o_epoch bigint,
    o_crashes smallint, o_key text, o_lane bigint, o_payload bytea, o_trace text, o_created timestamptz, o_left_ms bigint) LANGUAGE sql STABLE AS $$
  SELECT s.worker_id, x.slot, s.session_id, s.head_seq, s.epoch, s.crashes, s.session_key, q.lane_id, q.payload, q.traceparent, q.created_at,
         greatest(0, extract(epoch FROM s.deadline - clock_timestamp()) * 1000)::bigint
    FROM slots x JOIN sessions s ON s.session_id = x.session_id AND s.state = 2 AND s.worker_id = x.worker_id
    JOIN turns q ON q.session_id = s.session_id AND q.seq = s.head_seq WHERE x.worker_id = ANY(p_workers)
$$;

-- A worker process registered anew (its stream broke, or another replica took it): what its older, still live registrations
-- hold moves to the new one under the same fence, so that running turns go on. What finds no slot is reclaimed. A process that
-- somebody wants to part with stays so, whichever replica it comes to.
CREATE FUNCTION adopt(p_worker bigint, p_identity text) RETURNS TABLE (o_worker bigint, o_slot smallint, o_session bigint, o_seq bigint,
    o_epoch bigint, o_crashes smallint, o_key text, o_lane bigint, o_payload bytea, o_trace text, o_created timestamptz, o_left_ms bigint) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE old bigint[]; sid bigint[]; t timestamptz := clock_timestamp();
BEGIN
  WITH w AS (UPDATE workers SET lost = true, lost_at = t WHERE worker_id IN (
      SELECT worker_id FROM workers WHERE identity = p_identity AND worker_id <> p_worker AND NOT lost AND (lease_until > t OR suspected_at IS NOT NULL)
       ORDER BY worker_id FOR UPDATE) RETURNING worker_id)
  SELECT array_agg(worker_id) INTO old FROM w;
  UPDATE workers n SET draining = true, drain_until = o.until
    FROM (SELECT max(drain_until) AS until FROM workers WHERE identity = p_identity AND worker_id <> p_worker) o
   WHERE n.worker_id = p_worker AND o.until IS NOT NULL;
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
