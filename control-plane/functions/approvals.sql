-- Questions whether a call may be made, and their answers.

-- Asks once, in the chat of the turn; however often it is repeated, it is the same question. o_state: 0 waits, 1 allowed, 2 denied, 3 nobody
-- answered in time, -1 fenced, -2 another call was asked about at that step. o_asked: by this call, just now. o_left_ms: until the time
-- is over. What was granted before is allowed without a question. The text is p_before, the question's number and p_behind.
CREATE FUNCTION approval_ask(p_session bigint, p_epoch bigint, p_seq bigint, p_step int, p_hash bytea, p_asker text, p_tool text, p_shown text,
    p_reason text, p_patterns text[], p_timeout_ms bigint, p_before text, p_behind text)
RETURNS TABLE (o_state int, o_id bigint, o_asked boolean, o_left_ms bigint) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r sessions; a approvals; lane bigint; t timestamptz;
BEGIN
  PERFORM 1 FROM sessions WHERE session_id = p_session FOR NO KEY UPDATE;                               -- A
  SELECT * INTO r FROM sessions WHERE session_id = p_session AND epoch = p_epoch AND state = 2 AND head_seq = p_seq;         -- B
  t := clock_timestamp(); o_asked := false; o_left_ms := 0;
  IF r.session_id IS NULL THEN o_state := -1; RETURN NEXT; RETURN; END IF;
  SELECT * INTO a FROM approvals WHERE session_id = p_session AND seq = p_seq AND step = p_step;
  IF a.approval_id IS NULL THEN
    IF NOT EXISTS (SELECT 1 FROM unnest(p_patterns) p(key) WHERE NOT EXISTS (SELECT 1 FROM approval_grants g
         WHERE g.agent_no = r.agent_no AND g.asker = p_asker AND g.session_id IN (0, p_session) AND g.pattern = p.key)) THEN
      o_state := 1; RETURN NEXT; RETURN;
    END IF;
    SELECT q.lane_id INTO lane FROM turns q WHERE q.session_id = p_session AND q.seq = p_seq;
    INSERT INTO approvals(session_id, seq, step, agent_no, lane_id, call_hash, asker, tool, shown, reason, patterns, asked_at, expires_at)
      VALUES (p_session, p_seq, p_step, r.agent_no, lane, p_hash, p_asker, p_tool, p_shown, p_reason, p_patterns, t,
              t + p_timeout_ms * interval '1 millisecond') RETURNING * INTO a;
    IF lane IS NOT NULL THEN
      UPDATE approvals SET pos = enqueue(lane, p_session, 0, convert_to(p_before || a.approval_id || p_behind, 'UTF8')) WHERE approval_id = a.approval_id;
    END IF;
    o_asked := true;
  ELSIF a.call_hash <> p_hash THEN
    o_state := -2; o_id := a.approval_id; RETURN NEXT; RETURN;
  ELSIF a.state = 0 AND a.expires_at <= t THEN
    UPDATE approvals SET state = 3, answered_at = t WHERE approval_id = a.approval_id;
    a.state := 3;
  END IF;
  o_state := a.state; o_id := a.approval_id;
  o_left_ms := greatest(extract(epoch FROM a.expires_at - t) * 1000, 0)::bigint;
  RETURN NEXT;
END $$;

-- Answers question p_id, or the one that waits in the session of p_skey. Whoever was asked may, where they were asked; p_admin, where
-- the same chat was asked, too; p_any everywhere (an operator). p_reach: 0 this call, 1 its patterns in its session, 2 with this agent.
-- o_result: 1 done, 0 there is none for the caller, 2 it is over (o_state).
CREATE FUNCTION approval_answer(p_id bigint, p_agent int, p_skey text, p_lane bigint, p_asker text, p_admin boolean, p_any boolean,
    p_allow boolean, p_reach int, p_by text)
RETURNS TABLE (o_result int, o_id bigint, o_state int) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE a approvals; sid bigint; t timestamptz; id bigint := p_id;
BEGIN
  o_result := 0; o_id := p_id;
  IF id IS NULL THEN
    id := (SELECT x.approval_id FROM session_keys k JOIN sessions s ON s.session_id = k.session_id
             JOIN approvals x ON x.session_id = s.session_id AND x.seq = s.head_seq AND x.state = 0
            WHERE k.agent_no = p_agent AND k.session_key = p_skey ORDER BY x.step DESC LIMIT 1);
  END IF;
  SELECT x.session_id INTO sid FROM approvals x WHERE x.approval_id = id;
  IF sid IS NULL THEN RETURN NEXT; RETURN; END IF;
  PERFORM 1 FROM sessions s WHERE s.session_id = sid FOR NO KEY UPDATE;                                 -- A
  SELECT * INTO a FROM approvals x WHERE x.approval_id = id;                                            -- B
  IF NOT p_any AND NOT coalesce(a.agent_no = p_agent AND a.lane_id IS NOT DISTINCT FROM p_lane AND (
       (p_admin AND p_lane IS NOT NULL) OR (a.asker = p_asker AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = sid AND s.session_key = p_skey))), false) THEN
    RETURN NEXT; RETURN;
  END IF;
  t := clock_timestamp(); o_id := id;
  IF a.state = 0 AND a.expires_at <= t THEN
    UPDATE approvals SET state = 3, answered_at = t WHERE approval_id = id;
    a.state := 3;
  END IF;
  -- A turn that has ended waits for nothing any more.
  IF a.state <> 0 OR NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = sid AND s.head_seq = a.seq) THEN
    o_result := 2; o_state := CASE WHEN a.state = 0 THEN 3 ELSE a.state END; RETURN NEXT; RETURN;
  END IF;
  UPDATE approvals SET state = CASE WHEN p_allow THEN 1 ELSE 2 END, answered_at = t, answered_by = p_by WHERE approval_id = id;
  IF p_allow AND p_reach > 0 THEN
    INSERT INTO approval_grants(agent_no, session_id, asker, pattern, granted_by)
      SELECT a.agent_no, CASE WHEN p_reach = 1 THEN sid ELSE 0 END, a.asker, p.key, p_by FROM unnest(a.patterns) p(key)
      ON CONFLICT DO NOTHING;
  END IF;
  o_result := 1; o_state := CASE WHEN p_allow THEN 1 ELSE 2 END;
  RETURN NEXT;
END $$;
