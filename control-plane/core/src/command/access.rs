//! Who may give which command in which chat.

use serde::{Deserialize, Serialize};

use super::{Spec, Who, find, is_name};

/// The access lists of one platform account. Ids and names as people wrote them; an empty list was not written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessLists {
    /// Who may give every command in direct chats. Empty: everybody may.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_admin_from: Vec<String>,
    /// What others may give there; empty: as in groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_allowed_commands: Vec<String>,
    /// Who may give every command in all other chats. Empty: everybody may.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group_allow_admin_from: Vec<String>,
    /// What others may give there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group_user_allowed_commands: Vec<String>,
}

/// Which of the lists hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A chat with one person.
    Dm,
    /// Any other.
    Group,
}

impl Scope {
    /// The scope of a chat type, in any case.
    pub fn of(chat_type: &str) -> Self {
        let direct = ["dm", "direct", "private"].iter().any(|name| name.eq_ignore_ascii_case(chat_type.trim()));
        if direct { Self::Dm } else { Self::Group }
    }

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dm => "dm",
            Self::Group => "group",
        }
    }
}

/// What somebody may do in a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Which lists hold.
    pub scope: Scope,
    /// Whether commands are gated there at all.
    pub gated: bool,
    /// Whether they may give every command.
    pub admin: bool,
    /// Whether they may give the one that was asked about.
    pub allowed: bool,
}

impl Access {
    /// Judges the command of this name (or alias) for a user of a chat of this type. A scope is gated when it has admins; admins of
    /// one scope are none in the other.
    pub fn decide(chat_type: &str, user_id: Option<&str>, command: &str, lists: &AccessLists) -> Self {
        let scope = Scope::of(chat_type);
        let (admins, commands) = match scope {
            Scope::Dm if lists.user_allowed_commands.is_empty() => {
                (&lists.allow_admin_from, &lists.group_user_allowed_commands)
            }
            Scope::Dm => (&lists.allow_admin_from, &lists.user_allowed_commands),
            Scope::Group => (&lists.group_allow_admin_from, &lists.group_user_allowed_commands),
        };
        let gated = !admins.is_empty();
        let admin = !gated || user_id.is_some_and(|user| admins.iter().any(|admin| admin == user));
        let free = find(command).is_some_and(|spec| spec.who == Who::Everyone);
        let named = || commands.iter().any(|allowed| is_name(own_name(allowed), own_name(command)));
        Self { scope, gated, admin, allowed: admin || free || (!command.is_empty() && named()) }
    }

    /// Whether a user may give a command of the table.
    pub fn may(chat_type: &str, user_id: Option<&str>, spec: &Spec, lists: &AccessLists) -> bool {
        Self::decide(chat_type, user_id, spec.name, lists).allowed
    }
}

/// The name of a command as lists have it: without slash, and not an alias.
fn own_name(written: &str) -> &str {
    let name = written.trim().trim_start_matches('/');
    find(name).map_or(name, |spec| spec.name)
}

/// The entries of a list that was written as one text: separated by commas, trimmed, without empty ones.
pub fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_and_spellings_name_one_command() {
        let lists = AccessLists {
            group_allow_admin_from: vec!["9".to_owned()],
            group_user_allowed_commands: vec!["/BG".to_owned(), "my_tool".to_owned()],
            ..AccessLists::default()
        };
        let may = |command| Access::decide("group", Some("1"), command, &lists).allowed;
        assert!(may("background") && may("btw") && may("My-Tool") && may("help") && may("whoami"));
        assert!(!may("new") && !may(""));
        assert!(Access::decide("group", Some("9"), "", &lists).allowed);
        assert!(!Access::decide("group", None, "new", &lists).admin);
    }

    #[test]
    fn a_text_is_a_list() {
        assert_eq!(listed(" usage ,retry,, ").collect::<Vec<_>>(), ["usage", "retry"]);
        assert_eq!(listed("").count(), 0);
    }
}
