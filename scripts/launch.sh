# Sourced by train_single.sh and train_multi.sh: what they share.
#   BASE            toon (default), sd15, sd21, a folder or a Hub id; it brings the flags of scripts/settings
#   NUM_PROCESSES   1 (default) or more: one GPU each, or on a machine without a GPU that many on the CPU
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
BASE="${BASE:-toon}"
if [[ "$BASE" = */* && -d "$(given_path "$BASE")" ]]; then BASE="$(given_path "$BASE")"; fi

launch() {
  local processes="${NUM_PROCESSES:-1}" gpus flags command IFS=$'\n'  # a flag a line
  flags=($(python -m utils.config.settings "$BASE" "$@"))
  command=(train_classdiffusion.py "${flags[@]}" "$@")
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
  python "${command[@]}" --dry_run > /dev/null  # so that a mistake is one line, without a launcher's traceback
  echo "training in $processes processes, $([ "$gpus" = 0 ] && echo on the CPU || echo one GPU each)"
  python -m torch.distributed.run --standalone --nproc_per_node="$processes" "${command[@]}"
}
