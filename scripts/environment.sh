# SPDX-License-Identifier: Apache-2.0
# To be sourced: makes `.venv` in the repository's folder, installs the requirements when they have changed, and puts it
# on the PATH. PYTHON=... chooses the interpreter.

# The version of an interpreter, e.g. 3.11.7, if the pinned requirements exist for it.
_supported_python() {
  "$1" -c 'import platform as p, sys; print(p.python_version()) if (3, 10) <= sys.version_info < (3, 14) else sys.exit(1)' \
    2>/dev/null
}

_choose_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11 python3.10; fi
  for candidate in "$@"; do
    if _supported_python "$candidate" >/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "Python 3.10, 3.11, 3.12 or 3.13 is needed, and ${PYTHON:-python3} is none of these: name one with PYTHON=..." >&2
  return 1
}

# Whether the environment can stay: whole, and of the interpreter that was asked for (any, if none was).
_environment_is_usable() {
  local version
  version=$(_supported_python "$1/bin/python") || return 1
  [ ! -e "$1/.installing" ] || return 1
  [ -z "${PYTHON:-}" ] || [ "$version" = "$(_supported_python "$PYTHON")" ]
}

_requirements_hash() {
  "$1/.venv/bin/python" - "$1"/requirements.txt "$1"/requirements-dev.txt <<'CODE'
import hashlib, pathlib, sys

digest = hashlib.sha256(sys.version.encode())
for name in sys.argv[1:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
CODE
}

_prepare_environment() {
  local root=$1 venv=$1/.venv python hash
  if ! _environment_is_usable "$venv"; then
    python=$(_choose_python) || return 1
    echo "Making $venv with $("$python" --version)."
    if ! "$python" -m venv --clear "$venv"; then
      echo "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2
      return 1
    fi
  fi
  hash=$(_requirements_hash "$root") || return 1
  if [ "$(cat "$venv/.requirements" 2>/dev/null)" != "$hash" ]; then
    echo "Installing the requirements (some minutes the first time)."
    # An installation that was killed leaves this file, and the next one starts from an empty environment.
    : >"$venv/.installing"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
      -r "$root/requirements.txt" -r "$root/requirements-dev.txt" || return 1
    echo "$hash" >"$venv/.requirements" && rm "$venv/.installing"
  fi
}

_root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]:-$0}")/.." && pwd) || return 1
# Two scripts started together on a new clone: one installs, the other waits, where there is flock.
{ ! command -v flock >/dev/null || flock 9 && _prepare_environment "$_root"; } 9<"$_root" || return 1
export PATH="$_root/.venv/bin:$PATH"
unset _root
unset -f _supported_python _choose_python _environment_is_usable _requirements_hash _prepare_environment
