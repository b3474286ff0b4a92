-- Workers and replicas: registration, the poll, what workers hold.

CREATE FUNCTION register_worker(p_agent int, p_replica bigint, p_identity text, p_pid bigint, p_home text, p_slots int, p_protocol int, p_build text,
    p_ttl_ms bigint) RETURNS bigint LANGUAGE sql AS $$
  WITH w AS (INSERT INTO workers(worker_id, agent_no, replica_id, identity, pid, home, slots, protocol, build, lease_until)
             VALUES (nextval('registrations'), p_agent, p_replica, p_identity, p_pid, p_home, p_slots, p_protocol, p_build,
                     clock_timestamp() + p_ttl_ms * interval '1 millisecond')
             RETURNING worker_id),
   s AS (INSERT INTO slots(worker_id, slot) SELECT w.worker_id, g FROM w, generate_series(1, p_slots) g)
  SELECT worker_id FROM w $$;

-- The one statement an idle replica sends, every second: renews its own lease, those of the workers that were heard of and those of
-- the accounts it receives for, and answers for all loops. o_alive: the workers whose lease still holds (an expired one cannot be
-- revived, unless it expired while nobody polled and is only suspected). o_draining: workers of this replica that somebody wants to part with,
-- and o_grace_ms what is left to each. p_want: accounts it could receive for; with p_leave it does not (any more) and gives up what it
-- has. o_cron_ms: how long until a job is due; o_cron_open: some of their runs go on. o_have: places in p_want of the accounts it may receive for, o_left_ms until when. o_live: replicas that live.
CREATE FUNCTION poll(p_replica bigint, p_workers bigint[], p_ttl_ms bigint, p_platform text[] DEFAULT '{}', p_want text[] DEFAULT '{}',
    p_leave boolean[] DEFAULT '{}', p_state text[] DEFAULT '{}', p_detail text[] DEFAULT '{}', p_silent_ms bigint[] DEFAULT '{}')
RETURNS TABLE (o_now timestamptz, o_version bigint, o_alive bigint[], o_ready int[], o_outbox boolean, o_lost boolean, o_removed boolean,
    o_homes bigint, o_draining bigint[], o_grace_ms bigint[], o_live bigint, o_have int[], o_epoch bigint[], o_left_ms bigint[],
    o_signals boolean, o_forsaken boolean, o_cron_ms bigint, o_cron_open boolean)
LANGUAGE plpgsql AS $$
DECLARE t timestamptz := clock_timestamp(); ttl interval := p_ttl_ms * interval '1 millisecond'; alive bigint[]; live bigint;
  have int[]; epochs bigint[]; lefts bigint[];
BEGIN
  PERFORM suspect(p_ttl_ms);
  INSERT INTO replicas(replica_id, lease_until) VALUES (p_replica, t + ttl)
    ON CONFLICT (replica_id) DO UPDATE SET lease_until = excluded.lease_until, lost_at = NULL;
  -- One that is polling right now is late and not lost; waiting for it could be waiting for each other.
  UPDATE replicas SET lost_at = t WHERE replica_id IN (
    SELECT replica_id FROM replicas WHERE lost_at IS NULL AND lease_until < t FOR UPDATE SKIP LOCKED);
  IF cardinality(p_workers) > 0 THEN
    PERFORM 1 FROM workers WHERE worker_id = ANY(p_workers) ORDER BY worker_id FOR NO KEY UPDATE;
    WITH u AS (UPDATE workers SET lease_until = t + ttl, suspected_at = NULL
                WHERE worker_id = ANY(p_workers) AND NOT lost AND (lease_until > t OR suspected_at IS NOT NULL) RETURNING worker_id)
    SELECT array_agg(worker_id) INTO alive FROM u;
  END IF;
  live := (SELECT count(*) FROM replicas WHERE lost_at IS NULL AND lease_until > t);
  IF cardinality(p_want) > 0 THEN
    -- Renewed when a third of it is gone or there is news; given up at once.
    UPDATE account_leases l SET lease_until = CASE WHEN i.leave THEN t ELSE t + ttl END, state = i.state, detail = i.detail,
           heard_at = CASE WHEN i.silent < 0 THEN l.heard_at ELSE t - i.silent * interval '1 millisecond' END
      FROM unnest(p_platform, p_want, p_leave, p_state, p_detail, p_silent_ms) i(platform, account, leave, state, detail, silent)
     WHERE l.platform = i.platform AND l.account = i.account AND l.replica_id = p_replica AND l.lease_until > t
       AND (i.leave OR l.lease_until < t + ttl * 2 / 3 OR l.state <> i.state OR l.detail <> i.detail);
    PERFORM take_accounts(p_replica, p_platform, p_want, p_leave, live, t, ttl);
    SELECT array_agg(i.ord::int ORDER BY i.ord), array_agg(l.epoch ORDER BY i.ord),
           array_agg((extract(epoch FROM l.lease_until - t) * 1000)::bigint ORDER BY i.ord) INTO have, epochs, lefts
      FROM unnest(p_platform, p_want) WITH ORDINALITY i(platform, account, ord)
      JOIN account_leases l USING (platform, account) WHERE l.replica_id = p_replica AND l.lease_until > t;
  END IF;
  RETURN QUERY SELECT t, (SELECT version FROM documents), coalesce(alive, '{}'),
    ARRAY(SELECT a.agent_no FROM agents a WHERE EXISTS (SELECT 1 FROM ready r WHERE r.agent_no = a.agent_no AND r.ready_at <= t)),
    EXISTS (SELECT 1 FROM outbox o WHERE o.head AND o.state = 3 AND o.next_at <= t) OR EXISTS (SELECT 1 FROM replicas WHERE lost_at > t - interval '10 minutes'),
    EXISTS (SELECT 1 FROM workers WHERE (NOT lost AND lease_until < t) OR (lost AND lost_at > t - interval '10 minutes')),
    EXISTS (SELECT 1 FROM ready r JOIN agents a USING (agent_no) WHERE a.removed_at IS NOT NULL),
    (SELECT coalesce(sum(home_version), 0)::bigint FROM agents), d.workers, d.grace_ms,
    live, coalesce(have, '{}'), coalesce(epochs, '{}'), coalesce(lefts, '{}'), EXISTS (SELECT 1 FROM turn_signals),
    EXISTS (SELECT 1 FROM asks x LEFT JOIN sessions s ON s.session_id = x.session_id
             WHERE NOT x.settled AND (x.done OR s.session_id IS NULL OR s.head_seq > x.seq OR x.wait_until < t - interval '10 seconds')),
    (SELECT greatest(0, extract(epoch FROM min(j.due_at) - t) * 1000)::bigint FROM cron_jobs j WHERE j.due_at IS NOT NULL),
    EXISTS (SELECT 1 FROM cron_runs c WHERE c.state IN (0, 1) OR c.mirrors)
    FROM (SELECT coalesce(array_agg(worker_id ORDER BY worker_id), '{}') AS workers, coalesce(array_agg(
            greatest(0, extract(epoch FROM drain_until - t) * 1000)::bigint ORDER BY worker_id), '{}') AS grace_ms
            FROM workers WHERE replica_id = p_replica AND drain_until IS NOT NULL AND NOT lost) d;
END $$;

-- Takes accounts that nobody has, in no order, up to this replica's even share; beyond it only what nobody took for a third of a
-- lease (the others may lack its secret). The old holder stops by its own clock before its lease ends.
CREATE FUNCTION take_accounts(p_replica bigint, p_platform text[], p_want text[], p_leave boolean[], p_live bigint, t timestamptz, ttl interval)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE room bigint;
BEGIN
  INSERT INTO account_leases(platform, account, lease_until, heard_at)
    SELECT i.platform, i.account, t, t FROM unnest(p_platform, p_want, p_leave) i(platform, account, leave)
     WHERE NOT i.leave AND NOT EXISTS (SELECT 1 FROM account_leases l WHERE l.platform = i.platform AND l.account = i.account)
     ORDER BY 1, 2 ON CONFLICT DO NOTHING;
  room := (SELECT (count(*) + p_live - 1) / greatest(p_live, 1) FROM unnest(p_leave) i(leave) WHERE NOT leave)
        - (SELECT count(*) FROM account_leases l WHERE l.replica_id = p_replica AND l.lease_until > t);
  WITH free AS (SELECT l.platform, l.account, l.lease_until FROM account_leases l
         JOIN unnest(p_platform, p_want, p_leave) i(platform, account, leave) ON i.platform = l.platform AND i.account = l.account AND NOT i.leave
        WHERE l.lease_until <= t ORDER BY random() FOR UPDATE OF l SKIP LOCKED),
   n AS (SELECT f.*, row_number() OVER () AS rn FROM free f)
  UPDATE account_leases l SET replica_id = p_replica, epoch = l.epoch + 1, lease_until = t + ttl,
         state = 'down', detail = 'taking over'
    FROM n WHERE l.platform = n.platform AND l.account = n.account AND (n.rn <= room OR n.lease_until < t - ttl / 3);
END $$;

-- What these workers hold; asked after a lease whose answer was lost. The worker ignores a (session, epoch) it already has.
-- o_left_ms: what is left until the turn's deadline.
CREATE FUNCTION assigned(p_workers bigint[]) RETURNS TABLE (o_worker bigint, o_slot smallint, o_session bigint, o_seq bigint, o_epoch bigint,
    o_crashes smallint, o_key text, o_lane bigint, o_payload bytea, o_trace text, o_created timestamptz, o_journal bigint, o_left_ms bigint,
    o_rewinds int, o_model text)
LANGUAGE sql STABLE AS $$
  SELECT s.worker_id, x.slot, s.session_id, s.head_seq, s.epoch, s.crashes, s.session_key, q.lane_id, q.payload, q.traceparent, q.created_at,
         (SELECT count(*) FROM turn_steps t WHERE t.session_id = s.session_id AND t.seq = s.head_seq),
         greatest(0, extract(epoch FROM s.deadline - clock_timestamp()) * 1000)::bigint, s.rewinds, s.model
    FROM slots x JOIN sessions s ON s.session_id = x.session_id AND s.state = 2 AND s.worker_id = x.worker_id
    JOIN turns q ON q.session_id = s.session_id AND q.seq = s.head_seq WHERE x.worker_id = ANY(p_workers)
$$;

-- A worker process registered anew (its stream broke, or another replica took it): what its older, still live registrations
-- hold moves to the new one under the same fence, so that running turns go on. What finds no slot is reclaimed. A process that
-- somebody wants to part with stays so, whichever replica it comes to.
CREATE FUNCTION adopt(p_worker bigint, p_identity text) RETURNS TABLE (o_worker bigint, o_slot smallint, o_session bigint, o_seq bigint,
    o_epoch bigint, o_crashes smallint, o_key text, o_lane bigint, o_payload bytea, o_trace text, o_created timestamptz, o_journal bigint, o_left_ms bigint,
    o_rewinds int, o_model text)
LANGUAGE plpgsql
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
