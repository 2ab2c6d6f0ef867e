"""What a weights file of another tool is, by its keys, for those that are not concepts."""

import re
from pathlib import Path
from typing import Any

from utils.common.errors import UserError

# The first row with a matching key names the file. Sources: the layouts that kohya's sd-scripts, LyCORIS,
# PEFT, diffusers and CompVis write.
KINDS: tuple[tuple[str, str], ...] = (
    (
        r".+\.(hada_w[12]_[ab]|lokr_w[12].*|oft_blocks|oft_diag|on_input)",
        "a LyCORIS network (LoHa, LoKr, OFT)",
    ),
    (r".+\.(dora_scale|lora_magnitude_vector.*)", "a DoRA"),
    (r"lora_(te|te1|te2)_.+", "a LoRA of the text encoder, in kohya's layout"),
    (r"lora_unet_.+", "a LoRA of layers other than the cross-attention's K and V, in kohya's layout"),
    (r".+[._]lora(_[AB]|\.(up|down|linear_layer.*))\b.*", "a LoRA in the layout of PEFT or diffusers"),
    (r"bundle_emb\..+", "a LoRA with embeddings bundled into it"),
    (r"(control_model|controlnet)[._].+", "a ControlNet"),
    (r"(first_stage_model|cond_stage_model|conditioner)\..+", "a whole Stable Diffusion checkpoint"),
    (r"model\.diffusion_model\.(time_embed|out)\..+", "a whole Stable Diffusion checkpoint"),
    (r"(loss|quant_conv|(en|de)coder\.(conv_in|mid|up|down)).*", "a VAE"),
    (r"text_model\..+", "a text encoder"),
    (r"(conv_in|time_embedding|(down|up)_blocks\.\d+\.resnets)\..+", "a whole UNet"),
)


def kind_of(content: dict[Any, Any]) -> str | None:
    """What the file is, None if no row of KINDS says. CompVis puts its keys under "state_dict"."""
    keys = [str(key) for key in content]
    if isinstance(nested := content.get("state_dict"), dict):
        keys += [str(key) for key in nested]
    for pattern, kind in KINDS:
        if any(re.fullmatch(pattern, key) for key in keys):
            return kind
    if content and all(isinstance(key, int) or key in ("step", "name") for key in content):
        return "an A1111 hypernetwork"
    return None


def refuse_foreign(content: dict[Any, Any], path: Path) -> None:
    """Raises UserError if the content is a file that KINDS knows."""
    if kind := kind_of(content):
        raise UserError(f"{path} is {kind}, not a concept; give a concept, an embedding or a LoRA of K and V")
