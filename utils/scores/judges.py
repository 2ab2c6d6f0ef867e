"""The kinds of models that judge images, one row each: its flag, its check before it loads, and its loading.

A new judge is a row here and a row of utils/scores/table.py for what it scores. The functions import what
they need when they are called, so that a command can list the judges before it loads any library.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any

from utils.common.flags import option

if TYPE_CHECKING:
    import torch

    Device = str | torch.device | None


@dataclass(frozen=True)
class Kind:
    """A kind of judging model.

    name: of its flag. meaning: its help. check: raises UserError for a folder or Hub id of another kind.
    check_texts: for a text longer than the model reads; None where it reads none. Both load a few small files
    only. head: BLIP's, itc or itm. notice: of a judge on another machine, what is sent where; else None.
    """

    name: str
    meaning: str
    load: "Callable[[str, Device, str], Any]"  # (model, device, head)
    check: Callable[[str, str], None]  # (model, head)
    check_texts: Callable[[str, Sequence[str]], None] | None = None
    notice: Callable[[str], str | None] = lambda model: None


def _load_clip(model: str, device: "Device", head: str) -> Any:
    from utils.scores.encoders import ClipEncoder

    return ClipEncoder(model, device)


def _check_clip(model: str, head: str) -> None:
    from utils.scores.encoders import check_clip

    check_clip(model)


def _check_clip_texts(model: str, texts: Sequence[str]) -> None:
    from utils.scores.encoders import check_clip_prompts

    check_clip_prompts(model, texts)


def _load_dino(model: str, device: "Device", head: str) -> Any:
    from utils.scores.encoders import DinoEncoder

    return DinoEncoder(model, device)


def _check_dino(model: str, head: str) -> None:
    from utils.scores.encoders import check_dino

    check_dino(model)


def _load_blip(model: str, device: "Device", head: str) -> Any:
    from utils.blip2t import BLIP2T

    return BLIP2T(model, device, head)


def _check_blip(model: str, head: str) -> None:
    from utils.blip2t import check_blip

    check_blip(model, head)


def _check_blip_texts(model: str, texts: Sequence[str]) -> None:
    from utils.blip2t import check_prompts

    check_prompts(model, texts)


def _load_siglip(model: str, device: "Device", head: str) -> Any:
    from utils.scores.siglip import SiglipEncoder

    return SiglipEncoder(model, device)


def _check_siglip(model: str, head: str) -> None:
    from utils.scores.siglip import check_siglip

    check_siglip(model)


def _check_siglip_texts(model: str, texts: Sequence[str]) -> None:
    from utils.scores.siglip import check_siglip_prompts

    check_siglip_prompts(model, texts)


def _load_vlm(model: str, device: "Device", head: str) -> Any:
    from utils.scores.vlm import Grader

    return Grader(model, device)


def _check_vlm(model: str, head: str) -> None:
    from utils.scores.vlm import check_vlm

    check_vlm(model)


def _notice_vlm(model: str) -> str | None:
    from utils.scores.vlm import notice

    return notice(model)


KINDS: dict[str, Kind] = {
    row.name: row
    for row in (
        Kind("clip", "CLIP of CLIP-T and CLIP-I", _load_clip, _check_clip, _check_clip_texts),
        Kind("dino", "DINO of DINO-I, PRES and DIV", _load_dino, _check_dino),
        Kind("dinov2", "DINOv2 of Drift", _load_dino, _check_dino),
        Kind("blip", "BLIP of BLIP-T", _load_blip, _check_blip, _check_blip_texts),
        Kind("siglip", "SigLIP of SigLIP-T", _load_siglip, _check_siglip, _check_siglip_texts),
        Kind(
            "vlm",
            "vision-language model of the grades; <base URL>#<model> sends the images there, with the key of "
            "VLM_API_KEY",
            _load_vlm,
            _check_vlm,
            notice=_notice_vlm,
        ),
    )
}


def judge_flags(kinds: Iterable[Kind]) -> type:
    """A dataclass with a flag for each kind: a folder or Hub id, None for the base model's judge."""
    own = [(kind.name, str | None, option(None, _help(kind))) for kind in kinds]
    return make_dataclass("JudgeFlags", own, frozen=True, namespace={"heading": "judges"})


def _help(kind: Kind) -> Callable[[type], str]:
    from utils.bases.registry import JUDGES

    default = "the base model's judge" if kind.name in JUDGES else "none"
    return lambda _: f"{kind.meaning} (default: {default})"
