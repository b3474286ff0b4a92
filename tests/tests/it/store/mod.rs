//! Drills of the store: each one drives the transitions in an order that a defect would get wrong.
//!
//! A drill is a function, so that it runs both against the real schema (one test each) and against schemas with one
//! deliberate defect ([`mutations`]), where it must go red. Races are made, not hoped for: one transaction is held open
//! until the other one waits for it.

mod accounts;
mod approvals;
mod asks;
mod budgets;
mod busy;
mod calls;
mod commands;
mod cron;
mod db;
mod deliveries;
mod home_chats;
mod homes;
mod journal;
mod leases;
mod mcp;
mod migrations;
mod mutations;
mod outbox;
mod pairing;
mod parting;
mod races;
mod reach;
mod registry;
mod removal;
mod resets;
mod retention;
mod statements;
mod summaries;
mod turns;

use anyhow::Result;

use db::Db;

type Drill = fn(&mut Db) -> Result<()>;

/// Makes a test of each drill, and a list of them by name.
macro_rules! drills {
    ($($module:ident :: { $($name:ident),* $(,)? })*) => {
        const DRILLS: &[(&str, Drill)] = &[$($((stringify!($name), $module::$name)),*),*];
        $($(
            #[test]
            fn $name() {
                $module::$name(&mut Db::migrated().unwrap()).unwrap();
            }
        )*)*
    };
}

drills! {
    pairing::{
        a_stranger_gets_one_code_for_one_request,
        few_strangers_wait_at_a_time,
        a_code_is_approved_once_in_time_and_revoked_at_once,
        who_guesses_is_locked_out,
    }
    approvals::{
        a_call_is_asked_about_once_whoever_asks,
        an_answer_is_for_one_call_of_one_turn,
        only_whoever_was_asked_or_an_admin_of_that_chat_answers,
        silence_is_no,
        an_answer_counts_once,
        what_was_allowed_further_is_not_asked_for_again,
        an_answer_beside_the_end_of_its_turn_is_one_or_the_other,
        a_model_judges_a_call_once_and_what_it_leaves_open_is_asked,
        a_verdict_that_does_not_come_leaves_it_to_the_person,
        whoever_is_refused_thrice_in_a_turn_is_not_judged_again,
        where_nobody_is_there_what_would_be_asked_is_denied_at_once,
    }
    budgets::{
        a_call_is_let_in_while_it_fits_and_settled_with_what_it_used,
        what_nobody_settles_stays_spent,
        the_same_step_holds_one_reservation_whoever_asks,
        a_call_must_fit_every_payer,
        a_month_counts_its_days_and_a_day_itself,
        a_call_waits_for_the_one_before_it_and_sees_its_sum,
        calls_at_once_never_take_more_than_there_is,
        a_limit_that_is_hit_is_noted_once_a_period,
        a_pause_and_a_raise_move_the_registry,
    }
    busy::{
        a_stop_is_for_the_turn_that_ran_and_never_for_the_next,
        a_stop_beside_the_end_of_its_turn_leaves_the_next_one_alone,
        a_stop_that_comes_twice_acts_once,
        a_stop_where_nothing_runs_says_so,
        a_turn_that_waits_is_stopped_at_once_and_the_next_one_runs,
        a_stop_beside_a_claim_stops_the_turn_either_way,
        a_stop_in_a_session_that_waits_for_another_strands_nobody,
        an_operators_stop_names_one_turn,
        a_stopped_turn_that_lost_its_worker_ends,
        an_interruption_is_for_the_turn_that_ran,
        a_steering_message_is_offered_and_taken_in_once,
        what_was_taken_in_leaves_the_queue_with_the_turn_that_took_it,
        a_message_that_is_not_taken_in_runs_by_itself,
        a_page_of_what_was_taken_in_is_not_the_end_of_the_past,
        what_was_taken_in_survives_a_crash_and_dies_with_its_turn,
        a_turn_that_is_to_end_takes_nothing_in,
        taking_in_beside_a_stop_is_one_or_the_other,
        what_was_taken_in_is_not_cancelled_with_its_agent,
        a_full_session_keeps_the_first_come_and_nothing_of_the_rest,
        the_backlog_counts_turns_that_wait,
    }
    cron::{
        a_due_slot_is_one_run_and_one_turn,
        a_slot_that_somebody_fires_is_passed_over_by_others,
        a_replica_that_dies_while_it_fires_leaves_a_slot_whole_or_not_at_all,
        a_run_that_has_ended_is_settled_once_with_what_it_delivers,
        whoever_judges_a_run_is_told_of_its_agents_homes_in_their_order,
        what_is_too_long_to_say_is_kept_as_a_file_of_the_turn,
        runs_of_a_job_come_one_after_the_other,
        a_job_may_go_on_with_one_conversation,
        a_run_that_is_replaced_or_takes_too_long_is_stopped,
        a_job_that_its_agent_made_reaches_what_the_agent_reaches,
        an_answer_becomes_part_of_the_conversation_when_nothing_runs_there,
        jobs_are_changed_by_whoever_saw_them_last,
        a_removed_job_ends_what_runs_and_keeps_its_history,
        jobs_of_a_removed_agent_stop_and_say_so,
        a_job_is_told_what_others_of_its_agent_said_last,
        old_runs_go_and_the_last_answer_stays,
        a_run_that_the_database_refuses_fails_alone,
        a_job_that_this_build_cannot_read_is_in_nobodys_way,
        few_runs_wait_and_a_pause_lets_none_begin,
        what_an_agent_made_goes_when_it_is_done,
        another_zone_of_the_document_has_its_jobs_looked_at,
        looking_for_due_jobs_does_not_grow_with_jobs,
    }
    commands::{
        a_command_that_comes_twice_acts_and_answers_once,
        a_new_session_takes_the_key_and_the_old_one_is_finished_first,
        a_new_session_where_nothing_was_said_is_the_one_that_is_there,
        a_message_beside_a_new_session_is_in_one_of_them,
        an_earlier_session_of_the_key_is_resumed_and_no_other,
        a_session_that_was_resumed_waits_for_the_one_it_replaced,
        turns_that_are_undone_stay_but_for_the_history,
        whoever_gets_a_turn_is_told_of_rewinds_and_of_the_model,
        what_runs_or_waits_is_not_undone,
        a_retry_is_one_turn_with_the_last_input_under_its_own_key,
        a_retry_says_all_that_its_turn_took_in,
        what_was_used_is_summed_up_by_session_and_by_key,
        one_chat_is_home,
    }
    summaries::{
        a_summary_is_stored_once_under_its_turns_fence,
        a_summary_beside_the_loss_of_its_worker_is_stored_before_or_not_at_all,
        what_tells_of_undone_turns_is_undone_with_them,
        a_turn_that_only_changes_the_history_is_no_part_of_it,
    }
    turns::{
        duplicates_inside_and_across_batches,
        a_past_is_the_newest_turns_that_fit_and_no_more,
        one_key_for_two_sessions_of_a_batch_names_the_first,
        another_body_under_a_known_key_is_a_conflict,
        one_new_key_of_two_agents_makes_two_sessions,
        one_bad_message_does_not_spoil_its_batch,
        order_holds_within_a_batch,
        a_busy_session_is_not_leased_twice,
        an_old_epoch_is_refused_and_the_rest_of_the_batch_stored,
        calls_whose_answers_were_lost_can_be_repeated,
        a_turn_taken_back_and_not_yet_claimed_is_fenced,
        a_journal_can_be_replayed_but_not_changed,
        a_lost_worker_or_one_of_another_agent_gets_no_lease,
        a_waiting_session_is_left_to_its_worker_for_a_while_if_that_lives,
        a_draining_worker_keeps_its_turn_and_gets_no_next_one,
        the_third_crash_is_a_dead_letter_and_the_next_turn_runs,
        a_late_end_at_its_old_replica_leases_nothing_to_a_worker_that_left,
        a_turn_is_given_up_under_its_own_fence_only,
        a_turn_without_a_lane_has_no_delivery,
    }
    journal::{
        a_call_that_may_act_once_is_stored_for_one_epoch_only,
        a_row_is_the_same_only_in_all_its_parts,
        whoever_gets_a_turn_is_told_how_much_of_it_is_journaled,
        a_journal_is_read_in_the_order_of_steps_page_by_page,
        a_history_tells_what_turns_did_and_of_one_that_did_much_the_newest,
    }
    calls::{
        a_call_is_done_once_and_answered_the_same,
        a_call_that_fails_or_is_fenced_has_written_nothing,
        a_call_beside_the_loss_of_its_worker_is_done_under_one_fence,
        changes_of_one_agents_documents_follow_each_other,
        what_is_kept_for_a_session_goes_with_it,
        a_dialogues_past_is_its_own_and_nobody_elses,
        texts_match_as_a_web_search_does,
    }
    asks::{
        what_nobody_waits_for_stops_or_never_begins,
        what_is_asked_is_asked_once,
        agents_never_wait_for_each_other_in_a_circle,
    }
    reach::{
        a_text_is_sent_once_with_its_call_and_by_nobody_whose_turn_is_lost,
        only_chats_that_know_the_agent_are_reached,
    }
    races::{
        a_duplicate_accepted_at_the_same_time_is_seen,
        one_event_accepted_for_two_sessions_at_once_runs_once,
        reclaim_waits_for_the_journal,
        complete_wins_against_reclaim,
        reclaim_wins_against_complete_and_journal,
        a_lease_that_slips_in_beside_reclaim_is_found_later,
        two_claims_take_different_sessions_and_do_not_wait,
        a_message_accepted_beside_the_end_of_its_session_runs,
        the_end_of_a_lanes_head_waits_for_a_new_follower,
        a_new_delivery_beside_the_end_of_the_head_becomes_head,
        batches_in_opposite_order_do_not_deadlock,
    }
    deliveries::{
        a_lane_keeps_its_order_with_one_in_flight,
        a_retry_keeps_the_lane_and_a_dead_sender_marks_a_possible_duplicate,
        the_reply_and_its_delivery_are_one_transaction,
        parts_that_arrived_survive_a_retry_and_a_dead_sender,
        a_retry_is_not_due_before_its_time,
        a_dead_delivery_lets_the_next_one_go,
        a_stale_report_does_not_spoil_the_valid_one_of_its_batch,
        a_replica_does_not_take_its_own_attempts_for_a_dead_senders,
        what_a_lost_answer_handed_over_is_still_held,
        a_chat_has_one_lane_whoever_asks_first,
        being_asked_to_wait_is_no_failure,
    }
    outbox::{
        a_dead_chat_is_told_to_whoever_would_send_until_somebody_writes_there,
        what_was_written_during_the_last_attempt_is_heard,
        an_attempt_of_a_replica_that_nobody_knows_is_taken_over,
        a_replica_that_counts_as_lost_hands_itself_nothing,
        what_has_no_account_waits_for_it_and_counts_no_failure,
        an_empty_reply_is_no_delivery_unless_its_chat_shows_the_turn,
        a_shown_turn_has_one_message_whoever_ends_it,
        a_message_that_nobody_knows_of_makes_the_answer_a_marked_one,
        a_turn_is_shown_only_while_nothing_waits_before_it,
        a_turn_that_ends_meanwhile_is_not_shown,
        a_dead_letter_is_redriven_once_behind_what_its_chat_has,
        a_backlog_costs_a_claim_no_more_than_it_takes,
    }
    resets::{
        an_idle_session_is_replaced_and_the_new_one_runs_at_once,
        either_threshold_alone_expires_a_session,
        a_session_used_at_the_threshold_itself_stays,
        a_replaced_session_that_runs_is_finished_first,
        a_replaced_session_that_waits_is_finished_first,
        a_chain_of_resets_runs_in_order,
        a_dead_letter_lets_the_next_session_begin,
        cancelling_a_removed_agents_turns_reaches_the_next_session,
        a_duplicate_never_resets,
        a_session_without_a_turn_does_not_expire,
        all_messages_of_a_batch_go_to_the_new_session,
        two_replicas_reset_at_once_and_one_session_follows,
        a_reset_beside_the_end_of_the_old_session_strands_nobody,
        a_message_beside_the_release_of_its_session_is_not_stranded,
    }
    removal::{
        waiting_turns_of_a_removed_agent_are_cancelled_and_the_running_one_ends,
        a_cancelled_turn_keeps_its_crash_from_the_next_one,
        a_claim_beside_the_cancellation_takes_or_leaves_a_session_whole,
        a_purge_is_refused_while_anything_runs_waits_or_is_undelivered,
        a_message_beside_a_purge_is_lost_in_no_order,
    }
    leases::{
        a_poll_renews_live_leases_only,
        a_poll_tells_every_loop_what_there_is,
        a_replica_is_lost_with_its_lease_and_comes_back,
        replicas_that_were_all_late_do_not_wait_for_each_other,
        workers_are_lost_and_drained_in_the_order_in_which_polls_renew,
        the_sole_owner_takes_over_from_an_earlier_run,
        long_lost_workers_are_forgotten_with_their_slots,
        a_lease_that_no_slot_holds_is_found_by_the_slow_search,
    }
    parting::{
        a_turn_handed_back_runs_before_younger_ones_and_counts_no_crash,
        only_who_runs_a_turn_hands_it_back_and_once,
        who_leaves_in_order_crashes_nothing_and_who_dies_does,
        leases_that_lapse_while_nobody_polls_have_one_more_to_be_heard_of,
        the_poll_that_first_sees_a_jump_renews_its_workers,
        two_polls_that_see_a_jump_do_not_wait_in_a_circle,
        a_turn_with_steps_is_left_to_workers_that_can_go_on_with_it,
        a_worker_to_part_with_is_told_wherever_it_is_and_stays_so,
        what_is_left_of_a_turns_time_survives_an_adoption,
        nothing_that_was_handed_out_before_a_fence_is_valid_after_it,
    }
    retention::{
        a_dedupe_key_stays_for_eight_days,
        a_file_stays_for_its_days_after_it_came_last,
        what_no_message_names_is_bounded_for_each_caller,
        two_uploads_at_once_do_not_both_take_the_last_room,
        steps_of_running_and_waiting_turns_stay,
        turns_go_with_all_they_have_and_never_what_is_needed,
        a_session_without_turns_goes_with_its_key_and_comes_back_as_new,
        dead_deliveries_stay_longer,
        a_pass_goes_page_by_page_and_one_replica_at_a_time_steps,
    }
    accounts::{
        one_replica_at_a_time_receives_for_an_account,
        an_account_lease_is_renewed_and_says_what_is_left,
        an_account_that_is_given_up_is_free_at_once,
        a_replica_takes_its_share_of_the_accounts_and_the_rest_only_when_nobody_else_does,
        two_replicas_that_want_one_account_do_not_wait_for_each_other,
    }
    mcp::{
        what_a_server_is_first_seen_with_is_pinned_until_it_is_configured_anew,
        an_operator_pins_what_was_looked_at_and_nothing_else,
    }
    home_chats::{
        a_replica_that_starts_puts_right_what_one_of_before_has_changed,
        homes_are_what_the_document_names,
        what_is_right_already_is_not_touched_and_of_one_change_the_last_home_counts,
        a_home_of_an_agent_that_is_not_registered_refuses_the_whole_change,
        what_the_document_names_is_not_changed_by_a_chat,
        a_chat_that_wants_to_be_home_while_the_document_changes_waits_for_it,
    }
    homes::{
        each_version_is_kept_with_who_wrote_it,
        the_newest_versions_stay_and_no_more_of_them_than_fit,
        what_a_build_without_revisions_wrote_is_kept_when_it_goes,
        an_import_is_whole_and_leaves_what_is_the_same,
    }
    registry::{
        two_writers_of_one_version_are_one_winner,
        a_route_to_an_agent_that_is_not_registered_refuses_the_whole_change,
        a_removed_agent_is_a_tombstone_and_comes_back_with_its_number,
        copied_and_set_home_documents_move_the_home_version,
        two_pushes_from_one_version_are_one_winner,
        a_token_for_one_use_is_spent_once,
    }
}
