//! `session_keys.jsonl`: the session key of a source, and whether several people share it.

use hermes_core::session_key::{
    Isolation, lid_mapping, lid_mapping_files, namespace, session_key, shared_multi_user, whatsapp_normalized,
};
use serde_json::Value;

use super::{each_row, field, same, source, text};

#[test]
fn keys_and_sharing_are_those_of_the_rows() {
    let fixture: Value = serde_json::from_str(&text("whatsapp_lid_fixture.json")).unwrap();
    let aliases = |id: &str| -> Vec<String> {
        let files = lid_mapping_files(id);
        files.iter().filter_map(|name| lid_mapping(fixture["files"].get(name)?.as_str()?)).collect()
    };
    each_row("session_keys.jsonl", |row| {
        let input = &row["in"];
        let given = &input["source"];
        let isolation = Isolation {
            group_per_user: input["group_sessions_per_user"].as_bool().ok_or("no group flag")?,
            thread_per_user: input["thread_sessions_per_user"].as_bool().ok_or("no thread flag")?,
        };
        let (agent, profile) = (field(given, "agent_id"), field(input, "profile"));
        let namespace = namespace(agent.as_deref(), profile.as_deref());
        let source = source(input);
        let key = session_key(namespace, &source, isolation, &aliases);
        if row["error"] != true {
            same(
                "shared_multi_user",
                &Some(shared_multi_user(&source, isolation)),
                &row["out"]["shared_multi_user"].as_bool(),
            )?;
            return same("session_key", &Some(key.as_str()), &row["out"]["session_key"].as_str());
        }
        if given["chat_id"].is_number() {
            return Ok(()); // Ours cannot be built: ids are text.
        }
        // The reference fails on an unsafe WhatsApp id; ours uses it, normalised.
        same("platform", &source.platform.as_str(), &"whatsapp")?;
        let raw = if source.chat_type == "dm" && !source.chat_id.is_empty() {
            &source.chat_id
        } else {
            let participant = source.user_id_alt.as_ref().filter(|id| !id.is_empty()).or(source.user_id.as_ref());
            participant.ok_or("no id could have failed")?
        };
        let normalized = whatsapp_normalized(raw);
        let parts: Vec<&str> = key.split(':').collect();
        same("the key has the normalised id", &parts.contains(&normalized.as_str()), &true)
    });
}
