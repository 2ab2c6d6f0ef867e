"""What is drawn with: flags that were given, else what suits the base; mistakes before any model loads."""

import pytest

import utils.bases.devices
from inference import InferenceConfig
from utils.bases.registry import base_row
from utils.common.errors import UserError
from utils.common.flags import parse
from utils.sampling.settings import check_steps, default_of
from videogen import VideoConfig, adapter_of

NEGATIVE = "bad quality, worse quality"


@pytest.mark.parametrize(
    ("base", "flags", "expected"),
    [
        ("toon", "", (50, 3.0, 1.0, "")),
        ("sd15", "", (100, 6.0, 1.0, "")),
        ("elsewhere", "", (100, 6.0, 1.0, "")),
        (
            "toon",
            "--num_inference_steps=7 --guidance_scale=2 --eta=0 --negative_prompt=x",
            (7, 2.0, 0.0, "x"),
        ),
        ("toon", "--guidance_scale=0", (50, 0.0, 1.0, "")),
        ("sd15", "--scheduler=euler", (100, 6.0, 0.0, "")),
    ],
)
def test_images_are_drawn_as_suits_the_base_unless_given(base, flags, expected):
    settings = parse(InferenceConfig, flags.split(), "").settings(base_row(base))
    names = ("num_inference_steps", "guidance_scale", "eta", "negative_prompt")
    assert settings.keys() == {*names, "scheduler"}
    assert tuple(settings[name] for name in names) == expected


@pytest.mark.parametrize(
    ("base", "flags", "expected"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "", (7.5, 0.0, NEGATIVE, 4)),
        ("data/toon/sd", "", (3.0, 1.0, "", 8)),
        ("data/toon/sd", "--guidance_scale=7.5 --eta=0 --negative_prompt=x", (7.5, 0.0, "x", 8)),
        ("data/toon/sd", "--scheduler=euler", (3.0, 0.0, "", 8)),
        ("elsewhere", "--guidance_scale=1", (1.0, 0.0, "", 4)),
        ("elsewhere", "--negative_prompt=", (7.5, 0.0, "", 4)),
    ],
)
def test_clips_are_drawn_as_suits_the_base_unless_given(base, flags, expected):
    settings = parse(VideoConfig, flags.split(), "").settings(base_row(base))
    names = ("guidance_scale", "eta", "negative_prompt", "window_stride")
    assert tuple(settings[name] for name in names) == expected
    assert settings["num_inference_steps"] == 25


def test_the_motion_adapter_is_the_bases_unless_given(monkeypatch, tmp_path):
    config = VideoConfig()
    assert adapter_of(config, base_row("toon")).endswith("/data/toon/motion_adapter")
    assert adapter_of(config, base_row("sd15")) == "guoyww/animatediff-motion-adapter-v1-5-2"
    assert adapter_of(VideoConfig(motion_adapter="own/one"), base_row("toon")) == "own/one"
    with pytest.raises(UserError, match="no motion adapter is known for base sd21; give --motion_adapter"):
        adapter_of(config, base_row("sd21"))
    monkeypatch.chdir(tmp_path)
    assert adapter_of(VideoConfig(motion_adapter="data/toon/motion_adapter"), base_row("toon")).startswith(
        "/"
    )


def test_the_help_names_what_differs_between_bases():
    assert default_of("sampling", "num_inference_steps") == "(default: 100, 50 with toon, 50 with sdxl)"
    assert default_of("sampling", "guidance_scale") == "(default: 6, 3 with toon, 5 with sdxl)"
    assert default_of("sampling", "negative_prompt") == ""
    clips = "(default: 'bad quality, worse quality', none with toon)"
    assert default_of("clips", "negative_prompt") == clips
    assert default_of("clips", "eta") == "(default: 0, 1 with toon)"


def test_more_steps_than_the_base_was_trained_on(tiny_base):
    check_steps(1000, tiny_base)
    with pytest.raises(UserError, match="--num_inference_steps is 2000; .* has 1000 timesteps"):
        check_steps(2000, tiny_base)


def test_every_precision_is_torchs():
    _, dtypes = zip(
        *(utils.bases.devices.choose_device_dtype("cpu", n) for n in ("fp32", "fp16", "bf16")), strict=True
    )
    assert [str(dtype) for dtype in dtypes] == ["torch.float32", "torch.float16", "torch.bfloat16"]
