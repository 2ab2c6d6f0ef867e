"""The training loop of the toon models: a run that was killed and started again equals an unbroken one."""

import json
import os
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn

from scripts.toon.models import training
from scripts.toon.models.flags import UnetFlags
from scripts.toon.models.unet import Recipe, build, emphasis, is_alone, start_from, training_scenes
from scripts.toon.world.world import without_subject
from utils.common.errors import UserError


def run(state_path: Path, killed_at: int | None = None) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss_of(step: int) -> Tensor:
        if step == killed_at:
            raise KeyboardInterrupt
        return model(torch.randn(5, 3, generator=training.generator(f"batch/{step}"))).square().mean()

    training.fit(model, loss_of, steps=6, lr=0.1, state_path=state_path, warmup=2)
    return model


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    unbroken = run(tmp_path / "unbroken.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.pt", killed_at=4)
    resumed = run(tmp_path / "killed.pt")
    assert torch.equal(resumed.weight, unbroken.weight)
    assert torch.equal(resumed.bias, unbroken.bias)


@pytest.mark.parametrize("damage", [b"", b"no pickle", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    (tmp_path / "x.pt").write_bytes(damage)
    with pytest.raises(UserError, match=r"cannot read .*x\.pt: .*it is damaged, give another") as mistake:
        run(tmp_path / "x.pt")
    assert "\n" not in str(mistake.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path / "x.pt")
    with pytest.raises(UserError, match="of another model: remove it"):
        training.fit(nn.Bilinear(2, 2, 1), lambda step: None, 1, 0.1, tmp_path / "x.pt")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="x, step 1: the loss is nan; checkpoints of earlier"):
        training.fit(model, lambda step: model.weight.sum() * float("nan"), 2, 0.1, tmp_path / "x.pt")


def test_cached_rows_are_made_once_and_only_whole(tmp_path):
    def broken():
        yield torch.ones(1, 2)
        raise KeyboardInterrupt

    path = tmp_path / "rows.pt"
    with pytest.raises(KeyboardInterrupt):
        training.cached(path, broken())
    assert not path.exists()
    rows = training.cached(path, (torch.full((1, 2), float(i)) for i in range(3)))
    assert rows.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert torch.equal(training.cached(path, broken()), rows)


def test_a_folder_of_checkpoints_belongs_to_one_run(tmp_path):
    for name in ("one", "another"):  # the UNet joins a pipeline that is there
        (tmp_path / name).mkdir()
    config = UnetFlags(work_dir=tmp_path / "build", output_dir=tmp_path / "one", steps=5)
    training.begin(config, "unet")
    note = json.loads((tmp_path / "build" / "unet.json").read_text())
    assert note["steps"] == "5" and note["channels"] == "[64, 128, 192]" and "work_dir" not in note
    training.begin(replace(config, output_dir=tmp_path / "another"), "unet")  # resuming may write elsewhere
    other = replace(config, seed=1)
    training.begin(other, "clip")
    with pytest.raises(UserError, match=r"unet\.json is of a run with --seed 0, not 1"):
        training.begin(other, "unet")


@pytest.mark.parametrize("pose", ["standing", "jumping"])
def test_the_mask_covers_the_subject_and_nothing_else(pose):
    batch = [
        replace(scene, pose=pose, neighbour="tree", barn=None, scale=0.6, x=0.35)
        for scene in training.scenes("mask", 40)
        if scene.subject.kind in ("dog", "cat")
    ]
    pixels = training.to_pixels(batch, 64)
    empty = training.to_pixels([without_subject(scene) for scene in batch], 64)
    mask = training.subject_mask(pixels, empty, 16)
    assert mask.shape == (len(batch), 1, 16, 16)
    assert mask[:, 0, 8, 5].mean() > 0.9  # the head or the body, unless it has the background's colour
    assert mask[..., 13:].sum() == 0  # the tree


def test_an_error_on_the_subject_counts_as_often_as_it_weighs():
    target = torch.zeros(1, 4, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    on_subject, beside = target.clone(), target.clone()
    on_subject[..., 0, 0], beside[..., 1, 1] = 1.0, 1.0
    assert training.subject_weighted_mse(on_subject, target, mask, 1.5).item() == pytest.approx(1.5 / 4.5)
    assert training.subject_weighted_mse(beside, target, mask, 1.5).item() == pytest.approx(1 / 4.5)
    assert training.subject_weighted_mse(on_subject, target, mask, 4.0).item() == pytest.approx(4 / 7)


def test_timesteps_are_even_or_mostly_low():
    even = Recipe(0.5, 1.5, False, False).timesteps(4000, training.generator("even")).float()
    low = Recipe(0.5, 1.5, True, False).timesteps(4000, training.generator("low")).float()
    assert even.mean().item() == pytest.approx(500, abs=20)
    assert low.mean().item() == pytest.approx(385, abs=20)  # E[1000 · sigmoid(1.2 · N(0, 1) − .6)]
    assert (low > 600).float().mean().item() == pytest.approx(0.20, abs=0.02)
    assert low.min() >= 0 and low.max() <= 999


def test_saved_weights_get_the_umasks_mode(tmp_path):
    before = os.umask(0o027)
    try:
        training.save(AutoencoderTiny(), tmp_path / "vae")
    finally:
        os.umask(before)
    modes = {path.name: S_IMODE(path.stat().st_mode) for path in (tmp_path / "vae").iterdir()}
    assert modes == {"config.json": 0o640, "diffusion_pytorch_model.safetensors": 0o640}


def test_the_loss_weighs_parts_more_than_the_body_and_the_body_more_than_the_ground():
    batch = training_scenes("emphasis", 6)
    weights = emphasis(batch, training.to_pixels(batch, 64), side=16, part_emphasis=2.5)
    assert weights.shape == (6, 1, 16, 16)
    assert set(weights.unique().tolist()) == {0.0, 1.0, 2.5}
    subject = training.subject_mask(
        training.to_pixels(batch, 64), training.to_pixels([without_subject(s) for s in batch], 64), 16
    )
    assert torch.equal((weights > 0).float(), subject), "parts lie on the subject"


def test_training_scenes_are_a_function_of_seed_and_number():
    assert training_scenes("a", 8)[5] == training_scenes("a", 6)[5] != training_scenes("b", 6)[5]
    plain = training.scenes("a", 200)
    changed = sum(one != two for one, two in zip(training_scenes("a", 200), plain, strict=True))
    assert 120 <= changed <= 160  # FREE_PARTS of 200 is 140


def test_as_many_more_training_scenes_as_asked_show_an_animal_alone():
    before, after = training_scenes("alone", 400), training_scenes("alone", 400, alone=0.5)
    share = [sum(map(is_alone, drawn)) / 400 for drawn in (before, after)]
    assert share[0] < 0.1 and share[1] == pytest.approx(0.5 + share[0] / 2, abs=0.06)
    assert after[:5] == training_scenes("alone", 5, alone=0.5)
    assert {scene.pose for scene in after if is_alone(scene)} >= {"standing", "sitting", "waving"}


def test_a_unet_without_attention_at_its_finest_level_is_taken_over(tmp_path):
    old = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=4,
        cross_attention_dim=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    old.save_pretrained(tmp_path)
    unet = build(4, (16, 32))
    start_from(unet, tmp_path)
    state = unet.state_dict()
    assert all(torch.equal(state[name], value) for name, value in old.state_dict().items())
    new = set(state) - set(old.state_dict())
    assert new and all(".attentions." in name for name in new)
