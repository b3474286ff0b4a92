//! Where a job's answer goes.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A parsed value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deliver(Vec<String>);

impl Deliver {
    /// Reads it.
    pub fn parse(text: &str) -> Self {
        Self(
            text.split(',')
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty() && part != "local")
                .collect(),
        )
    }
    /// Nowhere.
    pub fn is_local(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Deliver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("local") } else { f.write_str(&self.0.join(",")) }
    }
}

impl Serialize for Deliver {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Deliver {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::parse(&text))
    }
}
