//! What commands print. A [`View`] is one answer: serialised for programs, drawn as a table for people. The [`Printer`]
//! owns stdout and stderr.
//!
//! Always true: stdout carries the answer and nothing else; warnings and errors go to stderr; colours appear on a terminal
//! only and never with `NO_COLOR`; text that came from outside cannot steer the terminal.

use std::borrow::Cow;
use std::io::Write;

use comfy_table::{CellAlignment, Table, TableStyle};
use serde::Serialize;

use crate::args::Format;

/// One answer.
pub(crate) trait View: Serialize {
    /// For people; ends without a line break.
    fn table(&self, paint: Paint) -> String;
}

/// Whether text may carry colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    /// Plain text.
    Off,
    /// ANSI colours.
    On,
}

impl Paint {
    /// Headings.
    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// Secondary text.
    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    fn red(self, text: &str) -> String {
        self.wrap("31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Self::Off => text.to_owned(),
            Self::On => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        }
    }
}

/// Owns stdout and stderr.
pub(crate) struct Printer {
    format: Format,
    out: Stream,
    err: Stream,
}

/// One output stream: where it goes and how it may look.
pub(crate) struct Stream {
    /// The stream.
    pub to: Box<dyn Write>,
    /// Whether a person looks at it directly.
    pub terminal: bool,
    /// Whether it may carry colours.
    pub paint: Paint,
}

impl Printer {
    /// A printer on these streams.
    pub(crate) fn new(format: Format, out: Stream, err: Stream) -> Self {
        Self { format, out, err }
    }

    /// What stdout carries.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Prints an answer.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub(crate) fn show(&mut self, view: &impl View) -> anyhow::Result<()> {
        let text = render(view, self.format, self.out.paint)?;
        self.write(&text)
    }

    /// Prints an answer as one line of JSON.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub(crate) fn json_line(&mut self, view: &impl View) -> anyhow::Result<()> {
        let mut text = serde_json::to_string(view)?;
        text.push('\n');
        self.write(&text)
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.out.to.write_all(bytes)?;
        self.out.to.flush()?;
        Ok(())
    }

    /// Prints an answer that is a file's content: for people as it is, on a terminal without its control characters.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub(crate) fn show_text(&mut self, view: &impl View, content: &[u8]) -> anyhow::Result<()> {
        if self.format == Format::Table && !self.out.terminal { self.bytes(content) } else { self.show(view) }
    }

    /// Prints a piece of running text at once; on a terminal without its control characters.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub(crate) fn flow(&mut self, text: &str) -> anyhow::Result<()> {
        if self.out.terminal { self.write(&plain_lines(text)) } else { self.write(text) }
    }

    /// A line for people on stderr.
    pub(crate) fn note(&mut self, text: &str) {
        let line = self.err.paint.dim(&plain(text));
        self.complain(&line);
    }

    /// A question of an agent, on stderr, and how it can be answered from another terminal.
    pub(crate) fn question(&mut self, question: &str) {
        let text = format!("{}\n(`hermesctl approval list` shows it, too)", plain_lines(question));
        let text = self.err.paint.yellow(&text);
        self.complain(&text);
    }

    /// A warning on stderr.
    pub(crate) fn warning(&mut self, text: &str) {
        let line = self.err.paint.yellow(&format!("warning: {}", plain(text)));
        self.complain(&line);
    }

    /// An error on stderr; the text is already fit for a terminal.
    pub(crate) fn error(&mut self, text: &str) {
        let line = self.err.paint.red(text);
        self.complain(&line);
    }

    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        self.bytes(text.as_bytes())
    }

    fn complain(&mut self, line: &str) {
        // Nobody is left to tell when stderr is gone; the exit code still says it.
        let _gone = writeln!(self.err.to, "{line}");
    }
}

/// The text of an answer, with its final line break.
///
/// # Errors
/// When the view cannot be serialised.
pub(crate) fn render(view: &impl View, format: Format, paint: Paint) -> anyhow::Result<String> {
    let mut text = match format {
        Format::Table => view.table(paint),
        Format::Json => serde_json::to_string_pretty(view)?,
        Format::Yaml => serde_yaml::to_string(view)?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// A table under construction.
pub(crate) struct Grid {
    table: Table,
    paint: Paint,
    rows: usize,
}

impl Grid {
    /// A table with these headings.
    pub(crate) fn new(paint: Paint, headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(TableStyle::new());
        table.set_header(headings.iter().copied());
        Self { table, paint, rows: 0 }
    }

    /// Aligns these columns to the right: numbers.
    pub(crate) fn right(mut self, columns: &[usize]) -> Self {
        for index in columns {
            if let Some(column) = self.table.column_mut(*index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self
    }

    /// Adds a row; what could steer a terminal or break the line is escaped.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.table.add_row(cells.iter().map(|cell| plain(cell).into_owned()));
        self.rows += 1;
    }

    /// The table, or this sentence when it has no row.
    pub(crate) fn finish(mut self, empty: &str) -> String {
        if self.rows == 0 {
            return empty.to_owned();
        }
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut lines: Vec<String> = self.table.lines().map(|line| line.trim_end().to_owned()).collect();
        if let Some(first) = lines.first_mut() {
            *first = self.paint.bold(first);
        }
        lines.join("\n")
    }
}

/// `name  value` lines with aligned values.
pub(crate) fn pairs(paint: Paint, rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0) + 2;
    let line = |(name, value): &(&str, String)| {
        let gap = " ".repeat(width.saturating_sub(name.chars().count()));
        format!("{}{gap}{}", paint.bold(name), plain(value)).trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Warnings that belong to an answer, below it; nothing when there are none.
pub(crate) fn warnings(paint: Paint, texts: &[String]) -> String {
    let line = |text: &String| format!("\n{}", paint.yellow(&format!("warning: {}", plain(text))));
    let lines: String = texts.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

/// One line that cannot steer a terminal: control characters and direction overrides are shown escaped.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// As [`plain`], but line breaks and tabs stay.
pub(crate) fn plain_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| c == '\n' || c == '\t')
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let steers =
        |c: char| (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')) && !keep(c);
    if !text.chars().any(&steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Unix milliseconds as UTC text; a dash for none.
pub(crate) fn time(ms: Option<i64>) -> String {
    match ms.map(jiff::Timestamp::from_millisecond) {
        Some(Ok(at)) => at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Some(Err(_)) => "?".to_owned(),
        None => "-".to_owned(),
    }
}

/// The value, or a dash.
pub(crate) fn or_dash(value: Option<&str>) -> String {
    match value {
        Some(value) if !value.is_empty() => value.to_owned(),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_text_cannot_steer_a_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\u{7}\nc\u{202e}d"), "a\\u{1b}[31mb\\u{7}\\nc\\u{202e}d");
        assert_eq!(plain_lines("a\n\tb\u{9b}2J"), "a\n\tb\\u{9b}2J");
        assert!(matches!(plain("grüße 你好"), Cow::Borrowed(_)));
    }

    #[test]
    fn colours_wrap_only_when_asked() {
        let mut grid = Grid::new(Paint::On, &["ID"]);
        grid.row(["coder".to_owned()]);
        assert_eq!(grid.finish(""), "\u{1b}[1mID\u{1b}[0m\ncoder");
        assert_eq!(Paint::Off.bold("x"), "x");
    }

    #[test]
    fn times_are_utc_and_absurd_ones_do_not_panic() {
        assert_eq!(time(Some(1_700_000_000_123)), "2023-11-14 22:13:20Z");
        assert_eq!(time(Some(i64::MAX)), "?");
        assert_eq!(time(None), "-");
    }
}
