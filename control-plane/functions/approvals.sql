-- Questions whether a call may be made, and their answers.

-- Puts a question to the person, from now on; without p_attended there is none, and it is denied. Its session is locked. The text is p_before,
-- the question's number and p_behind.
CREATE FUNCTION approval_put(p_id bigint, p_timeout_ms bigint, p_before text, p_behind text, p_attended boolean) RETURNS approvals
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE a approvals;
BEGIN
  IF NOT p_attended THEN
    UPDATE approvals SET state = 2, judge_until = NULL, answered_at = clock_timestamp(), answered_by = 'nobody' WHERE approval_id = p_id
      RETURNING * INTO a;
    RETURN a;
  END IF;
  UPDATE approvals SET judge_until = NULL, expires_at = clock_timestamp() + p_timeout_ms * interval '1 millisecond'
   WHERE approval_id = p_id RETURNING * INTO a;
  IF a.lane_id IS NOT NULL THEN
    UPDATE approvals SET pos = enqueue(a.lane_id, a.session_id, 0, convert_to(p_before || p_id || p_behind, 'UTF8')) WHERE approval_id = p_id
      RETURNING * INTO a;
  END IF;
  RETURN a;
END $$;

-- Asks once, in the chat of the turn; however often it is repeated, it is the same question. o_state: 0 waits, 1 allowed, 2 denied, 3 nobody
-- answered in time, -1 fenced, -2 another call was asked about at that step. o_asked: the person, by this call, just now. o_left_ms: until
-- the time is over. What was granted before is allowed without a question. Where p_judge_ms is not 0 a model is to judge first, by the call
-- that gets o_judge, and within that time; meanwhile o_judging. Without p_attended nobody is there to be asked: what would be put to them is denied. o_why: what the model said where it decided.
CREATE FUNCTION approval_ask(p_session bigint, p_epoch bigint, p_seq bigint, p_step int, p_hash bytea, p_asker text, p_tool text, p_shown text,
    p_reason text, p_patterns text[], p_timeout_ms bigint, p_before text, p_behind text, p_judge_ms bigint,
    p_attended boolean)
RETURNS TABLE (o_state int, o_id bigint, o_asked boolean, o_left_ms bigint, o_judge boolean, o_judging boolean, o_why text)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r sessions; a approvals; lane bigint; t timestamptz;
BEGIN
  o_judge := false; o_judging := false;
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
    -- Whoever was refused thrice in a turn is not heard by the model again: it would be asked until it errs.
    o_judge := p_judge_ms > 0 AND (SELECT count(*) FROM approvals x WHERE x.session_id = p_session AND x.seq = p_seq AND x.state = 2
         AND x.answered_by = 'smart') < 3;
    o_asked := NOT o_judge AND p_attended;
    INSERT INTO approvals(session_id, seq, step, agent_no, lane_id, call_hash, asker, tool, shown, reason, patterns, asked_at, expires_at, judge_until)
      VALUES (p_session, p_seq, p_step, r.agent_no, lane, p_hash, p_asker, p_tool, p_shown, p_reason, p_patterns, t,
              t + (CASE WHEN o_judge THEN p_judge_ms ELSE 0 END + p_timeout_ms) * interval '1 millisecond',
              CASE WHEN o_judge THEN t + p_judge_ms * interval '1 millisecond' END) RETURNING * INTO a;
    IF NOT o_judge THEN a := approval_put(a.approval_id, p_timeout_ms, p_before, p_behind, p_attended); END IF;
  ELSIF a.call_hash <> p_hash THEN
    o_state := -2; o_id := a.approval_id; RETURN NEXT; RETURN;
  ELSIF a.state = 0 AND a.judge_until <= t THEN
    -- Whoever asked the model is gone. It is not asked again.
    UPDATE approvals SET judgement = 'no verdict came in time' WHERE approval_id = a.approval_id;
    a := approval_put(a.approval_id, p_timeout_ms, p_before, p_behind, p_attended);
    o_asked := p_attended;
  ELSIF a.state = 0 AND a.expires_at <= t THEN
    UPDATE approvals SET state = 3, answered_at = t WHERE approval_id = a.approval_id;
    a.state := 3;
  END IF;
  o_state := a.state; o_id := a.approval_id;
  o_judging := a.state = 0 AND a.judge_until IS NOT NULL;
  o_why := CASE WHEN a.answered_by = 'smart' THEN a.judgement END;
  o_left_ms := greatest(extract(epoch FROM a.expires_at - t) * 1000, 0)::bigint;
  RETURN NEXT;
END $$;

-- What the model said of a call, or why it said nothing: p_state 1 allows it, 2 refuses it, 0 puts it to the person. True: that counts. It
-- does not where somebody was asked or has answered meanwhile, or the turn has ended.
CREATE FUNCTION approval_judged(p_session bigint, p_seq bigint, p_step int, p_hash bytea, p_state int, p_judgement text, p_timeout_ms bigint,
    p_before text, p_behind text, p_attended boolean)
RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE a approvals;
BEGIN
  PERFORM 1 FROM sessions s WHERE s.session_id = p_session FOR NO KEY UPDATE;                           -- A
  SELECT * INTO a FROM approvals x WHERE x.session_id = p_session AND x.seq = p_seq AND x.step = p_step AND x.call_hash = p_hash -- B
     AND x.state = 0 AND x.judge_until IS NOT NULL
     AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = p_session AND s.head_seq = p_seq);
  IF a.approval_id IS NULL THEN RETURN false; END IF;
  UPDATE approvals x SET judgement = p_judgement WHERE x.approval_id = a.approval_id;
  IF p_state = 0 THEN
    PERFORM approval_put(a.approval_id, p_timeout_ms, p_before, p_behind, p_attended);
  ELSE
    UPDATE approvals x SET state = p_state, judge_until = NULL, answered_at = clock_timestamp(), answered_by = 'smart'
     WHERE x.approval_id = a.approval_id;
  END IF;
  RETURN true;
END $$;

-- Answers question p_id, or the one that waits in the session of p_skey. Whoever was asked may, where they were asked; p_admin, where
-- the same chat was asked, too; p_any everywhere, and while a model judges (an operator). p_reach: 0 this call, 1 its patterns in its session, 2 with this agent.
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
                  AND x.judge_until IS NULL
            WHERE k.agent_no = p_agent AND k.session_key = p_skey ORDER BY x.step DESC LIMIT 1);
  END IF;
  SELECT x.session_id INTO sid FROM approvals x WHERE x.approval_id = id;
  IF sid IS NULL THEN RETURN NEXT; RETURN; END IF;
  PERFORM 1 FROM sessions s WHERE s.session_id = sid FOR NO KEY UPDATE;                                 -- A
  SELECT * INTO a FROM approvals x WHERE x.approval_id = id;                                            -- B
  IF NOT p_any AND NOT coalesce(a.judge_until IS NULL AND a.agent_no = p_agent AND a.lane_id IS NOT DISTINCT FROM p_lane AND (
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
  UPDATE approvals SET state = CASE WHEN p_allow THEN 1 ELSE 2 END, judge_until = NULL, answered_at = t, answered_by = p_by WHERE approval_id = id;
  IF p_allow AND p_reach > 0 THEN
    INSERT INTO approval_grants(agent_no, session_id, asker, pattern, granted_by)
      SELECT a.agent_no, CASE WHEN p_reach = 1 THEN sid ELSE 0 END, a.asker, p.key, p_by FROM unnest(a.patterns) p(key)
      ON CONFLICT DO NOTHING;
  END IF;
  o_result := 1; o_state := CASE WHEN p_allow THEN 1 ELSE 2 END;
  RETURN NEXT;
END $$;
