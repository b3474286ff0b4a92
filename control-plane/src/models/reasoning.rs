//! What a model thought before it asked for tools, for servers that want it back with the reply that asks.
//!
//! Used by OpenAI's wire. Always true: reasoning goes back to the provider that it came from and to no other; a reply without any
//! goes back with a single blank, since those servers refuse a missing or empty one; other servers never see the field.
//! Workers carry it as an opaque text.

use hermes_core::config::ProviderKind;
use reqwest::Url;

use super::ProviderTarget;

/// Most of it that is kept, bytes; a server asks for it, not for all of it.
const MOST: usize = 128 << 10;
/// Goes back where there is none.
const NONE: &str = " ";

/// Whether a server wants it back: DeepSeek's models anywhere, Kimi's and Moonshot's servers.
pub(super) fn is_wanted(target: &ProviderTarget) -> bool {
    if target.kind != ProviderKind::Openai {
        return false;
    }
    let url = target.base_url.as_deref().and_then(|url| Url::parse(url.trim()).ok());
    let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
    let at = |domain: &str| host == domain || host.strip_suffix(domain).is_some_and(|sub| sub.ends_with('.'));
    let deepseek =
        target.provider == "deepseek" || target.model.to_ascii_lowercase().contains("deepseek") || at("deepseek.com");
    let kimi = target.provider.starts_with("kimi-coding") || host == "api.kimi.com";
    deepseek || kimi || at("moonshot.ai") || at("moonshot.cn")
}

/// As workers carry it.
pub(super) fn sealed(target: &ProviderTarget, text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let kept = text.get(..text.floor_char_boundary(MOST)).unwrap_or_default();
    format!("{}\n{kept}", target.provider)
}

/// As the server gets it back.
pub(super) fn opened<'a>(target: &ProviderTarget, sealed: &'a str) -> &'a str {
    match sealed.split_once('\n') {
        Some((provider, text)) if provider == target.provider && !text.is_empty() => text,
        _ => NONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(provider: &str, model: &str, base_url: &str) -> ProviderTarget {
        ProviderTarget {
            provider: provider.to_owned(),
            kind: ProviderKind::Openai,
            base_url: Some(base_url.to_owned()),
            api_key_env: None,
            model: model.to_owned(),
            configured: format!("{provider}/{model}"),
            price: None,
        }
    }

    #[test]
    fn it_is_wanted_by_deepseeks_models_and_by_kimis_servers() {
        for (provider, model, url) in [
            ("deepseek", "chat", "https://h/v1"),
            ("router", "DeepSeek/R1", "https://h/v1"),
            ("mine", "chat", "https://api.deepseek.com/v1"),
            ("kimi-coding-2", "m", "https://h/v1"),
            ("mine", "m", "https://api.kimi.com/coding/v1"),
            ("mine", "m", "https://api.moonshot.cn/v1"),
        ] {
            assert!(is_wanted(&target(provider, model, url)), "{provider} {model} {url}");
        }
        for (provider, model, url) in [
            ("openai", "gpt", "https://api.openai.com/v1"),
            ("router", "moonshot/kimi-k2", "https://openrouter.ai/api/v1"),
            ("mine", "m", "https://notmoonshot.ai/v1"),
        ] {
            assert!(!is_wanted(&target(provider, model, url)), "{provider} {model} {url}");
        }
    }

    #[test]
    fn it_goes_back_to_where_it_came_from_alone() {
        let (one, other) = (target("deepseek", "m", "https://h"), target("kimi-coding", "m", "https://h"));
        let kept = sealed(&one, "so\nthen");
        assert_eq!((opened(&one, &kept), opened(&other, &kept)), ("so\nthen", " "));
        assert_eq!((sealed(&one, "").as_str(), opened(&one, "")), ("", " "));
        assert!(sealed(&one, &"é".repeat(MOST)).len() <= MOST + 20);
    }
}
