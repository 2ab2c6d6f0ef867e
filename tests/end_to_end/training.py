"""What the tests of train_classdiffusion.py on a tiny pipeline share."""

import json
import re
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).parents[2]
KV_FILE = "pytorch_custom_diffusion_weights.safetensors"
KV_NAMES = {
    f"{block}.attentions.{number}.transformer_blocks.0.attn2.{matrix}.weight"
    for block, layers in {"down_blocks.0": 1, "mid_block": 1, "up_blocks.1": 2}.items()
    for number in range(layers)
    for matrix in ("to_k", "to_v")
}
PROMPT = "a photo of a <new1> dog"
RATES = ["lr_token_rows", "lr_cross_attention_kv"]


def learned(folder: Path) -> dict[str, Tensor]:
    """A saved concept under the UNet's names and the tokens."""
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return {re.sub(r"processor\.(to_[kv])_custom_diffusion", r"\1", key): found[key] for key in found}


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between the numbers of two concepts."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
