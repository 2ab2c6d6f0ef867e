"""How A1111 reads the names in a LoRA (convert_diffusers_name_to_compvis in networks.py)."""

import re


def a1111_module(layer: str) -> str:
    """A1111's name of the module. Levels are three CompVis blocks; input block 0 is the first convolution."""
    rest = r"_attentions_(\d+)_(.+)"
    if match := re.fullmatch(r"lora_unet_down_blocks_(\d+)" + rest, layer):
        return f"diffusion_model_input_blocks_{1 + 3 * int(match[1]) + int(match[2])}_1_{match[3]}"
    if match := re.fullmatch(r"lora_unet_up_blocks_(\d+)" + rest, layer):
        return f"diffusion_model_output_blocks_{3 * int(match[1]) + int(match[2])}_1_{match[3]}"
    match = re.fullmatch(r"lora_unet_mid_block" + rest, layer)
    return f"diffusion_model_middle_block_1_{match[2]}"
