#!/usr/bin/env bash
# One concept. On the embedded toon model (default), or in the paper's setting with BASE=sd15 on a GPU:
#   bash scripts/train_single.sh
#   BASE=sd15 CLASS=dog INSTANCE_DIR=path/to/pictures bash scripts/train_single.sh
# Further arguments go to train_classdiffusion.py; NUM_PROCESSES=2 trains on two GPUs.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
CLASS="${CLASS:-dog}"
INSTANCE_DIR="${INSTANCE_DIR:-data/dog}"
case "${BASE:-toon}" in
  toon)
    # Chosen on tuning individuals (scripts/toon/tune.py). --noaug: toon has never seen pictures on a grey canvas.
    MODEL=data/toon/sd
    SETTING=(--train_batch_size=2 --max_train_steps=400 --learning_rate=6e-5 --token_learning_rate=1e-3 --noaug)
    ;;
  sd15)
    MODEL=stable-diffusion-v1-5/stable-diffusion-v1-5
    SETTING=(--resolution=512 --train_batch_size=2 --max_train_steps=500 --learning_rate=1e-5)
    ;;
  *)
    echo "error: BASE=$BASE is unknown: use toon or sd15" >&2
    exit 2
    ;;
esac
accelerate launch --num_processes="${NUM_PROCESSES:-1}" --num_machines=1 --mixed_precision=no --dynamo_backend=no \
  train_classdiffusion.py \
  --pretrained_model_name_or_path="$MODEL" \
  --instance_data_dir="$INSTANCE_DIR" \
  --instance_prompt="a photo of a <new1> $CLASS" \
  --modifier_token="<new1>" \
  --cls_token="$CLASS" \
  --use_spl --spl_weight=1 \
  --scale_lr --hflip \
  --validation_prompt="a <new1> $CLASS wearing headphones on the beach" \
  --validation_steps=200 \
  --output_dir="${OUTPUT_DIR:-ckpt/dog}" \
  "${SETTING[@]}" "$@"
