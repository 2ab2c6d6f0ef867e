"""Every method in every precision: class images, validation, drift, selection and resume."""

from pathlib import Path

import pytest
import torch

import utils.measures.drift
from tests.end_to_end.training import learned, records
from utils.common.images import open_image
from utils.config.methods import METHODS

HALVES = ["bf16", pytest.param("fp16", marks=pytest.mark.gpu)]
TEMPLATES = {name for name, method in METHODS.items() if method.captions == "templates"}
EVERYTHING = {
    "with_prior_preservation": True,
    "class_prompt": "a photo of a dog",
    "num_class_images": 2,
    "validation_prompt": "a photo of a <new1> dog",
    "num_validation_images": 1,
    "validation_steps": 1,
    "drift_steps": 1,
    "checkpointing_steps": 1,
    "initializer_token": "ktn",
}


@pytest.fixture
def quick(quick_sampling, monkeypatch) -> None:
    """Two denoising steps for the images of the drift measure as well."""
    monkeypatch.setattr(utils.measures.drift, "DRAWING_STEPS", 2)


def settings_of(method: str) -> dict[str, object]:
    if method in TEMPLATES:  # these start from the class, and learn a token that stands for the noun
        return EVERYTHING | {"method": method, "instance_prompt": None, "initializer_token": None}
    return EVERYTHING | {"method": method}


def terms(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k.startswith("loss")} for line in records(folder)]


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_draws_measures_selects_and_resumes(train, quick, tmp_path, method, precision):
    settings = settings_of(method) | {"select_checkpoint": "drift", "class_data_dir": tmp_path / "class"}
    precisions = {"half": {"mixed_precision": precision}, "full": {}}
    runs = {name: train(tmp_path / name, **settings, **given) for name, given in precisions.items()}
    for one, two in zip(*map(terms, runs.values()), strict=True):
        assert one == pytest.approx(two, rel=0.03, abs=2e-3)  # to the 8 bits of bfloat16
    for name, out in runs.items():
        for image in (*(tmp_path / "class").glob("*.png"), out / "validation/step-00002/seed-0.png"):
            assert open_image(image).size == (16, 16)
            assert len(open_image(image).getcolors()) > 50  # no image of one colour, as NaN would give
        for line in records(out):
            assert 0 <= line["drift_prediction"] < 1 and 0 <= line["drift_layers"] < 1
        given = precisions[name] | {"resume_from_checkpoint": out / "checkpoint-1"}
        again = train(tmp_path / f"{name} resumed", **settings, **given)
        assert records(again) == records(out)[1:]
        unbroken, resumed = (learned(folder / "checkpoint-2") for folder in (out, again))
        assert all(torch.equal(value, resumed[key]) for key, value in unbroken.items())


@pytest.mark.parametrize("precision", ["no", *HALVES])
@pytest.mark.parametrize("method", METHODS)
def test_what_has_not_moved_has_not_drifted(train, quick, tmp_path, method, precision):
    """The base is measured in the precision of the training: any difference would be a floor of the drift."""
    still = {"learning_rate": 1e-30, "adam_weight_decay": 0, "validation_prompt": None}
    half = {} if precision == "no" else {"mixed_precision": precision}
    for line in records(train(tmp_path, **settings_of(method) | still | half)):
        assert [line[f"drift_{key}"] for key in ("layers", "prediction", "relative")] == [0, 0, 0]
