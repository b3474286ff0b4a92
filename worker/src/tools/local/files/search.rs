//! `search_files`: lines by a regular expression, or files by a glob, as ripgrep finds them (hidden files and those that
//! `.gitignore` names are left out).

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use globset::{Glob, GlobMatcher};
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkContext, SinkMatch};
use ignore::WalkBuilder;
use serde::{Deserialize, Serialize};

use super::{Answer, Search, resolved};

/// Most hits of one answer.
const MAX_HITS: usize = 500;
/// Most files looked at.
const MAX_FILES: usize = 200_000;
/// Longest line that is shown whole, characters.
const MAX_LINE_CHARS: usize = 500;
/// Most lines around a hit.
const MAX_CONTEXT: usize = 20;
/// Longest answer, bytes.
const MAX_BYTES: usize = 64 << 10;

/// What is searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// What is in files.
    #[default]
    Content,
    /// Their names.
    Files,
}

/// What is shown of hits in files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// The lines.
    #[default]
    Content,
    /// The files' names.
    FilesOnly,
    /// How many lines in each file.
    Count,
}

pub(super) fn run(base: &super::Base<'_>, search: &Search) -> Answer {
    let root = resolved(base, &search.path)?;
    if let Err(error) = std::fs::metadata(&root) {
        return Err(super::said(&search.path, &error));
    }
    let glob = |text: &str| -> Result<GlobMatcher, String> {
        let glob = Glob::new(text).map_err(|error| format!("{text:?} is no glob: {error}"))?;
        Ok(glob.compile_matcher())
    };
    match search.target {
        Target::Files => named(&root, &glob(&search.pattern)?, search),
        Target::Content => {
            let only = search.file_glob.as_deref().map(glob).transpose()?;
            containing(&root, only.as_ref(), search)
        }
    }
}

/// Files below `root`, in the order of their names.
fn files(root: &Path) -> impl Iterator<Item = ignore::DirEntry> {
    WalkBuilder::new(root)
        .require_git(false)
        .sort_by_file_name(Ord::cmp)
        .build()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_some_and(|kind| kind.is_file()))
        .take(MAX_FILES)
}

fn fits(glob: &GlobMatcher, root: &Path, path: &Path) -> bool {
    glob.is_match(path.strip_prefix(root).unwrap_or(path)) || path.file_name().is_some_and(|name| glob.is_match(name))
}

/// `path` as the model may name it again.
fn shown(root: &Path, search: &Search, path: &Path) -> String {
    match path.strip_prefix(root) {
        Ok(rest) if rest.as_os_str().is_empty() => search.path.clone(),
        Ok(rest) if search.path == "." => rest.display().to_string(),
        Ok(rest) => Path::new(&search.path).join(rest).display().to_string(),
        Err(_) => path.display().to_string(),
    }
}

fn named(root: &Path, glob: &GlobMatcher, search: &Search) -> Answer {
    let mut found: Vec<(SystemTime, String)> = files(root)
        .filter(|entry| fits(glob, root, entry.path()))
        .map(|entry| {
            let changed = entry.metadata().ok().and_then(|metadata| metadata.modified().ok());
            (changed.unwrap_or(SystemTime::UNIX_EPOCH), shown(root, search, entry.path()))
        })
        .collect();
    // The newest first: that is what is being worked on.
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let total = found.len();
    let lines = found.into_iter().map(|(_, name)| name).skip(search.offset).take(search.limit.clamp(1, MAX_HITS));
    Ok(page(lines, total, search.offset, "files"))
}

fn containing(root: &Path, only: Option<&GlobMatcher>, search: &Search) -> Answer {
    let matcher = RegexMatcherBuilder::new()
        .line_terminator(Some(b'\n'))
        .build(&search.pattern)
        .map_err(|error| format!("{:?} is no regular expression: {error}", search.pattern))?;
    let context = search.context.min(MAX_CONTEXT);
    let mut searcher = SearcherBuilder::new()
        .binary_detection(BinaryDetection::quit(0))
        .before_context(context)
        .after_context(context)
        .build();
    let (limit, mut hits, mut lines, mut more) = (search.limit.clamp(1, MAX_HITS), 0, Vec::new(), false);
    for entry in files(root) {
        if only.is_some_and(|glob| !fits(glob, root, entry.path())) {
            continue;
        }
        let mut found = Found { name: shown(root, search, entry.path()), lines: Vec::new(), count: 0 };
        if scan(&mut searcher, &matcher, entry.path(), &mut found).is_err() || found.count == 0 {
            continue;
        }
        let units = match search.output_mode {
            Output::Content => found.lines,
            Output::FilesOnly => vec![(true, found.name)],
            Output::Count => vec![(true, format!("{}: {}", found.name, found.count))],
        };
        for (is_hit, line) in units {
            hits += usize::from(is_hit);
            // A line around hits stands before the one that it may belong to.
            let first = if is_hit { search.offset + 1 } else { search.offset };
            if (first..=search.offset + limit).contains(&hits) {
                lines.push(line);
            }
        }
        if hits > search.offset + limit {
            more = true;
            break;
        }
    }
    let total = if more { usize::MAX } else { hits };
    let what = if search.output_mode == Output::Content { "lines" } else { "files" };
    Ok(page_of(lines, total, search.offset, limit, what))
}

fn scan(searcher: &mut Searcher, matcher: &RegexMatcher, path: &Path, found: &mut Found) -> io::Result<()> {
    searcher.search_path(matcher, path, found)
}

/// The hits of one file: whether each line is one, and how it is shown.
struct Found {
    name: String,
    lines: Vec<(bool, String)>,
    count: usize,
}

impl Found {
    fn line(&mut self, number: Option<u64>, bytes: &[u8], mark: char) -> bool {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches(['\n', '\r']);
        let cut = text.char_indices().nth(MAX_LINE_CHARS).map(|(end, _)| end);
        let more = if cut.is_some() { " […]" } else { "" };
        let text = cut.map_or(text, |end| &text[..end]);
        let number = number.unwrap_or(0);
        self.lines.push((mark == ':', format!("{}{mark}{number}{mark}{text}{more}", self.name)));
        // Beyond that no page of an answer reaches.
        self.lines.len() < 100_000
    }
}

impl Sink for Found {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, hit: &SinkMatch<'_>) -> io::Result<bool> {
        self.count += 1;
        Ok(self.line(hit.line_number(), hit.bytes(), ':'))
    }

    fn context(&mut self, _: &Searcher, around: &SinkContext<'_>) -> io::Result<bool> {
        Ok(self.line(around.line_number(), around.bytes(), '-'))
    }
}

fn page(lines: impl Iterator<Item = String>, total: usize, offset: usize, what: &str) -> String {
    let lines: Vec<String> = lines.collect();
    let limit = lines.len();
    page_of(lines, total, offset, limit, what)
}

/// Lines of an answer, bounded, with what is left out.
fn page_of(lines: Vec<String>, total: usize, offset: usize, limit: usize, what: &str) -> String {
    if lines.is_empty() {
        return if total == 0 { format!("No {what} found.") } else { format!("No {what} beyond offset={offset}.") };
    }
    let mut answer = String::new();
    let mut cut = false;
    for line in &lines {
        if answer.len() + line.len() > MAX_BYTES {
            cut = true;
            break;
        }
        let _ = writeln!(answer, "{line}");
    }
    let next = offset + limit;
    if cut {
        let _ = write!(answer, "[cut at {MAX_BYTES} bytes; narrow the pattern or the path]");
    } else if total == usize::MAX {
        let _ = write!(answer, "[there are more; go on with offset={next}]");
    } else if next < total {
        let _ = write!(answer, "[{total} {what} in all; go on with offset={next}]");
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::super::{Request, run};

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, text) in [
            ("src/a.rs", "fn one() {}\nfn two() {}\n"),
            ("src/b.txt", "one\n"),
            (".git/HEAD", "one"),
            ("skip/c.rs", "fn one() {}"),
            (".gitignore", "skip/\n"),
            ("bin", "one\0two"),
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        }
        dir
    }

    fn search(dir: &tempfile::TempDir, arguments: serde_json::Value) -> Result<String, String> {
        run(dir.path(), None, Request::Search(serde_json::from_value(arguments).expect("arguments")))
    }

    #[test]
    fn lines_are_found_with_file_and_number_and_paged() {
        let dir = tree();
        let all = search(&dir, serde_json::json!({"pattern": "one|two"})).expect("found");
        assert_eq!(all, "src/a.rs:1:fn one() {}\nsrc/a.rs:2:fn two() {}\nsrc/b.txt:1:one\n");
        let first = search(&dir, serde_json::json!({"pattern": "one|two", "limit": 1})).expect("found");
        assert_eq!(first, "src/a.rs:1:fn one() {}\n[there are more; go on with offset=1]");
        let next = search(&dir, serde_json::json!({"pattern": "one|two", "limit": 2, "offset": 1})).expect("found");
        assert_eq!(next, "src/a.rs:2:fn two() {}\nsrc/b.txt:1:one\n");
        let around = search(&dir, serde_json::json!({"pattern": "two", "context": 1, "path": "src"})).expect("found");
        assert_eq!(around, "src/a.rs-1-fn one() {}\nsrc/a.rs:2:fn two() {}\n");
    }

    #[test]
    fn files_are_found_counted_and_named() {
        let dir = tree();
        let only = |arguments| search(&dir, arguments).expect("found");
        assert_eq!(
            only(serde_json::json!({"pattern": "fn", "output_mode": "count", "file_glob": "*.rs"})),
            "src/a.rs: 2\n"
        );
        assert_eq!(only(serde_json::json!({"pattern": "one", "output_mode": "files_only"})), "src/a.rs\nsrc/b.txt\n");
        assert_eq!(only(serde_json::json!({"pattern": "*.txt", "target": "files"})), "src/b.txt\n");
        assert_eq!(only(serde_json::json!({"pattern": "zzz"})), "No lines found.");
    }

    #[test]
    fn what_cannot_be_searched_is_said() {
        let dir = tree();
        for (arguments, part) in [
            (serde_json::json!({"pattern": "("}), "no regular expression"),
            (serde_json::json!({"pattern": "[", "target": "files"}), "no glob"),
            (serde_json::json!({"pattern": "x", "path": "nowhere"}), "does not exist"),
        ] {
            let error = search(&dir, arguments).expect_err(part);
            assert!(error.contains(part), "{error}");
        }
    }
}
