-- What agents have asked each other, once nobody waits for the answer.

-- Nobody waits for the answer of turn p_seq any more. As stop_head, but a turn that waits right behind the head ends, too, where it stands:
-- like one that the head has taken in, it is passed over. o_result 4: another one waits between them, so it is to be repeated later.
CREATE FUNCTION withdraw(p_session bigint, p_seq bigint, p_notice bytea) RETURNS int LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r sessions; result int;
BEGIN
  result := (SELECT o_result FROM stop_head(p_session, p_seq, p_notice));
  IF result <> 4 THEN RETURN result; END IF;
  -- stop_head has locked it.
  SELECT * INTO r FROM sessions WHERE session_id = p_session;
  IF p_seq <> r.head_seq + r.absorbed + 1 THEN RETURN 4; END IF;
  INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, body)
    VALUES (p_session, p_seq, 2147483647, 1, r.epoch, 3, 5, coalesce(p_notice, ''));
  UPDATE sessions SET absorbed = absorbed + 1, updated_at = clock_timestamp() WHERE session_id = p_session;
  RETURN 2;
END $$;

-- Withdraws what was asked by turns that wait for it no more: they were answered, or told that it takes too long; they have ended; or nobody
-- has seen to their time for 10 seconds. o_result as of withdraw; what has ended is settled.
CREATE FUNCTION forsake(p_most int, p_notice bytea) RETURNS TABLE (o_result int, o_session bigint, o_seq bigint) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE a record; sid bigint[] := '{}'; seqs bigint[] := '{}'; t timestamptz := clock_timestamp();
BEGIN
  FOR a IN SELECT x.asked_session, x.asked_seq FROM asks x LEFT JOIN sessions s ON s.session_id = x.session_id
            WHERE NOT x.settled AND (x.done OR s.session_id IS NULL OR s.head_seq > x.seq OR x.wait_until < t - interval '10 seconds')
            ORDER BY x.asked_session, x.asked_seq LIMIT p_most LOOP
    o_session := a.asked_session; o_seq := a.asked_seq; o_result := withdraw(a.asked_session, a.asked_seq, p_notice);
    IF o_result NOT IN (1, 4) THEN sid := sid || a.asked_session; seqs := seqs || a.asked_seq; END IF;
    RETURN NEXT;
  END LOOP;
  -- After all sessions: a call that is answered holds its own and then wants the row.
  UPDATE asks x SET settled = true FROM unnest(sid, seqs) i(sid, seq) WHERE x.asked_session = i.sid AND x.asked_seq = i.seq;
END $$;
