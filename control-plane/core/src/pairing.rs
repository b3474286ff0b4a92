//! Pairing: a stranger gets a code, an operator approves it, and from then on the account hears them.
//!
//! Called by intake, which makes codes, and by the operators' service, which reads them. It owns the form of a code and the bounds that the
//! store keeps. Always true: a code is as hard to guess as its random bytes, and never part of a `Debug` text. It does not decide who is
//! approved; the store does.

use std::fmt;
use std::time::Duration;

/// Without the characters that look like others. 32 of them: five random bits choose one without a bias.
const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
/// Characters of a code.
pub const CODE_CHARS: usize = 8;
/// How long a code can be approved.
pub const CODE_TTL: Duration = Duration::from_secs(60 * 60);
/// How long a sender gets no other code.
pub const QUIET: Duration = Duration::from_secs(10 * 60);
/// Requests of one account that may wait at a time.
pub const MOST_PENDING: u32 = 3;
/// Wrong codes until an account is locked.
pub const MOST_WRONG: u32 = 5;
/// How long an account that got as many wrong codes approves none.
pub const LOCK_OUT: Duration = Duration::from_secs(60 * 60);

/// A pairing code.
#[derive(Clone, PartialEq, Eq)]
pub struct Code(String);

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code(..)")
    }
}

impl Code {
    /// The code that these random bytes stand for.
    pub fn from_random(bytes: [u8; CODE_CHARS]) -> Self {
        Self(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
    }

    /// Reads a code as people write it: in either case, with spaces around. `None`: no code looks like that.
    pub fn read(text: &str) -> Option<Self> {
        let code = text.trim().to_ascii_uppercase();
        (code.len() == CODE_CHARS && code.bytes().all(|byte| ALPHABET.contains(&byte))).then_some(Self(code))
    }

    /// Its characters, for the stranger and for the hash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the stranger reads.
    pub fn text(&self) -> String {
        format!(
            "I do not know you, so I did not read your message. Your pairing code is {code}; it is good for an hour. Give it to whoever \
             runs me (hermesctl pairing approve {code}), and write again once they have approved it.",
            code = self.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_as_it_was_made() {
        let code = Code::from_random([0, 23, 24, 31, 32, 255, 7, 8]);
        assert_eq!(code.as_str(), "AZ29A9HJ");
        assert_eq!(Code::read(" az29a9hj\n"), Some(code.clone()));
        assert_eq!(format!("{code:?}"), "Code(..)");
        assert!(code.text().contains("pairing approve AZ29A9HJ"));
    }

    #[test]
    fn what_cannot_be_a_code_is_none() {
        for text in ["", "AZ29A9H", "AZ29A9HJK", "AZ29A9H0", "AZ29A9HI", "AZ29 9HJ", "ÄZ29A9H"] {
            assert_eq!(Code::read(text), None, "{text}");
        }
    }

    #[test]
    fn every_character_is_as_likely() {
        let mut seen = [0_u32; 256];
        for byte in 0..=255 {
            seen[usize::from(Code::from_random([byte; CODE_CHARS]).as_str().as_bytes()[0])] += 1;
        }
        assert!(ALPHABET.iter().all(|char| seen[usize::from(*char)] == 8));
    }
}
