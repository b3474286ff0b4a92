-- Files that came with messages.

-- Keeps a file in its pieces; one that is here already is only used again. o_new: it was not.
CREATE FUNCTION put_blob(p_sha256 bytea, p_bytes bigint, p_chunks bytea[]) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE is_new boolean;
BEGIN
  INSERT INTO blobs AS b (sha256, bytes) VALUES (p_sha256, p_bytes)
    ON CONFLICT (sha256) DO UPDATE SET used_at = clock_timestamp() RETURNING b.xmax = 0 INTO is_new;
  IF is_new THEN
    INSERT INTO blob_chunks(sha256, n, body) SELECT p_sha256, c.n, c.body FROM unnest(p_chunks) WITH ORDINALITY AS c(body, n);
  END IF;
  RETURN is_new;
END $$;

-- Keeps a file for its submitter under an id, which means it and no other from then on. o_left: how many of p_most bytes the submitter may still
-- have in files of the last day that no message names; less than the file has: nothing was kept.
CREATE FUNCTION put_upload(p_submitter text, p_upload uuid, p_attachment bytea, p_sha256 bytea, p_bytes bigint, p_chunks bytea[], p_most bigint,
  OUT o_left bigint) LANGUAGE plpgsql AS $$
BEGIN
  -- Its uploads come one after another, so that no two fit where only one does.
  PERFORM pg_advisory_xact_lock(hashtextextended('hermes.uploads ' || p_submitter, 0));
  SELECT p_most - coalesce(sum(b.bytes), 0) INTO o_left FROM uploads u JOIN blobs b USING (sha256)
    WHERE u.submitter = p_submitter AND NOT u.named AND u.upload_id <> p_upload AND u.at > clock_timestamp() - interval '1 day';
  IF o_left < p_bytes THEN RETURN; END IF;
  PERFORM put_blob(p_sha256, p_bytes, p_chunks);
  INSERT INTO uploads AS u (upload_id, submitter, attachment, sha256) VALUES (p_upload, p_submitter, p_attachment, p_sha256)
    ON CONFLICT (upload_id) DO UPDATE SET attachment = excluded.attachment, sha256 = excluded.sha256, at = excluded.at;
END $$;

-- The files that a caller uploaded under these ids, in their order; nothing for one that is not theirs, or gone. They are used again,
-- and a message names them.
CREATE FUNCTION use_uploads(p_submitter text, p_uploads uuid[]) RETURNS TABLE (o_attachment bytea) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM blobs b JOIN uploads u USING (sha256) WHERE u.upload_id = ANY(p_uploads) AND u.submitter = p_submitter
    ORDER BY b.sha256 FOR UPDATE OF b;
  UPDATE blobs b SET used_at = clock_timestamp() FROM uploads u WHERE u.sha256 = b.sha256 AND u.upload_id = ANY(p_uploads) AND u.submitter = p_submitter;
  UPDATE uploads u SET named = true WHERE u.upload_id = ANY(p_uploads) AND u.submitter = p_submitter AND NOT u.named;
  RETURN QUERY SELECT u.attachment FROM unnest(p_uploads) WITH ORDINALITY AS w(upload_id, n)
    LEFT JOIN uploads u ON u.upload_id = w.upload_id AND u.submitter = p_submitter ORDER BY w.n;
END $$;
