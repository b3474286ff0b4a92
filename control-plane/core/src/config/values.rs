//! What single values of a document may be: one judge per kind of value.
//!
//! Called by the readers of a text and by [`super::check_spec`] for specs that arrive as fields. Each judge answers with
//! what to write instead. It deliberately looks at one value at a time; references are the business of [`super::check`].

use crate::AgentId;

use super::shown;

/// Longest model id, base URL or path.
const TEXT_LIMIT: usize = 2048;

fn plain(text: &str, what: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("{what} is empty; write a value or remove the key"));
    }
    if text.len() > TEXT_LIMIT {
        return Err(format!("{what} has {} bytes; at most {TEXT_LIMIT} are allowed", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{what} contains a control character; remove it"));
    }
    Ok(())
}

fn literal(text: &str, what: &str) -> Result<(), String> {
    if text.contains("${") {
        return Err(format!("{what} contains ${{…}}, which is not expanded here; write the value itself"));
    }
    Ok(())
}

/// A model id: `prefix/name`, or `builtin/echo`.
pub(super) fn model(text: &str) -> Result<(), String> {
    plain(text, "the model id")?;
    literal(text, "the model id")?;
    if text.chars().any(char::is_whitespace) {
        return Err(format!("{} is not a model id: it contains white space", shown(text)));
    }
    if text.starts_with("builtin/") && text != super::ECHO_MODEL {
        return Err(format!("{} does not exist; the only built-in model is {}", shown(text), super::ECHO_MODEL));
    }
    Ok(())
}

/// A name of the agents' grammar: accounts and providers.
pub(super) fn name(text: &str, what: &str) -> Result<(), String> {
    AgentId::parse(text).map(|_| ()).map_err(|_| {
        let text = shown(text);
        format!("{text} is not {what}: write 1 to 40 of a-z, 0-9, _ and -, first and last a letter or digit")
    })
}

/// An http or https URL without credentials.
pub(super) fn url(text: &str) -> Result<(), String> {
    plain(text, "the URL")?;
    literal(text, "the URL")?;
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err("write a URL that begins with http:// or https://".to_owned());
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("a URL here carries no user or password; name the key with *_env or *_file".to_owned());
    }
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    if host.is_empty() || text.chars().any(|c| c.is_whitespace() || matches!(c, '\\' | '"' | '<' | '>')) {
        return Err(format!("{} is not a URL", shown(text)));
    }
    Ok(())
}

/// The name of an environment variable. The text is never quoted: it may be the secret itself, put in the wrong place.
pub(super) fn env_name(text: &str) -> Result<(), String> {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if first && text.len() <= 200 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Ok(());
    }
    Err("write the name of an environment variable (letters, digits and _), not the secret itself".to_owned())
}

/// An absolute path of the control plane. Never quoted, for the same reason.
pub(super) fn secret_file(text: &str) -> Result<(), String> {
    plain(text, "the path")?;
    literal(text, "the path")?;
    if text.starts_with('/') {
        return Ok(());
    }
    Err("write the absolute path of a file that holds the secret, not the secret itself".to_owned())
}

/// A home directory: absolute, or under `~`.
pub(super) fn home_dir(text: &str) -> Result<(), String> {
    plain(text, "home_dir")?;
    literal(text, "home_dir")?;
    if text.starts_with('/') || text == "~" || text.starts_with("~/") {
        return Ok(());
    }
    Err(format!("{} is relative; write an absolute path or one that begins with ~/", shown(text)))
}

/// The name of a toolset.
pub(super) fn toolset(text: &str) -> Result<(), String> {
    plain(text, "the toolset")?;
    if text.chars().any(char::is_whitespace) {
        return Err(format!("{} is not a toolset: it contains white space", shown(text)));
    }
    Ok(())
}

/// An IANA zone that this program's time zone data knows.
pub(super) fn timezone(text: &str) -> Result<(), String> {
    let unknown =
        || format!("{} is not a known time zone; write an IANA name such as Europe/Berlin or UTC", shown(text));
    let named = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.len() <= 100;
    if named && jiff::tz::TimeZone::get(text).is_ok() { Ok(()) } else { Err(unknown()) }
}

/// A Telegram user or chat id: a decimal integer.
pub(super) fn telegram_id(text: &str) -> Result<(), String> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let number = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    if number && !digits.is_empty() && digits.len() <= 20 {
        return Ok(());
    }
    Err(format!("{} is not a Telegram id; write the number (user names can change hands)", shown(text)))
}

/// A topic of a Telegram chat: a number above 1, which is the general one's that messages do not name.
pub(super) fn telegram_thread(text: &str) -> Result<(), String> {
    let number = text.len() <= 20 && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    if number && !text.is_empty() && text != "1" {
        return Ok(());
    }
    Err(format!("{} is not a topic; write its number behind the colon, or the chat alone", shown(text)))
}

/// A key of `reset_by_type` and `reset_by_platform`, or text of a deliver target: anything that is not empty.
pub(super) fn some_text(text: &str) -> Result<(), String> {
    plain(text, "the value")
}
