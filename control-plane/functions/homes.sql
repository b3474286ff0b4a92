-- Home documents: the one place that writes them.

-- Writes the next version of a document and keeps it among its revisions. p_base NULL: whatever is there; else the version it was made
-- from (0: the document is new). No row: there is no such agent. The agent's row is the lock: changes of one agent follow each other,
-- and what is read after it is the truth until commit.
CREATE FUNCTION put_document(p_agent int, p_path text, p_base bigint, p_deleted boolean, p_body bytea, p_by text)
RETURNS TABLE (o_stored boolean, o_version bigint, o_home_version bigint) LANGUAGE plpgsql AS $$
DECLARE h bigint; v bigint;
BEGIN
  SELECT home_version INTO h FROM agents WHERE agent_no = p_agent FOR NO KEY UPDATE;
  IF NOT FOUND THEN RETURN; END IF;
  SELECT version INTO v FROM home_documents WHERE agent_no = p_agent AND path = p_path;
  v := coalesce(v, 0);
  IF p_base <> v THEN RETURN QUERY SELECT false, v, h; RETURN; END IF;
  -- A build that keeps no revisions may have written the one that goes.
  INSERT INTO home_revisions(agent_no, path, version, deleted, sha256, body, written_by, written_at)
  SELECT agent_no, path, version, deleted, sha256, body, '', updated_at FROM home_documents WHERE agent_no = p_agent AND path = p_path
      ON CONFLICT DO NOTHING;
  UPDATE agents SET home_version = h + 1 WHERE agent_no = p_agent;
  INSERT INTO home_documents(agent_no, path, version, home_version, deleted, sha256, body)
  VALUES (p_agent, p_path, v + 1, h + 1, p_deleted, sha256(p_body), p_body)
      ON CONFLICT (agent_no, path) DO UPDATE SET version = excluded.version, home_version = excluded.home_version,
         deleted = excluded.deleted, sha256 = excluded.sha256, body = excluded.body, updated_at = now();
  INSERT INTO home_revisions(agent_no, path, version, deleted, sha256, body, written_by)
  VALUES (p_agent, p_path, v + 1, p_deleted, sha256(p_body), p_body, p_by);
  -- Bounded in number and bytes; the present one stays whatever it is.
  DELETE FROM home_revisions r
   USING (SELECT k.version, row_number() OVER w AS n, sum(octet_length(k.body)) OVER w AS bytes
            FROM home_revisions k WHERE k.agent_no = p_agent AND k.path = p_path WINDOW w AS (ORDER BY k.version DESC)) k
   WHERE r.agent_no = p_agent AND r.path = p_path AND r.version = k.version AND k.n > 1 AND (k.n > 50 OR k.bytes > 4194304);
  RETURN QUERY SELECT true, v + 1, h + 1;
END $$;
