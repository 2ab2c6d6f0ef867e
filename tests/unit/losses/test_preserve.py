"""Output preservation and L2 distance: values, gradient, the untouched base, training and resume."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from utils.common.errors import UserError
from utils.losses.preserve import class_caption, copy_start, loss_dop, loss_l2, untouched


def concept(token: str, word: str) -> SimpleNamespace:
    return SimpleNamespace(modifier_token=token, cls_token=word)


def test_class_captions():
    concepts = [concept("<new1>", "dog"), concept("<new2>", "teddy bear")]
    assert class_caption("very small a photo of a <new1> dog", concepts) == "very small a photo of a dog"
    assert class_caption("a photo of a <new1>", concepts) == "a photo of a dog"
    assert class_caption("a <new2> teddy bear on a <new1> dog", concepts) == "a teddy bear on a dog"


def test_losses_are_their_formulas():
    a, b = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(loss_dop(a, b), (a - b).square().mean())
    pairs = [(torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([1.0, 0.0])), (a, b)]
    loss = loss_l2(pairs)
    torch.testing.assert_close(loss, 4 + (a - b).square().sum())
    loss.backward()
    assert torch.equal(pairs[0][0].grad, torch.tensor([0.0, 4.0]))


def test_untouched_exchanges_values_and_puts_them_back():
    weight = torch.nn.Parameter(torch.zeros(2))
    learned = {"kv": {"w": weight}}
    start = copy_start(learned)
    with torch.no_grad():
        weight += 1
    with pytest.raises(RuntimeError), untouched(learned, start):
        assert weight.tolist() == [0, 0]
        raise RuntimeError
    assert weight.tolist() == [1, 1] and start["kv"]["w"].tolist() == [0, 0]


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


@pytest.mark.parametrize("method", ["kv_only", "dreambooth", "svdiff"])
def test_terms_are_0_at_the_first_step_then_grow_and_reach_the_weights(train, tmp_path, method):
    settings = {"method": method, "max_train_steps": 3, "num_class_images": 2, "initializer_token": "ktn"}
    logged = train(tmp_path / "logged", dop_weight=0, l2_weight=0, **settings)
    first, *later = log(logged)
    assert first["loss_dop"] < 1e-10 and first["loss_l2"] == 0
    assert all(line["loss_dop"] > 1e-8 and line["loss_l2"] > 0 for line in later)
    held = train(tmp_path / "held", dop_weight=100, l2_weight=10, **settings)
    assert log(held)[0]["loss_denoise"] == first["loss_denoise"]
    assert log(held)[2]["loss_l2"] < later[1]["loss_l2"]


def test_a_weight_of_0_trains_as_without_the_loss(train, tmp_path):
    without = train(tmp_path / "without", method="kv_only")
    logged = train(tmp_path / "logged", method="kv_only", l2_weight=0)
    found, expected = weights(logged), weights(without)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", ["xti", "neti", "svdiff", "kv_only"])
def test_resumed_is_unbroken_bit_for_bit(train, tmp_path, method):
    extra = {"l2_weight": 0.1} | ({} if method in ("xti", "neti") else {"dop_weight": 1.0})
    settings = {"method": method, "checkpointing_steps": 2, "num_class_images": 2} | extra
    if method in ("xti", "neti"):
        settings["instance_prompt"] = None
    if method == "svdiff":
        settings["initializer_token"] = "ktn"
    whole = train(tmp_path / "whole", max_train_steps=4, **settings)
    half = train(tmp_path / "half", max_train_steps=2, **settings)
    train(half, max_train_steps=4, resume_from_checkpoint="latest", **settings)
    found, expected = weights(half), weights(whole)
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)


def test_refused_where_it_reaches_nothing_or_has_no_class(train, tmp_path):
    with pytest.raises(UserError, match="--dop_weight cannot reach"):
        train(tmp_path, method="xti", instance_prompt=None, dop_weight=1)
    with pytest.raises(UserError, match="--dop_weight needs"):
        train(tmp_path, method="kv_only", cls_token=None, dop_weight=1)


def test_copies_are_apart():
    weight = torch.nn.Parameter(torch.zeros(1))
    start = copy_start({"kv": {"w": weight}})
    assert copy.deepcopy(start)["kv"]["w"] is not weight and not start["kv"]["w"].requires_grad
