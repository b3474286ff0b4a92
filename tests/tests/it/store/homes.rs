//! Home documents: each version is kept with who wrote it, and imports are whole.

use anyhow::{Result, ensure};
use hermes_control_plane::store::{Error, HomeRevision, Imported};

use super::db::{Db, same};

const KEPT: &str = "SELECT version, deleted, convert_from(body, 'UTF8'), written_by FROM home_revisions WHERE agent_no = 1 ORDER BY path, version";

fn push(db: &Db, base: i64, body: &[u8], by: &str) -> Result<bool> {
    Ok(db.wait(db.store.home_push(1, "SOUL.md", base, body, body.is_empty(), by))?.stored)
}

fn shown(revisions: &[HomeRevision]) -> String {
    let shown = revisions.iter().map(|r| format!("{}@{} {} {} {}", r.path, r.version, r.size, r.deleted, r.written_by));
    shown.collect::<Vec<_>>().join(", ")
}

pub(super) fn each_version_is_kept_with_who_wrote_it(db: &mut Db) -> Result<()> {
    same!(push(db, 0, b"one", "operator x")?, true);
    same!(push(db, 0, b"lost", "worker y")?, false);
    same!(push(db, 1, b"two!", "worker y")?, true);
    same!(push(db, 2, b"", "operator x")?, true);
    same!(push(db, 3, b"back", "operator x")?, true);
    same!(db.look(KEPT)?, "1|f|one|operator x 2|f|two!|worker y 3|t||operator x 4|f|back|operator x");
    let history = db.wait(db.store.home_revisions(1, "SOUL.md", i64::MAX, 9))?;
    same!(
        shown(&history),
        "SOUL.md@4 4 false operator x, SOUL.md@3 0 true operator x, SOUL.md@2 4 false worker y, SOUL.md@1 3 false operator x"
    );
    same!(shown(&db.wait(db.store.home_revisions(1, "SOUL.md", 4, 1))?), "SOUL.md@3 0 true operator x");
    let at = |version| -> Result<_> {
        let found = db.wait(db.store.home_revision(1, "SOUL.md", version))?;
        Ok(found.map(|(revision, body)| (revision.version, String::from_utf8_lossy(&body).into_owned())))
    };
    same!(at(None)?, Some((4, "back".to_owned())));
    same!(at(Some(2))?, Some((2, "two!".to_owned())));
    same!(at(Some(4))?, Some((4, "back".to_owned())));
    same!(at(Some(5))?, None);
    // What is listed is what is there, page by page; nobody sees another agent's.
    db.wait(db.store.home_push(1, "skills/a", 0, b"a", false, "worker y"))?;
    db.wait(db.store.home_push(2, "skills/b", 0, b"b", false, "worker z"))?;
    let listed = db.wait(db.store.home_files(1, "", 9))?;
    same!(shown(&listed), "SOUL.md@4 4 false operator x, skills/a@1 1 false worker y");
    same!(shown(&db.wait(db.store.home_files(1, "SOUL.md", 9))?), "skills/a@1 1 false worker y");
    // They go with the home.
    db.run("UPDATE agents SET removed_at = clock_timestamp() WHERE agent_no = 1")?;
    db.wait(db.store.agent_purge(1))?;
    same!(db.look("SELECT agent_no, count(*) FROM home_revisions GROUP BY 1")?, "2|1");
    Ok(())
}

pub(super) fn the_newest_versions_stay_and_no_more_of_them_than_fit(db: &mut Db) -> Result<()> {
    for base in 0..60 {
        push(db, base, base.to_string().as_bytes(), "x")?;
    }
    let span = "SELECT min(version), max(version), count(*) FROM home_revisions";
    same!(db.look(span)?, "11|60|50");
    let large = vec![b'x'; 1 << 20];
    for base in 60..66 {
        push(db, base, &large, "x")?;
    }
    same!(db.look(span)?, "63|66|4");
    // A small one is never kept out by what is older.
    push(db, 66, b"small", "x")?;
    same!(db.look(span)?, "64|67|4");
    Ok(())
}

pub(super) fn what_a_build_without_revisions_wrote_is_kept_when_it_goes(db: &mut Db) -> Result<()> {
    db.run("INSERT INTO home_documents(agent_no, path, version, home_version, sha256, body) VALUES (1, 'SOUL.md', 7, 1, sha256('old'), 'old')")?;
    same!(shown(&db.wait(db.store.home_revisions(1, "SOUL.md", i64::MAX, 9))?), "SOUL.md@7 3 false ");
    same!(shown(&db.wait(db.store.home_files(1, "", 9))?), "SOUL.md@7 3 false ");
    same!(push(db, 7, b"new", "x")?, true);
    same!(db.look(KEPT)?, "7|f|old| 8|f|new|x");
    Ok(())
}

pub(super) fn an_import_is_whole_and_leaves_what_is_the_same(db: &mut Db) -> Result<()> {
    push(db, 0, b"same", "x")?;
    db.wait(db.store.home_push(1, "skills/a", 0, b"old", false, "x"))?;
    db.wait(db.store.home_push(1, "skills/gone", 0, b"gone", false, "x"))?;
    db.wait(db.store.home_push(1, "skills/gone", 1, b"", true, "x"))?;
    db.wait(db.store.home_push(1, "skills/mine", 0, b"mine", false, "x"))?;
    let documents = [("SOUL.md", "same"), ("skills/a", "new"), ("skills/b", "b"), ("skills/gone", "again")];
    let documents: Vec<_> = documents.map(|(path, body)| (path.to_owned(), body.as_bytes().to_vec())).into();
    let import = |most, dry| db.wait(db.store.home_import(1, &documents, ("operator y", most, dry)));
    let line = |one: &Imported| format!("{} {}→{}", one.path, one.before, one.version);
    let expected = "SOUL.md 1→1, skills/a 1→2, skills/b 0→1, skills/gone 0→3";
    let before =
        db.look("SELECT a.home_version, count(*) FROM agents a JOIN home_documents USING (agent_no) GROUP BY 1")?;
    let (dry, _) = import(9, true)?;
    same!(dry.iter().map(line).collect::<Vec<_>>().join(", "), expected);
    ensure!(matches!(import(4, false), Err(Error::Conflict(_))));
    same!(
        db.look("SELECT a.home_version, count(*) FROM agents a JOIN home_documents USING (agent_no) GROUP BY 1")?,
        before
    );
    let (done, home_version) = import(5, false)?;
    same!((done.iter().map(line).collect::<Vec<_>>().join(", "), home_version), (expected.to_owned(), 8));
    let there = db.wait(db.store.home_export(1, 20))?.unwrap_or_default();
    let there: Vec<_> = there.iter().map(|(path, body)| format!("{path}={}", String::from_utf8_lossy(body))).collect();
    same!(there.join(" "), "SOUL.md=same skills/a=new skills/b=b skills/gone=again skills/mine=mine");
    same!(db.wait(db.store.home_export(1, 10))?, None);
    ensure!(matches!(db.wait(db.store.home_import(9, &documents, ("y", 9, false))), Err(Error::NotFound(_))));
    Ok(())
}
