//! The transitions as statements, for a drill that holds a transaction open or sends one beside another.

use hermes_control_plane::store::{Completion, TurnId};
use hermes_core::busy::BusyMode;

use super::db::{MOST, Message, text};

fn array<T: ToString>(values: impl IntoIterator<Item = Option<T>>, kind: &str) -> String {
    let quoted = values.into_iter().map(|value| {
        value.map_or_else(|| "NULL".to_owned(), |value| format!("'{}'", value.to_string().replace('\'', "''")))
    });
    format!("ARRAY[{}]::{kind}[]", quoted.collect::<Vec<_>>().join(","))
}

/// `ingest_batch` as a statement.
pub(super) fn ingest_sql(messages: &[Message]) -> String {
    let rows = || messages.iter().map(|message| &message.0);
    let columns = [
        array(rows().map(|row| Some(text(&row.dedupe_key))), "bytea"),
        array(rows().map(|row| row.body_hash.as_deref().map(text)), "bytea"),
        array(rows().map(|row| Some(row.agent_no)), "int"),
        array(rows().map(|row| Some(&row.session_key)), "text"),
        array(rows().map(|row| row.lane), "bigint"),
        array(rows().map(|row| Some(text(&row.payload))), "bytea"),
        array(rows().map(|row| row.traceparent.as_ref()), "text"),
        array(rows().map(|row| row.submitter.as_ref()), "text"),
        array(rows().map(|row| row.reserved.map(|(worker, _)| worker)), "bigint"),
        array(rows().map(|row| row.reserved.map(|(_, slot)| slot)), "smallint"),
        array(rows().map(|row| row.idle_before), "timestamptz"),
        array(rows().map(|row| row.daily_before), "timestamptz"),
        array(
            rows()
                .map(|row| Some(BusyMode::ALL.iter().position(|mode| *mode == row.busy).map_or(0, |at| [0, 2, 3][at]))),
            "smallint",
        ),
    ];
    format!("SELECT o_session, o_seq FROM ingest_batch({}, {MOST}, 60000) ORDER BY o_ord", columns.join(","))
}

/// `complete_batch` as a statement of replica 1.
pub(super) fn complete_sql(row: &Completion) -> String {
    let TurnId { session, seq } = row.turn;
    let lane = array([row.lane], "bigint");
    format!(
        "SELECT o_ok FROM complete_batch(1, '{{{}}}', '{{{}}}', '{{{seq}}}', '{{2}}', ARRAY['{}']::bytea[], ARRAY['{{}}']::jsonb[], {lane},
           '{{{}}}', '{{{}}}', 60000)",
        session.0,
        row.epoch,
        text(&row.reply),
        row.send,
        row.next,
    )
}

/// `journal_batch` as a statement.
pub(super) fn journal_sql(rows: &[(i64, i64, i64, i32, &str)]) -> String {
    let small = |value: i16| array(rows.iter().map(|_| Some(value)), "smallint");
    let columns = [
        array(rows.iter().map(|row| Some(row.0)), "bigint"),
        array(rows.iter().map(|row| Some(row.1)), "bigint"),
        array(rows.iter().map(|row| Some(row.2)), "bigint"),
        array(rows.iter().map(|row| Some(row.3)), "int"),
        small(1),
        small(2),
        small(2),
        array(rows.iter().map(|_| None::<i32>), "text"),
        array(rows.iter().map(|row| Some(row.4)), "bytea"),
        array(rows.iter().map(|_| Some(false)), "boolean"),
    ];
    format!("SELECT o_result FROM journal_batch({}) ORDER BY o_ord", columns.join(","))
}

/// `deliver_batch` of one delivered message as a statement of replica 1.
pub(super) fn delivered_sql(lane: i64, pos: i64, attempt: i32) -> String {
    format!(
        "SELECT o_ok FROM deliver_batch(1, '{{{lane}}}', '{{{pos}}}', '{{{attempt}}}', '{{2}}', '{{0}}', '{{m}}', '{{NULL}}', '{{f}}', '{{0}}')"
    )
}

/// A `/stop` as statements.
pub(super) fn stop_sql(key: &str, session: &str) -> String {
    format!(
        "SELECT o_session FROM command_begin('{key}'::bytea, 1, '{session}'); \
         SELECT command_end('{key}'::bytea, k.session_id, CASE WHEN h.o_result = 0 THEN 0 ELSE h.o_seq END, NULL, NULL) \
           FROM session_keys k CROSS JOIN LATERAL stop_head(k.session_id, NULL, 'sorry') h WHERE k.session_key = '{session}'"
    )
}

/// `absorb` as a statement: the first step.
pub(super) fn absorb_sql((session, epoch, seq): (i64, i64, i64), absorbs: i64) -> String {
    format!("SELECT absorb({session}, {epoch}, {seq}, 1, 1::smallint, {absorbs}, 'b{absorbs}')")
}

/// `reclaim` as a statement.
pub(super) const RECLAIM_SQL: &str = "SELECT o_session, o_seq, o_dead FROM reclaim(3, 'sorry', 60000)";
