"""LoRAs of the cross-attention's K and V in kohya's layout, which diffusers, ComfyUI and A1111 all read.

    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight  (r, D)
    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight    (C, r)
    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.alpha             scalar

A reader adds alpha / r · up @ down to the base's weight. An exact difference is `.diff` (C, D) instead.

Shapes: C channels of a cross-attention layer, D text width, r rank.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from utils.common.errors import UserError

METADATA_KEY = "classdiffusion"  # JSON: tokens with their embedding files, classes, base, rank, errors
_PARAMETER = re.compile(
    r"(?:(?:down|up)_blocks\.\d+|mid_block)\.attentions\.\d+\.transformer_blocks\.\d+\.attn2\.to_[kv]\.weight"
)
_LAYER = re.compile(
    r"lora_unet_((?:down|up)_blocks_\d+|mid_block)_attentions_(\d+)_transformer_blocks_(\d+)_attn2_to_([kv])"
)
_PARTS = ("lora_down.weight", "lora_up.weight", "alpha")


def is_kv_name(parameter: str) -> bool:
    """Whether this is the name of a UNet's attn2.to_k or attn2.to_v weight."""
    return _PARAMETER.fullmatch(parameter) is not None


def layer_name(parameter: str) -> str:
    """kohya's name of a UNet's attn2.to_k/to_v weight."""
    assert is_kv_name(parameter), parameter
    return "lora_unet_" + parameter.removesuffix(".weight").replace(".", "_")


def parameter_name(layer: str) -> str | None:
    """The UNet's own name of the parameter that kohya calls `layer`; None if it is not attn2.to_k or to_v."""
    match = _LAYER.fullmatch(layer)
    if match is None:
        return None
    block, attention, transformer, projection = match.groups()
    block = re.sub(r"_blocks_(\d+)", r"_blocks.\1", block)
    inner = f"attentions.{attention}.transformer_blocks.{transformer}.attn2.to_{projection}.weight"
    return f"{block}.{inner}"


@dataclass(frozen=True)
class Factors:
    """A layer's difference Δ as u @ down, float64, the parts that matter most first.

    u: (C, m) orthonormal. s: (m,) what each part adds to the norm of the layer's outputs. down: (m, D).
    """

    u: Tensor
    s: Tensor
    down: Tensor

    def pair(self, rank: int) -> tuple[Tensor, Tensor]:
        """up (C, r) and down (r, D), r = min(rank, m): of all pairs that whose outputs differ least."""
        root = self.down[:rank].norm(dim=1).sqrt()  # each half of the length, for half precision
        return self.u[:, :rank] * root, self.down[:rank] / root.clamp(min=1e-300)[:, None]


def factorise(deltas: dict[str, Tensor], root: Tensor) -> dict[str, Factors]:
    """name -> (C, D) differences, decomposed in float64 on the CPU, where the result does not vary.

    root: R (D, D) of the text states H = QR that the layers read, for ‖ΔRᵀ‖ = ‖ΔHᵀ‖. With ΔRᵀ = U S Vᵀ the
    best Δ̂ of rank r is U_r U_rᵀ Δ.
    """
    factors = {}
    for name, delta in deltas.items():
        delta = delta.double().cpu()
        u, s, _ = torch.linalg.svd(delta @ root.T, full_matrices=False)
        factors[name] = Factors(u, s, u.T @ delta)
    return factors


def rank_for(factors: dict[str, Factors], error: float) -> int:
    """The smallest rank whose relative error of all layers' outputs is at most `error`; 0: all."""
    full = max(len(layer.s) for layer in factors.values())
    if error == 0:  # not left to rounding
        return full
    energies = torch.stack(
        [torch.nn.functional.pad(layer.s, (0, full - len(layer.s))).square() for layer in factors.values()]
    ).sum(0)  # (full,)
    left = energies.sum() - energies.cumsum(0)  # left[r - 1] is what rank r loses
    small_enough = left <= error**2 * energies.sum()
    return int(small_enough.long().argmax()) + 1 if small_enough.any() else full


def lora_tensors(factors: dict[str, Factors], rank: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The file's tensors, with alpha = `rank` in every layer.

    A layer whose exact rank m is smaller has m, and its factors absorb the scale alpha / m of every reader.
    Quirk: an alpha of its own would not do. diffusers 0.42.1 loses the alphas of layers that differ (PEFT
    warns of unused alpha_pattern keys) and scales them all by the most common alpha.
    """
    tensors = {}
    for name, layer in factors.items():
        up, down = layer.pair(rank)
        absorbed = (len(down) / rank) ** 0.5
        values = ((absorbed * down).to(dtype), (absorbed * up).to(dtype), torch.tensor(float(rank)))
        tensors |= {
            f"{layer_name(name)}.{part}": v.contiguous() for part, v in zip(_PARTS, values, strict=True)
        }
    return tensors


def diff_tensors(deltas: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {f"{layer_name(name)}.diff": delta.to(dtype).contiguous() for name, delta in deltas.items()}


def is_kv_lora(content: dict[str, Any]) -> bool:
    """Whether every key is a LoRA's or an exact difference's of an attn2.to_k or attn2.to_v."""
    split = [str(key).partition(".") for key in content]
    return bool(split) and all(
        parameter_name(layer) and part in (*_PARTS, "diff") for layer, _, part in split
    )


def deltas_of(content: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """name -> (C, D) float64, what the file adds to the base. Raises UserError for an incomplete layer."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in content.items():
        layer, _, part = key.partition(".")
        layers.setdefault(layer, {})[part] = value.double()
    deltas = {}
    for layer, parts in layers.items():
        name = parameter_name(layer)
        assert name is not None, layer
        if parts.keys() == {"diff"}:
            deltas[name] = parts["diff"]
            continue
        if not {"lora_down.weight", "lora_up.weight"} <= parts.keys() <= set(_PARTS):
            raise UserError(f"{path}: {layer} has {sorted(parts)}; a LoRA's layer has {', '.join(_PARTS)}")
        up, down = parts["lora_up.weight"], parts["lora_down.weight"]
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != len(down):
            raise UserError(f"{path}: {layer} has factors {tuple(up.shape)} and {tuple(down.shape)}")
        scale = float(parts.get("alpha", torch.tensor(len(down)))) / len(down)
        deltas[name] = scale * up @ down
    return deltas


def read_note(path: Path) -> dict[str, Any]:
    """What scripts.export noted in the file; {} for a LoRA of another tool."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))


def files_beside(path: Path) -> list[Path]:
    """The embeddings that a LoRA of scripts.export names and that lie next to it; others are given apart."""
    names = read_note(path).get("tokens", {}).values()
    return [
        path.with_name(name) for name in names if Path(name).name == name and path.with_name(name).is_file()
    ]


def lora_in(folder: Path) -> Path | None:
    """The one LoRA of scripts.export in a folder, None if there is none. Raises UserError for several."""
    loras = [file for file in sorted(folder.glob("*.safetensors")) if _is_ours(file)]
    if len(loras) > 1:
        raise UserError(f"{folder} holds {loras[0].name} and {loras[1].name}; give the path of one of them")
    return loras[0] if loras else None


def _is_ours(path: Path) -> bool:
    try:
        return "layers" in read_note(path)
    except SafetensorError:  # a file that is not safetensors, e.g. a Git LFS pointer, is not a LoRA either
        return False
