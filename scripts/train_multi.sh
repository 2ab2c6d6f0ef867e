#!/usr/bin/env bash
# Two concepts at once, a teddy bear and a barn. On the embedded toon model, or with BASE=sd15 as in the paper:
#   bash scripts/train_multi.sh
#   BASE=sd15 CONCEPTS=path/to/concepts.json bash scripts/train_multi.sh
# NUM_PROCESSES=2 trains in two processes: one GPU each, or on the CPU. Further arguments go to
# train_classdiffusion.py, whose relative paths count from the repository's root.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
train \
  --concepts_list="$(given_path "${CONCEPTS:-}" data/concepts.json)" \
  --modifier_token="<new1>+<new2>" \
  --cls_token="${CLASSES:-teddy bear+barn}" \
  --validation_prompt="${VALIDATION_PROMPT:-a <new1> teddy bear in front of a <new2> barn}" \
  --validation_steps=200 \
  --output_dir="$(given_path "${OUTPUT_DIR:-}" ckpt/teddy_bear_barn)" \
  "$@"
