# shellcheck shell=bash
# Sourced by the other scripts: finds a Python, and makes the environment they run in.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Print the python of an environment with the extras named in $1; further arguments are passed on.
environment() {
  local base=${PYTHON:-python3} extras=$1
  shift
  if ! command -v "$base" >/dev/null; then
    echo "$base was not found: install Python 3.10 or newer, or name one: PYTHON=/path/to/python3" >&2
    return 2
  fi
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "$("$base" --version 2>&1) is too old: vit_edge needs Python 3.10 or newer." >&2
    echo "Name another one: PYTHON=python3.12 $0" >&2
    return 2
  fi
  "$base" "$root/scripts/environment.py" --extras "$extras" "$@"
}

# Print a Python $1 that really starts: version managers put a shim on PATH that may not.
find_python() {
  local candidate
  for candidate in "python$1" "$(PYENV_VERSION='' pyenv prefix "$1" 2>/dev/null || true)/bin/python"; do
    if "$candidate" -c 'import ensurepip' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
}

# Run the whole suite $1 with the python $2, on all cores; further arguments go to pytest.
# It says first how long that takes: as long as the last time here, else an estimate for 2 cores.
run_suite() {
  local suite=$1 python=$2 cores status=0
  local record=$root/.pytest_cache/vit-edge-seconds-$suite
  shift 2
  cores=$(getconf _NPROCESSORS_ONLN)
  if [[ -s $record ]]; then
    echo "This takes about $(minutes "$(cat "$record")"), as the last time here."
  else
    echo "This takes about $(minutes "$(suite_seconds "$suite")") on 2 cores; here are $cores."
  fi
  local start=$SECONDS
  # Tests start hundreds of children: they read compiled modules, whatever the user's shell says.
  env -u PYTHONDONTWRITEBYTECODE "$python" -m pytest --numprocesses "$((cores < 4 ? cores : 4))" --dist worksteal "$@" || status=$?
  # A run that was broken off, or that found nothing to run, says nothing about the next one.
  if ((status < 2)); then
    mkdir -p "${record%/*}"
    echo $((SECONDS - start)) >"$record"
  fi
  return "$status"
}

# Estimates from the sum of what its tests take; the first whole run here replaces them.
suite_seconds() {
  case $1 in
    everything) echo 1320 ;;
    quick) echo 300 ;;
    oldest) echo 100 ;;
  esac
}

minutes() {
  if (($1 < 90)); then echo "$1 seconds"; else echo "$((($1 + 30) / 60)) minutes"; fi
}

# Run lists of steps beside each other; each argument is a function that calls `step` for each.
# A list ends with its first step that fails, and the others before their next; then this fails.
beside() {
  local list process failed=0
  steps=$(mktemp -d)
  set -m # a process group for each list: what is interrupted ends with all that it started
  for list in "$@"; do
    (
      set +m
      trap - EXIT
      "$list"
    ) &
    lists+=($!)
  done
  set +m
  for process in "${lists[@]}"; do wait "$process" || failed=1; done
  lists=()
  if ((failed)); then
    echo "FAILED: $(paste -sd, "$steps/failed" 2>/dev/null || echo 'a list of steps')" >&2
  fi
  rm -rf "$steps"
  return "$failed"
}

# Run a command as the step named $1 of a list. Its output is shown whole, when it ends.
step() {
  local name=$1 start=$SECONDS status log
  shift
  if [[ -s $steps/failed ]]; then exit 1; fi
  log=$(mktemp "$steps/XXXXXX.log")
  echo "== $name" >"$log"
  set +e
  (
    set -e
    "$@"
  ) >>"$log" 2>&1
  status=$?
  set -e
  echo "-- $((SECONDS - start)) s" >>"$log"
  if ((status)); then echo "$name" >>"$steps/failed"; fi
  flock "$steps" cat "$log"
  rm "$log"
  if ((status)); then exit "$status"; fi
}

# For the trap of EXIT: end the lists that still run, and show what their steps have said.
end_lists() {
  local process
  for process in ${lists[@]+"${lists[@]}"}; do kill -- "-$process" 2>/dev/null || true; done
  if ((${#lists[@]})); then
    cat "$steps"/*.log 2>/dev/null || true
    rm -rf "$steps"
  fi
}
lists=()
