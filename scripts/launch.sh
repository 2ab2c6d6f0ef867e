# Sourced by train_single.sh and train_multi.sh: what they share, in the setting that BASE names.
BASE="${BASE:-toon}"
if [ ! -f "$(dirname "${BASH_SOURCE[0]}")/settings/$BASE.txt" ]; then
  echo "error: BASE=$BASE is unknown: use toon or sd15" >&2
  exit 2
fi
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
SETTING=($(cat "scripts/settings/$BASE.txt"))  # one flag a line; scripts.evaluate trains with the same

launch() {
  local flags=("${SETTING[@]}")
  if [[ "$*" =~ --method[=\ ](custom_diffusion|textual_inversion) && "$*" != *--use_spl* ]]; then
    flags=($(printf '%s\n' "${SETTING[@]}" | grep -v -e --spl_weight=))  # λ without its loss is an error
  fi
  local command=(train_classdiffusion.py "${flags[@]}" "$@")
  if [ "${NUM_PROCESSES:-1}" = 1 ]; then
    python "${command[@]}"
  else
    python "${command[@]}" --dry_run > /dev/null  # so that a mistake is told once, without a launcher's traceback
    accelerate launch --num_processes="$NUM_PROCESSES" --num_machines=1 --mixed_precision=no \
      --dynamo_backend=no "${command[@]}"
  fi
}
