#!/usr/bin/env bash
# Lint and tests. Arguments go to pytest: `bash scripts/test.sh tests/unit`, `bash scripts/test.sh -m slow`.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff format --check .
ruff check .
python -m pytest -q --durations=10 "$@"
