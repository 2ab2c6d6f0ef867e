#!/usr/bin/env bash
# Two concepts at once, a teddy bear and a barn. On the embedded toon model, or with BASE=sd15 as in the paper:
#   bash scripts/train_multi.sh
#   BASE=sd15 CONCEPTS=path/to/concepts.json bash scripts/train_multi.sh
# Further arguments go to train_classdiffusion.py; NUM_PROCESSES=2 trains on two GPUs.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case "${BASE:-toon}" in
  toon)
    MODEL=data/toon/sd
    SETTING=(--train_batch_size=2 --max_train_steps=800 --learning_rate=6e-5 --token_learning_rate=1e-3 --noaug)
    ;;
  sd15)
    MODEL=stable-diffusion-v1-5/stable-diffusion-v1-5
    SETTING=(--resolution=512 --train_batch_size=2 --max_train_steps=800 --learning_rate=1e-5)
    ;;
  *)
    echo "error: BASE=$BASE is unknown: use toon or sd15" >&2
    exit 2
    ;;
esac
accelerate launch --num_processes="${NUM_PROCESSES:-1}" --num_machines=1 --mixed_precision=no --dynamo_backend=no \
  train_classdiffusion.py \
  --pretrained_model_name_or_path="$MODEL" \
  --concepts_list="${CONCEPTS:-data/concepts.json}" \
  --modifier_token="<new1>+<new2>" \
  --cls_token="${CLASSES:-teddy bear+barn}" \
  --use_spl --spl_weight=1 \
  --scale_lr --hflip \
  --validation_prompt="${VALIDATION_PROMPT:-a <new1> teddy bear in front of a <new2> barn}" \
  --validation_steps=400 \
  --output_dir="${OUTPUT_DIR:-ckpt/teddy_bear_barn}" \
  "${SETTING[@]}" "$@"
