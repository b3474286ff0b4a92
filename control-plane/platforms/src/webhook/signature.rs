//! The signature of a webhook, both ways: HMAC-SHA256 over `{timestamp}.{raw body}`.
//!
//! Used by this adapter on arrival, before a byte of the body is parsed, and on its callbacks. Always true: compared in
//! constant time; exactly one of each header; lower-case hex only; every fault looks the same from outside. Replays inside
//! the window are intake's matter (the dedupe key).

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Unix seconds at which the sender signed, decimal.
pub const TIMESTAMP: HeaderName = HeaderName::from_static("x-hermes-timestamp");
/// `sha256=` and 64 lower-case hex digits.
pub const SIGNATURE: HeaderName = HeaderName::from_static("x-hermes-signature");

/// How far the timestamp may be from our clock, seconds, both ways.
pub(super) const WINDOW_SECONDS: u64 = 300;

const PREFIX: &str = "sha256=";

/// The headers are not a valid, timely signature of the body. Says no more on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unsigned;

/// What was proven about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signed {
    /// When it was signed, Unix seconds.
    pub(super) at: u32,
    /// SHA-256 of the signed bytes, hex.
    pub(super) digest: String,
}

/// The value of the signature header for `body` signed at `timestamp`.
pub fn sign(secret: &SecretString, timestamp: u64, body: &[u8]) -> String {
    format!("{PREFIX}{}", hex::encode(tag(secret, timestamp.to_string().as_bytes(), body)))
}

/// Checks the signature of `body` at time `now`, Unix seconds.
pub(super) fn verify(secret: &SecretString, headers: &HeaderMap, body: &[u8], now: u64) -> Result<Signed, Unsigned> {
    let timestamp = single(headers, &TIMESTAMP).ok_or(Unsigned)?.as_bytes();
    let given = single(headers, &SIGNATURE).and_then(|value| value.to_str().ok()).ok_or(Unsigned)?;
    let given = given.strip_prefix(PREFIX).filter(|digits| is_lower_hex(digits)).ok_or(Unsigned)?;
    let given = hex::decode(given).map_err(|_| Unsigned)?;
    if !bool::from(tag(secret, timestamp, body).as_slice().ct_eq(&given)) {
        return Err(Unsigned);
    }
    let at = seconds(timestamp).filter(|at| now.abs_diff(u64::from(*at)) <= WINDOW_SECONDS).ok_or(Unsigned)?;
    let digest = Sha256::new().chain_update(timestamp).chain_update(b".").chain_update(body).finalize();
    Ok(Signed { at, digest: hex::encode(digest) })
}

fn tag(secret: &SecretString, timestamp: &[u8], body: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).expect("HMAC takes any key length");
    mac.update(timestamp);
    mac.update(b".");
    mac.update(body);
    mac.finalize().into_bytes().to_vec()
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

fn is_lower_hex(digits: &str) -> bool {
    digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Decimal digits only: no sign, no white space.
fn seconds(timestamp: &[u8]) -> Option<u32> {
    let text = str::from_utf8(timestamp).ok()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const BODY: &[u8] = br#"{"text":"hi"}"#;

    fn secret() -> SecretString {
        SecretString::from("a secret of the test")
    }

    fn headers(pairs: &[(&HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn check(timestamp: &str, signature: &str) -> Result<Signed, Unsigned> {
        verify(&secret(), &headers(&[(&TIMESTAMP, timestamp), (&SIGNATURE, signature)]), BODY, NOW)
    }

    #[test]
    fn the_signature_is_the_documented_one() {
        // Made with `printf '%s' '1800000000.{"text":"hi"}' | openssl dgst -sha256 -hmac 'a secret of the test'`.
        let expected = "sha256=f2a97b23b77ef1c9a06b146c2a564968bc6ff91b6b31ab0bf39e8d883f28684e";
        assert_eq!(sign(&secret(), NOW, BODY), expected);
        assert_eq!(check("1800000000", expected).unwrap().at, 1_800_000_000);
    }

    #[test]
    fn five_minutes_each_way_are_accepted_and_not_a_second_more() {
        for (at, good) in [(NOW - 300, true), (NOW + 300, true), (NOW - 301, false), (NOW + 301, false)] {
            assert_eq!(check(&at.to_string(), &sign(&secret(), at, BODY)).is_ok(), good, "{at}");
        }
        let milliseconds = NOW * 1_000;
        assert_eq!(check(&milliseconds.to_string(), &sign(&secret(), milliseconds, BODY)), Err(Unsigned));
    }

    #[test]
    fn any_other_form_of_the_headers_is_refused() {
        let good = sign(&secret(), NOW, BODY);
        let (time, digits) = (NOW.to_string(), good.strip_prefix(PREFIX).unwrap());
        for signature in [
            "",
            "sha256=",
            digits,
            &good.to_uppercase(),
            &format!("sha256={}", digits.to_uppercase()),
            &format!("sha256= {digits}"),
            &format!("{good} "),
            &format!("{good}00"),
            &good[..good.len() - 2],
            &format!("v0={digits}"),
            &format!("sha256={digits},v1={digits}"),
            "none",
            "sha256=none",
            &sign(&SecretString::from("another secret"), NOW, BODY),
            &sign(&secret(), NOW, br#"{"text": "hi"}"#),
            &sign(&secret(), NOW + 1, BODY),
        ] {
            assert_eq!(check(&time, signature), Err(Unsigned), "{signature}");
        }
        for timestamp in ["", "-1800000000", "+1800000000", " 1800000000", "1800000000.0", "0x6b49d200"] {
            let tag = hex::encode(tag(&secret(), timestamp.as_bytes(), BODY));
            assert_eq!(check(timestamp, &format!("sha256={tag}")), Err(Unsigned), "{timestamp}");
        }
    }

    #[test]
    fn exactly_one_of_each_header() {
        let good = sign(&secret(), NOW, BODY);
        let time = NOW.to_string();
        let all: [&[(&HeaderName, &str)]; 5] = [
            &[],
            &[(&TIMESTAMP, &time)],
            &[(&SIGNATURE, &good)],
            &[(&TIMESTAMP, &time), (&SIGNATURE, &good), (&SIGNATURE, &good)],
            &[(&TIMESTAMP, &time), (&TIMESTAMP, &time), (&SIGNATURE, &good)],
        ];
        for pairs in all {
            assert_eq!(verify(&secret(), &headers(pairs), BODY, NOW), Err(Unsigned), "{pairs:?}");
        }
    }
}
