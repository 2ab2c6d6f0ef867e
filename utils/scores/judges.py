"""The kinds of models that judge images: how each is checked before it loads, and loaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from utils.blip2t import BLIP2T, check_blip, check_prompts
from utils.scores.encoders import ClipEncoder, DinoEncoder, check_clip, check_clip_prompts, check_dino

Device = str | torch.device | None


@dataclass(frozen=True)
class Kind:
    """A kind of judging model.

    check: raises UserError for a folder or Hub id of another kind. check_texts: for a text longer than the
    model reads; None where it reads none. Both load a few small files only. head: BLIP's, itc or itm.
    """

    load: Callable[[str, Device, str], Any]  # (model, device, head)
    check: Callable[[str, str], None]  # (model, head)
    check_texts: Callable[[str, Sequence[str]], None] | None = None


KINDS: dict[str, Kind] = {
    "clip": Kind(
        load=lambda model, device, head: ClipEncoder(model, device),
        check=lambda model, head: check_clip(model),
        check_texts=check_clip_prompts,
    ),
    "dino": Kind(
        load=lambda model, device, head: DinoEncoder(model, device),
        check=lambda model, head: check_dino(model),
    ),
    "blip": Kind(load=BLIP2T, check=check_blip, check_texts=check_prompts),
}
