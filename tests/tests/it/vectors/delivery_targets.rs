//! `delivery_targets.jsonl`: where a message goes that is no reply.

use hermes_core::source::PLATFORMS;
use hermes_core::target::Target;
use serde_json::Value;

use super::{each_row, field, same};

#[test]
fn targets_are_read_as_the_rows_say() {
    each_row("delivery_targets.jsonl", |row| {
        let (input, out) = (&row["in"], &row["out"]);
        let target = Target::parse(&field(input, "target").unwrap_or_default(), |name| PLATFORMS.contains(&name));
        // Where there is no origin, it is local and still the origin.
        let here = |name| field(&input["origin"], name);
        let (platform, chat, thread) = match &target {
            Target::Origin => {
                (here("platform").unwrap_or_else(|| "local".to_owned()), here("chat_id"), here("thread_id"))
            }
            Target::Local => ("local".to_owned(), None, None),
            Target::Home { platform } => (platform.clone(), None, None),
            Target::Chat { platform, chat_id, thread_id } => {
                (platform.clone(), Some(chat_id.clone()), thread_id.clone())
            }
        };
        let flag = |name: &str| out.get(name).and_then(Value::as_bool);
        same("platform", &Some(platform), &field(out, "platform"))?;
        same("chat_id", &chat, &field(out, "chat_id"))?;
        same("thread_id", &thread, &field(out, "thread_id"))?;
        same("is_origin", &Some(target == Target::Origin), &flag("is_origin"))?;
        same("is_explicit", &Some(matches!(target, Target::Chat { .. })), &flag("is_explicit"))?;
        same("to_string", &Some(target.to_string()), &field(out, "to_string"))
    });
}
