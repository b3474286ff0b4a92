//! A command text as the commands that a shell would run.
//!
//! Pure. Always true: it takes more for commands than a shell does, never less, where it knows the syntax: the inside of `$(…)`,
//! backticks, `<(…)` and here-documents, what `sudo`, `xargs`, `find -exec` and the like start, and texts for `sh -c` and `eval`
//! are commands, too. It expands no file names and runs nothing.

use std::collections::HashMap;

use super::scan::{ansi_c, closing, document_end, find, find_unescaped};

/// Longest text that is taken apart, bytes.
const MAX_TEXT: usize = 128 << 10;
/// Most commands of one text.
const MAX_COMMANDS: usize = 4096;
/// How deep texts in texts go.
const MAX_DEPTH: usize = 12;

/// One command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Command {
    /// Program (without its directory) and arguments, quotes and prefixes gone.
    pub(super) words: Vec<String>,
    /// It reads what another one wrote.
    pub(super) piped: bool,
    /// Files that it writes by redirection.
    pub(super) writes: Vec<String>,
}

impl Command {
    pub(super) fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    pub(super) fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    /// Whether one of these flags is there: `-x` alone or among others (`-rx`), `--long`, also with a value.
    pub(super) fn has(&self, short: &str, long: &[&str]) -> bool {
        self.arguments().iter().any(|argument| match argument.strip_prefix("--") {
            Some(name) => long.contains(&name.split('=').next().unwrap_or_default()),
            None => argument.strip_prefix('-').is_some_and(|flags| {
                flags.starts_with(|c: char| c.is_ascii_alphabetic()) && flags.chars().any(|c| short.contains(c))
            }),
        })
    }

    /// Arguments that are no flags.
    pub(super) fn operands(&self) -> impl Iterator<Item = &str> {
        self.arguments().iter().map(String::as_str).filter(|argument| !argument.starts_with('-') || *argument == "-")
    }
}

/// The commands of a plain text, in its order, those inside others behind them, and whether all of it could be taken apart: a shell runs
/// the lines before a fault.
pub(super) fn commands(text: &str) -> (Vec<Command>, bool) {
    let mut reader = Reader::default();
    let whole = reader.read(text, 0, false).is_some();
    (reader.found, whole)
}

#[derive(Default)]
struct Reader {
    found: Vec<Command>,
    /// What variables were given.
    given: HashMap<String, String>,
}

/// A command as it is read.
#[derive(Default)]
struct Line {
    words: Vec<String>,
    writes: Vec<String>,
    word: String,
    /// A word has begun, also an empty one in quotes.
    begun: bool,
    /// The next word is no argument.
    next: Option<Next>,
    /// Delimiters of here-documents that begin behind this line.
    documents: Vec<Document>,
    /// Texts inside that are commands by themselves.
    inside: Vec<String>,
    /// Quotes were in the word, so it is not split and no brace in it expands.
    quoted: bool,
}

/// What a word behind a redirection is.
#[derive(Clone, Copy)]
enum Next {
    /// A file that is read.
    Read,
    /// A file that is written.
    Write,
    /// The input itself.
    Text,
    /// The end of a here-document.
    Delimiter,
}

/// A here-document.
struct Document {
    end: String,
    /// Nothing in it is expanded.
    literal: bool,
}

impl Line {
    fn end_word(&mut self) {
        let word = std::mem::take(&mut self.word);
        let quoted = std::mem::take(&mut self.quoted);
        if std::mem::take(&mut self.begun) {
            match self.next.take() {
                Some(Next::Write) => self.writes.push(word),
                Some(Next::Read) => {}
                Some(Next::Text) => self.inside.push(word),
                Some(Next::Delimiter) => self.documents.push(Document { end: word, literal: quoted }),
                None if quoted => self.words.push(word),
                None => self.words.extend(braces(&word)),
            }
        }
    }

    fn push(&mut self, c: char) {
        self.word.push(c);
        self.begun = true;
    }
}

/// `{a,b}` as its words.
fn braces(word: &str) -> Vec<String> {
    let split = || {
        let (before, rest) = word.split_once('{')?;
        let (list, after) = rest.split_once('}')?;
        let plain = !before.ends_with('$') && list.contains(',') && !list.contains('{');
        plain.then(|| list.split(',').map(|part| format!("{before}{part}{after}")).collect())
    };
    split().unwrap_or_else(|| vec![word.to_owned()])
}

impl Reader {
    fn read(&mut self, text: &str, depth: usize, piped: bool) -> Option<()> {
        if depth > MAX_DEPTH || text.len() > MAX_TEXT {
            return None;
        }
        let chars: Vec<char> = text.chars().collect();
        let (mut at, mut piped) = (0, piped);
        let mut line = Line::default();
        let mut documents = Vec::new();
        let mut begin = self.found.len();
        while let Some(&c) = chars.get(at) {
            let next = chars.get(at + 1).copied();
            at += 1;
            match c {
                '\\' => {
                    if let Some(next) = next {
                        line.push(next);
                        line.quoted = true;
                    }
                    at += 1;
                }
                '\'' => {
                    let end = find(&chars, at, '\'')?;
                    line.word.extend(chars.get(at..end)?);
                    (line.begun, line.quoted) = (true, true);
                    at = end + 1;
                }
                '"' => at = self.double_quoted(&chars, at, &mut line)?,
                '$' if next == Some('\'') => {
                    let end = find_unescaped(&chars, at + 1, '\'')?;
                    line.word.push_str(&ansi_c(chars.get(at + 1..end)?));
                    (line.begun, line.quoted) = (true, true);
                    at = end + 1;
                }
                '$' => at = self.dollar(&chars, at, &mut line)?,
                '`' => {
                    let end = find_unescaped(&chars, at, '`')?;
                    line.inside.push(chars.get(at..end)?.iter().filter(|c| **c != '\\').collect());
                    line.word.push_str("$()");
                    line.begun = true;
                    at = end + 1;
                }
                '<' | '>' if next == Some('(') => {
                    let end = closing(&chars, at)?;
                    line.inside.push(chars.get(at + 1..end)?.iter().collect());
                    line.word.push_str("<()");
                    line.begun = true;
                    at = end + 1;
                }
                '<' if next == Some('<') && chars.get(at + 1) == Some(&'<') => {
                    line.end_word();
                    line.next = Some(Next::Text);
                    at += 2;
                }
                '<' => {
                    line.end_word();
                    line.next = Some(if next == Some('<') { Next::Delimiter } else { Next::Read });
                    while chars.get(at).is_some_and(|c| "<-&".contains(*c)) {
                        at += 1;
                    }
                }
                '>' => {
                    // `2>` is no word before it.
                    if line.word.chars().all(|c| c.is_ascii_digit()) {
                        line.word.clear();
                        line.begun = false;
                    }
                    line.end_word();
                    while chars.get(at).is_some_and(|c| ">|".contains(*c)) {
                        at += 1;
                    }
                    if chars.get(at) == Some(&'&') {
                        at += 1;
                    }
                    line.next = Some(Next::Write);
                }
                '#' if !line.begun => {
                    while chars.get(at).is_some_and(|c| *c != '\n') {
                        at += 1;
                    }
                }
                '&' if next == Some('>') => {}
                ';' | '&' | '\n' | '|' | '(' | ')' => {
                    let pipe = c == '|' && next != Some('|');
                    if matches!((c, next), ('|', Some('|' | '&')) | ('&', Some('&')) | (';', Some(';'))) {
                        at += 1;
                    }
                    line.end_word();
                    documents.append(&mut line.documents);
                    self.end(std::mem::take(&mut line), depth, piped)?;
                    if c == '\n' {
                        let reads =
                            |command: &Command| SHELLS.contains(&command.program()) || command.program() == "ssh";
                        let shell = self.found.iter().skip(begin).any(reads);
                        for document in documents.drain(..) {
                            let end = document_end(&chars, at, &document.end);
                            let body: String = chars.get(at..end.0)?.iter().collect();
                            if shell {
                                self.read(&body, depth + 1, false)?;
                            } else if !document.literal {
                                self.substitutions(&body, depth)?;
                            }
                            at = end.1;
                        }
                        begin = self.found.len();
                    }
                    // A group takes what is piped into it, and a line end after a pipe ends nothing.
                    piped = pipe || piped && (c == '(' || c == '\n' && self.found.is_empty());
                }
                c if c.is_whitespace() => line.end_word(),
                c => line.push(c),
            }
        }
        self.end(line, depth, piped)
    }

    /// The commands inside a text that is none itself.
    fn substitutions(&mut self, text: &str, depth: usize) -> Option<()> {
        let chars: Vec<char> = text.chars().collect();
        let mut line = Line::default();
        let mut at = 0;
        while let Some(c) = chars.get(at) {
            at += 1;
            match c {
                '\\' => at += 1,
                '$' => at = self.dollar(&chars, at, &mut line)?,
                '`' => {
                    let end = find_unescaped(&chars, at, '`')?;
                    line.inside.push(chars.get(at..end)?.iter().collect());
                    at = end + 1;
                }
                _ => {}
            }
        }
        for text in line.inside {
            self.read(&text, depth + 1, false)?;
        }
        Some(())
    }

    fn double_quoted(&mut self, chars: &[char], from: usize, line: &mut Line) -> Option<usize> {
        (line.begun, line.quoted) = (true, true);
        let mut at = from;
        loop {
            let c = *chars.get(at)?;
            at += 1;
            match c {
                '"' => return Some(at),
                '\\' => {
                    let next = *chars.get(at)?;
                    if !"$`\"\\".contains(next) {
                        line.word.push('\\');
                    }
                    line.word.push(next);
                    at += 1;
                }
                '$' => at = self.dollar(chars, at, line)?,
                '`' => {
                    let end = find_unescaped(chars, at, '`')?;
                    line.inside.push(chars.get(at..end)?.iter().filter(|c| **c != '\\').collect());
                    line.word.push_str("$()");
                    at = end + 1;
                }
                c => line.word.push(c),
            }
        }
    }

    /// What follows a `$`; where it ends.
    fn dollar(&mut self, chars: &[char], at: usize, line: &mut Line) -> Option<usize> {
        let name_end = |from: usize| {
            let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            from + chars.iter().skip(from).take_while(|c| is_name(c)).count()
        };
        line.begun = true;
        match chars.get(at) {
            Some('(') => {
                let end = closing(chars, at)?;
                line.inside.push(chars.get(at + 1..end)?.iter().collect());
                line.word.push_str("$()");
                Some(end + 1)
            }
            Some('{') => {
                let end = find(chars, at, '}')?;
                let end_of_name = name_end(at + 1).min(end);
                let name: String = chars.get(at + 1..end_of_name)?.iter().collect();
                let rest: String = chars.get(end_of_name..end)?.iter().collect();
                let default =
                    rest.strip_prefix(":-").or_else(|| rest.strip_prefix('-')).or_else(|| rest.strip_prefix(":="));
                match (self.given.get(&name), default) {
                    (Some(value), _) => self.insert(&value.clone(), line),
                    (None, Some(default)) => self.insert(default, line),
                    (None, None) if name == "HOME" => line.word.push_str("$HOME"),
                    // With its end, so that what follows is not taken for a part of the name.
                    (None, None) => line.word.push_str(&format!("${{{name}}}")),
                }
                Some(end + 1)
            }
            // Positional parameters are empty: a word may be broken by them.
            Some(c) if c.is_ascii_digit() || "@*!".contains(*c) => Some(at + 1),
            _ => {
                let end = name_end(at);
                let name: String = chars.get(at..end)?.iter().collect();
                match self.given.get(&name) {
                    Some(value) => self.insert(&value.clone(), line),
                    None => line.word.push_str(&format!("${name}")),
                }
                Some(end)
            }
        }
    }

    /// A variable's value, split into words where it is not in quotes.
    fn insert(&self, value: &str, line: &mut Line) {
        if line.quoted {
            line.word.push_str(value);
            return;
        }
        for (number, part) in value.split(char::is_whitespace).enumerate() {
            if number > 0 {
                line.end_word();
            }
            line.word.push_str(part);
            line.begun |= !part.is_empty();
        }
    }

    /// A command ended: keep it, and read what is inside it.
    fn end(&mut self, mut line: Line, depth: usize, piped: bool) -> Option<()> {
        line.end_word();
        let inside = std::mem::take(&mut line.inside);
        self.keep(line.words, line.writes, depth, piped)?;
        for text in inside {
            self.read(&text, depth + 1, false)?;
        }
        Some(())
    }

    fn keep(&mut self, words: Vec<String>, writes: Vec<String>, depth: usize, piped: bool) -> Option<()> {
        if self.found.len() >= MAX_COMMANDS || depth > MAX_DEPTH {
            return None;
        }
        let mut rest = words.as_slice();
        while let Some((word, after)) = rest.split_first() {
            if let Some((name, value)) = assignment(word) {
                self.given.insert(name.to_owned(), value.to_owned());
            } else if !KEYWORDS.contains(&word.as_str()) {
                break;
            }
            rest = after;
        }
        let Some((first, arguments)) = rest.split_first() else {
            if !writes.is_empty() {
                self.found.push(Command { words: Vec::new(), piped, writes });
            }
            return Some(());
        };
        let program = program(first);
        let mut words = vec![program.clone()];
        words.extend_from_slice(arguments);
        self.found.push(Command { words, piped, writes });
        // What it starts.
        match program.as_str() {
            "eval" => self.read(&arguments.join(" "), depth + 1, piped),
            "find" | "fd" => {
                for (at, _) in arguments
                    .iter()
                    .enumerate()
                    .filter(|(_, word)| ["-exec", "-execdir", "-ok", "-x"].contains(&word.as_str()))
                {
                    self.keep(arguments.get(at + 1..)?.to_vec(), Vec::new(), depth + 1, piped)?;
                }
                Some(())
            }
            _ => {
                if SHELLS.contains(&program.as_str())
                    || ["su", "runuser", "script", "flock", "watch"].contains(&program.as_str())
                {
                    let is_text =
                        |word: &String| word.starts_with('-') && !word.starts_with("--") && word.ends_with('c');
                    let long = |word: &String| word == "--command";
                    let at = arguments.iter().position(|word| is_text(word) || long(word));
                    if let Some(text) = at.and_then(|at| arguments.get(at + 1)) {
                        self.read(text, depth + 1, piped)?;
                    }
                }
                match started(&program, arguments) {
                    Some(started) => self.keep(started, Vec::new(), depth + 1, piped),
                    None => Some(()),
                }
            }
        }
    }
}

/// What a word is as a program: its file's name, without variables that are empty.
fn program(word: &str) -> String {
    let name = word.rsplit('/').next().unwrap_or_default();
    let mut plain = String::new();
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('$') {
        plain.push_str(before);
        if let Some((_, behind)) = after.strip_prefix('{').and_then(|after| after.split_once('}')) {
            rest = behind;
            continue;
        }
        rest = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if rest.len() == after.len() && !rest.is_empty() {
            // `$(…)`: nobody knows what it says.
            plain.push('$');
        }
    }
    plain.push_str(rest);
    plain.to_ascii_lowercase()
}

/// Words before a command.
const KEYWORDS: [&str; 11] = ["if", "then", "else", "elif", "do", "while", "until", "!", "{", "}", "coproc"];
/// Programs that read commands.
pub(super) const SHELLS: [&str; 9] = ["sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "csh", "tcsh"];

/// Programs that start another one: which of their flags have a value of their own, and how many words stand before the command.
const STARTERS: &[(&str, &str, usize)] = &[
    ("sudo", "ughpCTrtDRU", 0),
    ("doas", "uC", 0),
    ("env", "uC", 0),
    ("nohup", "", 0),
    ("setsid", "", 0),
    ("time", "fo", 0),
    ("nice", "n", 0),
    ("ionice", "cnp", 0),
    ("stdbuf", "ioe", 0),
    ("timeout", "ks", 1),
    ("command", "", 0),
    ("builtin", "", 0),
    ("exec", "a", 0),
    ("xargs", "aEeIiLlnPsd", 0),
    ("parallel", "jIn", 0),
    ("busybox", "", 0),
    ("toybox", "", 0),
    ("chroot", "", 1),
    ("flock", "wE", 1),
    ("unshare", "SGR", 0),
    ("nsenter", "tSG", 0),
    ("strace", "eopsu", 0),
    ("watch", "n", 0),
    ("ssh", "bcDEeFIiJLlmOopQRSWw", 1),
    ("caffeinate", "tw", 0),
    ("proxychains", "f", 0),
    ("trap", "", 0),
];

/// The command that a program starts.
fn started(program: &str, arguments: &[String]) -> Option<Vec<String>> {
    let (_, valued, skipped) = STARTERS.iter().find(|(name, _, _)| *name == program)?;
    let mut rest = arguments.iter();
    let mut left = *skipped;
    while let Some(word) = rest.next() {
        let flag = word.strip_prefix('-').filter(|flag| !flag.is_empty());
        match flag {
            Some("-") => {}
            Some(flag) if program == "env" && flag.starts_with('S') => {
                // The rest is one text.
                let text = flag.get(1..).unwrap_or_default();
                let words = std::iter::once(text).chain(rest.map(String::as_str)).flat_map(str::split_whitespace);
                return Some(words.map(str::to_owned).collect());
            }
            Some(flag) if flag.starts_with('-') => {}
            Some(flag) => {
                // The value is the next word where nothing follows the letter.
                if flag.chars().last().is_some_and(|last| valued.contains(last)) && flag.chars().count() == 1 {
                    rest.next();
                }
            }
            None if left > 0 => left -= 1,
            None if program == "env" && assignment(word).is_some() => {}
            None => {
                // Some take a whole text as the command.
                let words = word.split_whitespace().map(str::to_owned).chain(rest.cloned());
                return Some(words.collect());
            }
        }
    }
    None
}

/// `NAME=value`.
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let plain = !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit());
    (plain && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some((name, value))
}
