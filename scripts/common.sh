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
