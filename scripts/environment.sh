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

# train FLAGS: train_classdiffusion.py on the model BASE (toon, sd15, sd21, a folder, a file or a Hub id),
# in NUM_PROCESSES processes.
train() {
  local base="${BASE:-toon}" processes="${NUM_PROCESSES:-1}" gpus command
  if [[ "$base" =~ /|\.safetensors$ && -e "$(given_path "$base")" ]]; then base="$(given_path "$base")"; fi
  command=(train_classdiffusion.py --pretrained_model_name_or_path="$base" "$@")
  if ! [[ "$processes" =~ ^[1-9][0-9]?$ ]]; then
    echo "error: NUM_PROCESSES=$processes: give a whole number from 1 to 99" >&2
    exit 2
  fi
  if [ "$processes" = 1 ]; then
    python "${command[@]}"
    return
  fi
  # `accelerate launch` starts one process where there is no GPU, whatever it is asked; torchrun starts them all.
  gpus="$(python -c 'import torch; print(torch.cuda.device_count())')"
  if [ "$gpus" = 0 ]; then
    export ACCELERATE_USE_CPU=true  # without it each process would train alone
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(getconf _NPROCESSORS_ONLN) / processes + 1))}"
  elif [ "$gpus" -lt "$processes" ]; then
    echo "error: NUM_PROCESSES=$processes, and this machine has $gpus GPU(s): give at most $gpus" >&2
    exit 2
  fi
  WORLD_SIZE="$processes" python "${command[@]}" --dry_run > /dev/null  # so that a mistake is one line, without a launcher's traceback
  echo "training in $processes processes, $([ "$gpus" = 0 ] && echo on the CPU || echo one GPU each)"
  python -m torch.distributed.run --standalone --nproc_per_node="$processes" "${command[@]}"
}

if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    echo "making the virtual environment .venv"
    "${PYTHON:-python3}" -m venv .venv
  fi
  . .venv/bin/activate
fi

# install NAME: NAME.txt into the environment, if it has changed since.
install() {
  if ! cmp -s "$1.txt" "$VIRTUAL_ENV/.$1"; then
    echo "installing $1.txt"
    python -m pip install --quiet --disable-pip-version-check -r "$1.txt"
    cp "$1.txt" "$VIRTUAL_ENV/.$1"
  fi
}
install requirements
