//! Which tool calls a person has to allow, and which nobody can.
//!
//! Called by the worker before a call, and by the control plane when it is asked about one; both must judge alike. It owns the table
//! of patterns. Always true: what is hardline is refused whatever anybody allowed; a command is judged as a shell would take it
//! apart, so quotes, line joins, `$IFS`, prefixes such as `sudo` and several commands in a line hide nothing; a text that
//! cannot be taken apart is dangerous. It is a net with holes, made for mistakes and for plain attacks: what really keeps a command in
//! is the sandbox. It asks nobody and remembers nothing.

mod rules;
mod scan;
mod shell;
#[cfg(test)]
mod tests;

pub use rules::PATTERNS;

/// The name under which a program that answers an agent's turns asks for what it wants to do: `kind` says of which kind it is, and `command`, where
/// there is one, is judged as that of `terminal`. Somebody is always asked, whatever the sandbox.
pub const FOREIGN: &str = "acp_tool_call";

/// Something that a call may be. The key is what people allow and is never renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Stable name.
    pub key: &'static str,
    /// For people: what the call does, as "it …".
    pub says: &'static str,
    /// How much it weighs.
    pub weight: Weight,
}

/// How much a pattern weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// A person has to allow it where a command reaches more than the agent's own.
    Outside,
    /// A person has to allow it everywhere, also behind a closed sandbox: it can spoil what the agent keeps.
    Everywhere,
    /// Nobody can allow it.
    Hardline,
}

/// What holds for an agent's calls.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    /// Whether people are asked. Without, only what is hardline or denied is refused.
    pub asks: bool,
    /// The sandbox is closed: commands see the agent's own entries of its home and have no network.
    pub contained: bool,
    /// Keys of patterns that nobody is asked about.
    pub allow: &'a [String],
    /// Globs (`*`, `?`) of commands that are refused.
    pub deny: &'a [String],
}

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It may be made.
    Fine,
    /// A person has to allow it, because of these.
    Ask(Vec<&'static Pattern>),
    /// It is hardline.
    Hardline(&'static Pattern),
    /// The configuration refuses it, by this glob.
    Denied(String),
}

/// Judges a call of `tool`; `argument` answers its arguments that are texts.
pub fn judge<'a>(tool: &str, argument: impl Fn(&str) -> Option<&'a str>, guard: Guard<'_>) -> Judgement {
    let (found, texts) = match tool {
        "terminal" => commands(argument("command").unwrap_or_default()),
        // What a shell that runs in the background reads.
        "process" => commands(argument("data").unwrap_or_default()),
        "write_file" | "patch" => (rules::written(argument("path").unwrap_or_default()), Vec::new()),
        FOREIGN => {
            let (mut found, texts) = argument("command").map(commands).unwrap_or_default();
            found.push(rules::foreign(argument("kind").unwrap_or_default()));
            (found, texts)
        }
        _ => return Judgement::Fine,
    };
    if let Some(hardline) = found.iter().find(|pattern| pattern.weight == Weight::Hardline) {
        return Judgement::Hardline(hardline);
    }
    let refused = guard.deny.iter().find(|glob| texts.iter().any(|text| matches(glob, text)));
    if let Some(glob) = refused {
        return Judgement::Denied(glob.clone());
    }
    let least = if guard.contained { Weight::Everywhere } else { Weight::Outside };
    let asks = |pattern: &&Pattern| pattern.weight >= least && !guard.allow.iter().any(|key| key == pattern.key);
    let asked: Vec<_> = found.into_iter().filter(asks).collect();
    if guard.asks && !asked.is_empty() { Judgement::Ask(asked) } else { Judgement::Fine }
}

/// What a command text is, in the order of the table, and its commands as plain texts, the whole one first.
fn commands(text: &str) -> (Vec<&'static Pattern>, Vec<String>) {
    let plain = scan::plain(text);
    let (commands, whole) = shell::commands(&plain);
    let mut found = rules::of_text(&plain, &commands);
    found.extend((!whole).then(rules::unreadable));
    found.extend(commands.iter().flat_map(rules::of_command));
    found.sort_by_key(|pattern| PATTERNS.iter().position(|known| known.key == pattern.key));
    found.dedup_by_key(|pattern| pattern.key);
    let words = |command: &shell::Command| command.words.join(" ");
    let whole = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    let texts = std::iter::once(whole).chain(commands.iter().map(words)).collect();
    (found, texts)
}

/// Whether a whole text is as a glob says: `*` is any text, `?` one character; case does not count.
fn matches(glob: &str, text: &str) -> bool {
    let fold = |text: &str| text.to_lowercase().chars().collect::<Vec<_>>();
    let (glob, text) = (fold(glob), fold(text));
    let (mut at, mut from) = (0, 0);
    // Where the last star stands, and how much it has taken.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match glob.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(c) if *c == '?' || text.get(from) == Some(c) => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    at = place + 1;
                    from = taken + 1;
                }
                None => return false,
            },
        }
    }
    glob.iter().skip(at).all(|c| *c == '*')
}
