#!/usr/bin/env bash
# One concept. On the embedded toon model (default), or in the paper's setting with BASE=sd15 on a GPU:
#   bash scripts/train_single.sh
#   BASE=sd15 CLASS=dog INSTANCE_DIR=path/to/images bash scripts/train_single.sh
# NUM_PROCESSES=2 trains in two processes: one GPU each, or on the CPU. Further arguments go to
# train_classdiffusion.py, whose relative paths count from the repository's root.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
CLASS="${CLASS:-dog}"
train \
  --instance_data_dir="$(given_path "${INSTANCE_DIR:-}" data/dog)" \
  --modifier_token="<new1>" \
  --cls_token="$CLASS" \
  --validation_prompt="a <new1> $CLASS wearing headphones on the beach" \
  --validation_steps=200 \
  --output_dir="$(given_path "${OUTPUT_DIR:-}" ckpt/dog)" \
  "$@"
