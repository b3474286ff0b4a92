//! What becomes of a job's answer: whether anybody hears of it, and in which words.
//!
//! Called by whoever ends a cron run. It owns the words around an answer. Always true: a run whose answer is delivered says which job it
//! was and how to stop it; a failure is one line, and failures in a row are told ever more rarely. It deliberately knows neither chats
//! nor jobs, and hides no secret: what it is given is fit to be shown.

/// The answer of a run that has nothing to say; a text that begins with it counts as one.
const SILENT: &str = "[SILENT]";
/// What says the same where it is a whole line.
const SILENT_LINES: [&str; 4] = [SILENT, "SILENT", "NO_REPLY", "NO REPLY"];
/// What models write for silence where they were to write nothing.
const NARRATIONS: [&str; 4] = ["silent", "silence", "no response", "no reply"];
/// Longest text that may be narrated silence, characters.
const NARRATION_CHARS: usize = 64;
/// Longest line about a failure, characters.
const FAILURE_CHARS: usize = 180;
/// As much of a name as such a line has room for, characters.
const NAME_CHARS: usize = 60;
/// Between what is said about a job and what it says. Not of hyphens: below a line of text those make it a heading.
const RULE: &str = "──────────";

/// What failures are called that come often and whose words say little more, each with how their reasons read: in lower case, of letters and
/// digits, words apart by one space, a space before and behind.
const COMMON_FAILURES: [(&str, &[&str]); 3] = [
    ("rate limit", &[" rate limit", " ratelimit", " too many requests ", " resource exhausted ", " asks to wait "]),
    (
        "authentication failed",
        &[
            " unauthorized ",
            " unauthorised ",
            " unauthenticated ",
            " authentication failed ",
            " authentication failure ",
            " authentication error ",
            " authenticationerror ",
            " invalid api key ",
            " invalid x api key ",
            " incorrect api key ",
            " refused the key ",
        ],
    ),
    (
        "timed out",
        &[
            " timed out ",
            " time out ",
            "timeouterror ",
            " readtimeout ",
            " connecttimeout ",
            " connection timeout ",
            " read timeout ",
            " request timeout ",
            " gateway timeout ",
            " timeout after ",
            " deadline exceeded ",
            " did not answer in time ",
            " did not begin to answer ",
        ],
    ),
];
/// The same by the status of an HTTP answer, where a word before the number says that it is one.
const COMMON_STATUSES: [(&str, &str); 4] =
    [("429", "rate limit"), ("401", "authentication failed"), ("408", "timed out"), ("504", "timed out")];
const BEFORE_STATUS: [&str; 4] = ["http", "status", "code", "error"];

/// Whether an answer asks that nobody be told (spec e.5): its first or last line that is not blank is a word for that, in any case, or it
/// begins with `[SILENT]`. Such a word in the middle does not count, and an empty answer says nothing of the kind: it is a failure.
pub fn is_silent(text: &str) -> bool {
    let text = text.trim();
    if text.get(..SILENT.len()).is_some_and(|start| start.eq_ignore_ascii_case(SILENT)) {
        return true;
    }
    let silent = |line: &str| {
        let line = one_line(line);
        SILENT_LINES.iter().any(|word| line.eq_ignore_ascii_case(word))
    };
    // Trimmed, so that neither end is a blank line.
    text.lines().next().is_some_and(silent) || text.lines().next_back().is_some_and(silent)
}

/// Whether a text only tells of silence, as `*(silent)*`, `No response.`, `🔇` or `…` do; such a text goes to no chat (spec f). What stays
/// local is never asked about.
pub fn is_narrated_silence(text: &str) -> bool {
    let text = text.trim();
    if text.chars().count() > NARRATION_CHARS {
        return false;
    }
    let bare = text.trim_matches(|c: char| c.is_whitespace() || "*_~`".contains(c));
    if !bare.is_empty() && bare.chars().all(|c| c.is_whitespace() || "🔇.…".contains(c)) {
        return true;
    }
    let words = one_line(bare.trim_matches(|c: char| c.is_whitespace() || "*_~`().".contains(c)));
    NARRATIONS.iter().any(|narration| words.eq_ignore_ascii_case(narration))
}

/// An answer as a chat gets it: under the name and the id of its job, above how to stop that.
pub fn wrapped(name: &str, job_id: &str, text: &str) -> String {
    let name = one_line(name);
    format!(
        "⏰ Scheduled job: {name}\n(job id: {job_id})\n{RULE}\n\n{}\n\n{RULE}\nTo stop or change this job, write to me, for example: \
         stop the job \"{name}\".",
        text.trim()
    )
}

/// The one line about a run that failed, at most 180 characters. Failures that come often are named in short words; of others it has as much
/// of the reason as there is room for.
pub fn failure_line(name: &str, reason: &str) -> String {
    let said = match common_failure(reason) {
        Some(short) => short.to_owned(),
        None => {
            Some(one_line(reason)).filter(|reason| !reason.is_empty()).unwrap_or_else(|| "no reason given".to_owned())
        }
    };
    cut(&format!("⚠️ Cron '{}' failed: {said}", cut(&one_line(name), NAME_CHARS)), FAILURE_CHARS)
}

/// Whether the chat is told of a failure, when it is the last of so many in a row: of the 1st, 2nd, 4th, 8th and so on, so that a job that
/// fails for long makes no storm.
pub fn notice_due(failures_in_a_row: u32) -> bool {
    failures_in_a_row.is_power_of_two()
}

/// How many failures in a row there are when the chat is told again, after `failures`; `u32::MAX` where that is never.
pub fn next_notice(failures: u32) -> u32 {
    failures.checked_add(1).and_then(u32::checked_next_power_of_two).unwrap_or(u32::MAX)
}

/// The short words for a reason that comes often.
fn common_failure(reason: &str) -> Option<&'static str> {
    let lower = reason.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    if words == ["timeout"] {
        return Some("timed out");
    }
    let by_status = words.windows(2).find_map(|pair| match pair {
        [before, number] if BEFORE_STATUS.contains(before) => {
            COMMON_STATUSES.iter().find(|(status, _)| status == number).map(|(_, short)| *short)
        }
        _ => None,
    });
    let said = format!(" {} ", words.join(" "));
    let by_words = || {
        COMMON_FAILURES.iter().find(|(_, signs)| signs.iter().any(|sign| said.contains(sign))).map(|(short, _)| *short)
    };
    by_status.or_else(by_words)
}

/// The text in one line: white space and control characters are one space.
fn one_line(text: &str) -> String {
    text.split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// At most so many characters of a text, the last one saying that there were more.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn silence_is_said_first_or_last_or_not_at_all() {
        for silent in
            ["[silent]", "\n\n No   reply \n\nbecause nothing came", "a\nb\n  no_reply\n\n", "[Silent] - nothing new"]
        {
            assert!(is_silent(silent), "{silent:?}");
        }
        for spoken in ["", " \n", "a\n[SILENT]\nb", "SILENT.", "he said [SILENT]", "[SILEN", "⏰⏰⏰", "silently done"]
        {
            assert!(!is_silent(spoken), "{spoken:?}");
        }
    }

    #[test]
    fn narrated_silence_is_all_there_is() {
        for silent in
            ["*(silent)*", "_Silence_", "`no  response.`", "(No reply).", "🔇", " . ", "...", "**…**", "~silent~"]
        {
            assert!(is_narrated_silence(silent), "{silent:?}");
        }
        let long = format!("silent{}", ".".repeat(59));
        for spoken in ["", "***", "()", "the room is silent", "silent?", "no replying", "🔇 muted", long.as_str()] {
            assert!(!is_narrated_silence(spoken), "{spoken:?}");
        }
        assert!(is_narrated_silence(&long[..64]));
    }

    #[test]
    fn an_answer_says_whose_it_is_and_how_to_stop_it() {
        let wrapped = wrapped("Morning\n# news", "0a1b2c3d4e5f", "\nSun.\n\nRain.\n");
        let lines: Vec<&str> = wrapped.lines().collect();
        assert_eq!(lines[..4], ["⏰ Scheduled job: Morning # news", "(job id: 0a1b2c3d4e5f)", RULE, ""]);
        assert_eq!(lines[4..9], ["Sun.", "", "Rain.", "", RULE]);
        assert!(lines[9].ends_with("stop the job \"Morning # news\"."));
    }

    #[test]
    fn common_failures_are_short_and_others_keep_their_words() {
        for (reason, said) in [
            ("Error code: 429 - {'error': {'type': 'x'}}", "rate limit"),
            ("rate_limit_error: slow down", "rate limit"),
            ("provider acme asks to wait 20 s (HTTP 529)", "rate limit"),
            ("RateLimitError", "rate limit"),
            ("provider acme refused the key (HTTP 403)", "authentication failed"),
            ("HTTP 401: no", "authentication failed"),
            ("Invalid API-key", "authentication failed"),
            ("TimeoutError()", "timed out"),
            ("script timed out after 10 s", "timed out"),
            ("timeout", "timed out"),
            ("status=504", "timed out"),
            // Numbers and settings that only look alike.
            ("all 429 files are missing", "all 429 files are missing"),
            ("timeout must be at least 1", "timeout must be at least 1"),
            ("the key for provider acme is not set (ACME_KEY)", "the key for provider acme is not set (ACME_KEY)"),
            ("no such\n\tfile\u{7}: x", "no such file : x"),
            (" \n", "no reason given"),
        ] {
            assert_eq!(failure_line("news", reason), format!("⚠️ Cron 'news' failed: {said}"));
        }
        let long = failure_line(&"n".repeat(200), &"r".repeat(200));
        assert!(long.contains("nn…' failed: rrr") && long.ends_with("r…"), "{long}");
        assert_eq!(long.chars().count(), FAILURE_CHARS);
    }

    #[test]
    fn failures_in_a_row_are_told_ever_more_rarely() {
        let told: Vec<u32> = (0..40).filter(|failures| notice_due(*failures)).collect();
        assert_eq!(told, [1, 2, 4, 8, 16, 32]);
        for failures in 0..40 {
            let next = next_notice(failures);
            assert!(next > failures && notice_due(next) && !(failures + 1..next).any(notice_due), "{failures}");
        }
        assert_eq!(next_notice((1 << 31) - 1), 1 << 31);
        assert_eq!((next_notice(1 << 31), next_notice(u32::MAX)), (u32::MAX, u32::MAX));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_failure_is_one_line_within_its_bound(name in any::<String>(), reason in "(?s).{0,400}") {
            let line = failure_line(&name, &reason);
            prop_assert!(line.chars().count() <= FAILURE_CHARS && !line.chars().any(char::is_control), "{line:?}");
            prop_assert!(line.starts_with("⚠️ Cron '") && line.contains("' failed: "), "{line:?}");
        }

        #[test]
        fn any_text_is_judged(text in any::<String>()) {
            is_silent(&text);
            is_narrated_silence(&text);
        }
    }
}
