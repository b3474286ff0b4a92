#!/bin/sh
# Makes a Debian machine ready to build and run Hermes: a C compiler (some crates contain C), Postgres 15 or newer, and
# nothing that is there already. Run by itself, or read in by up.sh and test-setup.sh, which use its functions; safe to run
# again. Says on stderr what it does; stdout stays empty. Uses apt's registries only, with sudo when not root.
set -eu

say() { echo "setup: $*" >&2; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    say "this needs root, and there is no sudo; run as root: $*"
    return 1
  fi
}

apt_updated=
apt_install() {
  if ! command -v apt-get >/dev/null; then
    say "no apt-get here; install by other means: $*"
    exit 1
  fi
  if [ -z "$apt_updated" ]; then
    as_root apt-get update -q >&2
    apt_updated=yes
  fi
  say "installing $*"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >&2 </dev/null
}

# The places hermes-control-plane looks at, too.
has_postgres() {
  for bin in "${HERMES_PG_BIN:-}" "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
    "$(dirname "$(command -v postgres || echo /nonexistent/postgres)")"; do
    if [ -x "$bin/postgres" ] && [ -x "$bin/initdb" ]; then
      major=$("$bin/postgres" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
      [ "${major:-0}" -ge 15 ] && return 0
    fi
  done
  return 1
}

install_postgres() {
  # Debian makes a cluster of its own and starts it with the machine. Hermes runs its own server, so a machine that had no
  # Postgres tooling is told not to; one that had is left as its owner wants it.
  if ! dpkg-query -W -f='${Status}' postgresql-common 2>/dev/null | grep -q 'ok installed'; then
    dropin=/etc/postgresql-common/createcluster.d
    say "writing $dropin/hermes.conf: no system cluster is made (remove it to change that)"
    as_root mkdir -p "$dropin"
    echo 'create_main_cluster = false' | as_root tee "$dropin/hermes.conf" >/dev/null
  fi
  apt_install postgresql
}

# rustup puts cargo on the PATH of later logins only.
if ! command -v cargo >/dev/null && [ -r "${CARGO_HOME:-$HOME/.cargo}/env" ]; then
  . "${CARGO_HOME:-$HOME/.cargo}/env"
fi
if ! command -v cargo >/dev/null; then
  say "no cargo; install a Rust toolchain first: https://rustup.rs"
  exit 1
fi
command -v cc >/dev/null || apt_install gcc libc6-dev
has_postgres || install_postgres
if ! has_postgres; then
  say "the Postgres of this release is older than 15; install a newer one and name its bin directory in HERMES_PG_BIN"
  exit 1
fi
