"""LoRA files of K/V: names, ranks, errors and what is read back, against small cases by hand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from utils.common.errors import UserError
from utils.concepts.export import write_diff, write_lora
from utils.concepts.formats import read_concept
from utils.concepts.lora import deltas_of, factorise, layer_name, lora_tensors, parameter_name, rank_for

NAMES = [
    "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight",
    "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_k.weight",
]


EYE = torch.eye(4, dtype=torch.float64)  # text states under which outputs differ as much as weights


def deltas(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(6, 4, generator=generator, dtype=torch.float64) for name in NAMES}


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_names_go_there_and_back(name):
    assert layer_name(name) == "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
    assert parameter_name(layer_name(name)) == name


@pytest.mark.parametrize("layer", ["lora_unet_mid_block_attentions_0_proj_in", "lora_te_x", "attn2_to_k"])
def test_other_layers_have_no_name_here(layer):
    assert parameter_name(layer) is None


def test_full_rank_is_exact_and_a_lower_one_is_the_best():
    whole = deltas()
    factors = factorise(whole, EYE)
    for rank in (1, 2, 4):
        read = deltas_of(lora_tensors(factors, rank, torch.float64), Path("x"))
        for name, delta in whole.items():
            lost = torch.linalg.svdvals(delta)[rank:].norm()  # Eckart and Young
            torch.testing.assert_close((read[name] - delta).norm(), lost, atol=1e-12, rtol=1e-12)


def test_alpha_over_rank_scales_what_is_read():
    tensors = lora_tensors(factorise(deltas(), EYE), 2, torch.float64)
    halved = {k: v / 2 if k.endswith(".alpha") else v for k, v in tensors.items()}
    no_alpha = {k: v for k, v in tensors.items() if not k.endswith(".alpha")}
    whole = deltas_of(tensors, Path("x"))
    for name, delta in deltas_of(halved, Path("x")).items():
        torch.testing.assert_close(delta, whole[name] / 2)
        torch.testing.assert_close(deltas_of(no_alpha, Path("x"))[name], whole[name])


def test_rank_for_counts_the_energy_of_all_layers():
    factors = factorise({NAMES[0]: diagonal(10, 0, 0), NAMES[1]: diagonal(3, 2, 1)}, EYE[:3, :3])
    total = 100 + 9 + 4 + 1
    assert rank_for(factors, (5.01 / total) ** 0.5) == 1
    assert rank_for(factors, (4.99 / total) ** 0.5) == 2
    assert rank_for(factors, 1e-9) == 3


def test_the_default_loses_at_most_a_tenth_and_error_zero_nothing(tmp_path):
    whole = {NAMES[0]: diagonal(10, 3, 0.5, 0.01)}  # ranks 1 and 2 lose .29 and .05 of it
    given = {"default": (None, None), "exact": (None, 0), "less": (None, 0.3), "rank": (3, None)}
    reports = {
        name: write_lora(tmp_path / f"{name}.safetensors", whole, EYE, {}, *how, "fp32")
        for name, how in given.items()
    }
    assert {name: report.rank for name, report in reports.items()} == {
        "default": 2,
        "exact": 4,
        "less": 1,
        "rank": 3,
    }
    assert reports["default"].error == pytest.approx(0.0479, abs=1e-4) and reports["exact"].error < 1e-6


def test_layers_of_smaller_rank_share_the_alpha(tmp_path):
    wide = {NAMES[0]: deltas()[NAMES[0]], NAMES[1]: torch.randn(2, 4, dtype=torch.float64)}
    report = write_lora(tmp_path / "a.safetensors", wide, EYE, {}, None, 0, "fp32")
    tensors = load_file(tmp_path / "a.safetensors")
    assert report.rank == 4 and report.error < 1e-6
    assert [tensors[f"{layer_name(n)}.alpha"].item() for n in NAMES[:2]] == [4, 4]
    down, up = (tensors[f"{layer_name(NAMES[1])}.lora_{part}.weight"] for part in ("down", "up"))
    assert down.shape == (2, 4) and up.shape == (2, 2)
    torch.testing.assert_close(4 / 2 * up @ down, wide[NAMES[1]].float())


def test_the_file_notes_the_errors_of_what_it_stores(tmp_path):
    report = write_lora(tmp_path / "a.safetensors", deltas(), EYE, {"classes": ["dog"]}, 2, None, "fp16")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        noted = json.loads(file.metadata()["classdiffusion"])
    assert noted["rank"] == 2 and noted["error"] == report.error and noted["classes"] == ["dog"]
    read = deltas_of(load_file(tmp_path / "a.safetensors"), Path("a"))
    lost = sum((read[name] - delta).norm() ** 2 for name, delta in deltas().items()) ** 0.5
    norm = sum(delta.norm() ** 2 for delta in deltas().values()) ** 0.5
    assert report.error == pytest.approx((lost / norm).item(), rel=1e-9)
    for name, delta in deltas().items():
        error = ((read[name] - delta).norm() / delta.norm()).item()
        assert noted["layers"][layer_name(name)] == pytest.approx(error, rel=1e-9)


def test_a_diff_is_exact_in_fp32(tmp_path):
    single = {name: delta.float().double() for name, delta in deltas().items()}
    assert write_diff(tmp_path / "a.safetensors", single, EYE, {}, "fp32").error == 0
    read = read_concept(tmp_path / "a.safetensors").deltas
    assert all(torch.equal(read[name], delta) for name, delta in single.items())


def test_a_layer_that_never_moved_is_no_division_by_zero(tmp_path):
    still = deltas() | {NAMES[0]: torch.zeros(6, 4, dtype=torch.float64)}
    report = write_lora(tmp_path / "a.safetensors", still, EYE, {}, None, 0, "fp32")
    assert report.errors[NAMES[0]] == 0 and report.error < 1e-6


def test_too_much_rank_and_too_large_numbers_are_refused(tmp_path):
    with pytest.raises(UserError, match="--rank 5: rank 4 is exact already"):
        write_lora(tmp_path / "a.safetensors", deltas(), EYE, {}, 5, None, "fp32")
    huge = {name: delta * 1e6 for name, delta in deltas().items()}
    with pytest.raises(UserError, match="use --dtype fp32"):
        write_diff(tmp_path / "a.safetensors", huge, EYE, {}, "fp16")


def test_a_lora_of_another_tool_is_read_without_rows(tmp_path):
    save_file(lora_tensors(factorise(deltas(), EYE), 4, torch.float32), tmp_path / "kohya.safetensors")
    concept = read_concept(tmp_path / "kohya.safetensors")
    assert concept.deltas.keys() == set(NAMES) and not concept.rows and concept.base is None


def test_an_incomplete_layer_is_refused(tmp_path):
    tensors = lora_tensors(factorise(deltas(), EYE), 2, torch.float32)
    del tensors[f"{layer_name(NAMES[0])}.lora_up.weight"]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="a LoRA's layer has lora_down.weight, lora_up.weight, alpha"):
        read_concept(tmp_path / "x.safetensors")


def test_two_loras_in_a_folder_are_ambiguous(tmp_path):
    for name in ("a", "b"):
        write_lora(tmp_path / f"{name}.safetensors", deltas(), EYE, {}, None, 0, "fp32")
    with pytest.raises(UserError, match=r"a.safetensors and b.safetensors; give the path of one"):
        read_concept(tmp_path)
    assert read_concept(tmp_path / "a.safetensors").deltas.keys() == set(NAMES)


def test_the_error_is_that_of_the_outputs_and_no_rank_is_spent_on_what_no_caption_reads(tmp_path):
    """A thousandfold weight along a direction in which every text state is .001."""
    states = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    states[:, 3] = 0.001
    weight = deltas()[NAMES[0]]
    weight[:, 3] *= 1000

    def error(kept):
        return (((weight - kept) @ states.T).norm() / (weight @ states.T).norm()).item()

    for rank in (1, 2):
        report = write_lora(tmp_path / "a.safetensors", {NAMES[0]: weight}, states, {}, rank, None, "fp32")
        assert report.error == pytest.approx(
            error(read_concept(tmp_path / "a.safetensors").deltas[NAMES[0]]), rel=1e-6
        )
        best = torch.linalg.svdvals(weight @ states.T)  # Eckart and Young, for the outputs
        assert report.error == pytest.approx((best[rank:].norm() / best.norm()).item(), rel=1e-5)
        u = torch.linalg.svd(weight)[0][:, :rank]
        assert report.error < 0.95 * error(u @ u.T @ weight)  # what is best for the weights is not
