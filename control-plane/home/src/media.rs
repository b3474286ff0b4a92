//! Files that go out with a message, and the tags by which a reply names them.
//!
//! Pure. [`Reply::read`] is called for what an agent answers, [`Kind`] is read by the platform adapters and by whoever gives them files. It
//! opens no file: whether a path leads somewhere, and whether that may leave the machine, is decided by who opens it. Always true: a text
//! without tags stays as it is, byte for byte; what is not certainly a tag stays text, so nothing that somebody wrote disappears.
//!
//! The rules, each with its source (spec i, "Media", unless another is named):
//!
//! - `MEDIA:` and a path is a tag and is taken out. Blanks may stand between them. Before it stands no letter, digit or part of a path.
//! - Only a path with a known extension, in upper or lower case, makes a tag; else it is text. Nor is a URL one, since workers send bytes
//!   (reliability S8).
//! - The path is absolute, or relative to the agent's workspace; it is handed on as written. In quotes or back-ticks it may have blanks;
//!   without them it ends at white space, and punctuation behind the extension is the sentence's. Quotes, back-ticks or emphasis around
//!   the whole tag go with it: models write it so.
//! - `[[audio_as_voice]]` makes every audio file of the reply a voice message, `[[as_document]]` makes every other file a document. Both are
//!   taken out, wherever they stand and whether there is a file or not.
//! - In a fenced code block (CommonMark 4.5, indented as far as one likes, in a list or a quote, too) all of them are text: there they are shown, not meant.
//! - A line that had nothing but tags goes as a whole, elsewhere one of two blanks around a tag goes. A text that lost a tag begins and ends
//!   without empty lines. (Ours: the reference strips as much.)
//! - A reply has at most [`MAX_FILES`] files; further tags stay text. (Ours: the most that one message brings in.)

/// Most files of a reply.
pub const MAX_FILES: usize = 10;
/// Longest path, bytes; what is longer is none.
const PATH_BYTES: usize = 1_024;
const MEDIA: &str = "MEDIA:";
const AS_VOICE: &str = "[[audio_as_voice]]";
const AS_DOCUMENT: &str = "[[as_document]]";
/// What may stand around a tag and around a path.
const QUOTES: [char; 3] = ['"', '\'', '`'];
const EMPHASIS: [char; 2] = ['*', '_'];
/// What a sentence puts behind a path.
const PUNCTUATION: [char; 9] = ['.', ',', ';', ':', '!', '?', ')', ']', '}'];

/// What a file is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A picture, shown in the chat.
    Photo,
    /// Something said, played in the chat.
    Voice,
    /// Music and the like.
    Audio,
    /// Moving pictures, shown in the chat.
    Video,
    /// A file to be saved, as it is.
    Document,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Photo, Self::Voice, Self::Audio, Self::Video, Self::Document];
}

/// The known extensions, with what such a file is shown as and its media type.
const KNOWN: [(&str, Kind, &str); 63] = {
    use Kind::{Audio, Document, Photo, Video};
    [
        ("png", Photo, "image/png"),
        ("jpg", Photo, "image/jpeg"),
        ("jpeg", Photo, "image/jpeg"),
        ("gif", Photo, "image/gif"),
        ("webp", Photo, "image/webp"),
        ("bmp", Photo, "image/bmp"),
        ("tiff", Photo, "image/tiff"),
        ("svg", Photo, "image/svg+xml"),
        ("mp4", Video, "video/mp4"),
        ("mov", Video, "video/quicktime"),
        ("avi", Video, "video/x-msvideo"),
        ("mkv", Video, "video/x-matroska"),
        ("webm", Video, "video/webm"),
        ("3gp", Video, "video/3gpp"),
        ("mp3", Audio, "audio/mpeg"),
        ("wav", Audio, "audio/wav"),
        ("ogg", Audio, "audio/ogg"),
        ("opus", Audio, "audio/ogg"),
        ("m4a", Audio, "audio/mp4"),
        ("flac", Audio, "audio/flac"),
        ("pdf", Document, "application/pdf"),
        ("doc", Document, "application/msword"),
        ("docx", Document, "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("odt", Document, "application/vnd.oasis.opendocument.text"),
        ("rtf", Document, "application/rtf"),
        ("txt", Document, "text/plain"),
        ("log", Document, "text/plain"),
        ("md", Document, "text/markdown"),
        ("epub", Document, "application/epub+zip"),
        ("xls", Document, "application/vnd.ms-excel"),
        ("xlsx", Document, "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("ods", Document, "application/vnd.oasis.opendocument.spreadsheet"),
        ("csv", Document, "text/csv"),
        ("tsv", Document, "text/tab-separated-values"),
        ("json", Document, "application/json"),
        ("xml", Document, "application/xml"),
        ("yaml", Document, "application/yaml"),
        ("yml", Document, "application/yaml"),
        ("toml", Document, "application/toml"),
        ("ics", Document, "text/calendar"),
        ("vcf", Document, "text/vcard"),
        ("kml", Document, "application/vnd.google-earth.kml+xml"),
        ("kmz", Document, "application/vnd.google-earth.kmz"),
        ("gpx", Document, "application/gpx+xml"),
        ("geojson", Document, "application/geo+json"),
        ("ppt", Document, "application/vnd.ms-powerpoint"),
        ("pptx", Document, "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
        ("odp", Document, "application/vnd.oasis.opendocument.presentation"),
        ("zip", Document, "application/zip"),
        ("tar", Document, "application/x-tar"),
        ("gz", Document, "application/gzip"),
        ("tgz", Document, "application/gzip"),
        ("bz2", Document, "application/x-bzip2"),
        ("xz", Document, "application/x-xz"),
        ("zst", Document, "application/zstd"),
        ("7z", Document, "application/x-7z-compressed"),
        ("rar", Document, "application/vnd.rar"),
        ("apk", Document, "application/vnd.android.package-archive"),
        ("html", Document, "text/html"),
        ("htm", Document, "text/html"),
        ("css", Document, "text/css"),
        ("patch", Document, "text/x-diff"),
        ("diff", Document, "text/x-diff"),
    ]
};

/// A file that a reply names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Where it lies, as the agent wrote it: absolute, or relative to its workspace. Nobody has looked whether it may be read.
    pub path: String,
    /// What it is to be shown as.
    pub kind: Kind,
    /// By its extension.
    pub media_type: &'static str,
}

/// A reply without its tags, and what they asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// What is said.
    pub text: String,
    /// What is sent with it, in the order of the text; at most [`MAX_FILES`].
    pub files: Vec<Named>,
}

impl Reply {
    /// Takes the tags out of `text`, by the rules of the module.
    pub fn read(text: &str) -> Self {
        let mut reading = Reading::default();
        let mut fence = None;
        for line in text.split_inclusive('\n') {
            let was_open = fence.is_some();
            fence = Fence::after(line, fence);
            if was_open || fence.is_some() {
                reading.kept.push_str(line);
            } else {
                reading.line(line);
            }
        }
        reading.reply(text)
    }
}

#[derive(Default)]
struct Reading {
    kept: String,
    files: Vec<Named>,
    as_voice: bool,
    as_document: bool,
    lost_a_tag: bool,
}

enum Tag<'a> {
    AsVoice,
    AsDocument,
    File(&'a str, Kind, &'static str),
}

impl Reading {
    /// A line outside code, with its end.
    fn line(&mut self, line: &str) {
        let mut kept = String::new();
        let mut from = 0;
        let mut at = 0;
        while let Some(step) = line[at..].find(['M', '[']) {
            at += step;
            let Some((start, end, tag)) = self.tag(line, from, at) else {
                at += 1;
                continue;
            };
            kept.push_str(&line[from..start]);
            self.take(tag);
            let doubled = line[end..].starts_with(' ') && (kept.is_empty() || kept.ends_with(' '));
            from = end + usize::from(doubled);
            at = from;
        }
        if from == 0 && kept.is_empty() {
            self.kept.push_str(line);
            return;
        }
        kept.push_str(&line[from..]);
        self.lost_a_tag = true;
        let said = kept.trim_end();
        if !matches!(said.trim_start(), "" | "-" | "*" | "+" | "•") {
            self.kept.push_str(said);
            self.kept.push_str(&line[line.trim_end_matches(['\r', '\n']).len()..]);
        }
    }

    /// The tag that begins at `at`, and what goes with it: a range that begins at `from` or later.
    fn tag<'a>(&self, line: &'a str, from: usize, at: usize) -> Option<(usize, usize, Tag<'a>)> {
        let rest = &line[at..];
        for (word, tag) in [(AS_VOICE, Tag::AsVoice), (AS_DOCUMENT, Tag::AsDocument)] {
            if rest.starts_with(word) {
                return Some((at, at + word.len(), tag));
            }
        }
        let behind = rest.strip_prefix(MEDIA).filter(|_| self.files.len() < MAX_FILES)?;
        let of_a_name = |c: char| c.is_alphanumeric() || "-./\\".contains(c);
        // An underscore is a name's, or emphasis.
        if line[from..at].trim_end_matches('_').ends_with(of_a_name) {
            return None;
        }
        let written = behind.trim_start_matches([' ', '\t']);
        let (path, length) = path(written)?;
        let (kind, media_type) = known(path)?;
        let (mut start, mut end) = (at, at + MEDIA.len() + (behind.len() - written.len()) + length);
        // The same mark on both sides belongs to the tag.
        while let (Some(before), Some(after)) = (line[from..start].chars().next_back(), line[end..].chars().next())
            && before == after
            && (QUOTES.contains(&before) || EMPHASIS.contains(&before))
        {
            (start, end) = (start - before.len_utf8(), end + after.len_utf8());
        }
        Some((start, end, Tag::File(path, kind, media_type)))
    }

    fn take(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::AsVoice => self.as_voice = true,
            Tag::AsDocument => self.as_document = true,
            Tag::File(path, kind, media_type) => self.files.push(Named { path: path.to_owned(), kind, media_type }),
        }
    }

    fn reply(self, text: &str) -> Reply {
        let Self { kept, mut files, as_voice, as_document, lost_a_tag } = self;
        for file in &mut files {
            file.kind = match file.kind {
                Kind::Audio if as_voice => Kind::Voice,
                _ if as_document => Kind::Document,
                kind => kind,
            };
        }
        let text = if lost_a_tag { kept.trim_start_matches(['\r', '\n']).trim_end() } else { text };
        Reply { text: text.to_owned(), files }
    }
}

/// The path that `written` begins with, and how much of it that is, quotes included.
fn path(written: &str) -> Option<(&str, usize)> {
    if let Some(quote) = written.chars().next().filter(|first| QUOTES.contains(first)) {
        let end = written[1..].char_indices().take(PATH_BYTES).find(|(_, c)| *c == quote || *c == '\n')?.0;
        let path = written[1..].get(..end).filter(|_| written[1 + end..].starts_with(quote))?;
        return Some((path, end + 2));
    }
    let blank = written.char_indices().take(PATH_BYTES + 1).find(|(_, c)| c.is_whitespace());
    let end = match blank {
        Some((at, _)) => at,
        None if written.chars().nth(PATH_BYTES).is_some() => return None,
        None => written.len(),
    };
    let word = &written[..end];
    let word = word.find(MEDIA).map_or(word, |next| &word[..next]);
    let not_its = |c: char| QUOTES.contains(&c) || EMPHASIS.contains(&c) || PUNCTUATION.contains(&c);
    let path = word.trim_end_matches(not_its);
    Some((path, path.len()))
}

/// What a file with this path is, if its extension is known.
fn known(path: &str) -> Option<(Kind, &'static str)> {
    if path.len() > PATH_BYTES || path.contains("://") || path.chars().any(char::is_control) {
        return None;
    }
    let (stem, extension) = path.rsplit(['/', '\\']).next()?.rsplit_once('.')?;
    let known = KNOWN.iter().find(|(known, ..)| extension.eq_ignore_ascii_case(known))?;
    (!stem.trim().is_empty()).then_some((known.1, known.2))
}

/// A fenced code block that is open.
#[derive(Clone, Copy)]
struct Fence {
    mark: char,
    length: usize,
}

impl Fence {
    /// What is open after `line`.
    fn after(line: &str, open: Option<Self>) -> Option<Self> {
        // Behind a quote or the mark of a list one can begin as well.
        let of_a_list = |c: char| c.is_ascii_digit() || " \t>-*+.)".contains(c);
        let line =
            if open.is_none() { line.trim_start_matches(of_a_list) } else { line.trim_start_matches([' ', '\t', '>']) };
        let line = line.trim();
        let mark = line.chars().next().filter(|first| matches!(first, '`' | '~'));
        let Some(mark) = mark else { return open };
        let behind = line.trim_start_matches(mark);
        let length = line.len() - behind.len();
        match open {
            Some(fence) if mark == fence.mark && length >= fence.length && behind.is_empty() => None,
            Some(fence) => Some(fence),
            // A span of code that begins with three of them is not one.
            None if length >= 3 && !(mark == '`' && behind.contains('`')) => Some(Self { mark, length }),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> (String, Vec<String>) {
        let Reply { text, files } = Reply::read(text);
        (text, files.into_iter().map(|file| file.path).collect())
    }

    fn kinds(text: &str) -> Vec<Kind> {
        Reply::read(text).files.into_iter().map(|file| file.kind).collect()
    }

    #[test]
    fn a_tag_goes_and_its_path_stays_as_written() {
        for (text, said, path) in [
            ("MEDIA:/tmp/a.png", "", "/tmp/a.png"),
            ("MEDIA: charts/a.PNG", "", "charts/a.PNG"),
            ("Here it is:\nMEDIA:./a.png\n", "Here it is:", "./a.png"),
            ("Before\n\nMEDIA:/a.png\n\nafter", "Before\n\n\nafter", "/a.png"),
            ("See MEDIA:/a.png now", "See now", "/a.png"),
            ("See MEDIA:/a.png, now", "See , now", "/a.png"),
            ("See (MEDIA:/a.png).\r\nBye", "See ().\r\nBye", "/a.png"),
            ("MEDIA:\"my report.pdf\" as asked", "as asked", "my report.pdf"),
            ("MEDIA:'/a b/c.txt'!", "!", "/a b/c.txt"),
            ("MEDIA:`a b.csv`", "", "a b.csv"),
            ("`MEDIA:/a.png`", "", "/a.png"),
            ("**MEDIA:/a.png**", "", "/a.png"),
            ("_MEDIA:/a_b.png_", "", "/a_b.png"),
            ("\"MEDIA:/it's.png\"", "", "/it's.png"),
            ("- MEDIA:/a.tar.gz", "", "/a.tar.gz"),
            ("MEDIA:../../etc/x.txt", "", "../../etc/x.txt"),
            (
                "日本MEDIA-\u{3000}MEDIA:/日本 語.png MEDIA:/日本.png",
                "日本MEDIA-\u{3000}MEDIA:/日本 語.png",
                "/日本.png",
            ),
        ] {
            assert_eq!(read(text), (said.to_owned(), vec![path.to_owned()]), "{text:?}");
        }
        let (said, paths) =
            read("One MEDIA:/a.png, two MEDIA:/b.mp3\n\nMEDIA:c.pdf MEDIA:d.zip\nMEDIA:/e.pngMEDIA:/f.png");
        assert_eq!(
            (said.as_str(), paths),
            ("One , two", ["/a.png", "/b.mp3", "c.pdf", "d.zip", "/e.png", "/f.png"].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn what_is_not_certainly_a_tag_stays_text() {
        for text in [
            "MEDIA:/etc/passwd",
            "MEDIA:/a.exe",
            "MEDIA:",
            "MEDIA: see the report",
            "MEDIA:.png",
            "MEDIA:a/.png",
            "MEDIA:png",
            "MEDIA:/a.png/",
            "MEDIA:https://example.com/a.png",
            "MEDIA:\"/a.png",
            "MEDIA:\"a\n.png\"",
            "MEDIA:\"a\u{0}.png\"",
            "MULTIMEDIA:/a.png",
            "my_MEDIA:/a.png",
            "/srv/MEDIA:/a.png",
            "media:/a.png",
            "[[as_document",
            "[[audio_as_voice ]]",
            " trailing \n\n",
            "",
        ] {
            assert_eq!(read(text), (text.to_owned(), Vec::new()), "{text:?}");
        }
        let long = format!("MEDIA:/{}.png", "x".repeat(PATH_BYTES));
        assert_eq!(read(&long), (long.clone(), Vec::new()));
        let longest = format!("/{}.png", "x".repeat(PATH_BYTES - 5));
        assert_eq!(read(&format!("MEDIA:{longest}")).1, [longest]);
    }

    #[test]
    fn code_shows_tags_and_means_none() {
        for code in [
            "```\nMEDIA:/a.png [[as_document]]\n```",
            "  - ```sh\n    MEDIA:/a.png\n    ```",
            "1. ```\n   MEDIA:/a.png\n   ```",
            "> ```\n> MEDIA:/a.png\n> ```",
            "~~~\n```\nMEDIA:/a.png\n```\n~~~",
            "````\n```\nMEDIA:/a.png\n````",
            "```\n``` not its end\nMEDIA:/a.png",
        ] {
            assert_eq!(read(code), (code.to_owned(), Vec::new()), "{code:?}");
            let after = format!("MEDIA:/x.png\n{code}\n");
            assert_eq!(read(&after), (code.to_owned(), vec!["/x.png".to_owned()]), "{after:?}");
        }
        assert_eq!(read("```a```\nMEDIA:/a.png").1, ["/a.png"]);
        assert_eq!(read("```\nx\n```\nMEDIA:/a.png").1, ["/a.png"]);
    }

    #[test]
    fn the_switches_are_for_the_whole_reply() {
        use Kind::{Audio, Document, Photo, Video, Voice};
        let all = "MEDIA:a.png MEDIA:a.mp4 MEDIA:a.ogg MEDIA:a.pdf";
        assert_eq!(kinds(all), [Photo, Video, Audio, Document]);
        assert_eq!(kinds(&format!("{all}\n[[audio_as_voice]]")), [Photo, Video, Voice, Document]);
        assert_eq!(kinds(&format!("[[as_document]] {all}")), [Document; 4]);
        assert_eq!(kinds(&format!("[[as_document]][[audio_as_voice]]{all}")), [Document, Document, Voice, Document]);
        assert_eq!(read("Said: [[audio_as_voice]]yes").0, "Said: yes");
        assert_eq!(read("[[as_document]]"), (String::new(), Vec::new()));
        assert_eq!(Reply::read("MEDIA:a.JPG").files[0].media_type, "image/jpeg");
    }

    #[test]
    fn a_reply_has_ten_files_and_shows_the_tags_of_the_rest() {
        let text: Vec<String> = (0..12).map(|number| format!("MEDIA:/{number}.png")).collect();
        let (said, paths) = read(&text.join("\n"));
        assert_eq!((said.as_str(), paths.len()), ("MEDIA:/10.png\nMEDIA:/11.png", MAX_FILES));
    }

    #[test]
    fn every_extension_is_known_once_and_in_lower_case() {
        for (at, (extension, ..)) in KNOWN.iter().enumerate() {
            assert_eq!(*extension, extension.to_ascii_lowercase());
            assert!(KNOWN[..at].iter().all(|(other, ..)| other != extension), "{extension} twice");
        }
    }

    /// Texts made of what tags are made of.
    fn hostile() -> impl Strategy<Value = String> {
        let atoms = [
            "MEDIA:",
            "MEDIA",
            ":",
            "/a.png",
            "b c.mp3",
            "a.exe",
            "\"",
            "'",
            "`",
            "```",
            "~~~",
            "*",
            "_",
            " ",
            "\n",
            "\r\n",
            ".",
            "[[",
            "[[as_document]]",
            "[[audio_as_voice]]",
            "]]",
            "é",
            "🚀",
            "\u{0}",
            "\t",
            "- ",
            "://",
            "\\",
        ];
        let atom = prop_oneof![9 => prop::sample::select(atoms.to_vec()).prop_map(str::to_owned), 1 => any::<String>()];
        prop::collection::vec(atom, 0..60).prop_map(|atoms| atoms.concat())
    }

    fn is_part_of(part: &str, whole: &str) -> bool {
        let mut whole = whole.chars();
        part.chars().all(|c| whole.any(|other| other == c))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_read_and_nothing_is_made_up(text in hostile()) {
            let Reply { text: said, files } = Reply::read(&text);
            prop_assert!(is_part_of(&said, &text), "{said:?}");
            prop_assert!(files.len() <= MAX_FILES);
            for file in &files {
                prop_assert!(text.contains(&file.path) && known(&file.path).is_some(), "{file:?}");
            }
            let tags = [MEDIA, AS_VOICE, AS_DOCUMENT];
            prop_assert!(said == text || tags.iter().any(|tag| text.contains(tag)));
        }

        #[test]
        fn a_text_without_tags_is_unchanged(text in any::<String>(), more in hostile()) {
            for text in [text, more] {
                let text = text.replace("MEDIA", "media").replace('[', "(");
                prop_assert_eq!(Reply::read(&text), Reply { text: text.clone(), files: Vec::new() });
            }
        }

        #[test]
        fn whatever_stands_in_code_is_unchanged(text in hostile()) {
            let code = format!("~~~~\n{}\n~~~~", text.replace('~', "-"));
            prop_assert_eq!(Reply::read(&code), Reply { text: code.clone(), files: Vec::new() });
        }
    }
}
