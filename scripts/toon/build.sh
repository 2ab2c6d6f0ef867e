#!/usr/bin/env bash
# Build the toon world's models from nothing, on a CPU or a GPU. Seeded; run it again to resume where it stopped.
# Checkpoints lie in toon_build/ and outputs/pretrain_contextualizer/; remove them to start anew.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
python -m scripts.toon.draw_examples
python -m scripts.toon.tokenizer
python -m scripts.toon.train_autoencoder
python -m scripts.toon.train_clip
python -m scripts.toon.train_recogniser
python -m scripts.toon.train_blip
python -m scripts.toon.train_dino
python -m scripts.toon.train_unet "$@"
python -m scripts.pretrain_contextualizer --base toon
python -m scripts.toon.prompt_accuracy --output_dir toon_build/prompt_accuracy
python -m scripts.toon.train_motion
