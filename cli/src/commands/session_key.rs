//! `session key`: the key of a source, computed here with the code the control plane uses. It asks no server; the only
//! files it reads are WhatsApp's id mappings of the home that was named.

use std::path::{Path, PathBuf};

use hermes_core::session_key::{Isolation, lid_mapping, lid_mapping_files, namespace, session_key};
use serde::Serialize;

use super::{Invocation, source};
use crate::args::SessionKeyArgs;
use crate::error::ExitStatus;
use crate::output::{Paint, View, plain};

/// Prints it.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn run(args: SessionKeyArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let isolation =
        Isolation { group_per_user: args.group_sessions_per_user, thread_per_user: args.thread_sessions_per_user };
    let mappings = args.whatsapp_home.as_deref().filter(|home| !home.as_os_str().is_empty()).map(mappings_dir);
    let aliases = |id: &str| mappings.as_deref().map(|dir| aliases_of(dir, id)).unwrap_or_default();
    let source = source::to_core(args.source);
    let key = session_key(namespace(Some(&args.agent), None), &source, isolation, &aliases);
    inv.printer.show(&KeyView { session_key: key })?;
    Ok(ExitStatus::Done)
}

/// Where a home keeps WhatsApp's session; the older place wins while it has content.
fn mappings_dir(home: &Path) -> PathBuf {
    let older = home.join("whatsapp/session");
    let has_content = std::fs::read_dir(&older).is_ok_and(|mut entries| entries.next().is_some());
    if has_content { older } else { home.join("platforms/whatsapp/session") }
}

/// What the mapping files of an id say; a missing or broken file says nothing.
fn aliases_of(dir: &Path, id: &str) -> Vec<String> {
    let content = |file: String| std::fs::read_to_string(dir.join(file)).ok();
    lid_mapping_files(id).into_iter().filter_map(content).filter_map(|content| lid_mapping(&content)).collect()
}

#[derive(Serialize)]
struct KeyView {
    session_key: String,
}

impl View for KeyView {
    fn table(&self, _paint: Paint) -> String {
        plain(&self.session_key).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_session_directory_wins_while_it_has_content() {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp/hermesctl-whatsapp");
        let (older, newer) = (home.join("whatsapp/session"), home.join("platforms/whatsapp/session"));
        let _fresh = std::fs::remove_dir_all(&home);
        std::fs::create_dir_all(&older).unwrap();
        std::fs::create_dir_all(&newer).unwrap();
        std::fs::write(newer.join("lid-mapping-42.json"), "\"7@lid\"").unwrap();
        std::fs::write(newer.join("lid-mapping-42_reverse.json"), "{broken").unwrap();
        assert_eq!(mappings_dir(&home), newer);
        assert_eq!(aliases_of(&newer, "42"), ["7@lid"]);
        assert_eq!(aliases_of(&newer, "43"), [""; 0]);
        std::fs::write(older.join("lid-mapping-1.json"), "\"2\"").unwrap();
        assert_eq!(mappings_dir(&home), older);
    }
}
