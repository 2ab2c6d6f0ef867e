"""A motion adapter that fits the tiny Stable Diffusion, random in every layer, so that its frames move."""

from pathlib import Path
from typing import Any

import torch
from diffusers import MotionAdapter


def tiny_adapter(seed: int = 0, **changes: Any) -> MotionAdapter:
    """One that knows 16 frames; `changes` are MotionAdapter's own settings."""
    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (32, 64),
        "motion_layers_per_block": 1,
        "motion_num_attention_heads": 4,
        "motion_norm_num_groups": 8,
        "motion_max_seq_length": 16,
    }
    return MotionAdapter(**settings | changes)


def write_adapter(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves a tiny adapter. Returns the folder."""
    tiny_adapter(seed, **changes).save_pretrained(folder)
    return folder
