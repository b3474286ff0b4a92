//! Whether a call of this worker's own tools may be made unasked, by the turn's profile.
//!
//! Called by turns before a call. Pure. Always true: what nobody can allow is refused whatever the profile says. It asks nobody.

use hermes_home::danger::{Guard, Judgement, judge};
use hermes_proto::v1;
use serde_json::{Map, Value};

use crate::sandbox::{Level, Network, Sandbox};

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// It may be made.
    Allowed,
    /// Somebody has to allow it.
    Ask,
    /// It is not made; the sentence is for the model.
    Refused(String),
}

/// Judges a call of `tool`.
pub(crate) fn rule(
    tool: &str,
    arguments: &Map<String, Value>,
    policy: &Sandbox,
    profile: Option<&v1::ProfileRevision>,
) -> Ruling {
    let approvals = profile.and_then(|profile| profile.approvals.clone()).unwrap_or_default();
    let guard = Guard {
        asks: approvals.mode() != v1::ApprovalMode::Off,
        contained: policy.level == Level::Strict && policy.network == Network::None,
        allow: &approvals.allow,
        deny: &approvals.deny,
    };
    match judge(tool, |name| arguments.get(name).and_then(Value::as_str), guard) {
        Judgement::Fine => Ruling::Allowed,
        Judgement::Ask(_) => Ruling::Ask,
        Judgement::Hardline(pattern) => Ruling::Refused(format!(
            "Refused: {}. Nobody can allow that, so do not try it in another way.",
            pattern.says
        )),
        Judgement::Denied(glob) => Ruling::Refused(format!(
            "Refused: the operator does not let commands like {glob:?} run. Do not try it in another way."
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruled(command: &str, policy: &Sandbox, approvals: Option<v1::Approvals>) -> Ruling {
        let arguments = Map::from_iter([("command".to_owned(), Value::from(command))]);
        let profile = v1::ProfileRevision { approvals: approvals.map(Box::new), ..v1::ProfileRevision::default() };
        rule("terminal", &arguments, policy, Some(&profile))
    }

    #[test]
    fn the_profile_says_whether_people_are_asked() {
        let open = Sandbox { network: Network::Open, ..Sandbox::default() };
        let off = v1::Approvals {
            mode: v1::ApprovalMode::Off.into(),
            deny: vec!["git push*".into()],
            ..v1::Approvals::default()
        };
        let proxied = Sandbox { network: Network::Proxy, ..Sandbox::default() };
        assert_eq!(ruled("rm -rf build", &open, None), Ruling::Ask);
        assert_eq!(ruled("rm -rf build", &proxied, None), Ruling::Ask);
        assert_eq!(ruled("rm -rf build", &Sandbox::default(), None), Ruling::Allowed);
        assert_eq!(ruled("rm -rf build", &open, Some(off.clone())), Ruling::Allowed);
        let allow = v1::Approvals { allow: vec!["delete_recursive".into()], ..v1::Approvals::default() };
        assert_eq!(ruled("rm -rf build", &open, Some(allow)), Ruling::Allowed);
        assert!(
            matches!(ruled("git push", &open, Some(off.clone())), Ruling::Refused(why) if why.contains("git push*"))
        );
        assert!(matches!(ruled("rm -rf /", &open, Some(off)), Ruling::Refused(why) if why.contains("Nobody can")));
    }
}
