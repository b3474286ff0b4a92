//! Which provider answers for a model id.
//!
//! Called by the model broker for every turn and by [`super::check`] for its warnings, so that both always agree. It reads
//! the document alone: the broker adds providers that the environment defines to the document before it asks. It
//! deliberately reads no key, only its name.

use std::borrow::Cow;

use super::{AgentSpec, Document, ECHO_MODEL, Provider, ProviderKind};
use crate::budget::Price;

/// Who answers for an agent's model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The offline echo.
    Echo,
    /// A model server.
    Endpoint(Endpoint),
    /// Nobody; see [`unserved_message`].
    Unserved,
}

/// A model server as a turn uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The configured provider; `None` for an agent's own `base_url` without one.
    pub provider: Option<String>,
    /// Wire protocol.
    pub kind: ProviderKind,
    /// Base URL; `None` means the kind's own.
    pub base_url: Option<String>,
    /// Name of the variable with the key; `None` means no key is sent.
    pub api_key_env: Option<String>,
    /// The model as that server calls it.
    pub model: String,
    /// What it costs, where the document says.
    pub price: Option<Price>,
}

/// One of the models that answer for an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its id as configured.
    pub id: String,
    /// Who serves it.
    pub resolved: Resolved,
}

/// The models that answer for an agent, in the order in which they are asked: its own, then its `fallback_models`, which are the
/// document's unless it has a list. An agent's own provider, server and key belong to its own model alone.
pub fn resolve_models(document: &Document, spec: &AgentSpec) -> Vec<Model> {
    let own = spec.model.as_deref().unwrap_or(&document.model);
    let mut models = vec![Model { id: own.to_owned(), resolved: resolve_model(document, spec) }];
    for id in spec.fallback_models.as_ref().unwrap_or(&document.fallback_models) {
        let resolved = resolve_model(document, &AgentSpec { model: Some(id.clone()), ..AgentSpec::default() });
        let model = Model { id: id.clone(), resolved };
        if !models.contains(&model) {
            models.push(model);
        }
    }
    models
}

/// Resolves the model of an agent: `builtin/echo` answers by itself; the agent's `provider` wins; else a provider named
/// like the id's prefix takes the rest; else, for an agent with a `base_url` of its own, an OpenAI-compatible server; else
/// `default_provider` takes the whole id. An agent's own `base_url` gets only the agent's own key, never a provider's.
pub fn resolve_model(document: &Document, spec: &AgentSpec) -> Resolved {
    let model = spec.model.as_deref().unwrap_or(&document.model);
    if model == ECHO_MODEL {
        return Resolved::Echo;
    }
    let prefix = model.split_once('/').filter(|(_, rest)| !rest.is_empty());
    let by_name = |name: &str| document.providers.get_key_value(name);
    let chosen = match &spec.provider {
        Some(name) => match by_name(name) {
            Some(found) => Some(found),
            None => return Resolved::Unserved,
        },
        None => prefix.and_then(|(name, _)| by_name(name)),
    };
    let fallback = || document.default_provider.as_deref().and_then(by_name);
    let chosen = if spec.base_url.is_some() { chosen } else { chosen.or_else(fallback) };
    let named = match (prefix, chosen) {
        (Some((name, rest)), Some((provider, _))) if name == provider => rest,
        _ => model,
    };
    let endpoint = |provider: Option<(&String, &Provider)>, base_url, api_key_env| {
        Resolved::Endpoint(Endpoint {
            provider: provider.map(|(name, _)| name.clone()),
            kind: provider.map_or(ProviderKind::Openai, |(_, provider)| provider.kind),
            base_url,
            api_key_env,
            model: named.to_owned(),
            price: provider.and_then(|(_, provider)| provider.prices.get(named)).copied(),
        })
    };
    match (&spec.base_url, chosen) {
        (Some(own), chosen) => endpoint(chosen, Some(own.clone()), spec.api_key_env.clone()),
        (None, Some((name, provider))) => {
            let key = spec.api_key_env.clone().or_else(|| provider.api_key_env.clone());
            endpoint(Some((name, provider)), provider.base_url.clone(), key)
        }
        (None, None) => Resolved::Unserved,
    }
}

/// The spec of an agent in a conversation that has a model of its own: its provider is the one that the model's prefix names, else the
/// agent's.
pub fn with_own_model<'a>(document: &Document, spec: &'a AgentSpec, own: Option<&str>) -> Cow<'a, AgentSpec> {
    let Some(model) = own else { return Cow::Borrowed(spec) };
    let mut spec = AgentSpec { model: Some(model.to_owned()), ..spec.clone() };
    if model.split_once('/').is_some_and(|(prefix, _)| document.providers.contains_key(prefix)) {
        (spec.provider, spec.base_url, spec.api_key_env) = (None, None, None);
    }
    Cow::Owned(spec)
}

/// The one sentence about a model that nobody serves: in warnings, in lists and as the turn's failure.
pub fn unserved_message(model: &str) -> String {
    let prefix = model.split_once('/').map_or("<name>", |(prefix, _)| prefix);
    format!("no provider is configured for {model}; set providers.{prefix} or default_provider")
}
