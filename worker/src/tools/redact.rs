//! What a tool's output must not carry on: keys and passwords by their looks.
//!
//! Called on every output before it is journaled or shown to a model. Always true: what looks like a credential of a known kind is
//! replaced, and nothing else is touched. A net with known holes, behind the boundary that keeps secrets out of reach: a secret
//! without a shape of its own passes.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Kinds of credentials: what is found is replaced, but for the group `keep` in front of it. The expression is compiled when a
/// tool first answers.
static SECRETS: LazyLock<Regex> = LazyLock::new(|| {
    let kinds = [
        // Keys with a prefix: OpenAI, Anthropic, OpenRouter, Stripe, GitHub, GitLab, Slack, AWS, Google, npm, Hugging Face, our own.
        r"\bsk-[A-Za-z0-9_-]{20,}",
        r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
        r"\bgh[pousr]_[A-Za-z0-9]{30,}",
        r"\bgithub_pat_[A-Za-z0-9_]{40,}",
        r"\bglpat-[A-Za-z0-9_-]{20,}",
        r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        r"\bAIza[A-Za-z0-9_-]{35}",
        r"\bnpm_[A-Za-z0-9]{36}",
        r"\bhf_[A-Za-z0-9]{30,}",
        r"\bhermes-(?:join|token)\.v1\.[A-Za-z0-9._-]{16,}",
        // Telegram bots, JSON web tokens.
        r"\b[0-9]{8,10}:[A-Za-z0-9_-]{35}\b",
        r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
        // Private keys as text; without their end when it is cut off.
        r"(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z))",
        // user:password in URLs, and headers.
        r"(?P<url>\b[a-z][a-z0-9+.-]*://[^\s/:@]+:)[^\s/@]+(?:@)",
        r"(?i:(?P<header>\bauthorization:\s*(?:bearer|basic|token)\s+))[^\s]+",
        // Environment files.
        r#"(?m:^(?P<env>(?:export\s+)?[A-Z0-9_]*(?:API_KEY|TOKEN|SECRET|PASSWORD|PASSWD|PRIVATE_KEY)[A-Z0-9_]*=["']?))[^\s"'$][^\s"']{5,}"#,
    ];
    Regex::new(&kinds.join("|")).expect("the expressions are constants that a test compiles")
});

/// The text without what looks like a credential.
pub(crate) fn redacted(text: &str) -> Cow<'_, str> {
    SECRETS.replace_all(text, |found: &Captures<'_>| {
        let kept = ["url", "header", "env"].iter().find_map(|name| found.name(name)).map_or("", |kept| kept.as_str());
        let end = if found.name("url").is_some() { "@" } else { "" };
        format!("{kept}[REDACTED]{end}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_known_kinds_go_and_what_is_around_them_stays() {
        let key = |prefix: &str, length: usize| format!("{prefix}{}", "a1B2".repeat(length / 4 + 1));
        for secret in [
            key("sk-", 40),
            key("ghp_", 36),
            key("xoxb-", 20),
            "AKIAABCDEFGHIJKLMNOP".to_owned(),
            format!("123456789:{}", "A".repeat(35)),
            format!("eyJ{0}.eyJ{0}.{0}", "abcdefghijkl"),
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----".to_owned(),
        ] {
            let text = format!("before {secret} after");
            assert_eq!(redacted(&text), "before [REDACTED] after", "{secret}");
        }
        for (text, left) in [
            ("postgres://app:hunter2@db/x", "postgres://app:[REDACTED]@db/x"),
            ("Authorization: Bearer abc.def", "Authorization: Bearer [REDACTED]"),
            ("A=1\nexport OPENAI_API_KEY=\"abcdef123\"\nB=2", "A=1\nexport OPENAI_API_KEY=\"[REDACTED]\"\nB=2"),
            ("-----BEGIN PRIVATE KEY-----\nMIIE", "[REDACTED]"),
        ] {
            assert_eq!(redacted(text), left);
        }
    }

    #[test]
    fn ordinary_text_and_code_are_not_touched() {
        for text in [
            "let token = parser.next();",
            "TOKEN=$OTHER",
            "https://example.org/a:b@c",
            "the sk-learn package and ghp_short",
            "12:30 and 1234567890",
            "password: see below",
        ] {
            assert!(matches!(redacted(text), Cow::Borrowed(_)), "{text}: {}", redacted(text));
        }
    }
}
