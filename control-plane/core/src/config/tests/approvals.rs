//! When people are asked: read, refused, exported.

use super::{load, refused};
use crate::approvals::{Approvals, Mode};
use crate::config::*;

#[test]
fn approvals_are_read_exported_and_an_agents_own_counts_as_a_whole() {
    let text = "approvals: {mode: off, smart_model: mock/judge, timeout_seconds: 60, allow: [git_discard], deny: ['git push*']}\n\
                agents:\n  coder: {approvals: {allow: [as_root]}}\n  other: {}\n";
    let document = load(text);
    let all = Approvals {
        mode: Mode::Off,
        smart_model: Some("mock/judge".to_owned()),
        timeout_seconds: 60,
        allow: vec!["git_discard".to_owned()],
        deny: vec!["git push*".to_owned()],
    };
    assert_eq!(document.approvals, all);
    let of = |id: &str| document.approvals_of(&document.agents[id]).clone();
    assert_eq!(of("coder"), Approvals { allow: vec!["as_root".to_owned()], ..Approvals::default() });
    assert_eq!(of("other"), all);
    assert_eq!(load(&to_yaml(&document)), document);
    assert_eq!(load("{}").approvals, Approvals::default());
    assert_eq!(Approvals::default().mode, Mode::Manual);
    assert_eq!(load("approvals: {mode: smart}").approvals.mode, Mode::Smart);
}

#[test]
fn what_cannot_be_kept_is_refused_with_its_remedy() {
    refused(
        "approvals:\n  mode: clever\n  timeout_seconds: 0\n  allow: [Rm -rf]\n  deny: ['']\n  ask: true\nagents:\n  coder: {approvals: {mode: 'yes'}}\n",
        &[
            (2, "approvals.mode", "manual, smart or off"),
            (3, "approvals.timeout_seconds", "1"),
            (4, "approvals.allow[0]", "git_discard"),
            (5, "approvals.deny[0]", "git push*"),
            (6, "approvals.ask", "unknown key"),
            (8, "agents.coder.approvals.mode", "manual, smart or off"),
        ],
    );
    refused("approvals: {mode: smart, smart_model: ''}\n", &[(1, "approvals.smart_model", "model")]);
    refused("approvals:\n", &[(1, "approvals", "{mode: manual}")]);
}
