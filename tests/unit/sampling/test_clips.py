"""Clips of the tiny pipeline, the adapters they need, and the files they are kept in."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image, ImageSequence

from tests.tiny_models import tiny_pipeline
from tests.tiny_motion import write_adapter
from utils.bases.registry import base_row
from utils.errors import UserError
from utils.sampling import clip_files
from utils.sampling import clips as video_module
from utils.sampling.clip_files import (
    check_formats,
    durations,
    save_contact_sheet,
    save_gif,
    save_mp4,
    save_webp,
)
from utils.sampling.clips import animate, check_frames, load_video_pipeline, sample_clips, save_memory
from utils.sampling.motion_adapters import PUBLISHED, check_adapter, noise_levels
from videogen import build_parser, drawing_settings

METADATA = {"prompt": "a <new1> dög 狗", "seed": 3, "fps": 8, "num_frames": 4}
TOLD = {"prompt": "a <new1> dög 狗", "seed": "3", "fps": "8", "num_frames": "4"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapter"), motion_max_seq_length=8)


@pytest.fixture(scope="module")
def video(adapter, tmp_path_factory):
    return animate(tiny_pipeline(tmp_path_factory.mktemp("tokenizer")), adapter)


@pytest.mark.parametrize(
    ("base", "flags", "expected"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "", (7.5, 0.0, "bad quality, worse quality")),
        ("data/toon/sd", "", (3.0, 1.0, "")),
        ("data/toon/sd", "--guidance_scale=7.5 --eta=0 --negative_prompt=x", (7.5, 0.0, "x")),
        ("data/toon/sd", "--scheduler=euler", (3.0, 0.0, "")),
        ("elsewhere", "--guidance_scale=1", (1.0, 0.0, "")),
    ],
)
def test_settings_suit_the_base_unless_given(base, flags, expected):
    assert drawing_settings(build_parser().parse_args(flags.split()), base) == expected


@pytest.fixture
def frames():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)) for _ in range(4)]


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
    """With a silent adapter a frame is the picture that the image UNet draws from the same noise."""
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


def test_betas_are_linear_unless_the_adapter_records_its_own(adapter, tmp_path):
    base = DDIMScheduler(beta_start=0.001, beta_end=0.02, beta_schedule="scaled_linear").config
    published = noise_levels(base, adapter)
    assert published["beta_schedule"] == "linear" and published["timestep_spacing"] == "linspace"
    assert (published["beta_start"], published["beta_end"]) == (0.001, 0.02)
    assert noise_levels(base, adapter, "scaled_linear")["beta_schedule"] == "scaled_linear"

    recorded = write_adapter(tmp_path)
    DDIMScheduler(beta_start=0.003, beta_end=0.03, beta_schedule="scaled_linear").save_pretrained(recorded)
    own = noise_levels(base, recorded)
    assert (own["beta_start"], own["beta_end"], own["beta_schedule"]) == (0.003, 0.03, "scaled_linear")
    assert noise_levels(base, recorded, "linear")["beta_schedule"] == "linear"
    with pytest.raises(UserError, match="unknown beta schedule 'cosine'; choose one of linear"):
        noise_levels(base, recorded, "cosine")


def test_the_pipeline_samples_on_the_adapters_noise_levels(video):
    scheduler = video.scheduler
    expected = torch.linspace(0.00085, 0.012, 1000)
    assert torch.allclose(scheduler.betas, expected)
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [999, 500, 0]
    assert not scheduler.config.clip_sample


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": (32, 32)}, r"block channels \[32, 32\], base model .* \[32, 64\]"),
        ({"motion_layers_per_block": 2}, r"layers per block \[2, 2\], base model .* \[1, 1\]"),
        ({"motion_norm_num_groups": 16}, "normalisation groups 16, base model .* 8"),
        ({"conv_in_channels": 9}, "input channels 9, base model .* 4"),
    ],
)
def test_an_adapter_that_does_not_fit_is_told_before_models_load(
    changes, words, tiny_base, tmp_path, monkeypatch
):
    monkeypatch.setattr(video_module, "load_pipeline", None)
    folder = write_adapter(tmp_path, **changes)
    with pytest.raises(UserError, match=words) as mistake:
        load_video_pipeline(tiny_base, folder)
    assert PUBLISHED in str(mistake.value) and "\n" not in str(mistake.value)


def test_an_adapter_of_another_prediction_type_does_not_fit(tiny_base, tmp_path):
    folder = write_adapter(tmp_path)
    assert check_adapter(folder, tiny_base) == 16
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder)
    with pytest.raises(UserError, match="prediction type v_prediction, base model .* epsilon"):
        check_adapter(folder, tiny_base)


def test_what_is_no_adapter(tiny_base, tmp_path, monkeypatch):
    for nothing, words in (
        (tmp_path, "has no config.json; give one that MotionAdapter.save_pretrained wrote"),
        (tmp_path / "none", "is not a folder, though .* is one"),
        ("data/toon/none", "is not a folder, though .* is one"),
        ("adapter", "neither an existing folder nor a Hub id"),
    ):
        with pytest.raises(UserError, match=f"motion adapter.*{words}"):
            check_adapter(nothing, tiny_base)
    with pytest.raises(UserError, match="is a UNet2DConditionModel; give a MotionAdapter"):
        check_adapter(tiny_base / "unet", tiny_base)

    def gone(repository, file, revision):
        assert (repository, file, revision) == ("owner/gone", "config.json", None)
        raise OSError

    monkeypatch.setattr("utils.bases.pretrained.hf_hub_download", gone)
    with pytest.raises(UserError, match="a model that the Hub gives out"):
        check_adapter("owner/gone", tiny_base)


def test_weights_that_do_not_match_their_config_are_told(tmp_path):
    folder = write_adapter(tmp_path / "adapter")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_motion_mid_block": False}))
    with pytest.raises(UserError, match="do not match its config.json: .'mid_block"):
        animate(tiny_pipeline(tmp_path / "tokenizer"), folder)


def test_a_cpu_needs_no_memory_switches(video):
    assert save_memory(video, torch.device("cpu")) == []
    assert not video.vae.use_slicing


def test_short_names_of_bases():
    assert base_row("sd15").path == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert base_row("./data/toon/sd") == base_row("toon") and base_row("some/folder").path == "some/folder"


@pytest.mark.parametrize(("fps", "expected"), [(8, [120, 130, 120, 130]), (10, [100] * 4), (50, [20] * 4)])
def test_a_gif_keeps_its_frames_per_second_on_the_whole(fps, expected):
    assert durations(4, fps) == expected
    assert sum(durations(fps, fps)) == 1000


@pytest.mark.parametrize(("save", "suffix"), [(save_gif, "gif"), (save_webp, "webp")])
def test_an_animation_has_its_frames_times_and_settings(save, suffix, frames, tmp_path):
    path = tmp_path / f"dog.{suffix}"
    for shown in (frames[:2], frames):  # the second replaces the first
        save(shown, path, fps=8, metadata=METADATA)
    with Image.open(path) as image:
        assert image.n_frames == 4 and image.size == (16, 12) and image.info["loop"] == 0
        seen = [np.asarray(frame.convert("RGB"), dtype=int) for frame in ImageSequence.Iterator(image)]
        for number in range(4):
            image.seek(number)
            image.load()
            assert image.info["duration"] == (120, 130, 120, 130)[number]
        told = image.getexif()[0x010E] if suffix == "webp" else image.info["comment"]
    assert json.loads(told) == TOLD
    assert np.abs(np.stack(seen) - np.stack([np.asarray(frame, dtype=int) for frame in frames])).max() == 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_film_has_its_frames_and_settings(frames, tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    check_formats(["mp4"], 8)
    save_mp4(frames, tmp_path / "dog.mp4", fps=8, metadata=METADATA)
    with imageio.get_reader(tmp_path / "dog.mp4", "FFMPEG") as film:
        about = film.get_meta_data()
        assert film.count_frames() == 4 and about["fps"] == 8 and about["size"] == (16, 12)
    assert json.dumps(TOLD).encode() in (tmp_path / "dog.mp4").read_bytes()


def test_a_contact_sheet_shows_every_frame_in_rows_of_eight(tmp_path):
    shown = [Image.new("RGB", (64, 64), (10 * i, 0, 255 - 10 * i)) for i in range(10)]
    save_contact_sheet(shown, tmp_path / "dog.png", fps=8, title="a dog", metadata=METADATA)
    with Image.open(tmp_path / "dog.png") as sheet:
        assert sheet.width == 8 * 256 + 7 * 8 and sheet.text == TOLD
        row = 26 + 256 + 8
        seen = [sheet.getpixel((264 * (i % 8) + 128, row * (i // 8) + 26 + 128)) for i in range(16)]
    assert seen == [(10 * i, 0, 255 - 10 * i) for i in range(10)] + [(255, 255, 255)] * 6


def test_format_mistakes(monkeypatch):
    check_formats(["gif", "webp"], 8)
    with pytest.raises(UserError, match="unknown format 'avi'; choose among gif, webp, mp4"):
        check_formats(["avi"], 8)
    for fps in (0, 51):
        with pytest.raises(UserError, match=f"fps is {fps}; a GIF can have 1 to 50"):
            check_formats(["gif"], fps)
    monkeypatch.setattr(clip_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="mp4 needs imageio and its ffmpeg; pip install"):
        check_formats(["mp4"], 8)
