"""A motion adapter that fits the tiny Stable Diffusion, random in every layer, so that its frames move."""

from pathlib import Path
from typing import Any

import torch
from diffusers import MotionAdapter


def write_adapter(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves one that knows 16 frames; `changes` are MotionAdapter's own settings. Returns the folder."""
    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (32, 64),
        "motion_layers_per_block": 1,
        "motion_num_attention_heads": 4,
        "motion_norm_num_groups": 8,
        "motion_max_seq_length": 16,
    }
    MotionAdapter(**settings | changes).save_pretrained(folder)
    return folder
