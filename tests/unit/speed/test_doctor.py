"""scripts.doctor, and what it counts."""

import json
from dataclasses import replace

import pytest
import torch

from scripts import doctor
from scripts.doctor import DoctorConfig, advice, examine, lines_of
from scripts.speed.estimates import Cost, config_of, cost_of, estimates, measured_rate
from utils.common.errors import UserError
from utils.config.methods import METHODS


@pytest.fixture(scope="module")
def report() -> dict:
    return examine(DoctorConfig(costs="none"))


def test_the_report_is_what_this_machine_has(report):
    assert report["processor"]["cores"] >= 1 and report["versions"]["torch"] == torch.__version__
    assert report["precisions"]["cpu"]["fp32"] == report["precisions"]["cpu"]["bf16"] == "runs"
    assert report["models"]["bases"]["toon"] and report["models"]["judges"]["data/toon/clip"]
    assert json.loads(json.dumps(report)) == report and "costs" not in report


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
    less = full | {"optional": everything | {"wandb": False}, "models": {"bases": bases | {"sd15": False}}}
    assert advice(less) == [
        "--report_to wandb: pip install wandb",
        "base sd15: hf download stable-diffusion-v1-5/stable-diffusion-v1-5",
    ]


def test_a_precision_that_fails_says_why(monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("no such operator\nmore")

    monkeypatch.setattr("diffusers.UNet2DConditionModel.forward", fail)
    assert doctor.precisions(["cpu"]) == {
        "cpu": dict.fromkeys(("fp32", "fp16", "bf16"), "fails: no such operator")
    }


def test_an_unknown_base_is_refused():
    with pytest.raises(UserError, match="--costs sd3: choose from toon, sd15, sd21, sdxl, or none"):
        doctor.main(["--costs=toon,sd3"])


def cost(base: str, method: str, **given) -> Cost:
    return cost_of(base, replace(config_of(base, method), **given))


def test_twice_the_images_cost_twice():
    one, two = (cost("toon", "textual_inversion", train_batch_size=images) for images in (1, 2))
    assert two.operations == pytest.approx(2 * one.operations, rel=0.01) and two.images == 2
    weights = 56.5e6  # bytes of toon, which batches do not change
    assert two.bytes - weights == pytest.approx(2 * (one.bytes - weights), rel=0.1)


@pytest.mark.slow
def test_the_cost_of_a_training_is_counted():
    rows, whole = cost("toon", "textual_inversion"), cost("toon", "two_stage", max_train_steps=400)
    assert whole.bytes - rows.bytes > 8 * 10_860_676  # two moments of the UNet, which has its gradients, too
    # Gradients of weights are a third of a training's operations, in the second of two stages.
    assert 1.05 < whole.operations / rows.operations < 1.4


@pytest.mark.slow
def test_checkpointing_computes_more_and_holds_less():
    plain, saving = (cost("toon", "kv_only", gradient_checkpointing=on) for on in (False, True))
    assert saving.bytes < plain.bytes and 1.2 < saving.operations / plain.operations < 1.6


@pytest.mark.slow
def test_every_method_is_counted_or_says_why_not():
    rows = estimates(["toon"], {"toon": 1e12}, "cuda")
    assert [row["method"] for row in rows] == [*METHODS] and all(row["hours"] > 0 for row in rows)
    with pytest.raises(UserError, match="xti trains layer_rows, which needs one text encoder"):
        cost("sdxl", "xti")


@pytest.mark.slow
def test_at_sd15_it_is_close_to_what_was_measured():
    """8.38 GiB in results/speed/growth_sd15.md, of which the libraries are .6 to .9."""
    held = cost("sd15", "classdiffusion").bytes / 2**30
    assert 6.8 < held < 7.6


def test_an_estimate_is_operations_by_the_rate(monkeypatch):
    monkeypatch.setattr("scripts.speed.estimates.cost_of", lambda base, config: Cost(2, 2**31, 3.6e15))
    rows = {(row["base"], row["method"]): row for row in estimates(["sd15", "sd21"], {"sd15": 2e12}, "cuda")}
    assert rows["sd21", "classdiffusion"]["hours"] == 0.5 and rows["sd15", "neti"]["seconds"] == 1.8
    assert rows["sd15", "classdiffusion"]["gib"] == 2 and rows["sd15", "classdiffusion"]["seconds"] == 3.6


def test_the_rate_is_of_a_whole_step():
    assert measured_rate("toon", "cpu") > 1e8


def test_costs_are_a_table_for_people(report):
    trainings = [
        {
            "base": "sd15",
            "method": "xti",
            "images": 1,
            "gib": 6.25,
            "seconds": 2.0,
            "steps": 500,
            "hours": 0.28,
        },
        {"base": "sdxl", "method": "xti", "refused": "not this one"},
    ]
    found = {"device": "cpu", "operations_per_second": {"sd15": 1.5e11}, "trainings": trainings}
    lines = doctor.cost_lines(found)
    assert "(sd15 0.150)" in lines[1] and lines[4] == "  sdxl  xti                not this one"
    assert lines[3].split() == ["sd15", "xti", "1", "6.2", "2.00", "500", "0.28"]
