//! When to try a provider again: full jitter, a provider's own `retry-after` first, everything bounded.

use std::time::Duration;

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};
use jiff::fmt::rfc2822;

use super::Settings;
use super::failure::CallError;

const LONGEST_BACKOFF: Duration = Duration::from_secs(8);

/// How long to wait before the attempt after `attempt` (1 for the first); `None` when `error` should be reported instead.
/// `since_first` is the time since the first attempt began; `jitter` is uniform in 0..1.
pub(super) fn pause_before_next(
    settings: &Settings,
    error: &CallError,
    attempt: u32,
    since_first: Duration,
    jitter: f64,
) -> Option<Duration> {
    if !error.retry || attempt >= settings.attempts {
        return None;
    }
    let doublings = attempt.saturating_sub(1).min(16);
    let backoff = (settings.backoff * 2_u32.pow(doublings)).min(LONGEST_BACKOFF).mul_f64(jitter.clamp(0.0, 1.0));
    let pause = match error.pause {
        Some(asked) if asked > settings.longest_pause => return None,
        // Never earlier than asked; the jitter keeps many turns from coming back at one instant.
        Some(asked) => asked + backoff.min(Duration::from_millis(250)),
        None => backoff,
    };
    (since_first + pause <= settings.retry_window).then_some(pause)
}

/// The pause that a provider asks for: `retry-after-ms`, `retry-after` in seconds, or `retry-after` as a date, which is
/// compared with the answer's own `date` so that clocks need not agree.
pub(super) fn asked_pause(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite() && (0.0..=1e9).contains(n));
    if let Some(millis) = text("retry-after-ms").and_then(number) {
        return Some(Duration::from_secs_f64(millis / 1000.0));
    }
    let after = text(RETRY_AFTER.as_str())?;
    if let Some(seconds) = number(after) {
        return Some(Duration::from_secs_f64(seconds));
    }
    let at = rfc2822::parse(after).ok()?.timestamp();
    let now = rfc2822::parse(text(DATE.as_str())?).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::super::FailureReason;
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn retry_after_is_read_in_every_form_that_providers_use() {
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(asked_pause(&headers(&[("retry-after", "7")])), seconds(7));
        assert_eq!(asked_pause(&headers(&[("retry-after", " 0.5 ")])), Some(Duration::from_millis(500)));
        assert_eq!(
            asked_pause(&headers(&[("retry-after-ms", "1500"), ("retry-after", "9")])),
            Some(Duration::from_millis(1500))
        );
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(
            asked_pause(&headers(&[("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT"), ("date", date)])),
            seconds(20)
        );
        assert_eq!(
            asked_pause(&headers(&[("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT"), ("date", date)])),
            seconds(0)
        );
        for nonsense in ["", "soon", "-1", "nan", "inf", "1e300"] {
            assert_eq!(asked_pause(&headers(&[("retry-after", nonsense)])), None, "{nonsense}");
        }
        assert_eq!(asked_pause(&HeaderMap::new()), None);
    }

    #[test]
    fn retries_are_bounded_in_number_in_pause_and_in_time() {
        let settings = Settings::default();
        let busy = CallError::status(503, None, "");
        let pause = |error: &CallError, attempt, since, jitter| {
            pause_before_next(&settings, error, attempt, Duration::from_secs(since), jitter)
        };
        assert_eq!(pause(&busy, 1, 0, 1.0), Some(Duration::from_millis(500)));
        assert_eq!(pause(&busy, 3, 0, 1.0), Some(Duration::from_secs(2)));
        assert_eq!(pause(&busy, 1, 0, 0.0), Some(Duration::ZERO));
        assert_eq!(pause(&busy, 4, 0, 0.5), None, "four attempts are all");
        assert_eq!(pause(&busy, 1, 60, 0.5), None, "the window is over");
        let asked = CallError::status(429, Some(Duration::from_secs(5)), "");
        assert!(pause(&asked, 1, 0, 0.9).is_some_and(|pause| pause >= Duration::from_secs(5)));
        let long = CallError::status(429, Some(Duration::from_secs(31)), "");
        assert_eq!(pause(&long, 1, 0, 0.5), None, "longer than we wait");
        let quota = CallError::status(429, None, r#"{"error":{"code":"insufficient_quota"}}"#);
        assert_eq!(pause(&quota, 1, 0, 0.5), None);
        for status in [400, 401, 403, 404, 413, 422] {
            assert_eq!(pause(&CallError::status(status, None, ""), 1, 0, 0.5), None, "{status}");
        }
        assert_eq!(CallError::status(529, None, "").reason, FailureReason::Unavailable);
    }
}
