#!/usr/bin/env bash
# Lint and tests, in two processes of one thread each. Arguments go to pytest, in one process, on all threads:
# `bash scripts/test.sh tests/unit`, `bash scripts/test.sh -m slow`.
# `bash scripts/test.sh --faults`: all the fault injection, with a table of what was lost.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ "${1:-}" = --faults ]; then
  shift
  set -- tests/faults -m "not slow and not gpu" "$@"
fi
if [ $# = 0 ]; then
  export OMP_NUM_THREADS=1
  set -- -n 2 --dist loadfile
fi
ruff format --check .
ruff check .
python -m pytest -q --durations=10 "$@"
