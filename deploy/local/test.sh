#!/bin/sh
# One command from a clone to all tests passed: installs what is missing (setup.sh, a Python environment with the pinned
# clients and validators of deploy/requirements.txt, kubectl for its offline kustomize), builds, and runs every test.
# Arguments go to the test runner. Safe to run again; touches nothing outside the clone but the packages it installs.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"

. ./deploy/local/setup.sh
say() { echo "test: $*" >&2; }

command -v python3 >/dev/null || apt_install python3
target=${CARGO_TARGET_DIR:-$root/target}
venv=$target/test-venv
pinned=deploy/requirements.txt
if [ -f "$pinned" ]; then
  if ! cmp -s "$pinned" "$venv/installed.txt"; then
    python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3-venv
    say "making the Python environment $venv"
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$pinned" >&2
    cp "$pinned" "$venv/installed.txt"
  fi
  # Tests that drive a Python client or a validator take this interpreter.
  HERMES_TEST_PYTHON=$venv/bin/python
  export HERMES_TEST_PYTHON
fi
command -v kubectl >/dev/null || apt_install kubernetes-client

say "building"
cargo build --workspace --all-targets --locked
if cargo nextest --version >/dev/null 2>&1; then
  say "running all tests with nextest"
  exec cargo nextest run --workspace --locked "$@"
fi
say "running all tests with cargo test (cargo-nextest is not installed)"
exec cargo test --workspace --locked "$@"
