//! `builtin/echo`: the offline model. It repeats the last user message and names the agent, so that routing and sessions
//! can be tried without a provider. It never stands in for a real model.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hermes_core::turn::{Role, Usage};

use super::failure::CallError;
use super::{Call, ChatModel, ECHO, Message, Piece};

/// Most pieces in which an answer is streamed.
const PIECES: usize = 4;

/// The offline model. Its tokens are words, counted over all messages.
#[derive(Debug)]
pub(super) struct Echo;

impl ChatModel for Echo {
    fn open(&self, call: &Call) -> BoxStream<'static, Result<Piece, CallError>> {
        let said = call.messages.iter().rev().find(|message| matches!(message, Message::Said { role: Role::User, .. }));
        let answer = format!("[{}] {}", call.agent, said.map_or("", Message::text));
        let words = |text: &str| u64::try_from(text.split_whitespace().count()).unwrap_or(u64::MAX);
        let usage = Usage {
            input_tokens: call.messages.iter().map(|message| words(message.text())).sum(),
            output_tokens: words(&answer),
            model: ECHO.to_owned(),
            ..Usage::default()
        };
        let mut pieces: Vec<Piece> = pieces(&answer).into_iter().map(Piece::Text).collect();
        pieces.push(Piece::End {
            usage,
            finish_reason: "stop".to_owned(),
            calls: Vec::new(),
            reasoning: String::new(),
        });
        stream::iter(pieces)
            .then(|piece| async {
                // Hands over piece by piece, as a real model does, instead of letting the broker join them.
                tokio::task::yield_now().await;
                Ok(piece)
            })
            .boxed()
    }
}

/// Cuts before words into at most [`PIECES`] parts of about the same number of characters.
fn pieces(text: &str) -> Vec<String> {
    let size = text.len().div_ceil(PIECES).max(1);
    let mut pieces = vec![String::new()];
    for word in text.split_inclusive(' ') {
        match pieces.last_mut() {
            Some(last) if last.len() < size => last.push_str(word),
            _ => pieces.push(word.to_owned()),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_into_a_few_pieces_that_join_to_it() {
        for text in
            ["[main] hello", "[main] ", "[main]   two  spaces ", "[main] äöü 漢字 and a few more words\nnext line"]
        {
            let pieces = pieces(text);
            assert_eq!(pieces.concat(), text);
            assert!(pieces.len() <= PIECES && pieces.iter().all(|piece| !piece.is_empty()), "{pieces:?}");
        }
        assert_eq!(pieces("[main] hello there my friend"), ["[main] ", "hello there ", "my friend"]);
    }
}
