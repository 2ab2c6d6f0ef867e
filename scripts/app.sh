#!/usr/bin/env bash
# The page to train, draw and download in the browser: makes the environment, installs what the page needs, and
# starts it at http://127.0.0.1:7860. Arguments go to python -m scripts.app: --port, --host, --folder.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements-app
exec python -m scripts.app "$@"
