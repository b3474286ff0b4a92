-- Messages that show a running turn's text. See `previews` in the tables.

-- Whether nobody who lives holds a preview or an attempt: its replica was lost, or is not known at all.
CREATE FUNCTION is_orphaned(p_owner bigint, p_replica bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT p_owner IS NULL OR (p_owner <> p_replica AND NOT EXISTS (SELECT 1 FROM replicas r WHERE r.replica_id = p_owner AND r.lost_at IS NULL))
$$;

-- p_replica wants to show the turn's text. o_state: 1 send it now, the intent is committed; 2 edit o_message; 0 not now: the lane has
-- something undelivered, or another replica shows it; -1 never: the turn has ended, or nobody knows whether a message is there.
CREATE FUNCTION preview_begin(p_replica bigint, p_lane bigint, p_session bigint, p_seq bigint)
RETURNS TABLE (o_state int, o_message text) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE p previews;
BEGIN
  -- A: the end of the turn waits for us, or we see it.
  PERFORM 1 FROM sessions WHERE session_id = p_session AND state = 2 AND head_seq = p_seq FOR SHARE;
  IF NOT FOUND THEN RETURN QUERY SELECT -1, NULL::text; RETURN; END IF;
  SELECT * INTO p FROM previews WHERE session_id = p_session AND seq = p_seq FOR UPDATE;                -- B
  IF FOUND THEN
    IF p.message_id IS NULL THEN
      RETURN QUERY SELECT -1, NULL::text;
    ELSIF p.owner = p_replica OR is_orphaned(p.owner, p_replica) THEN
      UPDATE previews SET owner = p_replica WHERE session_id = p_session AND seq = p_seq;
      RETURN QUERY SELECT 2, p.message_id;
    ELSE
      RETURN QUERY SELECT 0, NULL::text;
    END IF;
    RETURN;
  END IF;
  IF EXISTS (SELECT 1 FROM outbox o WHERE o.lane_id = p_lane AND o.head) THEN RETURN QUERY SELECT 0, NULL::text; RETURN; END IF;
  INSERT INTO previews(session_id, seq, lane_id, owner) VALUES (p_session, p_seq, p_lane, p_replica);
  RETURN QUERY SELECT 1, NULL::text;
END $$;

-- The message that the final text p_body of a turn must become. o_state: 0 none; 1 edit o_message; 2 nobody knows whether one is there;
-- 3 another replica still shows the turn: ask again.
CREATE FUNCTION preview_take(p_replica bigint, p_session bigint, p_seq bigint, p_body bytea)
RETURNS TABLE (o_state int, o_message text) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE p previews;
BEGIN
  SELECT * INTO p FROM previews WHERE session_id = p_session AND seq = p_seq FOR UPDATE;
  -- A notice that is not the turn's end never replaces its text.
  IF NOT FOUND OR NOT EXISTS (SELECT 1 FROM turn_steps s WHERE s.session_id = p_session AND s.seq = p_seq AND s.step = 2147483647 AND s.phase = 1
                               AND s.body = p_body) THEN
    RETURN QUERY SELECT 0, NULL::text;
  ELSIF p.owner = p_replica OR is_orphaned(p.owner, p_replica) THEN
    UPDATE previews SET owner = p_replica WHERE session_id = p_session AND seq = p_seq;
    RETURN QUERY SELECT CASE WHEN p.message_id IS NULL THEN 2 ELSE 1 END, p.message_id;
  ELSE
    RETURN QUERY SELECT 3, NULL::text;
  END IF;
END $$;
