"""Clips of the tiny pipeline."""

import json

import numpy as np
import pytest
import torch

from tests.tiny_models import tiny_pipeline
from tests.tiny_motion import write_adapter
from utils.common.errors import UserError
from utils.sampling.clips import animate, check_frames, sample_clips, save_memory


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapter"), motion_max_seq_length=8)


@pytest.fixture(scope="module")
def video(adapter, tmp_path_factory):
    return animate(tiny_pipeline(tmp_path_factory.mktemp("tokenizer")), adapter)


def draw(video, prompts=("a dog",), seeds=(0,), **settings):
    """(clips, F, H, W, 3) int, so that differences do not wrap."""
    clips = sample_clips(video, prompts, seeds, **{"num_frames": 4, "num_inference_steps": 2} | settings)
    return np.stack([[np.asarray(frame, dtype=int) for frame in clip] for clip in clips])


def test_a_clip_depends_on_its_prompt_and_seed_only(video):
    both = draw(video, ["a dog", "a cat", "a dog"], [0, 0, 1])
    assert both.shape == (3, 4, 16, 16, 3)
    assert np.array_equal(draw(video, ["a dog"], [1])[0], both[2])
    assert np.abs(both[0] - both[1]).max() > 1, "another prompt"
    assert np.abs(both[0] - both[2]).max() > 1, "another seed"
    assert all(np.abs(one - other).max() > 1 for one, other in zip(both[0], both[0][1:], strict=False))


def test_frames_know_of_each_other_through_the_adapter_alone(adapter, video, tmp_path):
    """With a silent adapter a frame is the image that the image UNet draws from the same noise."""
    silent = animate(tiny_pipeline(tmp_path / "tokenizer"), adapter)
    for name, parameter in silent.unet.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            torch.nn.init.zeros_(parameter)
    noise = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    image = tiny_pipeline(tmp_path / "tokenizer")
    image.set_progress_bar_config(disable=True)
    image.scheduler = silent.scheduler
    settings = {
        "num_inference_steps": 2,
        "guidance_scale": 7.5,
        "negative_prompt": "bad quality, worse quality",
    }
    expected = np.stack(
        [
            np.asarray(image("a dog", latents=noise[:, :, i], **settings).images[0], dtype=int)
            for i in range(4)
        ]
    )
    assert np.abs(draw(silent)[0] - expected).max() <= 1
    assert np.abs(draw(video)[0] - expected).max() > 5


def test_eta_negative_prompt_guidance_and_free_init_take_effect(video):
    reference = draw(video)
    for change in ({"eta": 1.0}, {"negative_prompt": "a barn"}, {"guidance_scale": 2.0}, {"free_init": True}):
        assert np.abs(draw(video, **change) - reference).max() > 1, change
    assert np.array_equal(draw(video), reference), "the options do not outlive their clip"


def test_free_noise_draws_past_the_adapters_length(video):
    reference = draw(video)
    longer = draw(video, num_frames=19, free_noise=True)
    assert longer.shape[1] == 19
    assert np.array_equal(draw(video, num_frames=19, free_noise=True), longer)
    assert not np.array_equal(draw(video, num_frames=19, free_noise=True, window_stride=8), longer)
    assert np.array_equal(draw(video), reference), "the windows do not outlive their clip"
    with pytest.raises(UserError, match="num_frames is 9, the motion adapter knows 8"):
        draw(video, num_frames=9)


@pytest.mark.parametrize(
    ("frames", "limit", "free_noise", "words"),
    [
        (1, 32, False, "a clip has 2 frames or more"),
        (33, 32, False, "knows 32; give that many, or --free_noise"),
        (16, 32, True, "within one window of 16; leave --free_noise out"),
        (8, 8, True, "within one window of 8"),
    ],
)
def test_frame_count_mistakes(frames, limit, free_noise, words):
    with pytest.raises(UserError, match=words):
        check_frames(frames, limit, free_noise)
    check_frames(limit, limit, free_noise=False)
    check_frames(33, 32, free_noise=True)


def test_the_pipeline_samples_on_the_adapters_noise_levels(video):
    scheduler = video.scheduler
    expected = torch.linspace(0.00085, 0.012, 1000)
    assert torch.allclose(scheduler.betas, expected)
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [999, 500, 0]
    assert not scheduler.config.clip_sample


def test_weights_that_do_not_match_their_config_are_reported(tmp_path):
    folder = write_adapter(tmp_path / "adapter")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_motion_mid_block": False}))
    with pytest.raises(UserError, match="motion adapter .* unexpected weights, e.g. mid_block"):
        animate(tiny_pipeline(tmp_path / "tokenizer"), folder)


def test_a_cpu_needs_no_memory_switches(video):
    assert save_memory(video, torch.device("cpu")) == []
    assert not video.vae.use_slicing
