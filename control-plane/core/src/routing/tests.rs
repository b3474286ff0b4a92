use proptest::prelude::*;

use super::*;

fn id(text: &str) -> AgentId {
    AgentId::parse(text).unwrap()
}

fn table(routes: &[(&[(&str, &str)], &str)]) -> RouteTable {
    let routes: Vec<Route> =
        routes.iter().map(|(keys, agent)| Route::new(keys.iter().copied(), agent).unwrap()).collect();
    RouteTable::compile(routes.into())
}

fn source(platform: &str, chat_id: &str, thread_id: Option<&str>) -> Source {
    Source {
        platform: platform.into(),
        chat_id: chat_id.into(),
        chat_type: "group".into(),
        thread_id: thread_id.map(Into::into),
        ..Source::default()
    }
}

/// The rule itself, without an index.
fn naive(table: &RouteTable, source: &Source) -> Option<usize> {
    table.routes().iter().position(|route| route.first_failed(source).is_none())
}

#[test]
fn every_key_prints_as_it_parses_and_reads_its_own_field() {
    let json = serde_json::json!({
        "platform": "platform", "account": "account", "chat_id": "chat_id", "thread_id": "thread_id",
        "parent_chat_id": "parent_chat_id", "chat_type": "chat_type", "user_id": "user_id",
        "user_id_alt": "user_id_alt", "guild_id": "guild_id"
    });
    let source: Source = serde_json::from_value(json).unwrap();
    for key in MatchKey::ALL {
        assert_eq!(MatchKey::parse(key.as_str()), Ok(key));
        assert_eq!(key.value(&source), Some(key.as_str()));
        assert_eq!(serde_json::to_string(&key).unwrap(), format!("\"{key}\""));
    }
    let hint = |name: &str| MatchKey::parse(name).unwrap_err().to_string();
    assert!(hint("chatid").ends_with("did you mean chat_id?"), "{}", hint("chatid"));
    assert!(hint("topic_id").ends_with("did you mean thread_id?"));
    assert!(hint("").contains("the keys are platform, account"));
}

#[test]
fn the_first_route_written_wins_whatever_its_key_set() {
    let table = table(&[
        (&[("platform", "telegram"), ("chat_id", "1"), ("thread_id", "42")], "a"),
        (&[("chat_id", "1")], "b"),
        (&[("thread_id", "42"), ("platform", "telegram"), ("chat_id", "1")], "c"),
        (&[("thread_id", "")], "d"),
    ]);
    assert_eq!(table.key_sets(), 3);
    assert_eq!(table.decide(&source("telegram", "1", Some("42"))), Some(0));
    assert_eq!(table.decide(&source("telegram", "1", None)), Some(1));
    assert_eq!(table.decide(&source("slack", "2", Some(""))), Some(3), "an empty value is a value");
    assert_eq!(table.decide(&source("slack", "2", None)), None, "an absent value equals nothing");
    assert_eq!(table.decide(&source("Telegram", "2", None)), None, "no case folding");
}

#[test]
fn preset_beats_hook_beats_route_beats_default() {
    let table = table(&[(&[("platform", "telegram")], "routed")]);
    let (default, preset, hook) = (id("fallback"), id("preset"), id("hook"));
    let here = source("telegram", "1", None);
    let decide = |preset, hook, source| {
        let decision = resolve(&table, &default, preset, hook, source);
        (decision.agent.as_str().to_owned(), decision.decided_by, decision.route_index)
    };
    assert_eq!(decide(Some(&preset), Some(&hook), &here), ("preset".into(), DecidedBy::Preset, None));
    assert_eq!(decide(None, Some(&hook), &here), ("hook".into(), DecidedBy::Hook, None));
    assert_eq!(decide(None, None, &here), ("routed".into(), DecidedBy::Route, Some(0)));
    assert_eq!(decide(None, None, &source("irc", "1", None)), ("fallback".into(), DecidedBy::Default, None));
}

#[test]
fn a_route_cannot_be_made_of_faulty_parts() {
    let new = |pairs: &[(&str, &str)], agent: &str| Route::new(pairs.iter().copied(), agent).unwrap_err().to_string();
    assert!(new(&[], "coder").contains("empty match"));
    assert!(new(&[("platform", "a"), ("platform", "b")], "coder").contains("written twice"));
    assert!(new(&[("Platform", "a")], "coder").contains("unknown match key"));
    assert!(new(&[("platform", "a")], "Coder").contains("not an agent id"));
}

#[test]
fn tuples_whose_joined_text_is_equal_stay_apart() {
    let table = table(&[
        (&[("platform", "ab"), ("chat_id", "c")], "a"),
        (&[("platform", "a"), ("chat_id", "bc")], "b"),
        (&[("platform", "a\0b"), ("chat_id", "")], "c"),
        (&[("platform", "a"), ("chat_id", "\0b")], "d"),
    ]);
    for (index, (platform, chat)) in [("ab", "c"), ("a", "bc"), ("a\0b", ""), ("a", "\0b")].into_iter().enumerate() {
        assert_eq!(table.decide(&source(platform, chat, None)), Some(index));
    }
}

#[test]
fn explain_names_the_first_failed_key_as_written_and_serialises_as_promised() {
    let table = table(&[
        (&[("platform", "telegram"), ("chat_id", "-1001234")], "coder"),
        (&[("guild_id", "T0"), ("platform", "slack")], "coder"),
    ]);
    let explanation = explain(&table, &id("main"), None, None, &source("telegram", "-1001234", None));
    assert_eq!(
        serde_json::to_string(&explanation).unwrap(),
        r#"{"agent":"coder","decided_by":"route","route_index":0,"routes":[{"index":0,"matched":true},{"index":1,"matched":false,"failed_key":"guild_id"}]}"#
    );
    let other = explain(&table, &id("main"), None, None, &source("irc", "1", None));
    assert!(
        serde_json::to_string(&other)
            .unwrap()
            .starts_with(r#"{"agent":"main","decided_by":"default","route_index":null"#)
    );
}

#[test]
fn a_truncated_explanation_still_holds_the_winner() {
    let routes: Vec<Route> =
        (0..5000).map(|n| Route::new([("chat_id", n.to_string().as_str())], "coder").unwrap()).collect();
    let table = RouteTable::compile(routes.into());
    for (chat, last) in [("4321", 4321), ("17", 999), ("none", 999), ("999", 999)] {
        let explanation = explain(&table, &id("main"), None, None, &source("irc", chat, None));
        assert!(explanation.truncated);
        assert_eq!(explanation.routes.len(), EXPLAIN_LIMIT);
        assert_eq!(explanation.routes.last().map(|verdict| verdict.index), Some(last));
        let matched: Vec<usize> = explanation.routes.iter().filter(|v| v.matched).map(|v| v.index).collect();
        assert_eq!(matched, explanation.decision.route_index.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn shadows_are_earlier_routes_with_a_subset_of_the_keys_and_equal_values() {
    let table = table(&[
        (&[("platform", "telegram")], "a"),
        (&[("platform", "telegram"), ("chat_id", "1")], "b"),
        (&[("platform", "slack"), ("chat_id", "1")], "c"),
        (&[("chat_id", "1"), ("platform", "slack")], "d"),
        (&[("platform", "slack")], "e"),
    ]);
    assert_eq!(table.shadows(), vec![(1, 0), (3, 2)]);
    assert_eq!(table.shadow_of(99), None);
}

/// Few values and few key sets, so that matches, ties and shadows are frequent.
fn some_route() -> impl Strategy<Value = Route> {
    let value = prop_oneof!["[abc]", Just(String::new())];
    (1u16..512, prop::collection::vec(value, 9), any::<bool>(), "[a-d]").prop_map(|(set, values, reversed, agent)| {
        let mut keys: Vec<(MatchKey, String)> =
            MatchKey::ALL.into_iter().zip(values).filter(|(key, _)| set & key.bit() != 0).take(4).collect();
        if reversed {
            keys.reverse();
        }
        Route { keys, agent: id(&agent) }
    })
}

/// A small deterministic generator: the same tables and sources in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn text(&mut self) -> String {
        ["", "a", "b", "c"][usize::try_from(self.roll(4)).unwrap()].to_owned()
    }

    fn maybe(&mut self) -> Option<String> {
        (self.roll(3) > 0).then(|| self.text())
    }

    fn route(&mut self) -> Route {
        let mut keys: Vec<(MatchKey, String)> = Vec::new();
        for _ in 0..=self.roll(3) {
            let key = MatchKey::ALL[usize::try_from(self.roll(9)).unwrap()];
            if keys.iter().all(|(known, _)| *known != key) {
                keys.push((key, self.text()));
            }
        }
        Route { keys, agent: AgentId::main() }
    }

    fn source(&mut self) -> Source {
        Source {
            platform: self.text(),
            account: self.maybe(),
            chat_id: self.text(),
            chat_type: self.text(),
            thread_id: self.maybe(),
            parent_chat_id: self.maybe(),
            user_id: self.maybe(),
            user_id_alt: self.maybe(),
            guild_id: self.maybe(),
            ..Source::default()
        }
    }
}

#[test]
fn the_index_decides_100_000_random_sources_as_a_walk_does() {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let (mut decided, mut undecided) = (0, 0);
    for size in 0..500 {
        let routes: Vec<Route> = (0..size % 60).map(|_| dice.route()).collect();
        let table = RouteTable::compile(routes.into());
        for _ in 0..200 {
            let source = dice.source();
            let expected = naive(&table, &source);
            assert_eq!(table.decide(&source), expected, "{source:?} in {:?}", table.routes());
            if expected.is_some() { decided += 1 } else { undecided += 1 }
        }
    }
    assert!(decided > 10_000 && undecided > 10_000, "{decided} decided, {undecided} not: the mix proves too little");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shadow_warnings_equal_pairwise_comparison(routes in prop::collection::vec(some_route(), 0..60)) {
        let table = RouteTable::compile(routes.into());
        let covers = |by: &Route, route: &Route| by.keys.iter().all(|pair| route.keys.contains(pair));
        let pairwise: Vec<(usize, usize)> = table.routes().iter().enumerate().filter_map(|(index, route)| {
            table.routes().iter().take(index).position(|by| covers(by, route)).map(|by| (index, by))
        }).collect();
        prop_assert_eq!(table.shadows(), pairwise);
    }
}
