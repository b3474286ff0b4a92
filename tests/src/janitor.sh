# Ends the tests' Postgres when no test process has held it for five seconds, however those ended.
# $1: the directory with the locks and the file that names the server's directory.
#
# users.lock is held shared by every test process, start.lock by whoever starts or ends the server, janitor.lock by the
# one janitor; the kernel releases each with its holder.
set -u
exec 8>"$1/janitor.lock"
flock -n 8 || exit 0
idle=0
dir=
while :; do
  sleep 1
  if [ -d "$1" ]; then
    exec 9>"$1/start.lock"
    flock 9
    [ -f "$1/server" ] && dir=$(cat "$1/server")
    if flock -n "$1/users.lock" true; then idle=$((idle + 1)); else idle=0; fi
  else
    # The build directory was removed: nobody can share this server any more.
    idle=5
  fi
  if [ "$idle" -ge 5 ]; then
    if [ -n "$dir" ] && [ -f "$dir/pg/postmaster.pid" ]; then
      read -r pid < "$dir/pg/postmaster.pid"
      kill -QUIT "$pid"
      while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    fi
    [ -n "$dir" ] && rm -rf "$dir"
    rm -f "$1/server"
    exit 0
  fi
  exec 9>&-
done
