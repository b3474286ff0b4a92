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
