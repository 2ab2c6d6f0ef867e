# Sourced by the other scripts: goes to the repository's root, and makes and enters its virtual environment.
# An environment that is active already is used as it is, with the requirements installed into it.
set -euo pipefail
started_in="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# given_path PATH DEFAULT: a path that a user gave, as seen from where the script was started; else the default.
given_path() {
  if [ -z "$1" ]; then echo "$2"
  elif [[ "$1" = /* || "$started_in" = "$PWD" ]]; then echo "$1"
  else echo "$started_in/$1"
  fi
}

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
