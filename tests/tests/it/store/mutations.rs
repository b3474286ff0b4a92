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
        edits: &[("AND r.replica_id <> p_replica", "")],
        caught_by: &["a_replica_does_not_take_its_own_attempts_for_a_dead_senders"],
    },
    Mutation {
        name: "polls wait for each other",
        edits: &[("lease_until < t FOR UPDATE SKIP LOCKED", "lease_until < t FOR UPDATE")],
        caught_by: &["replicas_that_were_all_late_do_not_wait_for_each_other"],
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
        edits: &[("> greatest(1, 0.3 * count(*))", "> 1000000")],
        caught_by: &[
            "leases_that_lapse_all_at_once_have_one_more_to_be_heard_of",
            "the_poll_that_first_sees_a_jump_renews_its_workers",
        ],
    },
    Mutation {
        name: "one late worker is only suspected",
        edits: &[("> greatest(1, 0.3 * count(*))", "> 0")],
        caught_by: &[
            "leases_that_lapse_all_at_once_have_one_more_to_be_heard_of",
            "the_poll_that_first_sees_a_jump_renews_its_workers",
        ],
    },
    Mutation {
        name: "a suspicion never ends",
        edits: &[("OR suspected_at < t - p_ttl_ms * interval '1 millisecond')", ")")],
        caught_by: &["leases_that_lapse_all_at_once_have_one_more_to_be_heard_of"],
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
