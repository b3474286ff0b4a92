-- Model calls under a budget: reserved before, settled after. What may be used hermes_core::budget decides; here it is compared
-- under the lock of the payers' rows, so that no two calls are let in by the same sum.

-- Lets a call in that takes at most p_usd and p_tokens, if for each payer no more was spent (reservations included) than its ceilings
-- say; a ceiling that is NULL bounds nothing. o_result: 1 let in, now or before by the same step of the same turn (which is then held by
-- p_call), 0 it does not fit: o_payer (from 1) is the first that it does not fit, with what that one has spent, 2 an attempt with a
-- later fence holds the step's reservation.
CREATE FUNCTION budget_reserve(p_session bigint, p_seq bigint, p_epoch bigint, p_step int, p_call uuid, p_payers text[], p_day date, p_month date,
    p_usd bigint, p_tokens bigint, p_day_usd bigint[], p_month_usd bigint[], p_day_tokens bigint[], p_ttl_ms bigint)
RETURNS TABLE (o_result int, o_payer int, o_day_usd bigint, o_day_tokens bigint, o_month_usd bigint) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE k budget_reservations; i int;
BEGIN
  INSERT INTO budget_days(payer, day) SELECT p, p_day FROM unnest(p_payers) p ORDER BY p ON CONFLICT DO NOTHING;
  PERFORM 1 FROM budget_days d WHERE d.payer = ANY(p_payers) AND d.day = p_day ORDER BY d.payer FOR NO KEY UPDATE;          -- A
  SELECT * INTO k FROM budget_reservations r WHERE r.session_id = p_session AND r.seq = p_seq AND r.step = p_step FOR UPDATE; -- B
  IF k.session_id IS NOT NULL THEN
    o_result := CASE WHEN k.epoch > p_epoch THEN 2 ELSE 1 END;
    UPDATE budget_reservations r SET epoch = p_epoch, call = p_call, until = clock_timestamp() + p_ttl_ms * interval '1 millisecond'
     WHERE o_result = 1 AND r.session_id = p_session AND r.seq = p_seq AND r.step = p_step;
    RETURN NEXT; RETURN;
  END IF;
  FOR i IN 1 .. cardinality(p_payers) LOOP
    SELECT sum(d.usd), coalesce(sum(d.usd) FILTER (WHERE d.day = p_day), 0), coalesce(sum(d.tokens) FILTER (WHERE d.day = p_day), 0)
      INTO o_month_usd, o_day_usd, o_day_tokens FROM budget_days d
     WHERE d.payer = p_payers[i] AND d.day >= p_month AND d.day < p_month + interval '1 month';
    IF o_day_usd > p_day_usd[i] OR o_month_usd > p_month_usd[i] OR o_day_tokens > p_day_tokens[i] THEN
      o_result := 0; o_payer := i;
      RETURN NEXT; RETURN;
    END IF;
  END LOOP;
  UPDATE budget_days d SET usd = d.usd + p_usd, tokens = d.tokens + p_tokens WHERE d.payer = ANY(p_payers) AND d.day = p_day;
  INSERT INTO budget_reservations(session_id, seq, step, epoch, call, payers, day, usd, tokens, until)
    VALUES (p_session, p_seq, p_step, p_epoch, p_call, p_payers, p_day, p_usd, p_tokens, clock_timestamp() + p_ttl_ms * interval '1 millisecond');
  o_result := 1;
  RETURN NEXT;
END $$;

-- Puts what a call used in the place of what was reserved for it; without p_usd the reservation stays spent. False: that call holds no
-- reservation (any more), so nothing is to be done.
CREATE FUNCTION budget_settle(p_session bigint, p_seq bigint, p_step int, p_call uuid, p_usd bigint, p_tokens bigint) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE k budget_reservations;
BEGIN
  SELECT * INTO k FROM budget_reservations r WHERE r.session_id = p_session AND r.seq = p_seq AND r.step = p_step;
  PERFORM 1 FROM budget_days d WHERE d.payer = ANY(k.payers) AND d.day = k.day ORDER BY d.payer FOR NO KEY UPDATE;          -- A
  DELETE FROM budget_reservations r WHERE r.session_id = p_session AND r.seq = p_seq AND r.step = p_step AND r.call = p_call   -- B
    RETURNING * INTO k;
  IF k.session_id IS NULL THEN RETURN false; END IF;
  UPDATE budget_days d SET usd = greatest(0, d.usd + p_usd - k.usd), tokens = greatest(0, d.tokens + p_tokens - k.tokens)
   WHERE p_usd IS NOT NULL AND d.payer = ANY(k.payers) AND d.day = k.day;
  RETURN true;
END $$;
