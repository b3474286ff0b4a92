//! Secrets by reference: an environment variable or a file of the control plane, read when they are needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use hermes_core::config::{Provider, ProviderKind, SecretRef};
use secrecy::SecretString;

use crate::models::Secrets;

/// A secret from the environment; empty counts as absent.
#[expect(clippy::disallowed_methods, reason = "secrets by *_env reference are read here and nowhere else")]
pub(super) fn from_env(name: &str) -> Option<SecretString> {
    std::env::var(name).ok().filter(|value| !value.is_empty()).map(SecretString::from)
}

/// Keys of model providers.
pub(super) fn for_models() -> Secrets {
    Arc::new(from_env)
}

/// The secret a document refers to.
pub(super) fn resolve(reference: &SecretRef) -> Result<SecretString, String> {
    match reference {
        SecretRef::Env(name) => from_env(name).ok_or_else(|| format!("the environment variable {name} is not set")),
        SecretRef::File(path) => match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => Ok(SecretString::from(text.trim().to_owned())),
            Ok(_) => Err(format!("the file {path} is empty")),
            Err(error) => Err(format!("the file {path} cannot be read: {error}")),
        },
    }
}

/// The providers that the usual variables define, for a document without any.
pub(super) fn providers_from_env() -> BTreeMap<String, Provider> {
    let known = [
        ("anthropic", ProviderKind::Anthropic, "ANTHROPIC_API_KEY", None),
        ("openai", ProviderKind::Openai, "OPENAI_API_KEY", None),
        ("gemini", ProviderKind::Gemini, "GEMINI_API_KEY", None),
        ("openrouter", ProviderKind::Openai, "OPENROUTER_API_KEY", Some("https://openrouter.ai/api/v1")),
    ];
    known
        .into_iter()
        .filter(|(_, _, variable, _)| from_env(variable).is_some())
        .map(|(name, kind, variable, base_url)| {
            let provider = Provider {
                kind,
                base_url: base_url.map(str::to_owned),
                api_key_env: Some(variable.to_owned()),
                prices: BTreeMap::new(),
            };
            (name.to_owned(), provider)
        })
        .collect()
}
