# Sourced by train_single.sh and train_multi.sh: what they share, on the base model that BASE names.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
BASE="${BASE:-toon}"
case "$BASE" in
  toon)
    # Chosen on a tuning individual (scripts/toon/tune.py). --noaug: toon has never seen pictures on a grey canvas.
    MODEL=data/toon/sd
    SETTING=(--learning_rate=6e-5 --token_learning_rate=1e-3 --noaug)
    ;;
  sd15)
    MODEL=stable-diffusion-v1-5/stable-diffusion-v1-5
    SETTING=(--learning_rate=1e-5 --resolution=512)
    ;;
  *)
    echo "error: BASE=$BASE is unknown: use toon or sd15" >&2
    exit 2
    ;;
esac

launch() {
  accelerate launch --num_processes="${NUM_PROCESSES:-1}" --num_machines=1 --mixed_precision=no \
    --dynamo_backend=no train_classdiffusion.py \
    --pretrained_model_name_or_path="$MODEL" \
    --train_batch_size=2 \
    --use_spl --spl_weight=1 \
    --scale_lr --hflip \
    "${SETTING[@]}" "$@"
}
