"""Sampling, its files, and the loading of a base model, on the tiny pipeline."""

import json

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from PIL import Image

from tests.tiny_models import tiny_pipeline
from utils.bases import check_base, load_pipeline
from utils.bases.devices import choose_device_dtype
from utils.bases.sd import encode_images
from utils.bases.text import tokenize
from utils.common.errors import UserError
from utils.common.images import save_png
from utils.sampling.grids import save_grid, slugs
from utils.sampling.images import make_scheduler, sample
from utils.sampling.settings import SCHEDULERS, check_scheduler


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    pipeline = tiny_pipeline(tmp_path_factory.mktemp("tokenizer"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, prompts, seeds, **settings):
    """(N, H, W, 3) int, so that differences do not wrap."""
    images = sample(pipeline, prompts, seeds, **{"num_inference_steps": 3, **settings})
    return np.stack([np.asarray(image, dtype=int) for image in images])


def test_an_image_depends_on_its_prompt_and_seed_only(pipeline):
    prompts, seeds = ["a dog", "a cat on the beach", "a dog"], [0, 0, 1]
    alone = draw(pipeline, prompts, seeds, batch_size=1)
    together = draw(pipeline, prompts, seeds, batch_size=3)
    reversed_pairs = draw(pipeline, prompts[::-1], seeds[::-1], batch_size=2)[::-1]
    assert np.abs(alone - together).max() <= 1  # rounding to 8 bits may fall either way
    assert np.abs(alone - reversed_pairs).max() <= 1
    assert np.abs(alone[0] - alone[2]).max() > 1, "another seed"
    assert np.abs(alone[0] - alone[1]).max() > 1, "another prompt"


def test_eta_negative_prompt_and_guidance_take_effect(pipeline):
    reference = draw(pipeline, ["a dog"], [0])
    for change in ({"eta": 0.0}, {"negative_prompt": "a barn"}, {"guidance_scale": 1.0}):
        assert np.abs(draw(pipeline, ["a dog"], [0], **change) - reference).max() > 1, change


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_samples_and_keeps_the_noise_levels(pipeline, name):
    betas = pipeline.scheduler.betas
    images = draw(pipeline, ["a dog"], [0], scheduler=name, eta=float(name == "ddim"), num_inference_steps=4)
    assert images.shape == (1, 16, 16, 3)
    assert type(pipeline.scheduler).__name__ == SCHEDULERS[name][0]
    assert torch.equal(pipeline.scheduler.betas, betas)


def test_ddim_made_from_a_config_that_is_silent_about_clipping_does_not_clip():
    assert make_scheduler("ddim", PNDMScheduler().config).config.clip_sample is False


@pytest.mark.parametrize(
    ("name", "eta", "words"),
    [("dpm", 0, "unknown scheduler"), ("pndm", 1, "ignores eta"), ("ddim", 1.5, r"in \[0, 1\]")],
)
def test_scheduler_mistakes(pipeline, name, eta, words):
    with pytest.raises(UserError, match=words):
        check_scheduler(name, eta)
    with pytest.raises(UserError, match=words):
        next(sample(pipeline, ["a dog"], [0], scheduler=name, eta=eta))


def test_prompts_and_seeds_come_in_pairs(pipeline):
    with pytest.raises(ValueError, match="longer"):
        next(sample(pipeline, ["a dog"], [0, 1]))


def test_slugs_are_distinct_file_names():
    prompts = ["A photo of a <new1> dog!", "a photo of a new1 dog", "!", "狗", "../etc", "x" * 300]
    assert slugs(prompts)[:5] == ["a-photo-of-a-new1-dog", "a-photo-of-a-new1-dog-2", "prompt", "狗", "etc"]
    assert len(slugs(prompts)[5]) == 50


def test_png_carries_its_settings_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "dog_0.png"
    for color in ("red", "blue"):
        save_png(Image.new("RGB", (8, 8), color), path, {"prompt": "a <new1> dög 狗", "seed": 3, "eta": 1.0})
    with Image.open(path) as image:
        assert image.text == {"prompt": "a <new1> dög 狗", "seed": "3", "eta": "1.0"}
        assert image.getpixel((0, 0)) == (0, 0, 255)
    assert list(tmp_path.iterdir()) == [path]


def test_grid_has_a_row_per_prompt_and_enlarges_small_images(tmp_path):
    colors = ["red", "lime", "blue", "yellow", "cyan", "magenta"]
    path = tmp_path / "grid.png"
    save_grid([Image.new("RGB", (64, 64), color) for color in colors], ["a dog", "a cat"], path)
    with Image.open(path) as grid:
        assert grid.width == 3 * 256 + 2 * 8
        rows = [26 + 128, 26 + 256 + 8 + 26 + 128]  # text line, image, gap
        seen = [grid.getpixel((column * 264 + 128, row)) for row in rows for column in range(3)]
        text = np.asarray(grid.crop((0, 0, 256, 26)))
    assert seen == [Image.new("RGB", (1, 1), color).getpixel((0, 0)) for color in colors]
    assert text.min() < 64, "no prompt above the row"


def test_grid_wraps_a_long_prompt_and_keeps_large_images(tmp_path):
    path = tmp_path / "grid.png"
    save_grid([Image.new("RGB", (300, 300), "red")], ["a dog wearing headphones " * 4], path)
    with Image.open(path) as grid:
        assert grid.width == 300
        text_height = grid.height - 300 - 8
        assert text_height >= 3 * 26 and text_height % 26 == 0
        assert grid.getpixel((299, text_height)) == (255, 0, 0)


def test_encode_images_is_mean_plus_std_times_noise(pipeline):
    pixels, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
    scale = pipeline.vae.config.scaling_factor
    assert torch.equal(encode_images(pipeline.vae, pixels, torch.zeros_like(noise)), posterior.mean * scale)
    expected = (posterior.mean + posterior.std * noise) * scale
    assert torch.allclose(encode_images(pipeline.vae, pixels, noise), expected)


def test_tokenize_pads_and_cuts_to_the_models_length(pipeline):
    tokenizer = pipeline.tokenizer
    ids = tokenize(tokenizer, ["a dog", "a dog " * 40])
    assert ids.shape == (2, 24) and tokenize(tokenizer, []).shape == (0, 24)
    assert (ids[:, 0] == tokenizer.bos_token_id).all() and (ids[:, -1] == tokenizer.eos_token_id).all()
    assert torch.equal(ids[0, 1:3], ids[1, 1:3]) and (ids[0, 3:] == tokenizer.eos_token_id).all()


INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}


def test_check_base_on_folders_and_names(tmp_path):
    index = tmp_path / "model_index.json"
    with pytest.raises(UserError, match="has no model_index.json"):
        check_base(tmp_path)
    index.write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(
        UserError, match="is a FluxPipeline; give a Stable Diffusion 1.x or 2.x or Stable Diffusion XL"
    ):
        check_base(tmp_path)
    index.write_text(json.dumps(INDEX))
    check_base(tmp_path)
    with pytest.raises(UserError, match="is JSON, not a model: give the folder that it is in"):
        check_base(index)
    for missing in (tmp_path / "nothing", "data/toon/nothing"):  # the Hub is not asked
        with pytest.raises(UserError, match="is not a folder, though .* is one"):
            check_base(missing)
    for missing in ("sd", "~/sd"):
        with pytest.raises(UserError, match="neither an existing folder nor a Hub id"):
            check_base(missing)


def test_check_base_asks_the_hub_for_the_index_of_that_revision(tmp_path, monkeypatch):
    index, asked = tmp_path / "index.json", []
    index.write_text(json.dumps(INDEX))

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        if repository == "owner/gone":
            raise OSError
        return str(index)

    monkeypatch.setattr("utils.bases.pretrained.hf_hub_download", download)
    monkeypatch.setattr("utils.bases.pretrained.hub_answers", lambda: True)
    check_base("owner/name", "v1")
    with pytest.raises(UserError, match="a model that the Hub gives out"):
        load_pipeline("owner/gone", "cpu", revision="v2")
    assert asked == [
        ("owner/name", "model_index.json", "v1"),
        ("owner/gone", "model_index.json", "v2"),
    ]


def test_choose_device_dtype():
    assert choose_device_dtype("cpu") == (torch.device("cpu"), torch.float32)
    assert (
        choose_device_dtype("cpu", "bf16")[1]
        is choose_device_dtype("cpu", torch.bfloat16)[1]
        is torch.bfloat16
    )
    for device in ("tpu9", "meta", "cuda:99"):
        with pytest.raises(UserError, match="this machine has|the last is"):
            choose_device_dtype(device)
    with pytest.raises(UserError, match="fp32, fp16, bf16"):
        choose_device_dtype("cpu", "int8")


def test_load_pipeline_is_quiet_and_has_no_safety_checker(pipeline, tmp_path, capfd):
    pipeline.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = load_pipeline(tmp_path, "cpu", "bf16")
    assert loaded.safety_checker is None and loaded.unet.dtype == loaded.text_encoder.dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")
