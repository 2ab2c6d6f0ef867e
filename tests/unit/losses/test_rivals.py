"""Losses of later papers: direct consistency optimisation and ACCORD's prior decouple loss."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from utils.common.errors import UserError
from utils.losses.accord import CONTEXTS, loss_accord
from utils.losses.dco import loss_dco


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def test_dco_is_its_formula_and_its_gradient_ends_where_the_base_is_beaten():
    torch.manual_seed(0)
    tuned, base, target = (torch.randn(2, 4, 3, 3) for _ in range(3))
    full, beta = torch.ones(2, 1, 3, 3), 3.0
    tuned.requires_grad_()
    loss = loss_dco(tuned, base, target, full, beta)
    difference = F.mse_loss(tuned, target) - F.mse_loss(base, target)
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(beta * difference.item()))), rel=1e-5)
    assert loss_dco(base, base, target, full, beta).item() == pytest.approx(math.log(2))
    loss_dco(tuned, target + 10, target, full, beta).backward()  # the base is much worse: 0.95 is beaten
    assert tuned.grad.abs().max() < 1e-6
    half = full.clone()
    half[..., 0] = 0  # what is outside the mask does not count
    outside = torch.zeros_like(base)
    outside[..., 0] = 9
    assert torch.equal(
        loss_dco(tuned + outside, base, target, half, beta), loss_dco(tuned, base, target, half, beta)
    )


def test_accord_is_its_formula():
    torch.manual_seed(0)
    concept, cls, contexts = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5), torch.randn(3, 5)
    cos = torch.nn.CosineSimilarity(dim=0)
    expected = [abs(cos(concept[k], g) - cos(cls[k], g)) for k in range(2) for g in contexts]
    torch.testing.assert_close(loss_accord(concept, cls, contexts), sum(expected) / 6)
    assert loss_accord(3 * cls, cls, contexts) < 1e-6
    assert len(set(CONTEXTS)) > 200 and not any("{}" in text for text in CONTEXTS)


def test_both_train_and_dco_stands_in_place_of_the_denoising_loss(train, tmp_path, capsys):
    plain = train(tmp_path / "plain", method="kv_only", max_train_steps=3)
    capsys.readouterr()
    out = train(tmp_path / "out", method="kv_only", dco_beta=10.0, accord_weight=0.5, max_train_steps=3)
    said = capsys.readouterr().out
    assert "1 · L_dco + 0.5 · L_accord" in said and "L_denoise" not in said
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss_dco"] + 0.5 * line["loss_accord"], rel=1e-5)
        assert line["loss_denoise"] > 0 and 0 < line["loss_dco"] < 20 and 0 < line["loss_accord"] < 2
    before, after = weights(plain), weights(out)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    logged = train(tmp_path / "logged", method="kv_only", accord_weight=0, max_train_steps=3)
    assert all(torch.equal(value, before[name]) for name, value in weights(logged).items())


def test_they_need_the_class(train, tmp_path):
    for flag in ({"dco_beta": 1.0}, {"accord_weight": 1.0}):
        with pytest.raises(UserError, match=f"--{next(iter(flag))} needs the class"):
            train(tmp_path / "out", method="kv_only", cls_token=None, **flag)
