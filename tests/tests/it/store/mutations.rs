//! Do the drills see anything? Each mutation is one deliberate defect in the SQL, and the drills that must catch it.

use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hermes_control_plane::store::Functions;
use hermes_tests::postgres::TestPostgres;

use super::db::{Db, migrations_dir};
use super::{DRILLS, Drill};

struct Mutation {
    name: &'static str,
    /// What is replaced, wherever it occurs, and by what.
    edits: &'static [(&'static str, &'static str)],
    /// Each of them must go red.
    caught_by: &'static [&'static str],
}

const FENCE: &str =
    "LEFT JOIN sessions s ON s.session_id = i.sid AND s.epoch = i.epoch AND s.state = 2 AND s.head_seq = i.seq";
const DEDUPE: &str = "b.dedupe_key IS NOT NULL OR row_number() OVER (PARTITION BY i.key ORDER BY i.ord) > 1 AS dup";

const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "a slot may have two runs",
        edits: &[("  PRIMARY KEY (job_no, slot));", "  UNIQUE (job_no, slot, at));")],
        caught_by: &["a_due_slot_is_one_run_and_one_turn"],
    },
    Mutation {
        name: "the next slot is not noted",
        edits: &[("UPDATE cron_jobs j SET slot = i.next, due_at = i.due,", "UPDATE cron_jobs j SET")],
        caught_by: &["a_due_slot_is_one_run_and_one_turn"],
    },
    Mutation {
        name: "two runs of a job go on at once",
        edits: &[("AND NOT EXISTS (SELECT 1 FROM cron_runs b WHERE b.job_no = j.job_no AND b.state = 1) ORDER", "ORDER")],
        caught_by: &["runs_of_a_job_come_one_after_the_other"],
    },
    Mutation {
        name: "a run that is over does not move on",
        edits: &[("UPDATE cron_runs c SET state = p_state, reason", "UPDATE cron_runs c SET reason")],
        caught_by: &["a_run_that_has_ended_is_settled_once_with_what_it_delivers"],
    },
    Mutation {
        name: "whoever settles a job does not hold it",
        edits: &[("LIMIT p_n FOR UPDATE SKIP LOCKED\n$$;\n\n-- Of locked jobs the runs that have a turn", "LIMIT p_n\n$$;\n\n-- Of")],
        caught_by: &["a_run_that_has_ended_is_settled_once_with_what_it_delivers"],
    },
    Mutation {
        name: "an answer is not delivered with the end of its run",
        edits: &[("pos[i] := enqueue(p_lane[i], r.session_id, r.seq, p_body[i]);", "pos[i] := 0;")],
        caught_by: &["a_run_that_has_ended_is_settled_once_with_what_it_delivers"],
    },
    Mutation {
        name: "an agent's own job reaches every chat",
        edits: &[("IF lane IS NOT NULL OR p_confined THEN", "IF lane IS NOT NULL THEN")],
        caught_by: &["a_job_that_its_agent_made_reaches_what_the_agent_reaches"],
    },
    Mutation {
        name: "whoever is confined to an agent reaches every chat by a job",
        edits: &[("j.by_agent OR j.confined", "j.by_agent")],
        caught_by: &["a_job_that_its_agent_made_reaches_what_the_agent_reaches"],
    },
    Mutation {
        name: "what an agent made stays when it is done",
        edits: &[("CASE WHEN i.stopped IS NOT NULL AND j.by_agent THEN clock_timestamp() ELSE j.removed_at END", "j.removed_at")],
        caught_by: &["what_an_agent_made_goes_when_it_is_done"],
    },
    Mutation {
        name: "jobs that fail are remembered for ever",
        edits: &[("c.state <> 2 OR EXISTS (SELECT 1 FROM cron_runs m", "EXISTS (SELECT 1 FROM cron_runs m")],
        caught_by: &["old_runs_go_and_the_last_answer_stays"],
    },
    Mutation {
        name: "what other agents hear counts",
        edits: &[("OR c.lane_id IS NOT NULL OR EXISTS (SELECT 1 FROM home_channels h WHERE h.agent_no = p_agent AND h.lane_id = l.lane_id))\n   ORDER BY l.lane_id = p_origin", "OR true)\n   ORDER BY l.lane_id = p_origin")],
        caught_by: &["a_job_that_its_agent_made_reaches_what_the_agent_reaches"],
    },
    Mutation {
        name: "what is to end goes on",
        edits: &[("PERFORM stop_head(r.session_id, r.seq, NULL);", "")],
        caught_by: &["a_run_that_is_replaced_or_takes_too_long_is_stopped", "a_removed_job_ends_what_runs_and_keeps_its_history"],
    },
    Mutation {
        name: "what waits of a removed job runs",
        edits: &[("IF NOT p_late THEN\n    UPDATE cron_runs", "IF false THEN\n    UPDATE cron_runs")],
        caught_by: &["a_removed_job_ends_what_runs_and_keeps_its_history"],
    },
    Mutation {
        name: "an answer falls into a turn",
        edits: &[
            ("IF r.state <> 0 OR r.ended_at IS NOT NULL THEN RETURN false", "IF r.ended_at IS NOT NULL THEN RETURN false"),
            ("WHERE k.job_no = r.job_no AND s.state <> 0) END)", "WHERE false) END)"),
        ],
        caught_by: &["an_answer_becomes_part_of_the_conversation_when_nothing_runs_there"],
    },
    Mutation {
        name: "other agents' answers are told",
        edits: &[("WHERE k.agent_no = j.agent_no AND k.removed_at", "WHERE k.removed_at")],
        caught_by: &["a_job_is_told_what_others_of_its_agent_said_last"],
    },
    Mutation {
        name: "that a job stops is said again and again",
        edits: &[("AND j.removed_at IS NULL AND j.stopped IS NULL RETURNING", "AND j.removed_at IS NULL RETURNING")],
        caught_by: &["jobs_of_a_removed_agent_stop_and_say_so"],
    },
    Mutation {
        name: "the last answer goes, too",
        edits: &[("c.state <> 2 OR EXISTS (SELECT 1 FROM cron_runs m", "true OR EXISTS (SELECT 1 FROM cron_runs m")],
        caught_by: &["old_runs_go_and_the_last_answer_stays"],
    },
    Mutation {
        name: "each run goes on with the last one's conversation",
        edits: &[("AND (i.fresh OR k.session_id IS NULL)", "AND k.session_id IS NULL")],
        caught_by: &["runs_of_a_job_come_one_after_the_other"],
    },
    Mutation {
        name: "the job's model is not its session's",
        edits: &[("UPDATE sessions s SET model = r.model WHERE", "UPDATE sessions s SET model = NULL WHERE")],
        caught_by: &["a_job_may_go_on_with_one_conversation"],
    },
    Mutation {
        name: "what no message names is not bounded",
        edits: &[("IF o_left < p_bytes THEN RETURN; END IF;", "")],
        caught_by: &["what_no_message_names_is_bounded_for_each_caller"],
    },
    Mutation {
        name: "uploads of one caller do not wait for each other",
        edits: &[("PERFORM pg_advisory_xact_lock(hashtextextended('hermes.uploads ' || p_submitter, 0));", "")],
        caught_by: &["two_uploads_at_once_do_not_both_take_the_last_room"],
    },
    Mutation {
        name: "a message that names an upload makes no room",
        edits: &[("UPDATE uploads u SET named = true", "UPDATE uploads u SET named = false")],
        caught_by: &["what_no_message_names_is_bounded_for_each_caller"],
    },
    Mutation {
        name: "a version of a document is not kept",
        edits: &[(
            "INSERT INTO home_revisions(agent_no, path, version, deleted, sha256, body, written_by)
  VALUES (p_agent, p_path, v + 1, p_deleted, sha256(p_body), p_body, p_by);",
            "",
        )],
        caught_by: &["each_version_is_kept_with_who_wrote_it"],
    },
    Mutation {
        name: "versions of documents are kept for ever",
        edits: &[("k.n > 1 AND (k.n > 50 OR k.bytes > 4194304)", "false")],
        caught_by: &["the_newest_versions_stay_and_no_more_of_them_than_fit"],
    },
    Mutation {
        name: "what a build without revisions wrote is forgotten",
        edits: &[(
            "WHERE agent_no = p_agent AND path = p_path\n      ON CONFLICT DO NOTHING",
            "WHERE false\n      ON CONFLICT DO NOTHING",
        )],
        caught_by: &["what_a_build_without_revisions_wrote_is_kept_when_it_goes"],
    },
    Mutation {
        name: "a document is not compared",
        edits: &[("IF p_base <> v THEN", "IF false THEN")],
        caught_by: &["two_pushes_from_one_version_are_one_winner", "each_version_is_kept_with_who_wrote_it"],
    },
    Mutation {
        name: "changes of one home do not wait for each other",
        edits: &[("WHERE agent_no = p_agent FOR NO KEY UPDATE;", "WHERE agent_no = p_agent;")],
        caught_by: &["two_pushes_from_one_version_are_one_winner"],
    },
    Mutation {
        name: "no epoch in the fence",
        edits: &[(FENCE, "LEFT JOIN sessions s ON s.session_id = i.sid AND s.state = 2 AND s.head_seq = i.seq")],
        caught_by: &["an_old_epoch_is_refused_and_the_rest_of_the_batch_stored"],
    },
    Mutation {
        name: "neither state nor epoch in the fence",
        edits: &[(FENCE, "LEFT JOIN sessions s ON s.session_id = i.sid AND s.head_seq = i.seq")],
        caught_by: &["a_turn_taken_back_and_not_yet_claimed_is_fenced", "reclaim_wins_against_complete_and_journal"],
    },
    Mutation {
        name: "no dedupe across batches",
        edits: &[("b.dedupe_key IS NOT NULL OR row_number()", "row_number()")],
        caught_by: &["duplicates_inside_and_across_batches", "a_duplicate_accepted_at_the_same_time_is_seen"],
    },
    Mutation {
        name: "no dedupe at all",
        edits: &[(DEDUPE, "false AS dup")],
        caught_by: &["duplicates_inside_and_across_batches"],
    },
    Mutation {
        name: "no dedupe, and the key is not unique",
        edits: &[(DEDUPE, "false AS dup"), ("dedupe_key  bytea PRIMARY KEY", "dedupe_key  bytea")],
        caught_by: &["duplicates_inside_and_across_batches", "one_event_accepted_for_two_sessions_at_once_runs_once"],
    },
    Mutation {
        name: "another body is no conflict",
        edits: &[("coalesce(f.bhash, f.fhash) IS DISTINCT FROM f.hash", "false")],
        caught_by: &["another_body_under_a_known_key_is_a_conflict"],
    },
    Mutation {
        name: "the delivery is not in the completion",
        edits: &[("FROM f WHERE f.pos IS NOT NULL AND f.ln = 1 ORDER BY f.lane", "FROM f WHERE false ORDER BY f.lane")],
        caught_by: &["the_reply_and_its_delivery_are_one_transaction"],
    },
    Mutation {
        name: "the journal does not lock",
        edits: &[(
            "PERFORM 1 FROM sessions WHERE session_id = ANY(p_session) ORDER BY session_id FOR NO KEY UPDATE;      -- A: a reclaim waits for us",
            "",
        )],
        caught_by: &["reclaim_waits_for_the_journal"],
    },
    Mutation {
        name: "a batch is stored backwards",
        edits: &[(
            "WINDOW w AS (PARTITION BY d.sid, d.dup ORDER BY d.ord)",
            "WINDOW w AS (PARTITION BY d.sid, d.dup ORDER BY d.ord DESC)",
        )],
        caught_by: &["order_holds_within_a_batch"],
    },
    Mutation {
        name: "a busy lane's head is not told of followers",
        edits: &[("DO UPDATE SET more = true              -- busy", "DO UPDATE SET more = outbox.more       -- busy")],
        caught_by: &["the_end_of_a_lanes_head_waits_for_a_new_follower"],
    },
    Mutation {
        name: "deliveries are not fenced",
        edits: &[("AND o.owner = p_replica AND o.attempt = i.attempt", "")],
        caught_by: &["a_retry_keeps_the_lane_and_a_dead_sender_marks_a_possible_duplicate"],
    },
    Mutation {
        name: "any agent's worker will do",
        edits: &[("k.agent_no = s.agent_no AND ", "")],
        caught_by: &["a_lost_worker_or_one_of_another_agent_gets_no_lease"],
    },
    Mutation {
        name: "a session waits for a lost worker",
        edits: &[(
            "OR NOT EXISTS (SELECT 1 FROM workers p WHERE",
            "OR EXISTS (SELECT 1 FROM workers p WHERE p.lost AND",
        )],
        caught_by: &["a_waiting_session_is_left_to_its_worker_for_a_while_if_that_lives"],
    },
    Mutation {
        name: "sessions left to their workers are not told",
        edits: &[("WHERE r.prefer IS NOT NULL AND r.ready_at <= t AND", "WHERE false AND")],
        caught_by: &["a_waiting_session_is_left_to_its_worker_for_a_while_if_that_lives"],
    },
    Mutation {
        name: "crashes are not counted",
        edits: &[("crashes = crashes + p_crashed, state = 1", "crashes = crashes, state = 1")],
        caught_by: &["the_third_crash_is_a_dead_letter_and_the_next_turn_runs"],
    },
    Mutation {
        name: "a next turn is leased to another replica's worker",
        edits: &[("AND k.replica_id = p_replica AND NOT k.lost", "AND NOT k.lost")],
        caught_by: &["a_late_end_at_its_old_replica_leases_nothing_to_a_worker_that_left"],
    },
    Mutation {
        name: "anybody's turn is given up",
        edits: &[(
            "s.session_id = r.sid AND s.epoch = r.epoch AND s.state = 2 AND s.head_seq = r.seq",
            "s.session_id = r.sid AND s.state = 2 AND s.head_seq = r.seq",
        )],
        caught_by: &["a_turn_is_given_up_under_its_own_fence_only"],
    },
    Mutation {
        name: "a busy session is leased",
        edits: &[("n.rn = 1 AND s.state = 0 AND k.worker_id", "n.rn = 1 AND s.state <> 1 AND k.worker_id")],
        caught_by: &["a_busy_session_is_not_leased_twice", "a_replaced_session_that_runs_is_finished_first"],
    },
    Mutation {
        name: "reclaim looks at the newly lost only",
        edits: &[("w.lost AND w.lost_at > t - interval '10 minutes' AND", "w.lost AND w.lost_at = t AND")],
        caught_by: &["a_lease_that_slips_in_beside_reclaim_is_found_later"],
    },
    Mutation {
        name: "a new session does not wait for the old one",
        edits: &[("CASE WHEN r.state = 0 THEN 0 ELSE 3 END", "0")],
        caught_by: &[
            "a_replaced_session_that_runs_is_finished_first",
            "a_replaced_session_that_waits_is_finished_first",
            "a_chain_of_resets_runs_in_order",
        ],
    },
    Mutation {
        name: "a new session is never released",
        edits: &[("AND o.state = 0 AND n.state = 3 ORDER BY", "AND false ORDER BY")],
        caught_by: &[
            "a_replaced_session_that_runs_is_finished_first",
            "a_reset_beside_the_end_of_the_old_session_strands_nobody",
        ],
    },
    Mutation {
        name: "a new session is released while the old one runs",
        edits: &[("AND o.state = 0 AND n.state = 3 ORDER BY", "AND n.state = 3 ORDER BY")],
        caught_by: &["a_replaced_session_that_runs_is_finished_first"],
    },
    Mutation {
        name: "a dead letter releases nobody",
        edits: &[("ELSIF r.successor IS NOT NULL THEN", "ELSIF false THEN")],
        caught_by: &["a_dead_letter_lets_the_next_session_begin"],
    },
    Mutation {
        name: "a cancellation releases nobody",
        edits: &[("PERFORM release_successors(sid);", "")],
        caught_by: &["cancelling_a_removed_agents_turns_reaches_the_next_session"],
    },
    Mutation {
        name: "a duplicate resets",
        edits: &[("WHERE NOT EXISTS (SELECT 1 FROM inbound b WHERE b.dedupe_key = i.key) ORDER BY", "ORDER BY")],
        caught_by: &["a_duplicate_never_resets"],
    },
    Mutation {
        name: "a key that moved meanwhile is not noticed",
        edits: &[("OR s.ended_at IS NOT NULL) THEN", ") THEN")],
        caught_by: &["two_replicas_reset_at_once_and_one_session_follows"],
    },
    Mutation {
        name: "a session that was purged meanwhile is not noticed",
        edits: &[("WHERE s.session_id IS NULL OR s.ended_at", "WHERE s.ended_at")],
        caught_by: &["a_message_beside_a_purge_is_lost_in_no_order"],
    },
    Mutation {
        name: "a stale report counts as the first of its delivery",
        edits: &[("ORDER BY (o.lane_id IS NULL), i.ord) = 1 AS ok", "ORDER BY i.ord) = 1 AS ok")],
        caught_by: &["a_stale_report_does_not_spoil_the_valid_one_of_its_batch"],
    },
    Mutation {
        name: "a late replica counts itself among the dead",
        edits: &[("p_owner <> p_replica AND NOT EXISTS", "NOT EXISTS")],
        caught_by: &["a_replica_does_not_take_its_own_attempts_for_a_dead_senders"],
    },
    Mutation {
        name: "polls wait for each other",
        edits: &[("lease_until < t FOR UPDATE SKIP LOCKED", "lease_until < t FOR UPDATE")],
        caught_by: &["replicas_that_were_all_late_do_not_wait_for_each_other"],
    },
    Mutation {
        name: "dedupe keys go with the day before",
        edits: &[("i.received_at < over;", "i.received_at < over + interval '1 day';")],
        caught_by: &["a_dedupe_key_stays_for_eight_days"],
    },
    Mutation {
        name: "steps of running turns go",
        edits: &[("AND s.session_id = x.session_id AND s.head_seq > x.seq;", "AND s.session_id = x.session_id;")],
        caught_by: &["steps_of_running_and_waiting_turns_stay"],
    },
    Mutation {
        name: "turns that run or wait go",
        edits: &[("AND s.head_seq > q.seq\n           WHERE q.ctid", "\n           WHERE q.ctid")],
        caught_by: &["turns_go_with_all_they_have_and_never_what_is_needed"],
    },
    Mutation {
        name: "undelivered turns go",
        edits: &[("AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.session_id = q.session_id AND o.seq = q.seq)", "")],
        caught_by: &["turns_go_with_all_they_have_and_never_what_is_needed"],
    },
    Mutation {
        name: "sessions that have turns go",
        edits: &[("AND NOT EXISTS (SELECT 1 FROM turns q WHERE q.session_id = s.session_id)", "")],
        caught_by: &["a_session_without_turns_goes_with_its_key_and_comes_back_as_new"],
    },
    Mutation {
        name: "replicas wait for each other's retention",
        edits: &[("WHERE what = p_what FOR UPDATE SKIP LOCKED", "WHERE what = p_what FOR UPDATE")],
        caught_by: &["a_pass_goes_page_by_page_and_one_replica_at_a_time_steps"],
    },
    Mutation {
        name: "an account is taken while another has it",
        edits: &[("WHERE l.lease_until <= t ORDER BY random()", "ORDER BY random()"), ("(n.rn <= room OR", "(true OR")],
        caught_by: &["one_replica_at_a_time_receives_for_an_account"],
    },
    Mutation {
        name: "anybody gives up an account",
        edits: &[(
            "AND l.account = i.account AND l.replica_id = p_replica AND l.lease_until > t",
            "AND l.account = i.account AND l.lease_until > t",
        )],
        caught_by: &["one_replica_at_a_time_receives_for_an_account"],
    },
    Mutation {
        name: "an account's lease is not renewed",
        edits: &[("l.lease_until < t + ttl * 2 / 3 OR", "false OR")],
        caught_by: &["an_account_lease_is_renewed_and_says_what_is_left"],
    },
    Mutation {
        name: "a replica takes every account it can",
        edits: &[("(n.rn <= room OR", "(true OR")],
        caught_by: &["a_replica_takes_its_share_of_the_accounts_and_the_rest_only_when_nobody_else_does"],
    },
    Mutation {
        name: "a replica never takes more than its share",
        edits: &[("OR n.lease_until < t - ttl / 3)", ")")],
        caught_by: &["a_replica_takes_its_share_of_the_accounts_and_the_rest_only_when_nobody_else_does"],
    },
    Mutation {
        name: "takers of an account wait for each other",
        edits: &[("FOR UPDATE OF l SKIP LOCKED", "FOR UPDATE OF l")],
        caught_by: &["two_replicas_that_want_one_account_do_not_wait_for_each_other"],
    },
    Mutation {
        name: "the parts that arrived are not kept",
        edits: &[("part = f.part, maybe_dup", "maybe_dup")],
        caught_by: &["parts_that_arrived_survive_a_retry_and_a_dead_sender"],
    },
    Mutation {
        name: "a dead sender's attempt is not marked",
        edits: &[("maybe_dup = o.maybe_dup OR o.state = 1", "maybe_dup = o.maybe_dup")],
        caught_by: &["a_retry_keeps_the_lane_and_a_dead_sender_marks_a_possible_duplicate"],
    },
    Mutation {
        name: "a chat that died stays dead for what is written later",
        edits: &[("<= l.dead_since\n", "IS NOT NULL\n")],
        caught_by: &[
            "a_dead_chat_is_told_to_whoever_would_send_until_somebody_writes_there",
            "what_was_written_during_the_last_attempt_is_heard",
        ],
    },
    Mutation {
        name: "a dead chat is not marked",
        edits: &[("IF p_result && '{7,8}' THEN", "IF false THEN")],
        caught_by: &["a_dead_chat_is_told_to_whoever_would_send_until_somebody_writes_there"],
    },
    Mutation {
        name: "a success does not prove that a chat lives",
        edits: &[("d.state = 2 AND d.at > l.dead_since", "false")],
        caught_by: &["a_dead_chat_is_told_to_whoever_would_send_until_somebody_writes_there"],
    },
    Mutation {
        name: "the mark of a dead chat has the time of the outcome",
        edits: &[(
            "t - i.delay * interval '1 millisecond' END,\n           dead_reason",
            "t END,\n           dead_reason",
        )],
        caught_by: &["what_was_written_during_the_last_attempt_is_heard"],
    },
    Mutation {
        name: "only attempts of known replicas are taken over",
        edits: &[(
            "NOT EXISTS (SELECT 1 FROM replicas r WHERE r.replica_id = p_owner AND r.lost_at IS NULL)",
            "EXISTS (SELECT 1 FROM replicas r WHERE r.replica_id = p_owner AND r.lost_at IS NOT NULL)",
        )],
        caught_by: &["an_attempt_of_a_replica_that_nobody_knows_is_taken_over"],
    },
    Mutation {
        name: "a lost replica hands itself the next of a lane",
        edits: &[("lost := EXISTS (SELECT 1 FROM replicas r", "lost := false AND EXISTS (SELECT 1 FROM replicas r")],
        caught_by: &["a_replica_that_counts_as_lost_hands_itself_nothing"],
    },
    Mutation {
        name: "a lost replica hands itself what it completes",
        edits: &[("alive boolean := NOT EXISTS (", "alive boolean := true OR NOT EXISTS (")],
        caught_by: &["a_replica_that_counts_as_lost_hands_itself_nothing"],
    },
    Mutation {
        name: "a parked delivery is due at once",
        edits: &[("WHEN f.result = 9 THEN 'infinity'", "WHEN f.result = 9 THEN t")],
        caught_by: &["what_has_no_account_waits_for_it_and_counts_no_failure"],
    },
    Mutation {
        name: "an empty reply is a delivery",
        edits: &[("(octet_length(g.reply) > 0", "(true")],
        caught_by: &["an_empty_reply_is_no_delivery_unless_its_chat_shows_the_turn"],
    },
    Mutation {
        name: "an unfinished message stays when its turn ends without a word",
        edits: &[("OR EXISTS (SELECT 1 FROM previews p WHERE p.session_id = g.sid AND p.seq = g.seq))", ")")],
        caught_by: &["an_empty_reply_is_no_delivery_unless_its_chat_shows_the_turn"],
    },
    Mutation {
        name: "a message without an id is forgotten",
        edits: &[(
            "CASE WHEN p.message_id IS NULL THEN 2 ELSE 1 END",
            "CASE WHEN p.message_id IS NULL THEN 0 ELSE 1 END",
        )],
        caught_by: &["a_message_that_nobody_knows_of_makes_the_answer_a_marked_one"],
    },
    Mutation {
        name: "anybody may touch a shown message",
        edits: &[("p.owner = p_replica OR is_orphaned(p.owner, p_replica)", "true")],
        caught_by: &["a_shown_turn_has_one_message_whoever_ends_it"],
    },
    Mutation {
        name: "any notice takes the place of the answer",
        edits: &[("                               AND s.body = p_body)", "                               )")],
        caught_by: &["a_shown_turn_has_one_message_whoever_ends_it"],
    },
    Mutation {
        name: "a turn is shown while its lane is busy",
        edits: &[("IF EXISTS (SELECT 1 FROM outbox o WHERE o.lane_id = p_lane AND o.head) THEN", "IF false THEN")],
        caught_by: &["a_turn_is_shown_only_while_nothing_waits_before_it"],
    },
    Mutation {
        name: "showing a turn does not lock it",
        edits: &[("AND state = 2 AND head_seq = p_seq FOR SHARE", "AND state = 2 AND head_seq = p_seq")],
        caught_by: &["a_turn_that_ends_meanwhile_is_not_shown"],
    },
    Mutation {
        name: "a dead letter can be redriven twice",
        edits: &[("ELSIF d.redriven_pos IS NOT NULL THEN", "ELSIF false THEN")],
        caught_by: &["a_dead_letter_is_redriven_once_behind_what_its_chat_has"],
    },
    Mutation {
        name: "a redriven letter forgets what may have arrived",
        edits: &[(
            "d.session_id, d.seq, d.body, d.maybe_dup, d.part, true)",
            "d.session_id, d.seq, d.body, false, 0, true)",
        )],
        caught_by: &["a_dead_letter_is_redriven_once_behind_what_its_chat_has"],
    },
    Mutation {
        name: "a claim reads all that is due",
        edits: &[("(SELECT clock_timestamp()) ORDER BY o.next_at LIMIT p_n)", "(SELECT clock_timestamp()) ORDER BY o.next_at)")],
        caught_by: &["a_backlog_costs_a_claim_no_more_than_it_takes"],
    },
    Mutation {
        name: "an expired lease can be renewed",
        edits: &[(
            "AND NOT lost AND (lease_until > t OR suspected_at IS NOT NULL) RETURNING worker_id",
            "RETURNING worker_id",
        )],
        caught_by: &["a_poll_renews_live_leases_only"],
    },
    Mutation {
        name: "what is handed back is not fenced",
        edits: &[(
            "s.session_id = r.sid AND s.epoch = r.epoch AND s.state = 2 AND s.head_seq = r.seq);
    IF o_ok THEN PERFORM put_back",
            "s.session_id = r.sid AND s.state = 2);
    IF o_ok THEN PERFORM put_back",
        )],
        caught_by: &["only_who_runs_a_turn_hands_it_back_and_once"],
    },
    Mutation {
        name: "handing back leaves the fence as it was",
        edits: &[(
            "SET epoch = epoch + 1, worker_id = NULL, deadline = NULL, crashes = crashes + p_crashed",
            "SET worker_id = NULL, deadline = NULL, crashes = crashes + p_crashed",
        )],
        caught_by: &["a_turn_handed_back_runs_before_younger_ones_and_counts_no_crash"],
    },
    Mutation {
        name: "what is handed back queues behind",
        edits: &[("coalesce(p_at, q.created_at)", "coalesce(p_at, clock_timestamp())")],
        caught_by: &[
            "a_turn_handed_back_runs_before_younger_ones_and_counts_no_crash",
            "who_leaves_in_order_crashes_nothing_and_who_dies_does",
        ],
    },
    Mutation {
        name: "an orderly leave is a crash",
        edits: &[
            ("NOT r.left_in_order AND r.crashes", "r.crashes"),
            ("ELSIF r.left_in_order THEN", "ELSIF false THEN"),
        ],
        caught_by: &["who_leaves_in_order_crashes_nothing_and_who_dies_does"],
    },
    Mutation {
        name: "nobody is only suspected",
        edits: &[("lease_until > t + ttl * 4 / 5)", "lease_until > t - ttl * 4)")],
        caught_by: &[
            "leases_that_lapse_while_nobody_polls_have_one_more_to_be_heard_of",
            "the_poll_that_first_sees_a_jump_renews_its_workers",
        ],
    },
    Mutation {
        name: "whoever is late is only suspected",
        edits: &[("lease_until > t + ttl * 4 / 5)", "lease_until > t + ttl * 4)")],
        caught_by: &[
            "leases_that_lapse_while_nobody_polls_have_one_more_to_be_heard_of",
            "the_poll_that_first_sees_a_jump_renews_its_workers",
        ],
    },
    Mutation {
        name: "a suspicion never ends",
        edits: &[("OR suspected_at < t - p_ttl_ms * interval '1 millisecond')", ")")],
        caught_by: &["leases_that_lapse_while_nobody_polls_have_one_more_to_be_heard_of"],
    },
    Mutation {
        name: "who waits for the suspicion does not see it",
        edits: &[
            (
                "PERFORM pg_advisory_xact_lock(hashtext('hermes.suspect'));",
                "IF NOT pg_try_advisory_xact_lock(hashtext('hermes.suspect')) THEN RETURN; END IF;",
            ),
            ("ORDER BY worker_id FOR UPDATE);\n  END IF;", "ORDER BY worker_id FOR UPDATE SKIP LOCKED);\n  END IF;"),
            ("PERFORM 1 FROM workers WHERE worker_id = ANY(p_workers) ORDER BY worker_id FOR NO KEY UPDATE;", ""),
        ],
        caught_by: &["two_polls_that_see_a_jump_do_not_wait_in_a_circle"],
    },
    Mutation {
        name: "any worker goes on with any turn",
        edits: &[("(r.needs IS NULL OR r.needs <= a.speaks)", "true")],
        caught_by: &["a_turn_with_steps_is_left_to_workers_that_can_go_on_with_it"],
    },
    Mutation {
        name: "coming back undoes the parting",
        edits: &[("WHERE n.worker_id = p_worker AND o.until IS NOT NULL", "WHERE false")],
        caught_by: &["a_worker_to_part_with_is_told_wherever_it_is_and_stays_so"],
    },
    Mutation {
        name: "a fence leaves the epochs",
        edits: &[("SET epoch = epoch + 4294967296, worker_id", "SET worker_id")],
        caught_by: &["nothing_that_was_handed_out_before_a_fence_is_valid_after_it"],
    },
    Mutation {
        name: "a fence leaves the numbers of sessions",
        edits: &[("setval('session_ids', nextval('session_ids') + 1000000000), ", "")],
        caught_by: &["nothing_that_was_handed_out_before_a_fence_is_valid_after_it"],
    },
    Mutation {
        name: "what waits to be delivered is not marked after a fence",
        edits: &[("UPDATE outbox SET maybe_dup = true;", "")],
        caught_by: &["nothing_that_was_handed_out_before_a_fence_is_valid_after_it"],
    },
    Mutation {
        name: "a replica is not told with whom to part",
        edits: &[("WHERE replica_id = p_replica AND drain_until IS NOT NULL AND NOT lost", "WHERE false")],
        caught_by: &["a_worker_to_part_with_is_told_wherever_it_is_and_stays_so"],
    },
    Mutation {
        name: "what acts once is stored again for a later epoch",
        edits: &[("WHEN f.same AND f.again THEN 2", "WHEN f.same THEN 2")],
        caught_by: &["a_call_that_may_act_once_is_stored_for_one_epoch_only"],
    },
    Mutation {
        name: "a step is the same if its body is",
        edits: &[(
            "(t.kind, t.effect, t.unknown) = (i.kind, i.effect, i.unknown) AND t.idem_key IS NOT DISTINCT FROM i.idem\n               AND ",
            "",
        )],
        caught_by: &["a_row_is_the_same_only_in_all_its_parts"],
    },
    Mutation {
        name: "a claim does not count the journal",
        edits: &[(
            "(SELECT count(*) FROM turn_steps t WHERE t.session_id = u.session_id AND t.seq = u.head_seq)",
            "0::bigint",
        )],
        caught_by: &["whoever_gets_a_turn_is_told_how_much_of_it_is_journaled"],
    },
    Mutation {
        name: "running turns of a removed agent are cancelled too",
        edits: &[(
            "FROM ready x JOIN agents a USING (agent_no) WHERE a.removed_at IS NOT NULL
               ORDER BY x.session_id",
            "FROM sessions x JOIN agents a USING (agent_no) WHERE a.removed_at IS NOT NULL AND x.state > 0
               ORDER BY x.session_id",
        )],
        caught_by: &["waiting_turns_of_a_removed_agent_are_cancelled_and_the_running_one_ends"],
    },
    Mutation {
        name: "a stop is for whatever runs",
        edits: &[("JOIN sessions s ON s.session_id = g.session_id AND s.head_seq = g.seq AND s.state = 2 AND s.worker_id", "JOIN sessions s ON s.session_id = g.session_id AND s.state = 2 AND s.worker_id"),
            ("s.session_id IS NULL OR s.head_seq > g.seq ORDER BY g.session_id", "s.session_id IS NULL ORDER BY g.session_id")],
        caught_by: &["a_stop_is_for_the_turn_that_ran_and_never_for_the_next", "an_interruption_is_for_the_turn_that_ran"],
    },
    Mutation {
        name: "a command leaves no dedupe key",
        edits: &[("INSERT INTO inbound(dedupe_key, session_id, seq) VALUES (p_key, p_session, p_seq);", "")],
        caught_by: &["a_stop_that_comes_twice_acts_once", "a_command_that_comes_twice_acts_and_answers_once"],
    },
    Mutation {
        name: "a stop does not lock its session",
        edits: &[(
            "PERFORM 1 FROM sessions WHERE session_id = p_session FOR NO KEY UPDATE;                               -- A
  SELECT * INTO r FROM sessions WHERE session_id = p_session;                                           -- B",
            "SELECT * INTO r FROM sessions WHERE session_id = p_session;",
        ), ("PERFORM 1 FROM sessions WHERE session_id = o_session FOR NO KEY UPDATE;                               -- A", "")],
        caught_by: &["a_stop_beside_the_end_of_its_turn_leaves_the_next_one_alone"],
    },
    Mutation {
        name: "undone turns are told to workers",
        edits: &[("AND NOT gone @> t.seq ORDER", "ORDER")],
        caught_by: &["turns_that_are_undone_stay_but_for_the_history"],
    },
    Mutation {
        name: "anybody stores a summary",
        edits: &[("AND s.epoch = p_epoch AND s.state = 2 AND s.head_seq = p_seq;  -- B", ";")],
        caught_by: &["a_summary_is_stored_once_under_its_turns_fence"],
    },
    Mutation {
        name: "a summary does not wait for its session",
        edits: &[(
            "PERFORM 1 FROM sessions WHERE session_id = p_session FOR NO KEY UPDATE;                               -- A\n  SELECT * INTO r FROM sessions s",
            "SELECT * INTO r FROM sessions s",
        )],
        caught_by: &["a_summary_beside_the_loss_of_its_worker_is_stored_before_or_not_at_all"],
    },
    Mutation {
        name: "a summary survives what it tells of",
        edits: &[("AND u.made_in >= since", "AND false")],
        caught_by: &["what_tells_of_undone_turns_is_undone_with_them"],
    },
    Mutation {
        name: "workers are not told of rewinds",
        edits: &[("rewinds = rewinds + 1", "rewinds = rewinds")],
        caught_by: &["whoever_gets_a_turn_is_told_of_rewinds_and_of_the_model"],
    },
    Mutation {
        name: "a turn that runs is undone",
        edits: &[("o_busy := coalesce(r.tail_seq >= r.head_seq, false);", "o_busy := false;")],
        caught_by: &["what_runs_or_waits_is_not_undone"],
    },
    Mutation {
        name: "any session is resumed",
        edits: &[(
            "JOIN sessions c ON c.session_id = p_session AND c.agent_no = n.agent_no AND c.session_key = n.session_key",
            "JOIN sessions c ON c.session_id = p_session",
        )],
        caught_by: &["an_earlier_session_of_the_key_is_resumed_and_no_other"],
    },
    Mutation {
        name: "a resumed session is as old as it was",
        edits: &[("successor = NULL, updated_at = t, state", "successor = NULL, state")],
        caught_by: &["an_earlier_session_of_the_key_is_resumed_and_no_other"],
    },
    Mutation {
        name: "a new session does not wait for the old one",
        edits: &[("state = CASE WHEN r.state = 0 THEN 0 ELSE 3 END\n   WHERE session_id = p_to", "state = 0\n   WHERE session_id = p_to")],
        caught_by: &[
            "a_new_session_takes_the_key_and_the_old_one_is_finished_first",
            "a_session_that_was_resumed_waits_for_the_one_it_replaced",
        ],
    },
    Mutation {
        name: "a command does not notice that its key moved",
        edits: &[("ELSIF o_session <> 0 AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = o_session AND s.ended_at IS NULL) THEN", "ELSIF false THEN")],
        caught_by: &["a_message_beside_a_new_session_is_in_one_of_them"],
    },
    Mutation {
        name: "a cancelled turn leaves its session ready",
        edits: &[("IF r.state = 1 AND NOT more THEN
    DELETE FROM ready WHERE session_id = r.session_id;
  ELSIF", "IF")],
        caught_by: &["a_turn_that_waits_is_stopped_at_once_and_the_next_one_runs"],
    },
    Mutation {
        name: "a session that was emptied while it waited releases nobody",
        edits: &[("RETURN QUERY SELECT release_successors(ARRAY[r.session_id]);", "NULL;")],
        caught_by: &["a_stop_in_a_session_that_waits_for_another_strands_nobody"],
    },
    Mutation {
        name: "an interruption replaces a stop",
        edits: &[("DO UPDATE SET kind = least(turn_signals.kind, excluded.kind)", "DO UPDATE SET kind = excluded.kind")],
        caught_by: &["an_interruption_is_for_the_turn_that_ran"],
    },
    Mutation {
        name: "known messages interrupt",
        edits: &[("CASE WHEN NOT n.dup AND s.state = 2 THEN s.head_seq END AS behind", "CASE WHEN s.state = 2 THEN s.head_seq END AS behind"), ("FROM f WHERE f.new AND f.busy > 0", "FROM f WHERE f.busy > 0")],
        caught_by: &["an_interruption_is_for_the_turn_that_ran"],
    },
    Mutation {
        name: "any queued turn may be taken in",
        edits: &[("p_absorbs <> r.head_seq + r.absorbed + 1 OR p_absorbs > r.tail_seq", "p_absorbs > r.tail_seq")],
        caught_by: &["a_steering_message_is_offered_and_taken_in_once"],
    },
    Mutation {
        name: "a turn that is to end takes messages in",
        edits: &[("OR EXISTS (SELECT 1 FROM turn_signals g WHERE g.session_id = p_session AND g.seq = p_seq AND g.kind < 3)", "")],
        caught_by: &["a_turn_that_is_to_end_takes_nothing_in", "taking_in_beside_a_stop_is_one_or_the_other"],
    },
    Mutation {
        name: "taking in is not fenced",
        edits: &[("WHERE session_id = p_session AND epoch = p_epoch AND state = 2 AND head_seq = p_seq;", "WHERE session_id = p_session;")],
        caught_by: &["a_steering_message_is_offered_and_taken_in_once", "a_message_that_is_not_taken_in_runs_by_itself"],
    },
    Mutation {
        name: "an end leaves what was taken in in the queue",
        edits: &[("SET head_seq = s.head_seq + 1 + s.absorbed, absorbed = 0", "SET head_seq = s.head_seq + 1, absorbed = 0")],
        caught_by: &["what_was_taken_in_leaves_the_queue_with_the_turn_that_took_it", "a_message_that_is_not_taken_in_runs_by_itself"],
    },
    Mutation {
        name: "a dead letter leaves what was taken in in the queue",
        edits: &[("crashes = 0, head_seq = head_seq + 1 + absorbed, absorbed = 0,", "crashes = 0, head_seq = head_seq + 1,")],
        caught_by: &["what_was_taken_in_survives_a_crash_and_dies_with_its_turn"],
    },
    Mutation {
        name: "a cancellation leaves what was taken in in the queue",
        edits: &[("head_seq = head_seq + 1 + absorbed, absorbed = 0, state = CASE WHEN r.state = 3", "head_seq = head_seq + 1, state = CASE WHEN r.state = 3")],
        caught_by: &["a_turn_that_is_to_end_takes_nothing_in"],
    },
    Mutation {
        name: "what was taken in is cancelled with its agent",
        edits: &[("AND (q.seq = s.head_seq OR q.seq > s.head_seq + s.absorbed) ORDER", "ORDER")],
        caught_by: &["what_was_taken_in_is_not_cancelled_with_its_agent"],
    },
    Mutation {
        name: "sessions have no bound",
        edits: &[("greatest(p_most - (s.tail_seq - s.head_seq + 1 - s.absorbed), 0)", "1000000")],
        caught_by: &["a_full_session_keeps_the_first_come_and_nothing_of_the_rest"],
    },
    Mutation {
        name: "what was taken in counts against the bound",
        edits: &[("(s.tail_seq - s.head_seq + 1 - s.absorbed), 0)", "(s.tail_seq - s.head_seq + 1), 0)")],
        caught_by: &["a_full_session_keeps_the_first_come_and_nothing_of_the_rest"],
    },
    Mutation {
        name: "calls under a budget are not let in one after the other",
        edits: &[(
            "PERFORM 1 FROM budget_days d WHERE d.payer = ANY(p_payers) AND d.day = p_day ORDER BY d.payer FOR NO KEY UPDATE;",
            "",
        )],
        caught_by: &["a_call_waits_for_the_one_before_it_and_sees_its_sum"],
    },
    Mutation {
        name: "a repeated call reserves again",
        edits: &[("IF k.session_id IS NOT NULL THEN\n    o_result := CASE WHEN k.epoch > p_epoch", "IF false THEN\n    o_result := CASE WHEN k.epoch > p_epoch")],
        caught_by: &["the_same_step_holds_one_reservation_whoever_asks"],
    },
    Mutation {
        name: "anybody settles a step's reservation",
        edits: &[("AND r.step = p_step AND r.call = p_call", "AND r.step = p_step")],
        caught_by: &["the_same_step_holds_one_reservation_whoever_asks"],
    },
    Mutation {
        name: "only the first payer counts",
        edits: &[("FOR i IN 1 .. cardinality(p_payers) LOOP", "FOR i IN 1 .. 1 LOOP")],
        caught_by: &["a_call_must_fit_every_payer"],
    },
    Mutation {
        name: "a swept reservation was never spent",
        edits: &[("WHERE p_usd IS NOT NULL AND d.payer = ANY(k.payers)", "WHERE d.payer = ANY(k.payers)"), ("d.usd + p_usd - k.usd", "d.usd + coalesce(p_usd, 0) - k.usd")],
        caught_by: &["what_nobody_settles_stays_spent"],
    },
    Mutation {
        name: "an answer is for any call at its step",
        edits: &[("ELSIF a.call_hash <> p_hash THEN", "ELSIF false THEN")],
        caught_by: &["an_answer_is_for_one_call_of_one_turn"],
    },
    Mutation {
        name: "a stale attempt asks",
        edits: &[("IF r.session_id IS NULL THEN o_state := -1;", "IF false THEN o_state := -1;")],
        caught_by: &["a_call_is_asked_about_once_whoever_asks"],
    },
    Mutation {
        name: "anybody answers",
        edits: &[("IF NOT p_any AND NOT coalesce(", "IF false AND NOT coalesce(")],
        caught_by: &["only_whoever_was_asked_or_an_admin_of_that_chat_answers"],
    },
    Mutation {
        name: "admins answer everywhere",
        edits: &[("AND a.lane_id IS NOT DISTINCT FROM p_lane AND (", "AND (")],
        caught_by: &["only_whoever_was_asked_or_an_admin_of_that_chat_answers"],
    },
    Mutation {
        name: "an answer that comes too late counts",
        edits: &[("IF a.state = 0 AND a.expires_at <= t THEN\n    UPDATE approvals SET state = 3, answered_at = t WHERE approval_id = id;", "IF false THEN")],
        caught_by: &["silence_is_no"],
    },
    Mutation {
        name: "a question waits for ever",
        edits: &[("ELSIF a.state = 0 AND a.expires_at <= t THEN", "ELSIF false THEN")],
        caught_by: &["silence_is_no"],
    },
    Mutation {
        name: "an answer is taken back",
        edits: &[("IF a.state <> 0 OR NOT EXISTS", "IF NOT EXISTS")],
        caught_by: &["an_answer_counts_once"],
    },
    Mutation {
        name: "what one person allowed holds for all",
        edits: &[("AND g.asker = p_asker AND", "AND")],
        caught_by: &["what_was_allowed_further_is_not_asked_for_again"],
    },
    Mutation {
        name: "what was allowed in one conversation holds in all",
        edits: &[("AND g.session_id IN (0, p_session)", "")],
        caught_by: &["what_was_allowed_further_is_not_asked_for_again"],
    },
    Mutation {
        name: "a turn that has ended is allowed something",
        edits: &[("OR NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = sid AND s.head_seq = a.seq) THEN", "THEN")],
        caught_by: &["an_answer_beside_the_end_of_its_turn_is_one_or_the_other"],
    },
    Mutation {
        name: "an answer does not lock",
        edits: &[("PERFORM 1 FROM sessions s WHERE s.session_id = sid FOR NO KEY UPDATE;", "")],
        caught_by: &["an_answer_beside_the_end_of_its_turn_is_one_or_the_other"],
    },
    Mutation {
        name: "what took too long is not withdrawn",
        edits: &[("AND (x.done OR s.session_id IS NULL", "AND (s.session_id IS NULL")],
        caught_by: &["what_nobody_waits_for_stops_or_never_begins"],
    },
    Mutation {
        name: "what was asked by a turn that has ended goes on",
        edits: &[("s.session_id IS NULL OR s.head_seq > x.seq OR", "s.session_id IS NULL OR")],
        caught_by: &["what_nobody_waits_for_stops_or_never_begins"],
    },
    Mutation {
        name: "what waits behind another one is not withdrawn",
        edits: &[("  IF p_seq <> r.head_seq + r.absorbed + 1 THEN RETURN 4; END IF;", "  RETURN 4;")],
        caught_by: &["what_nobody_waits_for_stops_or_never_begins"],
    },
    Mutation {
        name: "what is withdrawn is withdrawn again for ever",
        edits: &[("IF o_result NOT IN (1, 4) THEN sid", "IF o_result = 2 THEN sid")],
        caught_by: &["what_nobody_waits_for_stops_or_never_begins"],
    },
    Mutation {
        name: "a verdict that does not come is waited for",
        edits: &[("ELSIF a.state = 0 AND a.judge_until <= t THEN", "ELSIF false THEN")],
        caught_by: &["a_verdict_that_does_not_come_leaves_it_to_the_person"],
    },
    Mutation {
        name: "a verdict counts after somebody was asked",
        edits: &[("     AND x.state = 0 AND x.judge_until IS NOT NULL\n", "")],
        caught_by: &[
            "a_model_judges_a_call_once_and_what_it_leaves_open_is_asked",
            "a_verdict_that_does_not_come_leaves_it_to_the_person",
        ],
    },
    Mutation {
        name: "people allow what they were not asked yet",
        edits: &[("coalesce(a.judge_until IS NULL AND a.agent_no", "coalesce(a.agent_no")],
        caught_by: &["a_model_judges_a_call_once_and_what_it_leaves_open_is_asked"],
    },
    Mutation {
        name: "a verdict is for any call at its step",
        edits: &[("AND x.step = p_step AND x.call_hash = p_hash", "AND x.step = p_step")],
        caught_by: &["a_model_judges_a_call_once_and_what_it_leaves_open_is_asked"],
    },
    Mutation {
        name: "a model is asked until it errs",
        edits: &[("         AND x.answered_by = 'smart') < 3;", "         AND x.answered_by = 'smart') < 3000;")],
        caught_by: &["whoever_is_refused_thrice_in_a_turn_is_not_judged_again"],
    },
    Mutation {
        name: "where nobody is there somebody is waited for",
        edits: &[("  IF NOT p_attended THEN\n", "  IF false THEN\n")],
        caught_by: &["where_nobody_is_there_what_would_be_asked_is_denied_at_once"],
    },
    Mutation {
        name: "whoever asks has the call judged again",
        edits: &[("  o_judging := a.state = 0", "  o_judge := a.judge_until IS NOT NULL; o_judging := a.state = 0")],
        caught_by: &["a_model_judges_a_call_once_and_what_it_leaves_open_is_asked"],
    },
    Mutation {
        name: "a repeated event asks again",
        edits: &[("r.event = p_event OR ", "")],
        caught_by: &["a_stranger_gets_one_code_for_one_request"],
    },
    Mutation {
        name: "a stranger gets codes as often as they write",
        edits: &[("r.asked_at > t - p_quiet_ms * interval '1 millisecond'", "false")],
        caught_by: &["a_stranger_gets_one_code_for_one_request"],
    },
    Mutation {
        name: "any number of strangers wait",
        edits: &[("q.expires_at > t) >= p_most", "q.expires_at > t) >= 99")],
        caught_by: &["few_strangers_wait_at_a_time"],
    },
    Mutation {
        name: "requests at the same time do not see each other",
        edits: &[("FROM pairing_accounts a WHERE a.platform = p_platform AND a.account = p_account FOR UPDATE", "FROM pairing_accounts a WHERE a.platform = p_platform AND a.account = p_account")],
        caught_by: &["few_strangers_wait_at_a_time"],
    },
    Mutation {
        name: "a code is good for ever",
        edits: &[("WHERE q.expires_at > t AND q.hash", "WHERE q.hash")],
        caught_by: &["a_code_is_approved_once_in_time_and_revoked_at_once"],
    },
    Mutation {
        name: "a code is good on every account",
        edits: &[("JOIN pairing_requests q ON q.platform = i.p AND q.account = i.a", "JOIN pairing_requests q ON q.platform = i.p")],
        caught_by: &["a_code_is_approved_once_in_time_and_revoked_at_once"],
    },
    Mutation {
        name: "a code is good more than once",
        edits: &[("    DELETE FROM pairing_requests q WHERE q.platform = r.platform AND q.account = r.account AND q.user_id = r.user_id;\n", "")],
        caught_by: &["a_code_is_approved_once_in_time_and_revoked_at_once"],
    },
    Mutation {
        name: "any code is right",
        edits: &[("AND q.hash = sha256(q.salt || convert_to(p_code, 'UTF8'))", "")],
        caught_by: &["who_guesses_is_locked_out"],
    },
    Mutation {
        name: "wrong codes are not counted",
        edits: &[("SET wrong = k.wrong + 1, locked_until", "SET wrong = k.wrong, locked_until")],
        caught_by: &["who_guesses_is_locked_out"],
    },
    Mutation {
        name: "a locked account approves",
        edits: &[("AND k.account = i.a AND k.locked_until IS NULL\n    JOIN pairing_requests", "AND k.account = i.a\n    JOIN pairing_requests")],
        caught_by: &["who_guesses_is_locked_out"],
    },
    Mutation {
        name: "a locked account gives codes",
        edits: &[("IF k.locked_until > t OR", "IF")],
        caught_by: &["who_guesses_is_locked_out"],
    },
    Mutation {
        name: "a lock-out does not end",
        edits: &[("k.account = i.a AND k.locked_until <= t;", "false;")],
        caught_by: &["who_guesses_is_locked_out"],
    },
];

/// The tables and the functions of this build as one text. V2 made the first functions and V3 dropped them.
fn sql() -> String {
    let mut files: Vec<_> = fs::read_dir(migrations_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| {
        !["V2__", "V3__"].iter().any(|done| file.file_name().unwrap().to_str().unwrap().starts_with(done))
    });
    files.sort_by_key(|file| {
        let name = file.file_name().unwrap().to_str().unwrap();
        name[1..].split('_').next().unwrap().parse::<u32>().unwrap()
    });
    let tables = files.iter().map(|file| fs::read_to_string(file).unwrap());
    tables.chain([Functions::default().text().to_owned()]).collect()
}

fn drill(name: &str) -> Drill {
    DRILLS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("there is no drill {name}")).1
}

/// Whether each drill was green; one that panics is red.
fn run(database: &TestPostgres, sql: &str, names: &[&str]) -> Vec<bool> {
    let mut db = Db::from_sql(database, sql).unwrap();
    let mut green = Vec::with_capacity(names.len());
    for name in names {
        db.reset().unwrap();
        green.push(catch_unwind(AssertUnwindSafe(|| drill(name)(&mut db))).is_ok_and(|result| result.is_ok()));
    }
    green
}

#[test]
fn every_mutation_is_caught() {
    let (database, sql) = (TestPostgres::empty().unwrap(), sql());
    let mut used: Vec<&str> = MUTATIONS.iter().flat_map(|mutation| mutation.caught_by).copied().collect();
    used.sort_unstable();
    used.dedup();
    let unmutated = run(&database, &sql, &used);
    let red: Vec<&&str> = used.iter().zip(unmutated).filter_map(|(name, green)| (!green).then_some(name)).collect();
    assert!(red.is_empty(), "red without any mutation: {red:?}");

    let (mut table, mut missed) = (String::new(), Vec::new());
    for Mutation { name, edits, caught_by } in MUTATIONS {
        let mut mutated = sql.clone();
        for (old, new) in *edits {
            assert!(mutated.contains(old), "mutation {name:?} replaces a text that is not there: {old}");
            mutated = mutated.replace(old, new);
        }
        for (drill, green) in caught_by.iter().zip(run(&database, &mutated, caught_by)) {
            let _ = writeln!(table, "{name}: {drill} {}", if green { "SAW NOTHING" } else { "went red" });
            if green {
                missed.push((name, drill));
            }
        }
    }
    println!("{table}");
    assert!(missed.is_empty(), "these drills saw nothing: {missed:?}");
}
