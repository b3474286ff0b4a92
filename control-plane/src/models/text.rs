//! Text in frames of OpenAI's wire, which is a text, parts of text, or something that is none.
//!
//! Read by [`super::openai`]. Always true: text without escapes is not copied, and no shape is an error.

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Text as it stands in the frame where it has no escapes; parts of text joined; everything else is no text.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Text<'a> {
    pub(super) text: Cow<'a, str>,
    /// A part said what the model thinks.
    pub(super) thinking: bool,
}

#[derive(Deserialize)]
struct TextPart<'a> {
    #[serde(borrow, default)]
    r#type: Text<'a>,
    #[serde(borrow, default)]
    text: Text<'a>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text { text: Cow::Borrowed(text), thinking: false })
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text { text: Cow::Owned(text.to_owned()), thinking: false })
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
        let mut all = Text::default();
        while let Some(part) = parts.next_element::<TextPart<'de>>()? {
            match part.r#type.text.as_ref() {
                "text" => all.text.to_mut().push_str(&part.text.text),
                "thinking" => all.thinking = true,
                _ => {}
            }
        }
        Ok(all)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text::default())
    }
}
