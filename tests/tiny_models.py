"""A Stable Diffusion small enough for a unit test: random weights, stock classes, SD 1.5's quirks kept."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = (
    "a photo picture of the on in front beach wearing headphones running dog cat teddy bear barn ktn pll ucd"
)


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A word-level CLIP tokenizer: letters, letters that end a word, and WORDS, each a single token."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in WORDS.split():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            pieces[:2] = [pieces[0] + pieces[1]]
            if merge not in merges:
                merges.append(merge)
            if pieces[0] not in vocabulary:
                vocabulary.append(pieces[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token="<|endoftext|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=24,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_pipeline(tokenizer_folder: Path, seed: int = 0, width: int = 32) -> StableDiffusionPipeline:
    """UNet and VAE blocks (32, 64), 2 CLIP text layers; eos_token_id = 2 as in SD 1.5's config (Q1)."""
    torch.manual_seed(seed)
    tokenizer = write_tokenizer(tokenizer_folder)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=24,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
    ).eval()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=width,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    vae = AutoencoderKL(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl(tokenizer_folder: Path, seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL's parts and quirks: text encoders 32 and 24 wide, the second with a projection to 20 and
    padding of id 0, several transformer blocks in an attention, eos_token_id = 2 in both configurations."""
    torch.manual_seed(seed)
    small = tiny_pipeline(tokenizer_folder / "first", seed)
    first = small.tokenizer
    second = write_tokenizer(tokenizer_folder / "second")
    second.pad_token = "!"
    config = small.text_encoder.config.to_dict() | {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "projection_dim": 20,
        "hidden_act": "gelu",
    }
    text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=32 + 24,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    ).eval()
    small.vae.register_to_config(scaling_factor=0.13025, force_upcast=True)
    return StableDiffusionXLPipeline(
        vae=small.vae,
        text_encoder=small.text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=small.scheduler,
        add_watermarker=False,
    )
