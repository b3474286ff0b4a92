# The daily commands; `just` lists them. Each runs as it stands here without just, too.

_default:
    @just --list --unsorted

# Start Hermes from this clone; arguments go to `hermesctl up`
up *ARGS:
    ./deploy/local/up.sh {{ARGS}}

# Every test, set-up included; arguments go to the test runner
test *ARGS:
    ./deploy/local/test.sh {{ARGS}}

# Tests of one package (hermes-core, hermesctl …), built as the whole workspace so that nothing is compiled twice
test-of PACKAGE *ARGS:
    cargo nextest run --workspace -E 'package({{PACKAGE}})' {{ARGS}}

# Format and lint
check:
    cargo fmt --all
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Accept changed snapshots of a package, to be read as a difference before the commit
snapshots PACKAGE:
    INSTA_UPDATE=always cargo nextest run --workspace -E 'package({{PACKAGE}})'

# What a change has to pass before it lands
ci:
    ./.ci/run

# The cost of 100,000 routes
bench-routes:
    cargo bench -p hermes-core

# Messages per second through real processes; arguments as `hermes-bench --help` says
bench *ARGS:
    cargo build --workspace --release --bins --locked
    target/release/hermes-bench {{ARGS}}
