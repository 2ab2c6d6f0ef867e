# Sourced by the other scripts: goes to the repository's root, and makes and enters its virtual environment.
# An environment that is active already is used as it is, with the requirements installed into it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    echo "making the virtual environment .venv"
    "${PYTHON:-python3}" -m venv .venv
  fi
  . .venv/bin/activate
fi
stamp="$VIRTUAL_ENV/.requirements"
if ! cmp -s requirements.txt "$stamp"; then
  echo "installing requirements.txt"
  python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  cp requirements.txt "$stamp"
fi
export TRANSFORMERS_VERBOSITY="${TRANSFORMERS_VERBOSITY:-error}"
