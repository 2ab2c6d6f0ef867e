"""Bases as one file in the original layout: what they are, and their weights."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from tests.original_layout import header_of, original_tensors, write_hollow, write_original
from tests.tiny_models import tiny_pipeline, tiny_sdxl
from utils.bases import load_pipeline
from utils.bases.families import family_of, open_part
from utils.bases.parts import WITH_WEIGHTS, read_tokenizer
from utils.bases.pretrained import base_config, check_named_base
from utils.bases.registry import base_row, describe_base
from utils.bases.single_file.cache import cache_folder
from utils.bases.single_file.configuration import configuration, configuration_of
from utils.bases.single_file.convert import check_layout, folder_of
from utils.bases.single_file.recognise import (
    EPSILON,
    SD1,
    SD2,
    SDXL,
    SPREAD_OF,
    VELOCITY,
    Family,
    SingleFile,
    single_file,
)
from utils.common.errors import UserError

FAMILIES = (SD1, SD2, SDXL)
U = "model.diffusion_model."


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> dict[str, StableDiffusionPipeline]:
    folder = tmp_path_factory.mktemp("words")
    return {"sd1": tiny_pipeline(folder), "sd2": tiny_pipeline(folder, seed=1), "sdxl": tiny_sdxl(folder)}


@pytest.fixture(scope="module")
def files(pipelines, tmp_path_factory) -> dict[str, Path]:
    """Of each family a tiny file, its configuration beside it; tests must not write to them."""
    folder = tmp_path_factory.mktemp("tiny models ü")
    return {
        name: write_original(each, name, folder / f"{name}.safetensors") for name, each in pipelines.items()
    }


def copied(file: Path, folder: Path, **changes: torch.Tensor | None) -> Path:
    """The file in a new folder, with tensors changed, added or, where they are None, left out."""
    shutil.copytree(file.with_suffix(""), folder / file.stem)
    tensors = {name: value for name, value in (load_file(file) | changes).items() if value is not None}
    save_file(tensors, folder / file.name)
    return folder / file.name


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", [each.name for each in FAMILIES])
def test_the_weights_are_those_of_the_file_and_of_stock_diffusers(pipelines, files, family):
    ours = load_pipeline(files[family], "cpu", "fp32")
    stock = type(pipelines[family]).from_single_file(
        files[family], config=str(files[family].with_suffix("")), local_files_only=True
    )
    for name in set(WITH_WEIGHTS) & ours.components.keys():
        assert equal(getattr(ours, name).state_dict(), getattr(pipelines[family], name).state_dict())
        assert equal(getattr(ours, name).state_dict(), getattr(stock, name).state_dict())
    assert ours.tokenizer("a photo of a dog").input_ids == stock.tokenizer("a photo of a dog").input_ids
    assert equal(open_part("unet", files[family]).state_dict(), ours.unet.state_dict())


def test_half_precision_stays_as_it_is_in_the_cache(pipelines, tmp_path):
    file = write_original(pipelines["sd1"], "sd1", tmp_path / "half.safetensors", torch.float16)
    with safe_open(folder_of(file) / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        assert weights.get_slice("conv_in.weight").get_dtype() == "F16"
    wanted = pipelines["sd1"].unet.conv_in.weight.half().float()
    assert torch.equal(load_pipeline(file, "cpu", "fp32").unet.conv_in.weight, wanted)


def test_a_row_says_what_the_file_is_and_takes_its_familys_settings(files):
    row = base_row(files["sd2"])
    said = f"Stable Diffusion 2.x in one file, predicts the noise (by {files['sd2'].with_suffix('')})"
    assert (row.path, row.preset, row.motion_adapter) == (str(files["sd2"]), "sd15", None)
    assert describe_base(row) == f"base {files['sd2']}: {said}, drawn with the settings of sd15"
    assert base_row(files["sd1"]).motion_adapter is not None
    assert (base_row(files["sdxl"]).preset, base_row(files["sdxl"]).sampling.eta) == ("sdxl", 0)
    titles = [family_of(files[each.name]).title for each in FAMILIES]
    assert titles == ["Stable Diffusion 1.x or 2.x", "Stable Diffusion 1.x or 2.x", "Stable Diffusion XL"]


def test_paths_as_people_write_them(files, monkeypatch):
    monkeypatch.chdir(files["sd1"].parent)
    monkeypatch.setenv("HOME", str(files["sd1"].parent))
    for given in ("sd1.safetensors", "./sd1.safetensors", "~/sd1.safetensors"):
        check_named_base(given)
        assert folder_of(base_row(given).path) == folder_of(files["sd1"])
    with pytest.raises(UserError, match="other.safetensors is unknown: give toon, .*, a .safetensors file"):
        check_named_base("other.safetensors")
    with pytest.raises(UserError, match="base model file my/model.safetensors does not exist"):
        check_named_base("my/model.safetensors")
    with pytest.raises(UserError, match="is a file, which has no --revision or --variant: leave them out"):
        check_named_base("sd1.safetensors", variant="fp16")


# The families' own configurations, at their real size: names and shapes alone, in files with holes.

UNETS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}  # numbers of the published UNets


def outline(family: Family) -> SimpleNamespace:
    """The family's parts without numbers."""
    contents = configuration(SingleFile(Path("x"), family, EPSILON, False, "", None))
    parts = {}
    with torch.device("meta"):
        for name, kind in WITH_WEIGHTS.items():
            config = contents.get(f"{name}/config.json")
            if config and name.startswith("text"):
                parts[name] = kind(CLIPTextConfig(**config))
            elif config:
                parts[name] = kind.from_config(config)
    return SimpleNamespace(**parts)


def hollow(folder: Path, family: Family, metadata: dict | None = None, **more: list[int]) -> Path:
    """A file of the family's real size without weights, of which only the header takes room."""
    with torch.device("meta"):
        tensors = original_tensors(outline(family), family.name)
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    return write_hollow(folder / "model.safetensors", shapes | more, metadata)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda each: each.name)
def test_the_published_shapes_are_those_of_the_familys_own_configuration(tmp_path, family):
    file = hollow(tmp_path, family)
    found = single_file(file)
    check_layout(found, Path(configuration_of(file)))
    assert (found.family, found.prediction, found.configured) == (family, EPSILON, None)
    assert sum(value.numel() for value in outline(family).unet.parameters()) == UNETS[family.name]


def test_the_vocabulary_is_clips(tmp_path):
    tokenizer = read_tokenizer(configuration_of(hollow(tmp_path, SD1)))
    assert len(tokenizer) == 49408 and tokenizer.model_max_length == 77
    ids = tokenizer("a photo of a dog", padding="max_length").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 1929] + [49407] * 71


MARKED = {  # tensors and metadata of a file -> what it predicts, zero terminal SNR, why
    "nothing": ({}, {}, EPSILON, False, "as Stable Diffusion 1.x does"),
    "marker": ({"v_pred": [0]}, {}, VELOCITY, False, "by its marker v_pred"),
    "both markers": ({"v_pred": [0], "ztsnr": [0]}, {}, VELOCITY, True, "by its marker v_pred"),
    "metadata": ({}, {"modelspec.prediction_type": "v"}, VELOCITY, False, "by its metadata"),
}


@pytest.mark.parametrize("marks", MARKED)
def test_what_a_file_predicts(marks, tmp_path):
    more, metadata, prediction, zero_snr, why = MARKED[marks]
    file = hollow(tmp_path, SD1, metadata, **more)
    found = single_file(file)
    assert (found.prediction, found.zero_snr, found.why) == (prediction, zero_snr, why)
    scheduler = base_config(file, "scheduler/scheduler_config.json")
    assert scheduler["prediction_type"] == prediction
    assert scheduler.get("rescale_betas_zero_snr", False) == zero_snr


@pytest.mark.parametrize("spread, prediction, side", [(0.05, EPSILON, 64), (0.2, VELOCITY, 96)])
def test_a_stable_diffusion_2_says_by_its_weights_what_it_predicts(spread, prediction, side, tmp_path):
    file = hollow(tmp_path, SD2)
    header, begin = header_of(file)
    start, end = header[SPREAD_OF]["data_offsets"]
    with file.open("r+b") as opened:
        opened.seek(begin + start)
        opened.write(torch.tensor([spread, -spread]).repeat((end - start) // 4).half().numpy().tobytes())
    assert (single_file(file).prediction, single_file(file).why) == (prediction, "by its weights")
    assert base_config(file, "unet/config.json")["sample_size"] == side


OTHERS = {
    "a LoRA": {"lora_unet_down_blocks_0.lora_up.weight": [4, 2]},
    "a textual inversion embedding": {"emb_params": [2, 768]},
    "a textual inversion embedding ": {"clip_l": [2, 768], "clip_g": [2, 1280]},
    "a ControlNet": {"control_model.time_embed.0.weight": [4, 4]},
    "an AnimateDiff motion module": {"down_blocks.0.motion_modules.0.norm.weight": [4], "b": [1]},
    "a Stable Diffusion 3": {f"{U}joint_blocks.0.x_block.weight": [4, 4], "b": [1]},
    "a Flux": {"double_blocks.0.img_attn.norm.key_norm.scale": [4], "b": [1]},
    "an autoencoder (VAE) alone": {"decoder.conv_in.weight": [4, 4, 3, 3], "encoder.conv_in.bias": [4]},
    "a UNet alone, of a pipeline folder": {"down_blocks.0.resnets.0.conv1.weight": [4, 4, 3, 3], "b": [1]},
    "a text encoder alone": {"text_model.embeddings.token_embedding.weight": [9, 4], "b": [1]},
    "of an unknown kind (2 tensors, e.g. a)": {"a": [4], "b": [4]},
    "an inpainting model": {f"{U}input_blocks.0.0.weight": [4, 9, 3, 3], "b": [1]},
    "an InstructPix2Pix model": {f"{U}input_blocks.0.0.weight": [4, 8, 3, 3], "b": [1]},
    "the refiner of Stable Diffusion XL": {
        f"{U}input_blocks.0.0.weight": [4, 4, 3, 3],
        "conditioner.embedders.0.model.ln_final.bias": [4],
    },
}
NO_SAFETENSORS = {
    "an empty file": b"",
    "not a whole safetensors file (": b"\xff" * 8,  # a header of 2**64 - 1 bytes
    "not a whole safetensors file ( ": (2**33).to_bytes(8, "little") + b"{" * 100,
    "not a whole safetensors file (  ": (9).to_bytes(8, "little") + b'{"a": [1]',
    "not a whole safetensors file (   ": (200).to_bytes(8, "little") + b"[" * 200,
    "a pickled checkpoint (.ckpt)": b"PK\x03\x04" + bytes(100),
    "a pickled checkpoint (.ckpt) ": b"\x80\x02}q\x00." + bytes(100),
    "a quantised GGUF file": b"GGUF" + bytes(100),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "a web page": b"<!DOCTYPE html><html></html>",
}


@pytest.mark.parametrize("what", [*OTHERS, *NO_SAFETENSORS])
def test_what_is_no_base_is_named(what, tmp_path):
    file = tmp_path / "model.safetensors"
    if what in OTHERS:
        write_hollow(file, OTHERS[what])
    else:
        file.write_bytes(NO_SAFETENSORS[what])
    for command in (check_named_base, base_row, family_of, load_pipeline):
        with pytest.raises(UserError) as mistake:
            command(file)
        assert str(mistake.value).startswith(f"base model {file} is {what.strip()}")
        assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999999])
def test_a_download_that_was_cut_off(share, files, tmp_path):
    content = files["sd1"].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="is not a whole safetensors file .*download it again"):
        check_named_base(tmp_path / "cut.safetensors")


def test_a_file_without_one_of_the_parts(files, tmp_path):
    for prefix, part in (("cond_stage_model.", "text encoder"), ("first_stage_model.", "autoencoder")):
        gone = {name: None for name in load_file(files["sd1"]) if name.startswith(prefix)}
        with pytest.raises(UserError, match=f"has no {part}: give the file with all parts"):
            base_row(copied(files["sd1"], tmp_path / part, **gone))


BIAS = f"{U}out.2.bias"
WRONG = {
    "its unet has 1 missing weights, e.g. conv_out.bias: it is damaged": {BIAS: None},
    "its unet has 1 differently shaped weights, e.g. conv_out.bias: it is damaged": {BIAS: torch.zeros(5)},
    "its unet has 1 unexpected weights, e.g. model.diffusion_model.x": {f"{U}x": torch.zeros(4)},
    "conv_out.bias of its unet is not finite; the file is damaged": {BIAS: torch.full((4,), float("nan"))},
    "is stored as F8_E4M3: give it in one of F32, F16, BF16": {BIAS: torch.zeros(4).to(torch.float8_e4m3fn)},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_weights_that_are_not_those_of_the_configuration(wrong, files, tmp_path):
    file = copied(files["sd1"], tmp_path / "changed", **WRONG[wrong])
    before = sorted(cache_folder().glob("models/[!.]*"))
    with pytest.raises(UserError, match=wrong):
        load_pipeline(file)
    assert sorted(cache_folder().glob("models/[!.]*")) == before
    assert not list(cache_folder().glob("models/.*.new"))
