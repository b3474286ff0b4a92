-- What is over is removed after its time, a few pages a call.

-- One step of the pass through one kind of rows: p_pages pages from where the last step ended. A pass begins at the earliest p_every
-- after the last one's end. o_more: it goes on at once; false too while another replica is at it. Nothing that a running, waiting
-- or undelivered turn needs is touched: a turn before its session's head has ended, and `outbox` names what is undelivered.
CREATE FUNCTION retain(p_what text, p_keep interval, p_dead interval, p_pages bigint, p_every interval)
RETURNS TABLE (o_more boolean, o_removed bigint) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r retention; t timestamptz := clock_timestamp(); a tid; b tid; pages bigint; n bigint := 0; over timestamptz := clock_timestamp() - p_keep;
  dead timestamptz := clock_timestamp() - p_dead; sid bigint[];
BEGIN
  SELECT * INTO r FROM retention WHERE what = p_what FOR UPDATE SKIP LOCKED;
  IF r.what IS NULL OR (r.page = 0 AND r.finished_at > t - p_every) THEN RETURN QUERY SELECT false, 0::bigint; RETURN; END IF;
  pages := CASE p_what WHEN 'leases' THEN 0 ELSE pg_relation_size(CASE p_what WHEN 'steps' THEN 'turn_steps' ELSE p_what END::regclass)
             / current_setting('block_size')::bigint END;
  a := format('(%s,0)', r.page)::tid; b := format('(%s,0)', r.page + p_pages)::tid;
  CASE p_what
  WHEN 'inbound' THEN
    DELETE FROM inbound i WHERE i.ctid >= a AND i.ctid < b AND i.received_at < over;
    GET DIAGNOSTICS n = ROW_COUNT;
  WHEN 'steps' THEN
    DELETE FROM turn_steps x USING sessions s WHERE x.ctid >= a AND x.ctid < b AND x.at < over AND x.ended IS NULL
       AND s.session_id = x.session_id AND s.head_seq > x.seq;
    GET DIAGNOSTICS n = ROW_COUNT;
  WHEN 'turns' THEN
    WITH old AS MATERIALIZED (SELECT q.session_id, q.seq FROM turns q JOIN sessions s ON s.session_id = q.session_id AND s.head_seq > q.seq
           WHERE q.ctid >= a AND q.ctid < b AND q.created_at < over
             AND NOT EXISTS (SELECT 1 FROM turn_steps e WHERE e.session_id = q.session_id AND e.seq = q.seq AND e.step = 2147483647 AND e.at >= over)
             AND NOT EXISTS (SELECT 1 FROM dead_turns d WHERE d.session_id = q.session_id AND d.seq = q.seq AND d.at >= dead)
             AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.session_id = q.session_id AND o.seq = q.seq)),
     v AS (DELETE FROM previews v USING old WHERE v.session_id = old.session_id AND v.seq = old.seq),
     x AS (DELETE FROM turn_steps x USING old WHERE x.session_id = old.session_id AND x.seq = old.seq),
     d AS (DELETE FROM dead_turns d USING old WHERE d.session_id = old.session_id AND d.seq = old.seq)
    DELETE FROM turns q USING old WHERE q.session_id = old.session_id AND q.seq = old.seq;
    GET DIAGNOSTICS n = ROW_COUNT;
  WHEN 'sessions' THEN
    -- Locked first; one that got a message meanwhile is not idle any more, and intake notices one that is gone.
    sid := ARRAY(SELECT s.session_id FROM sessions s WHERE s.ctid >= a AND s.ctid < b AND s.state = 0 AND s.updated_at < over
             AND s.head_seq > s.tail_seq AND NOT EXISTS (SELECT 1 FROM turns q WHERE q.session_id = s.session_id)
             AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.session_id = s.session_id) ORDER BY s.session_id FOR UPDATE SKIP LOCKED);
    DELETE FROM session_keys k USING sessions s WHERE s.session_id = ANY(sid) AND k.agent_no = s.agent_no AND k.session_key = s.session_key
       AND k.session_id = s.session_id;
    DELETE FROM sessions s WHERE s.session_id = ANY(sid);
    GET DIAGNOSTICS n = ROW_COUNT;
  WHEN 'deliveries' THEN
    DELETE FROM deliveries d WHERE d.ctid >= a AND d.ctid < b AND d.at < CASE d.state WHEN 4 THEN dead ELSE over END;
    GET DIAGNOSTICS n = ROW_COUNT;
  WHEN 'blobs' THEN
    -- Their pieces and uploads go with them.
    DELETE FROM blobs f WHERE f.ctid >= a AND f.ctid < b AND f.used_at < over;
    GET DIAGNOSTICS n = ROW_COUNT;
  WHEN 'cron_runs' THEN
    -- The last answer of a job stays, for those that build upon it. Removed jobs go, and then what is left of them.
    DELETE FROM cron_runs c WHERE c.ctid >= a AND c.ctid < b AND c.ended_at < over AND NOT c.mirrors
       AND (c.state <> 2 OR EXISTS (SELECT 1 FROM cron_runs m WHERE m.job_no = c.job_no AND m.slot > c.slot AND m.state = 2)
         OR NOT EXISTS (SELECT 1 FROM cron_jobs j WHERE j.job_no = c.job_no AND j.removed_at IS NULL));
    GET DIAGNOSTICS n = ROW_COUNT;
    DELETE FROM cron_jobs j WHERE j.removed_at < over;
  WHEN 'leases' THEN
    -- Small tables, one step: workers that are long lost (their slots were reclaimed) and accounts that nobody wants any more,
    -- and the notes of dead turns; that a turn is dead its end says.
    WITH w AS (DELETE FROM workers WHERE lost AND lost_at < t - interval '15 minutes' RETURNING worker_id),
     x AS (DELETE FROM slots x USING w WHERE x.worker_id = w.worker_id),
     l AS (DELETE FROM account_leases l WHERE l.lease_until < t - p_keep RETURNING 1),
     d AS (DELETE FROM dead_turns d WHERE d.at < dead RETURNING 1),
     -- What was spent in months that are over, and reservations of calls that certainly are: they stay spent.
     bd AS (DELETE FROM budget_days bd WHERE bd.day < t - interval '93 days' RETURNING 1),
     br AS (DELETE FROM budget_reservations br WHERE br.until < t - p_keep RETURNING 1),
     bu AS (DELETE FROM budget_raises bu WHERE bu.until < t - p_keep RETURNING 1),
     ap AS (DELETE FROM approvals ap WHERE ap.expires_at < t - p_keep RETURNING 1),
     ag AS (DELETE FROM approval_grants ag WHERE ag.session_id <> 0 AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = ag.session_id) RETURNING 1),
     aq AS (DELETE FROM asks aq WHERE aq.wait_until < t - interval '31 days' RETURNING 1),
     ba AS (DELETE FROM budget_alerts ba WHERE ba.at < t - interval '93 days' RETURNING 1)
    SELECT (SELECT count(*) FROM w) + (SELECT count(*) FROM l) + (SELECT count(*) FROM d) + (SELECT count(*) FROM bd) + (SELECT count(*) FROM br)
         + (SELECT count(*) FROM ap) + (SELECT count(*) FROM ag) + (SELECT count(*) FROM bu) + (SELECT count(*) FROM ba) + (SELECT count(*) FROM aq) INTO n;
  END CASE;
  UPDATE retention SET page = CASE WHEN r.page + p_pages >= pages THEN 0 ELSE r.page + p_pages END,
         started_at = CASE WHEN r.page = 0 THEN t ELSE started_at END, finished_at = CASE WHEN r.page + p_pages >= pages THEN t ELSE finished_at END,
         removed = n + CASE WHEN r.page = 0 THEN 0 ELSE removed END, total = total + n WHERE what = p_what;
  RETURN QUERY SELECT r.page + p_pages < pages, n;
END $$;
