//! A `multipart/form-data` body (RFC 7578): texts, then one file.
//!
//! Called by adapters that upload. Always true: its length is known before it leaves, the file's bytes are not copied, and nothing in a
//! value or in the file can end its part, since the boundary is made anew, at random, for each body.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::OutboundFile;

/// A form that is being filled in.
#[derive(Debug)]
pub(crate) struct Form {
    boundary: String,
    head: String,
    file: Bytes,
}

impl Form {
    pub(crate) fn new() -> Self {
        let boundary = format!("hermes-{}", hex::encode(rand::random::<[u8; 16]>()));
        Self { boundary, head: String::new(), file: Bytes::new() }
    }

    /// Another text. `name` is a name of ours.
    pub(crate) fn text(mut self, name: &'static str, value: &str) -> Self {
        let Self { boundary, .. } = &self;
        self.head
            .push_str(&format!("--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"));
        self
    }

    /// The file, as its last part. `name` is a name of ours.
    pub(crate) fn file(mut self, name: &'static str, file: &OutboundFile) -> Self {
        let (boundary, file_name, media_type) = (&self.boundary, file.name(), file.media_type());
        self.head.push_str(&format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{file_name}\"\r\n\
             content-type: {media_type}\r\n\r\n"
        ));
        self.file = file.bytes().clone();
        self
    }

    /// The value of the `content-type` header, and the body in pieces.
    pub(crate) fn finish(self) -> (String, VecDeque<Bytes>) {
        let Self { boundary, head, file } = self;
        let tail = format!("\r\n--{boundary}--\r\n");
        (format!("multipart/form-data; boundary={boundary}"), [head.into(), file, tail.into()].into())
    }
}

#[cfg(test)]
mod tests {
    use hermes_core::attachment::Kind;

    use super::*;

    #[test]
    fn a_form_is_as_the_rfc_says_and_has_a_boundary_of_its_own() {
        let file = OutboundFile::new(Kind::Document, "a b.txt", "text/plain", Bytes::from("content")).unwrap();
        let made = || Form::new().text("chat_id", "5").text("caption", "--\r\n--x").file("document", &file).finish();
        let (content_type, body) = made();
        let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
        let whole: Vec<u8> = body.into_iter().flatten().collect();
        let expected = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"chat_id\"\r\n\r\n5\r\n\
             --{boundary}\r\ncontent-disposition: form-data; name=\"caption\"\r\n\r\n--\r\n--x\r\n\
             --{boundary}\r\ncontent-disposition: form-data; name=\"document\"; filename=\"a b.txt\"\r\n\
             content-type: text/plain\r\n\r\ncontent\r\n--{boundary}--\r\n"
        );
        assert_eq!(String::from_utf8(whole).unwrap(), expected);
        assert_ne!(made().0, content_type);
    }
}
