//! Histories that outgrow what the model is given, and turns that only sum one up.

use hermes_proto::v1::*;

use crate::attached;
use crate::fake::{Attached, Fake, assignment, says, turn};

const SUM_UP: &str = "You sum up a conversation";
const SUMMARY: &str = "[A summary of what was said earlier";

/// Exchanges `1..=count` of 20 bytes each.
fn said(fake: &Fake, count: u64) {
    let text = |who: char, seq: u64| format!("{who}{seq:09}");
    let exchange =
        |seq| [(seq, TranscriptRole::User, text('q', seq)), (seq, TranscriptRole::Assistant, text('a', seq))];
    *fake.state.transcript.lock().unwrap() = (1..=count).flat_map(exchange).collect();
}

fn told(messages: &[(ModelRole, String)]) -> Vec<&str> {
    messages.iter().filter(|(role, _)| *role != ModelRole::System).map(|(_, text)| text.as_str()).collect()
}

fn with_history(turn: TurnRef, input: &str, bytes: u32) -> Assignment {
    Assignment { history_bytes: bytes, ..assignment(turn, input) }
}

#[tokio::test]
async fn what_does_not_fit_is_summed_up_before_the_model_is_asked() {
    let (mut fake, _worker, mut link) = attached().await;
    said(&fake, 12);
    link.assign(with_history(turn(5, 13, 1), &says("next"), 200)).await;
    let call = fake.call().await;
    assert!(call.messages[0].1.starts_with(SUM_UP), "{:?}", call.messages);
    // What fits twice the 200 bytes is known: the summary is of the oldest of that, up to those that fit a quarter.
    assert!(call.messages[1].1.contains("q000000010") && !call.messages[1].1.contains("q000000011"));
    assert!(call.tools.is_empty());
    call.say("They count.").await;
    call.done().await;
    let call = fake.call().await;
    let told = told(&call.messages);
    assert!(told[0].starts_with(SUMMARY) && told[0].ends_with("\n\nThey count."), "{told:?}");
    assert_eq!(told[2..], ["q000000011", "a000000011", "q000000012", "a000000012", "next"]);
    assert_eq!(*fake.state.summaries.lock().unwrap(), [(turn(5, 13, 1), 10, "They count.".to_owned())]);
    call.say("ok").await;
    call.done().await;
    let completed = link.completed().await;
    assert_eq!(completed.reply, b"ok");
    assert_eq!(completed.usage.as_ref().unwrap().input_tokens, 6, "both calls are counted");
}

#[tokio::test]
async fn a_summary_that_cannot_be_had_costs_an_answer_nothing() {
    let (mut fake, _worker, mut link) = attached().await;
    said(&fake, 12);
    link.assign(with_history(turn(5, 13, 1), &says("next"), 200)).await;
    fake.call().await.fail("Not today.").await;
    let call = fake.call().await;
    assert_eq!(told(&call.messages).len(), 21, "the newest ten exchanges and the message");
    call.say("ok").await;
    call.done().await;
    let completed = link.completed().await;
    assert_eq!((completed.outcome(), completed.reply.as_slice()), (Outcome::Succeeded, &b"ok"[..]));
    link.acknowledge(&completed).await;
    // It is not tried again at once.
    link.assign(with_history(turn(5, 14, 1), &says("more"), 200)).await;
    let call = fake.call().await;
    assert!(!call.messages[0].1.starts_with(SUM_UP));
}

#[tokio::test]
async fn a_turn_that_has_begun_sums_up_nothing() {
    let (mut fake, _worker, mut link) = attached().await;
    said(&fake, 12);
    let begun = Assignment { journal_entries: 1, attempt: 2, ..with_history(turn(5, 13, 2), &says("next"), 200) };
    link.assign(begun).await;
    assert!(!fake.call().await.messages[0].1.starts_with(SUM_UP));
}

/// Assigns a turn that only sums up, lets the model write, and answers what its chat is told.
async fn compressed(fake: &mut Fake, link: &mut Attached, seq: u64, how: &str, summary: Option<&str>) -> String {
    let input = format!(r#"{{"text":"/compress","compress":{how}}}"#);
    link.assign(with_history(turn(5, seq, 1), &input, 1000)).await;
    if let Some(summary) = summary {
        let call = fake.call().await;
        assert!(call.messages[0].1.starts_with(SUM_UP));
        call.say(summary).await;
        call.done().await;
    }
    let completed = link.completed().await;
    link.acknowledge(&completed).await;
    assert_eq!(completed.outcome(), Outcome::Succeeded);
    String::from_utf8(completed.reply).unwrap()
}

#[tokio::test]
async fn a_turn_can_be_nothing_but_a_summary() {
    let (mut fake, _worker, mut link) = attached().await;
    let none = compressed(&mut fake, &mut link, 1, "{}", None).await;
    assert_eq!(none, "There is nothing to sum up yet.");
    said(&fake, 4);
    let nothing = compressed(&mut fake, &mut link, 5, "{}", None).await;
    assert_eq!(nothing, "There is nothing to sum up: the last 4 exchanges stay as they are.");
    let preview = compressed(&mut fake, &mut link, 6, r#"{"keep":1,"preview":true}"#, None).await;
    assert_eq!(preview, "I would sum up 3 exchanges (60 bytes); the last exchange stays as it is. /compress does it.");
    let done = compressed(&mut fake, &mut link, 7, r#"{"keep":1}"#, Some("Counted.")).await;
    assert!(done.starts_with("I summed up 3 exchanges: ") && done.contains("from 80 to 28 bytes"), "{done}");
    let put = fake.state.summaries.lock().unwrap().clone();
    assert_eq!(put, [(turn(5, 7, 1), 3, "Counted.".to_owned())]);
}
