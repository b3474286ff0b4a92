-- Slash commands: each is one event and one transaction, `command_begin`, its effect, `command_end`. A redelivered one ends at its begin.

-- The current session of a key, locked (0: there is none), and whether the event is known: then o_session and o_seq are what it was
-- about, and nothing may be done.
CREATE FUNCTION command_begin(p_key bytea, p_agent int, p_skey text) RETURNS TABLE (o_session bigint, o_seq bigint, o_dup boolean)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE k record;
BEGIN
  o_session := coalesce((SELECT s.session_id FROM session_keys s WHERE s.agent_no = p_agent AND s.session_key = p_skey), 0);
  PERFORM 1 FROM sessions WHERE session_id = o_session FOR NO KEY UPDATE;                               -- A
  SELECT b.session_id, b.seq INTO k FROM inbound b WHERE b.dedupe_key = p_key;                          -- B
  o_dup := k.seq IS NOT NULL; o_seq := coalesce(k.seq, 0);
  IF o_dup THEN
    o_session := k.session_id;
  ELSIF o_session <> 0 AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = o_session AND s.ended_at IS NULL) THEN
    RAISE serialization_failure USING MESSAGE = 'the session key moved, repeat the command';
  END IF;
  RETURN NEXT;
END $$;

-- The event is known from now on, and its chat is told p_text, where there are both.
CREATE FUNCTION command_end(p_key bytea, p_session bigint, p_seq bigint, p_lane bigint, p_text bytea) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO inbound(dedupe_key, session_id, seq) VALUES (p_key, p_session, p_seq);
  IF p_lane IS NOT NULL AND p_text IS NOT NULL THEN PERFORM enqueue(p_lane, p_session, 0, p_text); END IF;
END $$;

-- A locked session ends and its key moves to another one of the same key, which is locked or new. What runs is asked to stop; what waits
-- behind it is answered before the other one begins. o_stopped and o_turn: what stop_head answers.
CREATE FUNCTION hand_on(p_from bigint, p_to bigint, p_why text, p_notice bytea) RETURNS TABLE (o_stopped int, o_turn bigint) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE r sessions; t timestamptz := clock_timestamp();
BEGIN
  SELECT h.o_result, h.o_seq INTO o_stopped, o_turn FROM stop_head(p_from, NULL, p_notice) h;
  SELECT * INTO r FROM sessions WHERE session_id = p_from;
  UPDATE sessions SET ended_at = NULL, end_reason = NULL, successor = NULL, updated_at = t, state = CASE WHEN r.state = 0 THEN 0 ELSE 3 END
   WHERE session_id = p_to;
  UPDATE sessions SET ended_at = t, end_reason = p_why, successor = p_to WHERE session_id = p_from;
  UPDATE session_keys SET session_id = p_to WHERE agent_no = r.agent_no AND session_key = r.session_key;
  RETURN NEXT;
END $$;

-- A fresh session for a key; p_session: its locked current one, or 0. One that nobody has used yet is fresh enough. The rest as hand_on.
CREATE FUNCTION begin_anew(p_session bigint, p_agent int, p_skey text, p_title text, p_notice bytea)
RETURNS TABLE (o_session bigint, o_stopped int, o_turn bigint) LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
  o_stopped := 0;
  IF EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = p_session AND s.tail_seq = 0) THEN
    o_session := p_session;
    UPDATE sessions SET title = p_title, model = NULL WHERE session_id = p_session;
  ELSE
    o_session := nextval('session_ids');
    -- Its key at once is somebody else's when two begin one: the second one's caller repeats it.
    IF p_session = 0 THEN INSERT INTO session_keys(agent_no, session_key, session_id) VALUES (p_agent, p_skey, o_session); END IF;
    INSERT INTO sessions(session_id, agent_no, session_key, title) VALUES (o_session, p_agent, p_skey, p_title);
    IF p_session <> 0 THEN
      SELECT h.o_stopped, h.o_turn INTO o_stopped, o_turn FROM hand_on(p_session, o_session, 'new', p_notice) h;
    END IF;
  END IF;
  RETURN NEXT;
END $$;

-- An ended session of the same key is its current one again, in place of p_session (locked). o_result: 1 done, 2 it still runs or waits, 0 it
-- is no such session. The rest as hand_on.
CREATE FUNCTION resume(p_session bigint, p_to bigint, p_notice bytea) RETURNS TABLE (o_result int, o_stopped int, o_turn bigint) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE r sessions;
BEGIN
  o_result := 0; o_stopped := 0;
  PERFORM 1 FROM sessions WHERE session_id = p_to FOR NO KEY UPDATE;                                    -- A
  SELECT n.* INTO r FROM sessions n JOIN sessions c ON c.session_id = p_session AND c.agent_no = n.agent_no AND c.session_key = n.session_key    -- B
   WHERE n.session_id = p_to AND n.ended_at IS NOT NULL;
  IF r.session_id IS NOT NULL AND r.state <> 0 THEN
    o_result := 2;
  ELSIF r.session_id IS NOT NULL THEN
    SELECT h.o_stopped, h.o_turn INTO o_stopped, o_turn FROM hand_on(p_session, p_to, 'resumed', p_notice) h;
    o_result := 1;
  END IF;
  RETURN NEXT;
END $$;

-- The newest turns of a locked session are left out of its history from now on: the last p_most that were answered, or with p_again the last
-- one however it ended. o_turns: how many; o_said: the input of the first of them and of what it took in. o_busy: something runs or waits, and nothing
-- was done.
CREATE FUNCTION rewind(p_session bigint, p_most bigint, p_again boolean) RETURNS TABLE (o_turns bigint, o_said bytea[], o_busy boolean)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r sessions; seqs bigint[]; since bigint;
BEGIN
  SELECT * INTO r FROM sessions WHERE session_id = p_session;
  o_busy := coalesce(r.tail_seq >= r.head_seq, false);
  IF NOT o_busy THEN
    seqs := ARRAY(SELECT t.seq FROM transcripts t WHERE t.session_id = p_session AND NOT coalesce(r.hidden @> t.seq, false)
                     AND (t.ended = 2 OR (p_again AND t.ended <> 6)) ORDER BY t.seq DESC LIMIT p_most);
    since := (SELECT min(x) FROM unnest(seqs) x);
  END IF;
  o_turns := coalesce(cardinality(seqs), 0);
  IF o_turns > 0 THEN
    o_said := ARRAY(SELECT t.payload FROM transcripts t WHERE t.session_id = p_session AND (t.seq = since OR (t.seq > since AND t.absorbed_by = since)) ORDER BY t.seq);
    UPDATE sessions SET hidden = coalesce(hidden, '{}') + int8multirange(int8range(since, tail_seq + 1)), rewinds = rewinds + 1
     WHERE session_id = p_session;
    -- What they made of the turns before goes with them; what tells of them is younger than they are.
    DELETE FROM summaries u WHERE u.session_id = p_session AND u.made_in >= since;
  END IF;
  RETURN NEXT;
END $$;

-- What the turns of these sessions used since p_since, by the words of their workers: turns, tokens in and out, US dollars where known.
CREATE FUNCTION used(p_sessions bigint[], p_since timestamptz) RETURNS TABLE (o_turns bigint, o_input bigint, o_output bigint, o_cost double precision)
LANGUAGE sql STABLE SET enable_seqscan = off AS $$
  SELECT count(*), coalesce(sum((d.usage->>'input_tokens')::numeric), 0)::bigint, coalesce(sum((d.usage->>'output_tokens')::numeric), 0)::bigint,
         sum((d.usage->>'cost_usd')::double precision)
    FROM unnest(p_sessions) s(id) JOIN turns q ON q.session_id = s.id
    JOIN turn_steps d ON d.session_id = q.session_id AND d.seq = q.seq AND d.step = 2147483647 AND d.phase = 1
   WHERE d.kind = 1 AND (p_since IS NULL OR d.at >= p_since)
$$;
