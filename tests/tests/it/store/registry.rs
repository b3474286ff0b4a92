//! Compare and swap: the registry, home documents and tokens.

use std::time::Duration;

use anyhow::{Result, ensure};
use hermes_control_plane::identity::{NewToken, Role, TokenHash, TokenStore as _};
use hermes_control_plane::store::{Error, RegistryChange};
use serde_json::json;
use uuid::Uuid;

use super::db::{Db, msg, same};

fn change(version: i64) -> RegistryChange {
    RegistryChange { settings: json!({ "was": version }), by: "drill".to_owned(), ..RegistryChange::default() }
}

pub(super) fn two_writers_of_one_version_are_one_winner(db: &mut Db) -> Result<()> {
    let first = "UPDATE documents SET version = version + 1 WHERE version = 0";
    let revised = RegistryChange { revised: vec![("a".to_owned(), json!({}))], ..change(0) };
    let (answer, waited) = db.race(first, |db| Ok(db.wait(db.store.registry_change(0, &revised))))?;
    ensure!(waited);
    ensure!(matches!(answer, Err(Error::Conflict(_))), "{answer:?}");
    same!(db.wait(db.store.registry_change(1, &revised))?, 2);
    let rows = db.wait(db.store.registry_load())?;
    same!((rows.version, rows.agents[0].revision, rows.settings), (2, 2, json!({ "was": 0 })));
    ensure!(matches!(db.wait(db.store.registry_change(1, &change(1))), Err(Error::Conflict(_))));
    Ok(())
}

pub(super) fn a_route_to_an_agent_that_is_not_registered_refuses_the_whole_change(db: &mut Db) -> Result<()> {
    let good = RegistryChange { routes: Some(vec![(json!([["platform", "api"]]), "b".to_owned())]), ..change(0) };
    same!(db.wait(db.store.registry_change(0, &good))?, 1);
    let bad = RegistryChange {
        revised: vec![("new".to_owned(), json!({})), ("a".to_owned(), json!({}))],
        removed: vec!["b".to_owned()],
        routes: Some(vec![(json!([]), "a".to_owned()), (json!([]), "ghost".to_owned())]),
        home_documents: vec![("a".to_owned(), "SOUL.md".to_owned(), b"x".to_vec())],
        ..change(1)
    };
    let refused = db.wait(db.store.registry_change(1, &bad));
    ensure!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
    let rows = db.wait(db.store.registry_load())?;
    same!((rows.version, rows.settings, rows.agents.len()), (1, json!({ "was": 0 }), 2));
    same!(rows.routes, [(json!([["platform", "api"]]), 2)]);
    same!(rows.agents.iter().all(|agent| agent.revision == 1 && agent.removed_at.is_none()), true);
    same!(db.look("SELECT count(*) FROM home_documents")?, "0");
    Ok(())
}

pub(super) fn a_removed_agent_is_a_tombstone_and_comes_back_with_its_number(db: &mut Db) -> Result<()> {
    db.ingest(&[msg("a", "x")])?;
    db.wait(db.store.home_push(1, "SOUL.md", 0, b"me", false, "somebody"))?;
    let removal = RegistryChange { removed: vec!["a".to_owned()], ..change(0) };
    same!(db.wait(db.store.registry_change(0, &removal))?, 1);
    let first = db.wait(db.store.registry_load())?.agents[0].removed_at;
    ensure!(first.is_some());
    same!(db.wait(db.store.registry_change(1, &removal))?, 2);
    same!(db.wait(db.store.registry_load())?.agents[0].removed_at, first);
    let back = RegistryChange { revised: vec![("a".to_owned(), json!({ "back": true }))], ..change(2) };
    same!(db.wait(db.store.registry_change(2, &back))?, 3);
    let agent = db.wait(db.store.registry_load())?.agents.remove(0);
    same!((agent.agent_no, agent.revision, agent.removed_at, agent.spec), (1, 2, None, json!({ "back": true })));
    same!(db.look("SELECT count(*) FROM sessions")?, "1");
    same!(db.wait(db.store.home_document(1, "SOUL.md"))?.map(|document| document.body), Some(b"me".to_vec()));
    let history = db.wait(db.store.agent_revisions(1, i64::MAX, 9))?;
    same!(history.iter().map(|row| row.revision).collect::<Vec<_>>(), [2, 1]);
    Ok(())
}

pub(super) fn copied_and_set_home_documents_move_the_home_version(db: &mut Db) -> Result<()> {
    for (path, body) in [("SOUL.md", b"soul".as_slice()), ("memories/m.md", b"memory"), ("gone", b"gone")] {
        db.wait(db.store.home_push(1, path, 0, body, false, "somebody"))?;
    }
    db.wait(db.store.home_push(1, "gone", 1, b"", true, "somebody"))?;
    db.wait(db.store.home_push(2, "SOUL.md", 0, b"old", false, "somebody"))?;
    let copy = RegistryChange {
        home_copy: Some(("a".to_owned(), "b".to_owned())),
        home_documents: vec![("b".to_owned(), "memories/m.md".to_owned(), b"mine".to_vec())],
        ..change(0)
    };
    db.wait(db.store.registry_change(0, &copy))?;
    let (version, manifest) = db.wait(db.store.home_manifest(2))?;
    let shown: Vec<_> = manifest.iter().map(|document| (document.path.as_str(), document.version)).collect();
    same!((version, shown), (4, vec![("SOUL.md", 2), ("memories/m.md", 2)]));
    same!(db.wait(db.store.home_document(2, "SOUL.md"))?.map(|document| document.body), Some(b"soul".to_vec()));
    same!(db.wait(db.store.home_document(2, "memories/m.md"))?.map(|document| document.body), Some(b"mine".to_vec()));
    Ok(())
}

pub(super) fn two_pushes_from_one_version_are_one_winner(db: &mut Db) -> Result<()> {
    let push = |base, body: &'static [u8]| db.wait(db.store.home_push(1, "SOUL.md", base, body, false, "somebody"));
    let made = push(0, b"one")?;
    same!((made.stored, made.version, made.home_version), (true, 1, 1));
    let again = push(0, b"two")?;
    same!((again.stored, again.version, again.home_version), (false, 1, 1));
    let first = "UPDATE agents SET home_version = home_version + 1 WHERE agent_no = 1;
        UPDATE home_documents SET version = 2, home_version = 2, body = 'first' WHERE agent_no = 1";
    let (second, waited) =
        db.race(first, |db| Ok(db.wait(db.store.home_push(1, "SOUL.md", 1, b"second", false, "somebody"))?))?;
    ensure!(waited);
    same!((second.stored, second.version, second.home_version), (false, 2, 2));
    same!(db.wait(db.store.home_document(1, "SOUL.md"))?.map(|document| document.body), Some(b"first".to_vec()));
    let removed = db.wait(db.store.home_push(1, "SOUL.md", 2, b"", true, "somebody"))?;
    same!((removed.stored, removed.version), (true, 3));
    same!(db.wait(db.store.home_document(1, "SOUL.md"))?.is_none(), true);
    same!(db.wait(db.store.home_manifest(1))?.1[0].deleted, true);
    ensure!(matches!(db.wait(db.store.home_push(9, "SOUL.md", 0, b"", false, "somebody")), Err(Error::NotFound(_))));
    Ok(())
}

pub(super) fn a_token_for_one_use_is_spent_once(db: &mut Db) -> Result<()> {
    let token = |number: u8, uses| NewToken {
        id: Uuid::from_u128(number.into()),
        hash: TokenHash([number; 32]),
        role: Role::Worker,
        agent: None,
        name: "join".to_owned(),
        uses,
        ttl: Some(Duration::from_secs(60)),
    };
    db.wait(db.store.create(token(1, Some(1))))?;
    let spent = db.wait(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let store = db.store.clone();
            tasks.spawn(async move { store.spend(TokenHash([1; 32])).await });
        }
        tasks.join_all().await
    });
    let winners = spent.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().count();
    same!(winners, 1);
    same!(db.look("SELECT uses_left FROM tokens")?, "0");
    // Revoked, expired and unknown ones cannot be spent at all.
    db.wait(db.store.create(token(2, Some(5))))?;
    same!(db.wait(db.store.revoke(Uuid::from_u128(2)))?, true);
    same!(db.wait(db.store.spend(TokenHash([2; 32])))?.is_none(), true);
    db.wait(db.store.create(token(3, Some(5))))?;
    db.run("UPDATE tokens SET expires_at = now() - interval '1 s' WHERE uses_left = 5 AND revoked_at IS NULL")?;
    same!(db.wait(db.store.spend(TokenHash([3; 32])))?.is_none(), true);
    same!(db.wait(db.store.spend(TokenHash([4; 32])))?.is_none(), true);
    Ok(())
}
