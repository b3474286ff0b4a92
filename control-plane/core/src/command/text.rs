//! What a chat is told about commands.

use std::fmt::Write as _;

use super::{Spec, TABLE};

/// Commands on one page.
const PAGE: usize = 10;

/// What there is, one line each, of what `may` lets through.
pub fn help(may: impl Fn(&Spec) -> bool) -> String {
    let mut said = "Just write to me. Or use a command:".to_owned();
    for spec in shown(may) {
        let _ = write!(said, "\n{} - {}", usage(spec), spec.help);
    }
    said
}

/// One page of all that `may` lets through, with other names; `asked` is a page's number from 1, and anything else the first.
pub fn page(asked: &str, may: impl Fn(&Spec) -> bool) -> String {
    let all: Vec<&Spec> = shown(may).collect();
    let pages = all.len().div_ceil(PAGE).max(1);
    let number = asked.parse::<usize>().unwrap_or(1).clamp(1, pages);
    let mut said = format!("Commands, page {number} of {pages}:");
    for spec in all.iter().skip((number - 1) * PAGE).take(PAGE) {
        let _ = write!(said, "\n{} - {}", usage(spec), spec.help);
        if !spec.aliases.is_empty() {
            let _ = write!(said, " (also /{})", spec.aliases.join(", /"));
        }
    }
    if number < pages {
        let _ = write!(said, "\nMore: /commands {}", number + 1);
    }
    said
}

/// What a chat is told of a command that there is none of.
pub fn unknown(name: &str) -> String {
    let near = crate::config::nearest(&name.to_ascii_lowercase(), shown(|_| true).map(|spec| spec.name));
    match near {
        Some(near) => format!("I know no command /{name}. Did you mean /{near}? /help says what there is."),
        None => format!("I know no command /{name}. /help says what there is."),
    }
}

impl Spec {
    /// How it is written: `/name <arguments>`.
    pub fn usage(&self) -> String {
        usage(self)
    }
}

fn shown(may: impl Fn(&Spec) -> bool) -> impl Iterator<Item = &'static Spec> {
    TABLE.iter().filter(move |spec| !spec.help.is_empty() && may(spec))
}

fn usage(spec: &Spec) -> String {
    if spec.arguments.is_empty() { format!("/{}", spec.name) } else { format!("/{} {}", spec.name, spec.arguments) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Action;

    #[test]
    fn every_command_is_on_one_page_and_only_what_one_may() {
        let all: String = (1..=9).map(|number| page(&number.to_string(), |_| true)).collect();
        for spec in TABLE {
            let there = all.contains(&format!("\n{} - ", spec.usage()));
            assert_eq!(there, spec.action != Action::Start, "{}", spec.name);
        }
        assert!(page("1", |_| true).ends_with("More: /commands 2"));
        assert_eq!(page("no number", |_| true), page("1", |_| true));
        assert_eq!(page("99", |_| true), page("9", |_| true));
        assert!(!page("99", |_| true).contains("More:"));
        assert_eq!(
            help(|spec| spec.name == "stop"),
            "Just write to me. Or use a command:\n/stop - stop what is running"
        );
    }

    #[test]
    fn an_unknown_command_names_help_and_what_was_probably_meant() {
        assert!(unknown("Stopp").contains("/stop?") && unknown("Stopp").contains("/help"));
        assert!(!unknown("zzzzzzzz").contains("mean"));
    }
}
