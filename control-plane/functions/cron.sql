-- Scheduled jobs. Their rows are locked first, by number, and with a job's row all that its runs are.

-- What the scheduler found of locked jobs: the runs of the slots that came due, and each job's next slot. A slot that has a run keeps it. What an agent
-- made by itself goes when it runs no more; its history stays for a while.
CREATE FUNCTION cron_fire(p_run_job bigint[], p_slot timestamptz[], p_until timestamptz[], p_slots int[], p_state smallint[], p_reason text[],
    p_job bigint[], p_next timestamptz[], p_due timestamptz[], p_fired int[], p_stopped text[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO cron_runs(job_no, slot, until, slots, state, reason, ended_at)
    SELECT i.job, i.slot, i.until, i.slots, i.state, i.reason, CASE WHEN i.state > 1 THEN clock_timestamp() END
      FROM unnest(p_run_job, p_slot, p_until, p_slots, p_state, p_reason) i(job, slot, until, slots, state, reason) ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
  UPDATE cron_jobs j SET slot = i.next, due_at = i.due, fired = j.fired + i.fired, stopped = coalesce(i.stopped, j.stopped),
         removed_at = CASE WHEN i.stopped IS NOT NULL AND j.by_agent THEN clock_timestamp() ELSE j.removed_at END
    FROM unnest(p_job, p_next, p_due, p_fired, p_stopped) i(job, next, due, fired, stopped) WHERE j.job_no = i.job;
$$;

-- Of locked jobs the runs that may begin: the oldest that waits, of a job without one that runs. o_said: the last answers of the jobs that it
-- builds upon, with their names; NULL for one that is not there or has none.
CREATE FUNCTION cron_waiting(p_job bigint[]) RETURNS TABLE (o_job bigint, o_slot timestamptz, o_id text, o_name text, o_spec jsonb, o_agent int,
    o_removed boolean, o_asked text[], o_said bytea[]) LANGUAGE sql STABLE SET enable_seqscan = off AS $$
  SELECT j.job_no, r.slot, j.job_id, j.name, j.spec, j.agent_no, a.removed_at IS NOT NULL, c.asked, c.said
    FROM cron_jobs j JOIN agents a USING (agent_no)
    CROSS JOIN LATERAL (SELECT w.slot FROM cron_runs w WHERE w.job_no = j.job_no AND w.state = 0 ORDER BY w.slot LIMIT 1) r
    CROSS JOIN LATERAL (
      SELECT array_agg(x.ref ORDER BY x.n) AS asked, array_agg(x.body ORDER BY x.n) AS said
        FROM (SELECT f.ref, f.n, (SELECT e.body FROM cron_jobs k JOIN cron_runs p ON p.job_no = k.job_no AND p.state = 2
                 JOIN turn_steps e ON e.session_id = p.session_id AND e.seq = p.seq AND e.step = 2147483647 AND e.phase = 1
                WHERE k.agent_no = j.agent_no AND k.removed_at IS NULL AND (k.job_id = f.ref OR lower(k.name) = lower(f.ref))
                ORDER BY p.slot DESC LIMIT 1) AS body
                FROM jsonb_array_elements_text(coalesce(j.spec->'context_from', '[]')) WITH ORDINALITY f(ref, n)) x) c
   WHERE j.job_no = ANY(p_job) AND NOT EXISTS (SELECT 1 FROM cron_runs b WHERE b.job_no = j.job_no AND b.state = 1) ORDER BY j.job_no
$$;

-- Runs of locked jobs begin: each is a turn of its job's session from now on. p_fresh: of a new one. p_refused: why it does not begin, and
-- failed. Answers the agents that have something to do.
CREATE FUNCTION cron_begin(p_job bigint[], p_slot timestamptz[], p_key bytea[], p_agent int[], p_skey text[], p_title text[], p_model text[], p_fresh boolean[],
    p_payload bytea[], p_limit_ms bigint[], p_refused text[], p_most bigint, p_ttl_ms bigint)
RETURNS SETOF int LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r record; sid bigint; t timestamptz := clock_timestamp();
BEGIN
  UPDATE cron_runs c SET state = 3, reason = i.refused, ended_at = t
    FROM unnest(p_job, p_slot, p_refused) i(job, slot, refused) WHERE c.job_no = i.job AND c.slot = i.slot AND c.state = 0 AND i.refused IS NOT NULL;
  FOR r IN SELECT i.*, k.session_id FROM unnest(p_agent, p_skey, p_title, p_fresh, p_refused) i(agent, skey, title, fresh, refused)
             LEFT JOIN session_keys k ON k.agent_no = i.agent AND k.session_key = i.skey
            WHERE i.refused IS NULL AND (i.fresh OR k.session_id IS NULL) ORDER BY k.session_id NULLS FIRST, i.skey LOOP
    PERFORM 1 FROM sessions WHERE session_id = r.session_id FOR NO KEY UPDATE;
    PERFORM begin_anew(coalesce(r.session_id, 0), r.agent, r.skey, r.title, NULL);
  END LOOP;
  FOR r IN SELECT i.*, b.o_session, b.o_seq, b.o_full
             FROM ingest_batch(
               ARRAY(SELECT x.v FROM unnest(p_key, p_refused) WITH ORDINALITY x(v, no, n) WHERE x.no IS NULL ORDER BY x.n),
               ARRAY(SELECT NULL::bytea FROM unnest(p_refused) WITH ORDINALITY x(no, n) WHERE x.no IS NULL ORDER BY x.n),
               ARRAY(SELECT x.v FROM unnest(p_agent, p_refused) WITH ORDINALITY x(v, no, n) WHERE x.no IS NULL ORDER BY x.n),
               ARRAY(SELECT x.v FROM unnest(p_skey, p_refused) WITH ORDINALITY x(v, no, n) WHERE x.no IS NULL ORDER BY x.n),
               ARRAY(SELECT NULL::bigint FROM unnest(p_refused) x(no) WHERE x.no IS NULL),
               ARRAY(SELECT x.v FROM unnest(p_payload, p_refused) WITH ORDINALITY x(v, no, n) WHERE x.no IS NULL ORDER BY x.n),
               ARRAY(SELECT NULL::text FROM unnest(p_refused) x(no) WHERE x.no IS NULL),
               ARRAY(SELECT NULL::text FROM unnest(p_refused) x(no) WHERE x.no IS NULL),
               ARRAY(SELECT NULL::bigint FROM unnest(p_refused) x(no) WHERE x.no IS NULL),
               ARRAY(SELECT NULL::smallint FROM unnest(p_refused) x(no) WHERE x.no IS NULL),
               ARRAY(SELECT NULL::timestamptz FROM unnest(p_refused) x(no) WHERE x.no IS NULL),
               ARRAY(SELECT NULL::timestamptz FROM unnest(p_refused) x(no) WHERE x.no IS NULL),
               ARRAY(SELECT 0::smallint FROM unnest(p_refused) x(no) WHERE x.no IS NULL), p_most, p_ttl_ms) b
             JOIN (SELECT x.*, row_number() OVER (ORDER BY x.n) AS ord
                     FROM unnest(p_job, p_slot, p_agent, p_model, p_limit_ms, p_refused) WITH ORDINALITY x(job, slot, agent, model, limit_ms, no, n)
                    WHERE x.no IS NULL) i ON i.ord = b.o_ord LOOP
    UPDATE cron_runs c SET state = CASE WHEN r.o_full THEN 3 ELSE 1 END, session_id = CASE WHEN NOT r.o_full THEN r.o_session END,
           seq = CASE WHEN NOT r.o_full THEN r.o_seq END, limit_at = t + r.limit_ms * interval '1 millisecond',
           reason = CASE WHEN r.o_full THEN 'its conversation holds as many turns as it may' END, ended_at = CASE WHEN r.o_full THEN t END
     WHERE c.job_no = r.job AND c.slot = r.slot AND c.state = 0;
    IF NOT r.o_full THEN
      UPDATE sessions s SET model = r.model WHERE s.session_id = r.o_session AND s.model IS DISTINCT FROM r.model;
      RETURN NEXT r.agent;
    END IF;
  END LOOP;
END $$;

-- Up to p_n jobs, locked now, that have something to settle: a run whose turn has ended, is gone or takes too long, one that could begin, or
-- an answer that is yet to become part of another conversation. Those that somebody else has in hand are skipped.
CREATE FUNCTION cron_unsettled(p_n int) RETURNS SETOF bigint LANGUAGE sql SET enable_seqscan = off AS $$
  SELECT j.job_no FROM cron_jobs j WHERE j.job_no IN (
    SELECT r.job_no FROM cron_runs r
     WHERE (r.state IN (0, 1) OR r.mirrors)
       AND CASE WHEN r.state = 0 THEN NOT EXISTS (SELECT 1 FROM cron_runs b WHERE b.job_no = r.job_no AND b.state = 1)
           WHEN r.state = 1 THEN r.limit_at <= clock_timestamp() OR NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = r.session_id AND s.head_seq <= r.seq)
           ELSE NOT EXISTS (SELECT 1 FROM cron_jobs k JOIN sessions o ON o.session_id = k.origin_session JOIN session_keys y ON y.agent_no = o.agent_no
                  AND y.session_key = o.session_key JOIN sessions s ON s.session_id = y.session_id WHERE k.job_no = r.job_no AND s.state <> 0) END)
   -- In any order, so that those that cannot move on are in nobody's way.
   ORDER BY random() LIMIT p_n FOR UPDATE SKIP LOCKED
$$;

-- Of locked jobs the runs that have a turn: how it ended (o_ended NULL: it goes on; -1: it is gone), whether it takes too long now (o_over) or
-- was stopped for that (o_late), and why else it was stopped (o_reason).
CREATE FUNCTION cron_running(p_job bigint[]) RETURNS TABLE (o_job bigint, o_slot timestamptz, o_session bigint, o_seq bigint, o_ended smallint, o_body bytea,
    o_over boolean, o_late boolean, o_reason text, o_id text, o_name text, o_spec jsonb, o_agent int, o_confined boolean, o_failures int, o_told boolean,
    o_origin bigint, o_platform text, o_account text, o_chat text, o_thread text) LANGUAGE sql STABLE SET enable_seqscan = off AS $$
  SELECT r.job_no, r.slot, r.session_id, r.seq,
         CASE WHEN e.session_id IS NOT NULL THEN e.ended WHEN s.session_id IS NULL THEN -1::smallint END, e.body,
         r.limit_at <= clock_timestamp(), r.limit_at IS NULL, r.reason, j.job_id, j.name, j.spec, j.agent_no, j.by_agent OR j.confined, j.failures, j.told,
         j.origin, l.platform, l.account, l.chat_id, l.thread_id
    FROM cron_jobs j JOIN cron_runs r ON r.job_no = j.job_no AND r.state = 1
    LEFT JOIN sessions s ON s.session_id = r.session_id
    LEFT JOIN turn_steps e ON e.session_id = r.session_id AND e.seq = r.seq AND e.step = 2147483647 AND e.phase = 1
    LEFT JOIN lanes l ON l.lane_id = j.origin
   WHERE j.job_no = ANY(p_job) ORDER BY r.job_no, r.slot
$$;

-- The lane of a chat that a job delivers to, made where it is new; NULL: it reaches no such chat. p_confined: only the chat that the job was made in,
-- homes of the agent and chats that have written to it. Of several accounts the origin's, then the one that heard of the chat last, then p_account.
CREATE FUNCTION cron_lane(p_agent int, p_confined boolean, p_origin bigint, p_platform text, p_chat text, p_thread text, p_account text)
RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE lane bigint; acc text;
BEGIN
  SELECT l.lane_id INTO lane FROM lanes l LEFT JOIN lanes o ON o.lane_id = p_origin LEFT JOIN agent_chats c ON c.agent_no = p_agent AND c.lane_id = l.lane_id
   WHERE l.chat_id = p_chat AND l.platform = p_platform AND l.thread_id = p_thread
     AND (l.lane_id = p_origin OR c.lane_id IS NOT NULL OR EXISTS (SELECT 1 FROM home_channels h WHERE h.agent_no = p_agent AND h.lane_id = l.lane_id))
   ORDER BY l.lane_id = p_origin DESC NULLS LAST, l.account = o.account DESC NULLS LAST, c.heard_at DESC NULLS LAST LIMIT 1;
  IF lane IS NOT NULL OR p_confined THEN RETURN lane; END IF;
  acc := coalesce((SELECT o.account FROM lanes o WHERE o.lane_id = p_origin AND o.platform = p_platform),
                  (SELECT l.account FROM lanes l JOIN agent_chats c ON c.agent_no = p_agent AND c.lane_id = l.lane_id
                    WHERE l.platform = p_platform AND l.chat_id = p_chat ORDER BY c.heard_at DESC LIMIT 1), p_account);
  IF acc IS NULL THEN RETURN NULL; END IF;
  INSERT INTO lanes(platform, account, chat_id, thread_id) VALUES (p_platform, acc, p_chat, p_thread) ON CONFLICT DO NOTHING;
  RETURN (SELECT l.lane_id FROM lanes l WHERE l.platform = p_platform AND l.account = acc AND l.chat_id = p_chat AND l.thread_id = p_thread);
END $$;

-- A run of a locked job is over. p_lane[i] is delivered p_body[i]; p_failed: it counts as a failure in a row, otherwise those are over.
CREATE FUNCTION cron_settle(p_job bigint, p_slot timestamptz, p_state smallint, p_reason text, p_lane bigint[], p_body bytea[], p_undelivered text,
    p_mirrors boolean, p_failed boolean, p_told boolean) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r cron_runs; pos bigint[] := '{}'; i int;
BEGIN
  SELECT * INTO r FROM cron_runs c WHERE c.job_no = p_job AND c.slot = p_slot;
  IF r.state <> 1 THEN RETURN; END IF;
  FOR i IN SELECT x.n FROM unnest(p_lane) WITH ORDINALITY x(lane, n) ORDER BY x.lane LOOP
    pos[i] := enqueue(p_lane[i], r.session_id, r.seq, p_body[i]);
  END LOOP;
  UPDATE cron_runs c SET state = p_state, reason = p_reason, lanes = p_lane, positions = pos, undelivered = p_undelivered, mirrors = p_mirrors,
         ended_at = clock_timestamp() WHERE c.job_no = p_job AND c.slot = p_slot;
  UPDATE cron_jobs j SET failures = CASE p_failed WHEN true THEN j.failures + 1 WHEN false THEN 0 ELSE j.failures END, told = p_told
   WHERE j.job_no = p_job;
END $$;

-- What goes on or waits of locked jobs is to end: what waits is cancelled, what runs is told to stop, both for p_reason. p_late: it takes too long, which is
-- a failure, and only what runs is meant.
CREATE FUNCTION cron_stop(p_job bigint[], p_reason text, p_late boolean) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r record;
BEGIN
  IF NOT p_late THEN
    UPDATE cron_runs c SET state = 6, reason = p_reason, ended_at = clock_timestamp() WHERE c.job_no = ANY(p_job) AND c.state = 0;
  END IF;
  FOR r IN SELECT c.job_no, c.slot, c.session_id, c.seq FROM cron_runs c
            WHERE c.job_no = ANY(p_job) AND c.state = 1 AND c.reason IS NULL AND (NOT p_late OR c.limit_at <= clock_timestamp()) ORDER BY c.session_id LOOP
    PERFORM stop_head(r.session_id, r.seq, NULL);
    UPDATE cron_runs c SET reason = p_reason, limit_at = CASE WHEN NOT p_late THEN c.limit_at END WHERE c.job_no = r.job_no AND c.slot = r.slot;
  END LOOP;
END $$;

-- Answers of a locked job that are yet to become part of the conversation that it was made in do, if nothing runs there: as a message that is answered with
-- nothing. One whose conversation is gone does no more.
CREATE FUNCTION cron_mirror(p_job bigint, p_slot timestamptz, p_payload bytea) RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE sid bigint; r sessions;
BEGIN
  SELECT k.session_id INTO sid FROM cron_jobs j JOIN sessions o ON o.session_id = j.origin_session
    JOIN session_keys k ON k.agent_no = o.agent_no AND k.session_key = o.session_key WHERE j.job_no = p_job;
  IF sid IS NOT NULL THEN
    -- A call of a tool has its session and wants a job: it is not waited for.
    PERFORM 1 FROM sessions WHERE session_id = sid FOR NO KEY UPDATE SKIP LOCKED;                       -- A
    IF NOT FOUND AND EXISTS (SELECT 1 FROM sessions WHERE session_id = sid) THEN RETURN false; END IF;
    SELECT * INTO r FROM sessions WHERE session_id = sid;                                               -- B
    IF r.state <> 0 OR r.ended_at IS NOT NULL THEN RETURN false; END IF;
    IF r.session_id IS NOT NULL THEN
      INSERT INTO turns(session_id, seq, payload) VALUES (sid, r.tail_seq + 1, p_payload);
      INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, body) VALUES (sid, r.tail_seq + 1, 2147483647, 1, r.epoch, 3, 2, '');
      UPDATE sessions SET tail_seq = r.tail_seq + 1, head_seq = r.head_seq + 1, updated_at = clock_timestamp() WHERE session_id = sid;
    END IF;
  END IF;
  UPDATE cron_runs c SET mirrors = false WHERE c.job_no = p_job AND c.slot = p_slot;
  RETURN true;
END $$;

-- The jobs of agents that are not there any more run no more; what waits of them is cancelled, and whoever made them is told, once.
CREATE FUNCTION cron_orphan(p_agents int[], p_reason text) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r record;
BEGIN
  FOR r IN UPDATE cron_jobs j SET stopped = p_reason, due_at = NULL, slot = NULL
            WHERE j.agent_no = ANY(p_agents) AND j.removed_at IS NULL AND j.stopped IS NULL RETURNING j.job_no, j.origin, j.name LOOP
    UPDATE cron_runs c SET state = 6, reason = p_reason, ended_at = clock_timestamp() WHERE c.job_no = r.job_no AND c.state = 0;
    IF r.origin IS NOT NULL THEN
      PERFORM enqueue(r.origin, 0, 0, convert_to(format('The scheduled job "%s" runs no more: %s.', r.name, p_reason), 'UTF8'));
    END IF;
  END LOOP;
END $$;
