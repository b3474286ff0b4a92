//! What one turn may call: the worker's own tools, its MCP servers' and the control plane's, as its profile allows.
//!
//! Made once when a turn begins. Always true: it stays as it is until the turn ends, and a tool that is not in it is one that
//! does not exist. It runs nothing.

use hermes_proto::v1::{self, ProfileRevision};

use super::ToolSpec;
use crate::skills::Available;

/// Whether the profile has that toolset on.
pub(super) fn is_on(profile: Option<&ProfileRevision>, toolset: &str) -> bool {
    let names = |list: &[String]| list.iter().any(|name| name == toolset);
    profile.is_none_or(|profile| {
        (!profile.toolsets_set || names(&profile.enabled_toolsets)) && !names(&profile.disabled_toolsets)
    })
}

/// The tools of a turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer(Vec<ToolSpec>);

impl Offer {
    /// Those of `specs` whose toolset the profile has on. Of two tools with one name the first counts.
    pub(crate) fn new<'a>(specs: impl IntoIterator<Item = &'a ToolSpec>, profile: Option<&ProfileRevision>) -> Self {
        let mut offered: Vec<ToolSpec> = Vec::new();
        for spec in specs.into_iter().filter(|spec| is_on(profile, &spec.toolset)) {
            if !offered.iter().any(|known| known.name == spec.name) {
                offered.push(spec.clone());
            }
        }
        Self(offered)
    }

    /// The tool of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&ToolSpec> {
        self.0.iter().find(|spec| spec.name == name)
    }

    /// All but those of these names.
    pub(crate) fn without(&self, names: &[&str]) -> Self {
        Self(self.0.iter().filter(|spec| !names.contains(&spec.name.as_str())).cloned().collect())
    }

    /// All but those of these toolsets.
    pub(crate) fn without_toolsets(self, toolsets: &[&str]) -> Self {
        Self(self.0.into_iter().filter(|spec| !toolsets.contains(&spec.toolset.as_str())).collect())
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As skills ask for them.
    pub(crate) fn available(&self) -> Available {
        Available {
            tools: self.0.iter().map(|spec| spec.name.clone()).collect(),
            toolsets: self.0.iter().map(|spec| spec.toolset.clone()).collect(),
        }
    }

    /// As a model is told of them.
    pub(crate) fn told(&self) -> Vec<v1::ToolSpec> {
        let told = |spec: &ToolSpec| v1::ToolSpec {
            name: spec.name.clone(),
            description: spec.description.clone(),
            parameters: spec.parameters.clone(),
        };
        self.0.iter().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Effect;
    use super::*;

    fn spec(name: &str, toolset: &str) -> ToolSpec {
        ToolSpec {
            name: name.to_owned(),
            description: String::new(),
            parameters: "{}".to_owned(),
            toolset: toolset.to_owned(),
            effect: Effect::Pure,
            time_limit: Duration::from_secs(1),
            max_output: 100,
        }
    }

    fn names(enabled: Option<&[&str]>, disabled: &[&str]) -> String {
        let specs = [spec("read", "files"), spec("write", "files"), spec("memory", "memory"), spec("read", "other")];
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let profile = ProfileRevision {
            toolsets_set: enabled.is_some(),
            enabled_toolsets: texts(enabled.unwrap_or_default()),
            disabled_toolsets: texts(disabled),
            ..ProfileRevision::default()
        };
        let told = Offer::new(&specs, Some(&profile)).told();
        told.into_iter().map(|tool| tool.name).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_profile_says_which_toolsets_there_are() {
        assert_eq!(names(None, &[]), "read write memory");
        assert_eq!(names(None, &["files"]), "memory read");
        assert_eq!(names(Some(&["files"]), &[]), "read write");
        assert_eq!(names(Some(&["files", "memory"]), &["files"]), "memory");
        assert_eq!(names(Some(&["unheard-of"]), &[]), "");
        assert_eq!(names(Some(&[]), &[]), "");
        assert!(Offer::new(&[spec("a", "b")], None).find("a").is_some());
    }
}
