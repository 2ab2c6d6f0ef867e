#!/usr/bin/env bash
# Everything that a GPU has to prove, in about 8 minutes on one card; goes on where it was stopped.
#   bash scripts/gpu_check.sh                       # results: outputs/gpu_check/results.json
#   bash scripts/gpu_check.sh --device cpu --tiny   # the same program on tiny models, without a GPU
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m scripts.gpu_check "$@"
