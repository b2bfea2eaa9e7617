#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every check of this repository: format, lint, imports, types, spelling, tests. Arguments go to pytest, e.g. -k lncc.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

# The tests run side by side, each on one thread, and draw the same on every machine.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONHASHSEED=0 MPLBACKEND=Agg
workers=$(python -c 'import os; print(min(4, len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))))')

summary=""
failed=0
check() {
  local name=$1
  shift
  if "$@"; then
    summary+="  $name: passed"$'\n'
  else
    summary+="  $name: FAILED"$'\n'
    failed=1
  fi
}

check format ruff format --check --quiet .
check lint ruff check --quiet .
check imports lint-imports --no-cache
check types mypy --no-error-summary
check spelling codespell
printf 'Checks\n%sTests\n' "$summary"
pytest -q -n "$workers" --dist worksteal "$@" || failed=1
exit "$failed"
