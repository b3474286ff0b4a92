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

-- The files that a caller uploaded under these ids, in their order; nothing for one that is not theirs, or gone. They are used again.
CREATE FUNCTION use_uploads(p_submitter text, p_uploads uuid[]) RETURNS TABLE (o_attachment bytea) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM blobs b JOIN uploads u USING (sha256) WHERE u.upload_id = ANY(p_uploads) AND u.submitter = p_submitter
    ORDER BY b.sha256 FOR UPDATE OF b;
  UPDATE blobs b SET used_at = clock_timestamp() FROM uploads u WHERE u.sha256 = b.sha256 AND u.upload_id = ANY(p_uploads) AND u.submitter = p_submitter;
  RETURN QUERY SELECT u.attachment FROM unnest(p_uploads) WITH ORDINALITY AS w(upload_id, n)
    LEFT JOIN uploads u ON u.upload_id = w.upload_id AND u.submitter = p_submitter ORDER BY w.n;
END $$;
