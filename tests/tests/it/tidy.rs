//! What the compiler does not check: which package may know what, where a library may be named, and the shape of the tree.
//!
//! The words and rules are README.md's. A rule that is in your way is changed here and there in one commit, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What each package may depend on beside the crates.io packages: nothing depends on `hermes-tests`.
const OURS: &[(&str, &[&str])] = &[
    ("hermes-proto", &[]),
    ("hermes-core", &["hermes-home"]),
    ("hermes-home", &[]),
    ("hermes-platforms", &["hermes-core"]),
    ("hermes-control-plane", &["hermes-proto", "hermes-core", "hermes-home", "hermes-platforms"]),
    ("hermes-worker", &["hermes-proto", "hermes-home"]),
    ("hermesctl", &["hermes-proto", "hermes-core", "hermes-home"]),
    (
        "hermes-tests",
        &["hermes-proto", "hermes-core", "hermes-home", "hermes-platforms", "hermes-control-plane", "hermes-worker"],
    ),
];

/// Pure decisions need these and no more; a runtime, a socket or a clock would be a new line here.
const CORE_MAY_USE: &[&str] = &[
    "croner",
    "hermes-home",
    "indexmap",
    "jiff",
    "saphyr-parser",
    "serde",
    "serde_json",
    "strsim",
    "thiserror",
    "yaml_serde",
];

/// The rules of a home need less.
const HOME_MAY_USE: &[&str] = &["jiff", "regex", "serde", "serde_json", "thiserror", "yaml_serde"];

const POSTGRES: &[&str] =
    &["postgres", "tokio-postgres", "deadpool-postgres", "tokio-postgres-rustls", "refinery", "sqlx"];
const WIRE: &[&str] = &["tonic", "prost", "hermes-proto"];
const PROVIDERS: &[&str] = &["genai", "reqwest"];

/// What a package must not know, by the crates that would let it.
const MUST_NOT_KNOW: &[(&str, &[&[&str]])] = &[
    ("hermes-proto", &[POSTGRES, PROVIDERS, &["tokio", "axum"]]),
    ("hermes-platforms", &[POSTGRES, WIRE, &["genai", "axum"]]),
    ("hermes-worker", &[POSTGRES, PROVIDERS, &["axum", "hermes-core"]]),
    ("hermesctl", &[POSTGRES, PROVIDERS, &["axum"]]),
    // The service is asynchronous throughout; the synchronous client is the test harness's.
    ("hermes-control-plane", &[&["postgres", "clap_complete", "comfy-table"]]),
];

/// Names that may stand in shipped code below these paths only.
const BORDERS: &[(&[&str], &[&str])] = &[
    (
        &["tokio_postgres", "deadpool_postgres", "tokio_postgres_rustls", "refinery"],
        // The second one asks the server it has just started whether it answers.
        &["control-plane/src/store/", "control-plane/src/local/postgres/"],
    ),
    (
        &["tonic", "tonic_health", "tonic_reflection", "tonic_types", "prost", "hermes_proto"],
        // The composition root joins the services; it looks into no message.
        &["proto/", "control-plane/src/grpc/", "control-plane/src/app/mod.rs", "worker/src/", "cli/src/"],
    ),
    (&["genai"], &["control-plane/src/models/"]),
    (&["reqwest"], &["control-plane/src/egress/", "control-plane/src/models/", "control-plane/platforms/src/"]),
    (&["axum"], &["control-plane/src/http/", "control-plane/src/app/mod.rs"]),
    (&["nix", "libc"], &["control-plane/src/local/", "control-plane/src/app/start.rs", "worker/src/", "cli/src/"]),
    (&["comfy_table"], &["cli/src/output.rs"]),
    (
        &["env::var", "env::vars", "env::var_os", "env::vars_os", "env::args", "env::args_os"],
        &[
            "proto/build.rs",
            "control-plane/src/app/options.rs",
            "control-plane/src/app/secrets.rs",
            "control-plane/src/app/start.rs",
            "worker/src/app.rs",
            "worker/src/bin/hermes-sandbox.rs",
            "cli/src/main.rs",
        ],
    ),
    (
        &["SystemTime::now", "Timestamp::now", "Zoned::now"],
        // Handed on as a parameter; leases are the database clock's alone.
        &["control-plane/src/app/mod.rs", "worker/src/app.rs", "cli/src/commands/cron/"],
    ),
    (&["tokio::spawn"], &["control-plane/src/tasks.rs"]),
];

/// Crates the project was asked to be built of, and where each is a direct dependency in use.
const ASKED_FOR: &[(&str, &str)] = &[
    ("tonic", "hermes-control-plane"),
    ("tonic", "hermes-worker"),
    ("tonic", "hermesctl"),
    ("prost", "hermes-control-plane"),
    ("tokio", "hermes-control-plane"),
    ("tower", "hermes-control-plane"),
    ("serde", "hermes-core"),
    ("yaml_serde", "hermes-core"),
    ("tokio-postgres", "hermes-control-plane"),
    ("deadpool-postgres", "hermes-control-plane"),
    ("postgres", "hermes-tests"),
    ("tracing", "hermes-control-plane"),
    ("opentelemetry", "hermes-control-plane"),
    ("opentelemetry", "hermes-worker"),
    ("clap", "hermesctl"),
];

/// Longest file, in lines, and those that are longer, each with its reason.
const LONGEST: usize = 600;
const LONGER: &[(&str, &str)] = &[
    ("Cargo.lock", "written by cargo"),
    ("tests/mcp/package-lock.json", "written by npm"),
    ("tests/tests/it/store/snapshots/it__store__migrations__the_schema.snap", "written by its test"),
    ("tests/tests/it/store/mutations.rs", "one table, an entry for each defect"),
];

const TOP_LEVEL: &[&str] =
    &["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "cli", "control-plane", "deploy", "proto", "tests", "worker"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A file of the project: its path from the root, with `/`, and its text.
struct Text {
    path: String,
    text: String,
}

/// Every text file, without what builds and tools make.
fn texts() -> Vec<Text> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.file_name().unwrap().to_str().unwrap() {
                ".git" | "target" | "__pycache__" | "secrets" => {}
                _ if path.is_dir() => walk(&path, found),
                _ => found.push(path),
            }
        }
    }
    let root = root();
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        String::from_utf8(fs::read(&path).unwrap()).ok().map(|text| Text { path: name, text })
    };
    let texts: Vec<_> = paths.into_iter().filter_map(read).collect();
    assert!(texts.len() > 200, "the walk found only {} files", texts.len());
    texts
}

/// Rust that ships, without its comments and the unit tests at its end.
fn shipped() -> Vec<Text> {
    let is_test = |path: &str| path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs");
    let code = |text: &str| {
        let before_tests = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        before_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    };
    let rust = texts().into_iter().filter(|file| file.path.ends_with(".rs") && !is_test(&file.path));
    rust.map(|file| Text { text: code(&file.text), path: file.path }).collect()
}

/// Whether `name` stands in `text` as a whole path segment or path.
fn mentions(text: &str, name: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        !text[..at].ends_with(inside) && !text[at + name.len()..].starts_with(inside) && !text[..at].ends_with('.')
    })
}

struct Dependency {
    package: String,
    /// As code names it.
    name: String,
    for_tests: bool,
}

struct Package {
    dir: String,
    dependencies: Vec<Dependency>,
}

fn packages() -> BTreeMap<String, Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let root = root();
    let package = |package: &Value| {
        let dir = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
        let dependencies = package["dependencies"].as_array().unwrap().iter().map(|dependency| {
            let package = dependency["name"].as_str().unwrap().to_owned();
            let name = dependency["rename"].as_str().unwrap_or(&package).replace('-', "_");
            Dependency { name, for_tests: dependency["kind"] == "dev", package }
        });
        let package_of = Package {
            dir: dir.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(),
            dependencies: dependencies.collect(),
        };
        (package["name"].as_str().unwrap().to_owned(), package_of)
    };
    metadata["packages"].as_array().unwrap().iter().map(package).collect()
}

#[test]
fn packages_know_what_they_may_and_nothing_else() {
    let packages = packages();
    assert_eq!(
        packages.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        OURS.iter().map(|(name, _)| *name).collect()
    );
    for (name, allowed) in OURS {
        for dependency in &packages[*name].dependencies {
            let ours = packages.contains_key(&dependency.package);
            assert!(
                !ours || allowed.contains(&dependency.package.as_str()),
                "{name} must not know {}",
                dependency.package
            );
        }
    }
    for (name, groups) in MUST_NOT_KNOW {
        for dependency in packages[*name].dependencies.iter().filter(|dependency| !dependency.for_tests) {
            let known = groups.iter().any(|group| group.contains(&dependency.package.as_str()));
            assert!(!known, "{name} must not know {}", dependency.package);
        }
    }
    for (name, may_use) in [("hermes-core", CORE_MAY_USE), ("hermes-home", HOME_MAY_USE)] {
        for dependency in packages[name].dependencies.iter().filter(|dependency| !dependency.for_tests) {
            assert!(may_use.contains(&dependency.package.as_str()), "{name} is pure: {}", dependency.package);
        }
    }
}

#[test]
fn libraries_stay_behind_their_borders() {
    let files = shipped();
    let mut faults = Vec::new();
    for (names, homes) in BORDERS {
        for home in *homes {
            let used =
                |file: &&Text| file.path.starts_with(home) && names.iter().any(|name| mentions(&file.text, name));
            assert!(
                files.iter().any(|file| used(&file)),
                "{home} may name {names:?} and never does: drop it from the rule"
            );
        }
        for file in files.iter().filter(|file| !homes.iter().any(|home| file.path.starts_with(home))) {
            for name in names.iter().filter(|name| mentions(&file.text, name)) {
                faults.push(format!("{}: {name} belongs to {}", file.path, homes.join(", ")));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn sql_is_in_the_store_only() {
    let sql = ["SELECT ", "INSERT INTO ", "DELETE FROM ", "CREATE TABLE "];
    for file in shipped().iter().filter(|file| file.path.starts_with("control-plane/")) {
        let allowed = file.path.starts_with("control-plane/src/store/");
        assert!(allowed || !sql.iter().any(|word| file.text.contains(word)), "{} contains SQL", file.path);
    }
}

#[test]
fn what_ships_depends_on_nothing_it_does_not_use() {
    // Named by generated code only.
    let generated = [("hermes-proto", "tonic_prost"), ("hermes-proto", "prost_types"), ("hermes-proto", "prost")];
    let texts = texts();
    for (name, package) in packages().iter().filter(|(name, _)| *name != "hermes-tests") {
        for dependency in &package.dependencies {
            let below =
                |file: &&Text| file.path.starts_with(&format!("{}/", package.dir)) && file.path.ends_with(".rs");
            let nested = |file: &&Text| {
                package.dir != "control-plane"
                    || !["control-plane/core/", "control-plane/home/", "control-plane/platforms/"]
                        .iter()
                        .any(|at| file.path.starts_with(at))
            };
            let used = texts.iter().filter(below).filter(nested).any(|file| mentions(&file.text, &dependency.name));
            let known = generated.contains(&(name.as_str(), dependency.name.as_str()));
            assert!(used || known, "{name} does not use {}", dependency.package);
        }
    }
}

#[test]
fn the_crates_asked_for_are_in_use() {
    let (packages, texts) = (packages(), texts());
    for (wanted, by) in ASKED_FOR {
        let package = &packages[*by];
        let dependency = package.dependencies.iter().find(|dependency| dependency.package == *wanted);
        let dependency = dependency.unwrap_or_else(|| panic!("{by} does not depend on {wanted} directly"));
        let code = texts.iter().filter(|file| file.path.starts_with(&format!("{}/src/", package.dir)));
        let used = code.filter(|file| file.path.ends_with(".rs")).any(|file| mentions(&file.text, &dependency.name));
        assert!(used, "{by} depends on {wanted} and never uses it");
    }
}

#[test]
fn the_top_level_is_as_fixed() {
    let mut entries: Vec<_> = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    entries.retain(|name| name != "target" && !name.to_str().unwrap().starts_with('.'));
    entries.sort();
    assert_eq!(entries, TOP_LEVEL);
}

#[test]
fn files_stay_short() {
    for file in texts() {
        let (lines, allowed) = (file.text.lines().count(), LONGER.iter().any(|(path, _)| *path == file.path));
        let data = file.path.starts_with("tests/vectors/");
        assert!(
            lines <= LONGEST || allowed || data,
            "{} has {lines} lines: split it, or list it here with the reason",
            file.path
        );
    }
}

#[test]
fn a_module_is_a_file_or_a_folder() {
    for file in texts().iter().filter(|file| file.path.ends_with(".rs")) {
        let folder = root().join(file.path.trim_end_matches(".rs"));
        assert!(!folder.is_dir(), "{} stands beside a folder of its name: move it to mod.rs there", file.path);
    }
}

#[test]
fn every_module_says_what_it_is() {
    for file in shipped_paths() {
        let text = fs::read_to_string(root().join(&file)).unwrap();
        assert!(text.starts_with("//!"), "{file} does not begin with what it is, who calls it and what is always true");
    }
}

fn shipped_paths() -> Vec<String> {
    shipped().into_iter().map(|file| file.path).collect()
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let here = root().to_str().unwrap().to_owned();
    let homes = [["/ro", "ot/"].concat(), ["/Us", "ers/"].concat(), ["/wo", "rk/"].concat(), here];
    for file in texts() {
        for home in &homes {
            assert!(!file.text.contains(home.as_str()), "{} names {home}", file.path);
        }
    }
}

#[test]
fn migrations_have_no_gap() {
    let folder = root().join("control-plane/migrations");
    let number = |name: String| -> usize {
        let (number, what) =
            name.strip_prefix('V').and_then(|rest| rest.split_once("__")).expect("V<number>__<name>.sql");
        assert!(what.ends_with(".sql") && !number.starts_with('0'), "{name}");
        number.parse().unwrap()
    };
    let mut numbers: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| number(entry.unwrap().file_name().into_string().unwrap())).collect();
    numbers.sort_unstable();
    assert!(!numbers.is_empty());
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
}

#[test]
fn every_package_takes_the_shared_lints() {
    for (name, package) in packages() {
        let manifest = fs::read_to_string(root().join(&package.dir).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} has lints of its own");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut checked = 0;
    for file in texts().iter().filter(|file| file.path.ends_with(".md")) {
        let folder = root().join(&file.path).parent().unwrap().to_path_buf();
        for link in file.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            assert!(folder.join(path).try_exists().unwrap(), "{} links to {path}, which is not there", file.path);
            checked += 1;
        }
    }
    assert!(checked > 5, "only {checked} links were found");
}

#[test]
fn the_module_map_names_every_module() {
    for (code, map) in [
        ("control-plane/src/lib.rs", "control-plane/README.md"),
        ("worker/src/lib.rs", "worker/README.md"),
        ("control-plane/core/src/lib.rs", "README.md"),
    ] {
        let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
        let (code, map) = (read(code), read(map));
        for module in code.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')) {
            assert!(map.contains(&format!("`{module}`")), "{module} is not in the module map");
        }
    }
}
