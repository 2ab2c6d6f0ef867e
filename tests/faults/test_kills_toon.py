"""Kills at moments of the toon build: what goes on afterwards ends with the same bits."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.toon import build
from scripts.toon.models import training
from tests.faults.kills import contents, imports, survive_kills
from tests.faults.shim import Fault, in_child, survived, tried

STEPS = 12


def toon_training(folder: Path) -> None:
    """The toon build's loop on a small model, whose batches are functions of the step."""
    torch.manual_seed(0)
    model = nn.Linear(8, 4)

    def loss_of(step: int) -> Tensor:
        batch = torch.randn(16, 8, generator=training.generator(f"kills/{step}"))
        return (model(batch) - batch[:, :4].square()).square().mean()

    training.fit(model, loss_of, STEPS, 0.1, folder / "model.pt", warmup=2)
    torch.save(model.state_dict(), folder / "result.pt")


def result_of(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize("kills", [6, pytest.param(30, marks=pytest.mark.faults)])
@pytest.mark.parametrize("kind", ["kill", "tear"])
def test_the_toon_loop_killed(kind: str, kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At a random file operation of a run that saves at every other step, again, then to the end."""
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    assert in_child(lambda: toon_training(whole)).code == 0
    rng, killed = random.Random(kind), 0
    for number in range(kills):
        broken = tmp_path / str(number)
        broken.mkdir()
        for _ in range(rng.randint(1, 3)):
            fault = Fault(kind, rng.randint(1, 30 if kind == "kill" else 6), str(broken))
            killed += in_child(lambda broken=broken: toon_training(broken), fault).killed
        tried(f"{kind}: toon build")
        ending = in_child(lambda broken=broken: toon_training(broken))
        assert ending.code == 0, ending
        assert all(torch.equal(value, result_of(broken)[name]) for name, value in result_of(whole).items())
        survived(f"{kind}: toon build")
    assert killed >= kills // 2


def unet_training(folder: Path) -> None:
    """The program that trains the UNet, a small one: caches, checkpoints, a pipeline folder."""
    for part in ("vae", "text_encoder", "tokenizer"):
        (folder / "sd").mkdir(parents=True, exist_ok=True)
        if not (folder / "sd" / part).exists():
            (folder / "sd" / part).symlink_to(Path("data/toon/sd", part).absolute())
    flags = [f"--output_dir={folder / 'sd'}", f"--work_dir={folder / 'work'}", "--channels", "16", "32"]
    build.main(["unet", *flags, "--images=4", "--batch_size=2", "--steps=4"])


@pytest.mark.faults
@pytest.mark.parametrize("kills", [8])
def test_the_unets_program_killed(kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At file operations from its notes to its last file."""
    imports("scripts.toon.models.unet", "transformers.models.vit", "transformers.models.clip")
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    name = "kill: toon build, the UNet's program"
    assert survive_kills("kill", unet_training, tmp_path, kills, name) == kills
    assert {"work/latents.pt", "work/unet.pt", "sd/model_index.json"} <= contents(tmp_path / "whole").keys()
