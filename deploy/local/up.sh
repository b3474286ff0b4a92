#!/bin/sh
# One command from a clone to a running Hermes: installs what is missing (setup.sh), builds the release binaries and runs
# `hermesctl up` with the arguments given here. stdout carries the ready line alone. Ctrl-C stops all of it.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)

. "$root/deploy/local/setup.sh"
echo "up: building the release binaries (the first time takes minutes)" >&2
cargo build --manifest-path "$root/Cargo.toml" --workspace --release --bins --locked >&2
target=${CARGO_TARGET_DIR:-$root/target}
exec "$target/release/hermesctl" up "$@"
