use std::fs;

use super::*;
use crate::args::Format;

fn global() -> Global {
    Global {
        output: Format::Table,
        server: None,
        token: None,
        token_file: None,
        ca_file: None,
        data_dir: None,
        timeout: Duration::from_secs(1),
    }
}

/// A fresh directory under the build directory.
fn fresh(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp/hermesctl-connect").join(name);
    let _fresh = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn up(dir: &Path, endpoint: &str) {
    fs::write(dir.join("endpoint.json"), endpoint).unwrap();
    fs::write(dir.join("operator.token"), "op-secret\n").unwrap();
}

fn token(target: &Target) -> Option<&str> {
    target.token.as_ref().map(|token| token.0.as_str())
}

#[test]
fn an_up_is_found_by_its_data_directory() {
    let dir = fresh("found");
    up(&dir, r#"{"grpc":"http://127.0.0.1:4711","http":"http://127.0.0.1:4712","pid":1}"#);
    let global = Global { data_dir: Some(dir), ..global() };
    let target = discover(&global, &Environment::default()).unwrap();
    assert_eq!((target.url.as_str(), token(&target)), ("http://127.0.0.1:4711", Some("op-secret")));
    assert!(!format!("{target:?}").contains("op-secret"));
    up(
        global.data_dir.as_deref().unwrap(),
        r#"{"grpc":"127.0.0.1:4713","http":"127.0.0.1:2","worker":"127.0.0.1:3","pid":4}"#,
    );
    assert_eq!(discover(&global, &Environment::default()).unwrap().url, "http://127.0.0.1:4713");
}

#[test]
fn a_named_token_wins_over_the_operators() {
    let dir = fresh("named");
    up(&dir, r#"{"grpc":"http://127.0.0.1:4711","pid":1}"#);
    fs::write(dir.join("mine"), " file-token \n").unwrap();
    let with_token = Global { data_dir: Some(dir.clone()), token: Some("flag-token".into()), ..global() };
    assert_eq!(token(&discover(&with_token, &Environment::default()).unwrap()), Some("flag-token"));
    let with_file = Global { token_file: Some(dir.join("mine")), ..with_token };
    assert_eq!(token(&discover(&with_file, &Environment::default()).unwrap()), Some("file-token"));
    let missing = Global { token_file: Some(dir.join("absent")), ..with_file };
    assert!(discover(&missing, &Environment::default()).unwrap_err().to_string().contains("absent"));
}

#[test]
fn the_operator_token_goes_to_its_own_endpoint_only() {
    let dir = fresh("own");
    up(&dir, r#"{"grpc":"http://127.0.0.1:4711","pid":1}"#);
    let to = |server: &str| {
        let global = Global { data_dir: Some(dir.clone()), server: Some(server.into()), ..global() };
        discover(&global, &Environment::default()).unwrap()
    };
    assert_eq!(token(&to("127.0.0.1:4711")), Some("op-secret"));
    assert_eq!(token(&to("http://127.0.0.1:4711/")), Some("op-secret"));
    assert_eq!(token(&to("http://127.0.0.1:4712")), None);
    assert_eq!(token(&to("https://elsewhere.example:4711")), None);
}

#[test]
fn a_missing_or_damaged_endpoint_file_says_what_to_do() {
    let dir = fresh("missing");
    let global = Global { data_dir: Some(dir.clone()), ..global() };
    let error = discover(&global, &Environment::default()).unwrap_err().to_string();
    assert!(error.starts_with("no control plane answers at ") && error.contains("`hermesctl up`"), "{error}");
    up(&dir, "{");
    let error = discover(&global, &Environment::default()).unwrap_err().to_string();
    assert!(error.contains("is damaged"), "{error}");
}

#[test]
fn an_empty_variable_is_an_absent_one() {
    let dir = fresh("empty");
    up(&dir, r#"{"grpc":"http://127.0.0.1:4711","pid":1}"#);
    let global = Global { server: Some(String::new()), token: Some(String::new()), data_dir: Some(dir), ..global() };
    assert_eq!(token(&discover(&global, &Environment::default()).unwrap()), Some("op-secret"));
}

#[test]
fn urls_that_cannot_be_meant_are_wrong_usage() {
    for url in ["ftp://host:1", "http://", "http://a b", "http://host:99999", "http://[::1"] {
        let error = endpoint(url, None).unwrap_err();
        assert!(error.downcast_ref::<Usage>().is_some(), "{url}: {error:#}");
    }
    endpoint("http://[::1]:7070", None).unwrap();
    let error = bearer_value(&Token("a\nb".into())).unwrap_err();
    assert!(error.downcast_ref::<Usage>().is_some() && !error.to_string().contains("a\nb"));
}

#[test]
fn a_process_is_gone_only_when_there_is_none() {
    assert!(!is_gone(1));
    assert!(!is_gone(i32::try_from(std::process::id()).unwrap()));
    assert!(is_gone(0) && is_gone(-1) && is_gone(i32::MAX));
}
