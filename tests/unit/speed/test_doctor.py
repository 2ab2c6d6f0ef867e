"""scripts.doctor, and what it counts."""

import json

import pytest
import torch

from scripts import doctor
from scripts.doctor import DoctorConfig, advice, examine, lines_of
from scripts.speed import estimates
from scripts.speed.estimates import Cost, cost_of


@pytest.fixture(scope="module")
def report() -> dict:
    return examine(DoctorConfig(quick=True))


def test_the_report_is_what_this_machine_has(report):
    assert report["processor"]["cores"] >= 1 and report["versions"]["torch"] == torch.__version__
    assert report["precisions"]["cpu"]["fp32"] == report["precisions"]["cpu"]["bf16"] == "runs"
    assert report["models"]["bases"]["toon"] and report["models"]["judges"]["data/toon/clip"]
    assert json.loads(json.dumps(report)) == report and "estimates" not in report


def test_the_report_for_people_names_each_part(report):
    lines = lines_of(report)
    assert any(line.startswith("cpu         fp32 runs, ") for line in lines)
    assert any(line.startswith("bases       toon, ") for line in lines)
    missing = [module for module, here in report["optional"].items() if not here]
    assert all(any(module in line for line in lines) for module in missing)


def test_advice_is_for_what_is_missing():
    everything = dict.fromkeys(doctor.OPTIONAL, True)
    bases = {"toon": True, "sd15": True, "sd21": True}
    full = {"gpus": [{"device": "cuda:0"}], "optional": everything, "models": {"bases": bases}}
    assert advice(full) == []
    less = full | {"optional": everything | {"peft": False}, "models": {"bases": bases | {"sd15": False}}}
    assert advice(less) == [
        "the test that diffusers loads an exported LoRA: pip install peft",
        "base sd15: hf download stable-diffusion-v1-5/stable-diffusion-v1-5",
    ]


def test_a_precision_that_fails_says_why(monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("no such operator\nmore")

    monkeypatch.setattr("diffusers.UNet2DConditionModel.forward", fail)
    assert doctor.precisions(["cpu"]) == {
        "cpu": dict.fromkeys(("fp32", "fp16", "bf16"), "fails: no such operator")
    }


def test_the_cost_of_a_step_is_counted():
    rows, whole = cost_of("toon", "textual_inversion"), cost_of("toon", "two_stage")
    assert whole.trained > 1e6 > rows.trained > 0  # the UNet; one row
    assert rows.state == 12 * rows.trained and rows.weights == whole.weights > 4e6
    # Gradients to weights are a third of a training's operations.
    assert 1.2 < whole.operations / rows.operations < 1.6
    twice = cost_of("toon", "textual_inversion", batch_size=4)
    assert twice.operations == pytest.approx(2 * rows.operations, rel=0.01)
    assert twice.activations == pytest.approx(2 * rows.activations, rel=0.05)


def test_an_estimate_is_operations_by_the_rate(monkeypatch):
    monkeypatch.setattr(estimates, "cost_of", lambda base, method: Cost(1, 2**30, 2**29, 2**29, 8e12))
    rows = {(row["base"], row["method"]): row for row in estimates.estimates({"toon": 1e12, "sd15": 2e12})}
    assert rows["sd15", "classdiffusion"]["seconds"] == 4 and rows["sd15", "classdiffusion"]["gib"] == 2
    assert rows["toon", "classdiffusion"]["seconds"] == 8 and rows["toon", "neti"]["seconds"] is None
