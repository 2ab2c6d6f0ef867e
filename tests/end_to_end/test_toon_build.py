"""The commands that train the toon world's UNet and motion adapter: a few steps each."""

import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, MotionAdapter, UNet2DConditionModel

from scripts.toon import build
from tests.faults.commands import End, call

SD = Path("data/toon/sd")


def run(name: str, *flags: str) -> End:
    return call(build.main, [name, "--steps=2", *flags])


def largest_change(before, after) -> float:
    """Of the parameters that both have: `before` may lack the attention at the finest level."""
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() <= new.keys()
    return max((new[name] - value).abs().max().item() for name, value in old.items())


def test_the_unet_learns_from_where_it_was_and_refuses_another_runs_checkpoints(tmp_path):
    sd = shutil.copytree(SD, tmp_path / "sd")
    flags = [f"--output_dir={sd}", f"--work_dir={tmp_path / 'work'}", f"--init_from={SD / 'unet'}"]
    flags += ["--images=8", "--batch_size=4", "--lr=1e-3"]
    done = run("unet", *flags)
    assert done.code == 0, done.stderr
    before = UNet2DConditionModel.from_pretrained(SD / "unet", torch_dtype=torch.float32)
    after = UNet2DConditionModel.from_pretrained(sd / "unet", torch_dtype=torch.float32)
    assert 1e-6 < largest_change(before, after) < 0.05  # two steps of the warm-up
    assert DDIMScheduler.from_pretrained(sd / "scheduler").config.prediction_type == "v_prediction"

    refused = run("unet", *flags, "--seed=1")
    assert refused.refused
    assert "is of a run with --seed 0, not 1" in refused.stderr


def test_the_motion_adapter_learns_and_the_folder_says_its_noise_levels(tmp_path):
    flags = [f"--output_dir={tmp_path / 'adapter'}", f"--work_dir={tmp_path / 'work'}"]
    done = run("motion", *flags, "--clips=2", "--batch_size=1", "--lr=1e-2")
    assert done.code == 0, done.stderr
    adapter = MotionAdapter.from_pretrained(tmp_path / "adapter", torch_dtype=torch.float32)
    ends = [value for name, value in adapter.state_dict().items() if name.endswith("proj_out.weight")]
    assert ends and all(end.abs().max() > 0 for end in ends)  # they start at zero
    trained, base = (
        DDIMScheduler.from_pretrained(folder) for folder in (tmp_path / "adapter", SD / "scheduler")
    )
    assert torch.equal(trained.betas, base.betas) and trained.config.prediction_type == "v_prediction"
