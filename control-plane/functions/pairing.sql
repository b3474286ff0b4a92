-- Strangers: they ask with a code, an operator approves it.

-- A stranger has written: 1 asked just now, its text is on its way to their chat; 2 they are approved; 0 nothing is said: the same event,
-- less than p_quiet_ms after their last request, p_most others wait already, or the account is locked.
CREATE FUNCTION pairing_ask(p_platform text, p_account text, p_user text, p_name text, p_chat text, p_thread text, p_event text, p_salt bytea,
    p_hash bytea, p_text bytea, p_ttl_ms bigint, p_quiet_ms bigint, p_most bigint)
RETURNS int LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE k pairing_accounts; r pairing_requests; t timestamptz; lane bigint;
BEGIN
  INSERT INTO pairing_accounts(platform, account) VALUES (p_platform, p_account) ON CONFLICT DO NOTHING;
  SELECT * INTO k FROM pairing_accounts a WHERE a.platform = p_platform AND a.account = p_account FOR UPDATE;           -- A
  t := clock_timestamp();
  IF EXISTS (SELECT 1 FROM pairing_senders s WHERE s.platform = p_platform AND s.account = p_account AND s.user_id = p_user) THEN RETURN 2; END IF;
  SELECT * INTO r FROM pairing_requests q WHERE q.platform = p_platform AND q.account = p_account AND q.user_id = p_user;
  IF k.locked_until > t OR r.event = p_event OR r.asked_at > t - p_quiet_ms * interval '1 millisecond'
     OR (SELECT count(*) FROM pairing_requests q WHERE q.platform = p_platform AND q.account = p_account AND q.user_id <> p_user
           AND q.expires_at > t) >= p_most THEN
    RETURN 0;
  END IF;
  -- Long over; a platform repeats no event after a day.
  DELETE FROM pairing_requests q WHERE q.platform = p_platform AND q.account = p_account AND q.expires_at < t - interval '2 days';
  INSERT INTO pairing_requests(platform, account, user_id, user_name, event, salt, hash, asked_at, expires_at)
    VALUES (p_platform, p_account, p_user, p_name, p_event, p_salt, p_hash, t, t + p_ttl_ms * interval '1 millisecond')
    ON CONFLICT (platform, account, user_id) DO UPDATE SET user_name = excluded.user_name, event = excluded.event, salt = excluded.salt,
      hash = excluded.hash, asked_at = excluded.asked_at, expires_at = excluded.expires_at;
  INSERT INTO lanes(platform, account, chat_id, thread_id) VALUES (p_platform, p_account, p_chat, p_thread) ON CONFLICT DO NOTHING;
  lane := (SELECT l.lane_id FROM lanes l WHERE l.platform = p_platform AND l.account = p_account AND l.chat_id = p_chat AND l.thread_id = p_thread);
  PERFORM enqueue(lane, 0, 0, p_text);
  RETURN 1;
END $$;

-- Approves whoever has this code on one of the accounts. o_result: 1 done; 0 nobody has it, which counts as wrong on each of them that is
-- not locked; 2 all of them are locked. o_locked_until: the first end of a lock-out that there is now; o_left: how many wrong codes are
-- left until one. Digests are compared, of which a caller chooses no byte: how long it takes tells nothing of a code.
CREATE FUNCTION pairing_approve(p_platforms text[], p_accounts text[], p_code text, p_by text, p_wrong int, p_lock_ms bigint)
RETURNS TABLE (o_result int, o_platform text, o_account text, o_user text, o_name text, o_locked_until timestamptz, o_left int)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE r pairing_requests; t timestamptz;
BEGIN
  INSERT INTO pairing_accounts(platform, account) SELECT i.p, i.a FROM unnest(p_platforms, p_accounts) i(p, a) ORDER BY 1, 2 ON CONFLICT DO NOTHING;
  PERFORM 1 FROM pairing_accounts k WHERE (k.platform, k.account) IN (SELECT i.p, i.a FROM unnest(p_platforms, p_accounts) i(p, a))
    ORDER BY k.platform, k.account FOR UPDATE;                                                                           -- A
  t := clock_timestamp();
  UPDATE pairing_accounts k SET wrong = 0, locked_until = NULL FROM unnest(p_platforms, p_accounts) i(p, a)
   WHERE k.platform = i.p AND k.account = i.a AND k.locked_until <= t;
  SELECT q.* INTO r FROM unnest(p_platforms, p_accounts) i(p, a)
    JOIN pairing_accounts k ON k.platform = i.p AND k.account = i.a AND k.locked_until IS NULL
    JOIN pairing_requests q ON q.platform = i.p AND q.account = i.a
   WHERE q.expires_at > t AND q.hash = sha256(q.salt || convert_to(p_code, 'UTF8')) LIMIT 1;
  IF r.user_id IS NOT NULL THEN
    INSERT INTO pairing_senders(platform, account, user_id, user_name, approved_by, approved_at)
      VALUES (r.platform, r.account, r.user_id, r.user_name, p_by, t) ON CONFLICT DO NOTHING;
    DELETE FROM pairing_requests q WHERE q.platform = r.platform AND q.account = r.account AND q.user_id = r.user_id;
    UPDATE pairing_accounts k SET wrong = 0 WHERE k.platform = r.platform AND k.account = r.account;
    RETURN QUERY SELECT 1, r.platform, r.account, r.user_id, r.user_name, NULL::timestamptz, p_wrong;
    RETURN;
  END IF;
  o_result := 2;
  UPDATE pairing_accounts k SET wrong = k.wrong + 1, locked_until = CASE WHEN k.wrong + 1 >= p_wrong THEN t + p_lock_ms * interval '1 millisecond' END
    FROM unnest(p_platforms, p_accounts) i(p, a) WHERE k.platform = i.p AND k.account = i.a AND k.locked_until IS NULL;
  IF FOUND THEN o_result := 0; END IF;
  SELECT min(k.locked_until), min(greatest(p_wrong - k.wrong, 0)) INTO o_locked_until, o_left FROM pairing_accounts k
    JOIN unnest(p_platforms, p_accounts) i(p, a) ON k.platform = i.p AND k.account = i.a;
  RETURN NEXT;
END $$;
