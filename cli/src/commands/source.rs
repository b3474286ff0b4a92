//! The source flags as wire and domain types. Called by explain, send and session key. Always true: an absent flag stays
//! absent and an empty one stays empty text.

use hermes_proto::v1;

use crate::args::SourceArgs;

/// For a call.
pub(crate) fn to_proto(source: SourceArgs) -> v1::Source {
    v1::Source {
        platform: source.platform,
        account: source.account,
        chat_id: source.chat_id,
        chat_type: source.chat_type,
        thread_id: source.thread_id,
        parent_chat_id: source.parent_chat_id,
        user_id: source.user_id,
        user_id_alt: source.user_id_alt,
        guild_id: source.guild_id,
        user_name: None,
        chat_name: None,
        message_id: None,
    }
}

/// For the offline commands.
pub(crate) fn to_core(source: SourceArgs) -> hermes_core::Source {
    hermes_core::Source {
        platform: source.platform,
        account: source.account,
        chat_id: source.chat_id,
        chat_type: source.chat_type,
        thread_id: source.thread_id,
        parent_chat_id: source.parent_chat_id,
        user_id: source.user_id,
        user_id_alt: source.user_id_alt,
        guild_id: source.guild_id,
        user_name: None,
        chat_name: None,
        message_id: None,
    }
}
