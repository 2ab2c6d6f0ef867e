"""scripts.export as a user runs it: every format is opened again, by stock diffusers where it can."""

import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from scripts.export import main as export
from tests.tiny_models import tiny_pipeline
from utils.bases import load_pipeline
from utils.common.errors import UserError
from utils.concepts.export import check_exportable
from utils.concepts.formats import read_concept
from utils.concepts.load import load_concept
from utils.concepts.save import save_concept
from utils.concepts.weights import ConceptWeights
from utils.learners.layer_rows import layer_keys
from utils.training.lock import RunLock

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def concepts(tiny_base, tmp_path_factory) -> Path:
    """dog (K/V and a row), pair (two rows), inversion (a row alone), xti, svdiff, crossattn (also Q, out)."""
    folder = tmp_path_factory.mktemp("concepts")
    unet = tiny_pipeline(folder / "words").unet
    torch.manual_seed(1)
    cross = {
        name: (weight + 0.1 * torch.randn_like(weight)).detach()
        for name, weight in unet.named_parameters()
        if ".attentions." in name and ".attn2." in name
    }
    kv = {name: weight for name, weight in cross.items() if re.search(r"to_[kv]\.weight", name)}
    rows = {"<new1>": torch.randn(32), "<new2>": torch.randn(32)}
    one = {"<new1>": rows["<new1>"]}
    save_concept(folder / "dog", kv, one, base=str(tiny_base), classes=["dog"])
    save_concept(folder / "pair", kv, rows, base=str(tiny_base), classes=["teddy bear", "dog"])
    save_concept(folder / "inversion", {}, one, base=str(tiny_base), classes=["dog"])
    layers = {"layer_rows": dict.fromkeys(layer_keys(unet), torch.randn(1, 32))}
    save_concept(folder / "xti", {}, one, base=str(tiny_base), classes=["dog"], parts=layers)
    shifts = {"spectral": {"conv_in.weight": torch.randn(4)}}
    save_concept(folder / "svdiff", {}, one, base=str(tiny_base), classes=["dog"], parts=shifts)
    torch.save({"unet": cross, "modifier_token": one}, folder / "crossattn.bin")
    return folder


def state(base, path):
    pipeline = load_pipeline(base, "cpu", "fp32")
    load_concept(pipeline, path)
    return pipeline.unet.state_dict(), pipeline.text_encoder.get_input_embeddings().weight


def test_command_writes_a_lora_and_says_how_good_it_is(concepts, tmp_path):
    command = [sys.executable, "-m", "scripts.export", concepts / "dog", tmp_path / "out"]
    command += ["--error=0.3", "--alias=rex1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {path.name for path in tmp_path.glob("out/*")} == {"dog_lora.safetensors", "rex1.safetensors"}
    rank, error = re.search(
        r"rank (\d+), fp16, relative error of all layers' outputs (\S+)", done.stdout
    ).groups()
    assert float(error) <= 0.3 and 1 < int(rank) < 32
    assert "<new1> in diffusers is rex1 in A1111's prompts and embedding:rex1 in ComfyUI's" in done.stdout


def test_rank_sets_the_size(concepts, tmp_path):
    for rank in (2, 8):
        export([str(concepts / "dog"), str(tmp_path / str(rank)), f"--rank={rank}"])
    sizes = [
        sum(
            v.numel() for k, v in load_file(tmp_path / r / "dog_lora.safetensors").items() if "alpha" not in k
        )
        for r in ("2", "8")
    ]
    assert sizes[1] == 4 * sizes[0]


def test_diffusers_is_a_pipeline_of_its_own(concepts, tiny_base, tmp_path):
    export([str(concepts / "pair"), str(tmp_path / "out"), "--format=diffusers"])
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "out", dtype=torch.float32)
    unet, table = state(tiny_base, concepts / "pair")
    assert all(torch.equal(value, unet[name]) for name, value in stock.unet.state_dict().items())
    assert torch.equal(stock.text_encoder.get_input_embeddings().weight, table)
    ids = stock.tokenizer("a photo of a <new1> dog and a <new2> dog").input_ids
    assert ids.count(len(table) - 2) == 1 and ids.count(len(table) - 1) == 1
    assert stock.text_encoder.config.eos_token_id == stock.tokenizer.eos_token_id  # whoever pools gets EOS
    padded = stock.tokenizer("a <new1> dog", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        output = stock.text_encoder(padded)
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, 4])  # BOS a <new1> dog EOS
    export([str(concepts / "pair"), str(tmp_path / "half"), "--format=diffusers", "--dtype=fp16"])
    half = load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in half.values()} == {torch.float16}


def test_official_is_read_like_the_original(concepts, tmp_path):
    export([str(concepts / "pair"), str(tmp_path / "out"), "--format=official"])
    names = {"pytorch_custom_diffusion_weights.bin", "<new1>.bin", "<new2>.bin"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    content = torch.load(tmp_path / "out" / "pytorch_custom_diffusion_weights.bin", weights_only=True)
    empty = [key for key, value in content.items() if value == {}]
    assert len(empty) * 2 == len(content) - len(empty) and all(k.endswith(".attn1.processor") for k in empty)
    ours, back = read_concept(concepts / "pair"), read_concept(tmp_path / "out")
    assert all(torch.equal(back.weights[name], value) for name, value in ours.weights.items())
    assert all(torch.equal(back.rows[token], row) for token, row in ours.rows.items())
    stock = tiny_pipeline(tmp_path / "words")
    stock.unet.load_attn_procs(
        tmp_path / "out", weight_name="pytorch_custom_diffusion_weights.bin", _pipeline=stock
    )


def test_embedding_opens_in_stock_diffusers(concepts, tiny_base, tmp_path):
    export([str(concepts / "inversion"), str(tmp_path / "out"), "--format=embedding", "--alias=rex1"])
    row = read_concept(concepts / "inversion").rows["<new1>"]
    for file, token in [("rex1.safetensors", None), ("kohya/rex1.safetensors", "<rex>")]:
        stock = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
        stock.load_textual_inversion(tmp_path / "out" / file, token=token)
        token_id = stock.tokenizer.convert_tokens_to_ids(token or "<new1>")
        assert torch.equal(stock.text_encoder.get_input_embeddings().weight[token_id], row)
    assert list(load_file(tmp_path / "out" / "kohya" / "rex1.safetensors")) == ["emb_params"]


def test_a_lora_read_back_can_be_exported_again(concepts, tiny_base, tmp_path):
    export([str(concepts / "pair"), str(tmp_path / "lora"), "--error=0", "--dtype=fp32"])
    assert {p.name for p in (tmp_path / "lora").iterdir()} == {
        "pair_lora.safetensors",
        "teddy_bear1.safetensors",
        "dog1.safetensors",
    }
    export([str(tmp_path / "lora"), str(tmp_path / "official"), "--format=official"])
    ours, back = read_concept(concepts / "pair"), read_concept(tmp_path / "official")
    for name, value in ours.weights.items():
        torch.testing.assert_close(back.weights[name], value, atol=1e-6, rtol=1e-5)


def test_a_part_that_no_format_knows_is_refused():
    """Methods to come train more; what they add to ConceptWeights must not be left out in silence."""

    @dataclass(frozen=True)
    class Later(ConceptWeights):
        spectral_shifts: dict[str, torch.Tensor] = field(default_factory=dict)

    later = Later(rows={"<new1>": torch.zeros(2)}, spectral_shifts={"conv_in": torch.zeros(2)})
    for layout in ("lora", "diff", "embedding", "official"):
        with pytest.raises(UserError, match=f"dog trained spectral_shifts, which {layout} cannot hold"):
            check_exportable(later, Path("dog"), layout)
    check_exportable(later, Path("dog"), "diffusers")


@pytest.mark.parametrize("format", ["lora", "diff", "diffusers", "official"])
def test_files_get_the_umasks_mode(concepts, tmp_path, format):
    before = os.umask(0o027)
    try:
        export([str(concepts / "dog"), str(tmp_path / "out"), f"--format={format}"])
    finally:
        os.umask(before)
    paths = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o750}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o640}


REFUSED = {
    "no concept": (["none"], "none does not exist"),
    "rows alone": (["inversion"], "has no K/V, only token rows; use --format embedding"),
    "K/V": (["dog", "--format=embedding"], "has K/V, which an embedding would leave out"),
    "q and out": (["crossattn.bin"], "lora holds K and V only; use --format diffusers"),
    "rows of layers": (["xti"], "xti trained rows of each layer, which no format of this command can hold"),
    "rows of layers, embedding": (["xti", "--format=embedding"], "no format of this command can hold"),
    "rows of layers, merged": (["xti", "--format=diffusers"], "no format of this command can hold"),
    "singular values": (
        ["svdiff"],
        "svdiff trained spectral, which lora cannot hold; use --format diffusers",
    ),
    "format": (["dog", "--format=ckpt"], "--format ckpt is unknown: choose from lora, diff"),
    "rank": (["dog", "--rank=64"], "--rank 64: rank 32 is exact already"),
    "rank and error": (["dog", "--rank=2", "--error=.1"], "--rank and --error both choose the rank"),
    "rank of a diff": (["dog", "--format=diff", "--rank=2"], "--rank has no effect on --format diff"),
    "base of an embedding": (
        ["inversion", "--format=embedding", "--base=toon"],
        "--base has no effect on --format embedding",
    ),
    "alias": (["dog", "--alias=<new1>"], "--alias <new1> does not work in every tool"),
    "windows": (["dog", "--alias=con"], "--alias con does not work in every tool"),
    "two aliases": (["dog", "--alias=a1+b1"], "has 2 names for 1 tokens"),
    "same alias": (["pair", "--alias=a1+A1"], "repeats a name"),
    "own name": (["dog", "--alias=dog_lora"], "is the name of the LoRA's own file"),
    "base": (["dog", "--base=nowhere/at/all"], "base model nowhere/at/all is neither"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_write_nothing(concepts, tmp_path, arguments, message):
    concept, *flags = arguments
    with pytest.raises(UserError, match=re.escape(message)) as mistake:
        export([str(concepts / concept), str(tmp_path / "out"), *flags])
    assert "\n" not in str(mistake.value) and not list(tmp_path.iterdir())


def test_a_full_folder_is_kept(concepts, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        export([str(concepts / "dog"), str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_link_to_an_empty_folder_is_written_through(concepts, tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large")
    export([str(concepts / "dog"), str(tmp_path / "out"), "--format=official"])
    assert (tmp_path / "out").is_symlink()
    assert sorted(os.listdir(tmp_path / "large")) == ["<new1>.bin", "pytorch_custom_diffusion_weights.bin"]


def test_what_a_killed_export_left_is_removed_and_a_living_one_is_not_disturbed(concepts, tmp_path):
    left = tmp_path / ".out.new"
    left.mkdir()
    (left / "half.safetensors").write_bytes(bytes(1000))
    with RunLock(left), pytest.raises(UserError, match=r"\.out\.new is in use by"):
        export([str(concepts / "inversion"), str(tmp_path / "out"), "--format=embedding"])
    assert (left / "half.safetensors").exists()
    export([str(concepts / "inversion"), str(tmp_path / "out"), "--format=embedding"])
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["dog1.safetensors", "kohya"]


def test_flags_are_checked_before_torch_is_imported():
    code = """
import sys
from scripts.export import main
from utils.common.errors import UserError
try:
    main(["ckpt/dog", "--rank=0"])
except UserError:
    sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_a_concept_that_names_no_base_needs_one(concepts, tiny_base, tmp_path):
    with pytest.raises(UserError, match="does not say what base model .* give it with --base"):
        export([str(concepts / "crossattn.bin"), str(tmp_path / "out"), "--format=diffusers"])
    export(
        [str(concepts / "crossattn.bin"), str(tmp_path / "out"), "--format=diffusers", f"--base={tiny_base}"]
    )
    unet, _ = state(tiny_base, concepts / "crossattn.bin")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "out").unet.state_dict()
    assert all(torch.equal(value, unet[name]) for name, value in stock.items())
