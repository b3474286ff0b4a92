-- What was said before.

-- The newest turns of a session after p_after and before p_before that were answered, or were taken in by one that was
-- (o_absorbed_by), oldest first, without hidden ones: as many as have p_bytes of input and reply together. It reads no more of the session than that.
CREATE FUNCTION past_turns(p_session bigint, p_after bigint, p_before bigint, p_bytes bigint)
RETURNS TABLE (o_seq bigint, o_payload bytea, o_reply bytea, o_absorbed_by bigint) LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
DECLARE r record; left_bytes bigint := p_bytes; gone int8multirange := coalesce((SELECT s.hidden FROM sessions s WHERE s.session_id = p_session), '{}');
BEGIN
  FOR r IN SELECT t.seq, t.payload, t.reply, t.absorbed_by FROM transcripts t
            WHERE t.session_id = p_session AND t.seq > p_after AND t.seq < p_before AND t.ended IN (2, 6) AND NOT gone @> t.seq ORDER BY t.seq DESC LOOP
    left_bytes := left_bytes - octet_length(r.payload) - coalesce(octet_length(r.reply), 0);
    EXIT WHEN left_bytes < 0;
    o_seq := r.seq; o_payload := r.payload; o_reply := r.reply; o_absorbed_by := r.absorbed_by;
    RETURN NEXT;
  END LOOP;
END $$;

-- A running turn puts a summary in the place of the turns up to p_through in its session's history; they stay, and what a worker knows of the
-- history is void from now on (o_rewinds). o_result: 1 stored, 2 this turn had stored one before, 0 fenced, -1 those turns are not over or
-- another summary stands for them already.
CREATE FUNCTION summarise(p_session bigint, p_epoch bigint, p_seq bigint, p_through bigint, p_body bytea)
RETURNS TABLE (o_result int, o_rewinds int) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r sessions;
BEGIN
  PERFORM 1 FROM sessions WHERE session_id = p_session FOR NO KEY UPDATE;                               -- A
  SELECT * INTO r FROM sessions s WHERE s.session_id = p_session AND s.epoch = p_epoch AND s.state = 2 AND s.head_seq = p_seq;  -- B
  o_rewinds := coalesce(r.rewinds, 0);
  IF r.session_id IS NULL THEN
    o_result := 0;
  ELSIF EXISTS (SELECT 1 FROM summaries u WHERE u.session_id = p_session AND u.made_in = p_seq) THEN
    o_result := 2;
  ELSIF p_through >= p_seq OR EXISTS (SELECT 1 FROM summaries u WHERE u.session_id = p_session AND u.through >= p_through) THEN
    o_result := -1;
  ELSE
    INSERT INTO summaries(session_id, through, made_in, body) VALUES (p_session, p_through, p_seq, p_body);
    UPDATE sessions SET rewinds = rewinds + 1 WHERE session_id = p_session RETURNING rewinds INTO o_rewinds;
    o_result := 1;
  END IF;
  RETURN NEXT;
END $$;
