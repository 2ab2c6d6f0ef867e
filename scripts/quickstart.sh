#!/usr/bin/env bash
# From a fresh clone to images of your dog in minutes, on a CPU: trains data/dog on the embedded model, samples
# situations that its images never show, and counts how many of the prompts' words the images obey.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
OUTPUT_DIR=ckpt/dog bash scripts/train_single.sh --overwrite \
  --validation_steps=300 --validation_inference_steps=25
python inference.py --concept ckpt/dog --output_dir outputs/quickstart --num_images 3 --batch_size 12 \
  --prompt "a photo of a <new1> dog" \
  --prompt "a <new1> dog wearing headphones on the beach" \
  --prompt "a <new1> dog wearing a hat in the city" \
  --prompt "a <new1> dog running on the grass" \
  --prompt "a <new1> dog in front of a barn in the snow"
python -m scripts.toon.prompt_accuracy --concept ckpt/dog --images 1 --portraits 8 --num_inference_steps 25 \
  --output_dir outputs/quickstart/accuracy
echo
echo "weights   ckpt/dog"
echo "log       ckpt/dog/log.jsonl"
echo "images    outputs/quickstart/grid.png (and one PNG each next to it)"
echo "scores    outputs/quickstart/accuracy/accuracy.json"
