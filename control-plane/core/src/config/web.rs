//! `web` in a text, and in exports.
//!
//! Called by [`super::read`] and [`super::to_yaml`]. What it means is [`crate::egress`]'s.

use super::export::{Entries, Shape, literal, text};
use super::fields::{self, Faults, Path, Section, integer, judged, list};
use super::tree::{Content, Node};
use super::{SecretRef, shown, values};
use crate::egress::{Block, Search, SearchProvider, Web};

/// Reads it; what it leaves out takes the default.
pub(super) fn read(node: &Node, path: Path<'_>, faults: &mut Faults) -> Web {
    if matches!(node.content, Content::Null) {
        faults.add(node.line, path, "a mapping is expected here; write {} for the defaults, or remove the key");
    }
    let section = Section::open(node, &path, &["allow_private", "ports", "search"], faults);
    let blocks = section.optional("allow_private", faults, |node, path, faults| {
        let items = list(node, path, faults)?.iter().enumerate();
        Some(items.filter_map(|(index, item)| block(item, path.index(index), faults)).collect())
    });
    let ports = section.optional("ports", faults, |node, path, faults| {
        let items = list(node, path, faults)?.iter().enumerate();
        let port = |(index, item)| integer(item, 1..=65_535, path.index(index), faults);
        Some(items.filter_map(port).filter_map(|port| u16::try_from(port).ok()).collect())
    });
    Web {
        allow_private: blocks.unwrap_or_default(),
        ports: ports.unwrap_or_default(),
        search: section.optional("search", faults, search),
    }
}

fn block(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<Block> {
    let written = fields::text(node, path, faults)?;
    Block::parse(written).map_err(|message| faults.add(node.line, path, message)).ok()
}

fn search(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<Search> {
    let section = Section::open(node, &path, &["provider", "base_url", "key_env", "key_file"], faults);
    let provider = section.optional("provider", faults, |node, path, faults| {
        let word = fields::text(node, path, faults)?;
        let known = SearchProvider::ALL.into_iter().find(|known| known.as_str() == word);
        if known.is_none() {
            faults.add(node.line, path, format!("{} is not a provider; write brave, tavily or searxng", shown(word)));
        }
        known
    });
    if section.get("provider").is_none() {
        faults.add(node.line, path.key("provider"), "provider is missing; write brave, tavily or searxng");
    }
    let mut read = |key: &str, judge: fn(&str) -> Result<(), String>| {
        section.optional(key, faults, |node, path, faults| judged(node, path, faults, judge))
    };
    let base_url = read("base_url", values::url);
    let (env, file) = (read("key_env", values::env_name), read("key_file", values::secret_file));
    let provider = provider?;
    if provider == SearchProvider::Searxng && section.get("base_url").is_none() {
        faults.add(node.line, path.key("base_url"), "base_url is missing; write where the SearXNG is");
    }
    let key = match (env, file) {
        (Some(_), Some(_)) => {
            faults.add(node.line, path, "key_env and key_file exclude each other; keep one");
            return None;
        }
        (Some(name), None) => Some(SecretRef::Env(name)),
        (None, Some(file)) => Some(SecretRef::File(file)),
        (None, None) => None,
    };
    if key.is_none()
        && provider != SearchProvider::Searxng
        && section.get("key_env").or(section.get("key_file")).is_none()
    {
        faults.add(node.line, path, format!("{} wants a key; write key_env or key_file", provider.as_str()));
    }
    Some(Search { provider, base_url, key })
}

/// As exports show it.
pub(super) fn shape(web: &Web) -> Shape {
    let entries = Entries::default()
        .put("allow_private", Shape::List(web.allow_private.iter().map(|block| text(&block.to_string())).collect()))
        .put("ports", Shape::List(web.ports.iter().map(literal).collect()));
    let Some(Search { provider, base_url, key }) = &web.search else { return entries.map() };
    let search = Entries::default().put("provider", text(provider.as_str()));
    let search = match base_url {
        Some(url) => search.put("base_url", text(url)),
        None => search,
    };
    let search = match key {
        Some(SecretRef::Env(name)) => search.put("key_env", text(name)),
        Some(SecretRef::File(path)) => search.put("key_file", text(path)),
        None => search,
    };
    entries.put("search", search.map()).map()
}

#[cfg(test)]
mod tests {
    use crate::config::{load_offline, to_yaml};

    #[test]
    fn it_is_read_exported_and_judged() {
        let text = "web:\n  allow_private: [10.0.0.0/8, \"fd00::1\"]\n  ports: [8443]\n  search: {provider: tavily, key_file: /run/key}\n";
        let (document, _) = load_offline(text).unwrap();
        let web = &document.web;
        assert!(web.admits("10.9.9.9".parse().unwrap()).is_ok() && web.admits_port(8443) && web.search.is_some());
        assert_eq!(load_offline(&to_yaml(&document)).unwrap().0, document);
        for (wrong, place) in [
            ("web: {allow_private: [10.0.0.0/99]}", "web.allow_private[0]"),
            ("web: {ports: [0]}", "web.ports[0]"),
            ("web: {search: {provider: bing}}", "web.search.provider"),
            ("web: {search: {}}", "web.search.provider"),
            ("web: {search: {provider: searxng}}", "web.search.base_url"),
            ("web: {search: {provider: brave}}", "web.search"),
            ("web: {search: {provider: brave, key_env: A, key_file: /b}}", "web.search"),
            ("web: {search: {provider: brave, key: abc}}", "web.search.key"),
            ("web: {allow: []}", "web.allow"),
        ] {
            let faults = load_offline(wrong).unwrap_err();
            assert_eq!(faults.first().map(|fault| fault.path.as_str()), Some(place), "{wrong}: {faults:?}");
        }
    }
}
