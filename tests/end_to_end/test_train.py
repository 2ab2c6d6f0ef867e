"""train_classdiffusion.py as a user runs it, on a tiny pipeline: what it learns, writes, says and refuses."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import train_classdiffusion
import utils.bases.sd
import utils.training.config
import utils.training.output_flags
import utils.training.prior
import utils.training.validation
from utils.bases.sd import encode_images, load_pipeline
from utils.bases.text import tokenize
from utils.concepts.load import load_concept
from utils.errors import UserError, exit_on_user_error
from utils.sampling.images import sample
from utils.seeds import seed_of
from utils.training.dataset import InstanceDataset, collate
from utils.training.lock import LOCK_FILE
from utils.training.methods import METHODS
from utils.training.noise import draw_noise

REPOSITORY = Path(__file__).parents[2]
KV_FILE = "pytorch_custom_diffusion_weights.safetensors"
KV_NAMES = {
    f"{block}.attentions.{number}.transformer_blocks.0.attn2.{matrix}.weight"
    for block, layers in {"down_blocks.0": 1, "mid_block": 1, "up_blocks.1": 2}.items()
    for number in range(layers)
    for matrix in ("to_k", "to_v")
}
PROMPT = "a photo of a <new1> dog"
RATES = ["lr_token_rows", "lr_cross_attention_kv"]


def learned(folder: Path) -> dict[str, Tensor]:
    """A saved concept under the UNet's names and the tokens."""
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return {re.sub(r"processor\.(to_[kv])_custom_diffusion", r"\1", key): found[key] for key in found}


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between the numbers of two concepts."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def base_weights(tiny_base: Path) -> dict[str, Tensor]:
    """Where learning starts: the base's K/V, and the row of ktn."""
    pipeline = load_pipeline(tiny_base, "cpu")
    start = {name: weight.detach() for name, weight in pipeline.unet.named_parameters() if name in KV_NAMES}
    (ktn,) = pipeline.tokenizer("ktn", add_special_tokens=False).input_ids
    return start | {"<new1>": pipeline.text_encoder.get_input_embeddings().weight[ktn].detach()}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[StableDiffusionPipeline]:
    """The pipelines that training has loaded and changed."""
    pipelines: list[StableDiffusionPipeline] = []

    set_up = train_classdiffusion.set_up

    def set_up_and_keep(config):
        run = set_up(config)
        pipelines.append(run.base.pipeline)
        return run

    monkeypatch.setattr(train_classdiffusion, "set_up", set_up_and_keep)
    return pipelines


@pytest.fixture
def quick_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two denoising steps wherever training draws images."""

    def two_steps(pipeline, prompts, seeds, *args, batch_size=4, **kwargs):
        return sample(pipeline, prompts, seeds, num_inference_steps=2, batch_size=batch_size)

    monkeypatch.setattr(utils.training.prior, "sample", two_steps)
    monkeypatch.setattr(utils.training.validation, "sample", two_steps)


# The command


@pytest.fixture(scope="module")
def official(tiny_base: Path, pictures, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """The official single-concept command, at the tiny model's size and without Weights & Biases."""
    folder = tmp_path_factory.mktemp("official")
    shutil.copytree(pictures("dog"), folder / "dog")
    (folder / "dog" / "notes.txt").touch()
    command = [
        *(sys.executable, "train_classdiffusion.py", f"--pretrained_model_name_or_path={tiny_base}"),
        *(f"--instance_data_dir={folder / 'dog'}", f"--output_dir={folder / 'out'}"),
        *(f"--instance_prompt={PROMPT}", "--resolution=16", "--train_batch_size=2", "--learning_rate=1e-5"),
        *(
            "--lr_warmup_steps=0",
            "--max_train_steps=3",
            "--scale_lr",
            "--hflip",
            "--modifier_token",
            "<new1>",
        ),
        *("--no_safe_serialization", "--use_spl", "--spl_weight=1", "--cls_token", "dog"),
        *("--report_to", "none", "--validation_steps=2", "--validation_prompt=a <new1> dog running"),
        *("--tracker_name", "custom-diffusion-multi", "--num_validation_images=2"),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done, folder


def test_command_says_what_trains_on_what_and_where_the_concept_is(official, tiny_base):
    done, folder = official
    assert done.stdout.splitlines() == [
        f"skipped {folder / 'dog' / 'notes.txt'}: not an image",
        f"ClassDiffusion: <new1> dog, 3 images of 16 px, on {tiny_base}, 1 x cpu",
        "steps 1 to 3: rows 32 at 2e-05, K/V 10,240 at 2e-05; loss L_denoise + 1 · L_spl",
        f"the concept is in {folder / 'out'}, its log in {folder / 'out' / 'log.jsonl'}",
    ]
    progress = [line for line in re.split(r"[\r\n]|\x1b\[A", done.stderr) if line]
    drawing = "2 of 'a <new1> dog running', 100 steps each: "
    progress = [line.strip() for line in progress if line.strip()]
    assert [line for line in progress if not line.startswith(("training: ", drawing))] == []
    bars = [line for line in progress if line.startswith("training: ")]
    assert "3/3" in bars[-1] and "loss_spl=" in bars[-1]
    assert any(line.startswith(drawing) for line in progress)


def test_command_logs_every_step(official):
    lines = records(official[1] / "out")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert list(line) == ["step", "loss_denoise", "loss_spl", "loss", *RATES]
        assert line["lr_cross_attention_kv"] == pytest.approx(2e-5, rel=1e-12)  # 1e-5 x batch 2
        assert line["loss"] == pytest.approx(line["loss_denoise"] + line["loss_spl"], abs=1e-6)
        assert 0 < line["loss_spl"] < 2


def test_no_safe_serialization_writes_the_official_bin_files(official, base_weights):
    out = official[1] / "out"
    assert {path.name for path in out.rglob("*.safetensors")} == {"training_state.safetensors"}
    weights = torch.load(out / "pytorch_custom_diffusion_weights.bin", weights_only=True)
    kv = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    rename = {
        name.replace(".to_", ".processor.to_").replace(".weight", "_custom_diffusion.weight"): name
        for name in KV_NAMES
    }
    assert kv.keys() == rename.keys()
    moved = max((kv[key] - base_weights[name]).abs().max().item() for key, name in rename.items())
    assert 1e-5 < moved < 3 * 2.1e-5  # three AdamW steps of at most the learning rate
    token = torch.load(out / "<new1>.bin", weights_only=True)
    assert list(token) == ["<new1>"] and token["<new1>"].shape == (32,)
    assert (out / "<new1>.bin").stat().st_size < 10_000


def test_validation_images_at_every_multiple_and_at_the_end(official):
    folder = official[1] / "out" / "validation"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00002", "step-00003"]
    for step in folder.iterdir():
        assert sorted(path.name for path in step.iterdir()) == ["grid.png", "seed-0.png", "seed-1.png"]
        with Image.open(step / "seed-1.png") as picture:
            assert picture.size == (16, 16)
            assert picture.text == {"prompt": "a <new1> dog running", "seed": "1"}


def test_last_step_is_a_checkpoint_and_the_concept(official, tiny_base):
    out = official[1] / "out"
    (checkpoint,) = out.glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-3"
    concept = {name for name in files_in(out) if "/" not in name and name not in ("log.jsonl", LOCK_FILE)}
    assert concept == {
        "pytorch_custom_diffusion_weights.bin",
        "<new1>.bin",
        "concept.json",
        "training_config.json",
    }
    assert files_in(checkpoint).keys() == concept | {"training_state.safetensors", "manifest.json"}
    for name in concept:
        assert (out / name).read_bytes() == (checkpoint / name).read_bytes()
    saved = json.loads((out / "training_config.json").read_text())
    assert (saved["resolution"], saved["scale_lr"], saved["validation_steps"]) == (16, True, 2)
    assert json.loads((out / "concept.json").read_text())["base"] == str(tiny_base)


# What is learned


def hand_made_first_step(base: Path, settings: dict[str, object]) -> tuple[float, float]:
    """(loss_denoise, loss_spl) of step 1 from the stock base: every <new1> starts as the rare word ktn."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    concepts = utils.training.config.TrainConfig(**settings).concepts()
    instances = InstanceDataset(concepts, METHODS["classdiffusion"], 16, 2, seed=7, hflip=True, noaug=False)
    batch = collate([instances.instance_item(number) for number in (0, 1)])
    keys = [("instance", 0), ("instance", 1)]
    posterior_noise, noise, timesteps = draw_noise(7, keys, (4, 8, 8), 1000)
    alpha = pipeline.scheduler.alphas_cumprod[timesteps].reshape(2, 1, 1, 1)

    def encode(phrases: list[str]) -> Tensor:
        return pipeline.text_encoder(tokenize(pipeline.tokenizer, phrases)).last_hidden_state

    with torch.no_grad():
        latents = encode_images(pipeline.vae, batch.pixels, posterior_noise)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        text = encode([caption.replace("<new1>", "ktn") for caption in batch.captions])
        error = (pipeline.unet(noisy, timesteps, text).sample - noise).square()
        modified, plain = encode(["a photo of a ktn dog"])[0], encode(["a photo of a dog"])[0]
    by_image = [(e * m).sum() / m.sum() for e, m in zip(error, batch.mask, strict=True)]
    # BOS a photo of a ktn dog EOS: EOS is token 7, the modifier token 5; in the class phrase EOS is token 6.
    at = {"eos": 7, "modifier": 5}[settings["spl_pool"]]
    return sum(by_image).item() / 2, 1 - F.cosine_similarity(modified[at], plain[6], dim=0).item()


@pytest.mark.parametrize("spl_pool", ["eos", "modifier"])
def test_first_losses_are_those_computed_by_hand(train, tiny_base, pictures, tmp_path, spl_pool):
    settings = dict(seed=7, hflip=True, spl_pool=spl_pool, spl_weight=0.25, cls_token="dog")
    line = records(train(tmp_path / "out", max_train_steps=1, **settings))[0]
    concept = dict(instance_data_dir=str(pictures("dog")), instance_prompt=PROMPT)
    denoise, spl = hand_made_first_step(tiny_base, settings | concept)
    assert line["loss_denoise"] == pytest.approx(denoise, rel=1e-5)
    assert line["loss_spl"] == pytest.approx(spl, abs=1e-5)
    assert line["loss"] == pytest.approx(denoise + 0.25 * spl, rel=1e-5)


def test_first_step_moves_rows_and_kv_by_their_learning_rates(train, base_weights, tmp_path):
    out = train(tmp_path, max_train_steps=1, token_learning_rate=5e-3, adam_weight_decay=0)
    after = learned(out)
    assert after.keys() == KV_NAMES | {"<new1>"}
    for name, value in after.items():
        rate = 5e-3 if name == "<new1>" else 1e-3
        assert (value - base_weights[name]).abs().max().item() == pytest.approx(rate, rel=0.01), name


def test_nothing_but_rows_and_kv_changes(train, kept, tiny_base, tmp_path):
    out = train(tmp_path, hflip=True, learning_rate=1e-2)
    (trained,), base = kept, load_pipeline(tiny_base, "cpu")
    after, before = trained.unet.state_dict(), base.unet.state_dict()
    assert after.keys() == before.keys()
    assert {name for name in after if not torch.equal(after[name], before[name])} == KV_NAMES
    assert all(torch.equal(v, base.vae.state_dict()[k]) for k, v in trained.vae.state_dict().items())
    after, before = trained.text_encoder.state_dict(), base.text_encoder.state_dict()
    table = next(name for name in before if name.endswith("token_embedding.weight"))
    prefix = table.removesuffix("weight")
    renamed = {name.replace(f"{prefix}table.", prefix): value for name, value in after.items()}
    rows = renamed.pop(f"{prefix}learned.weight")
    assert renamed.keys() == before.keys()
    assert all(torch.equal(renamed[name], before[name]) for name in before)
    assert torch.equal(rows[0], learned(out)["<new1>"])


def test_seed_decides(train, tmp_path):
    first, again, other = (train(tmp_path / name, seed=name[0]) for name in ("1a", "1b", "2"))
    assert apart(learned(first), learned(again)) == 0 and records(first) == records(again)
    assert apart(learned(first), learned(other)) > 1e-4


# Methods


def test_kv_only_has_no_semantic_loss(train, base_weights, tmp_path):
    out = train(tmp_path / "a", method="kv_only", cls_token=None)
    assert [list(line) for line in records(out)] == [["step", "loss_denoise", "loss", *RATES]] * 2
    assert all(line["loss"] == line["loss_denoise"] for line in records(out))
    assert apart(learned(out), base_weights) > 1e-3
    assert json.loads((out / "concept.json").read_text())["classes"] == [None]

    told = train(tmp_path / "b", method="kv_only")  # the class is known: SPL is logged, not added
    assert all(line["loss"] == line["loss_denoise"] and line["loss_spl"] > 0 for line in records(told))
    assert apart(learned(told), learned(out)) < 1e-5

    added = train(tmp_path / "c", method="kv_only", use_spl=True)
    assert apart(learned(added), learned(train(tmp_path / "d"))) == 0  # then it is classdiffusion


def test_textual_inversion_learns_the_row_alone(train, kept, tiny_base, tmp_path):
    out = train(tmp_path, method="textual_inversion", instance_prompt=None, token_learning_rate=1e-2)
    assert [file.name for file in out.glob("*.safetensors")] == ["<new1>.safetensors"]
    base = load_pipeline(tiny_base, "cpu")
    (dog,) = base.tokenizer("dog", add_special_tokens=False).input_ids  # it starts from its class word
    start = base.text_encoder.get_input_embeddings().weight[dog].detach()
    assert 5e-3 < (learned(out)["<new1>"] - start).abs().max().item() < 2.1e-2
    assert all(line["lr_token_rows"] == 1e-2 for line in records(out))
    after = kept[0].unet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in base.unet.state_dict().items())
    assert load_concept(base, out).merged == ()


def test_several_concepts(train, pictures, tiny_base, tmp_path):
    concepts = [
        {"instance_prompt": "a photo of a <new1> teddy bear", "instance_data_dir": str(pictures("bear"))},
        {"instance_prompt": "a photo of a <new2> barn", "instance_data_dir": str(pictures("house"))},
    ]
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    out = train(
        tmp_path / "out",
        instance_data_dir=None,
        instance_prompt=None,
        concepts_list=tmp_path / "concepts.json",
        modifier_token="<new1>+<new2>",
        cls_token="teddy bear+barn",
        max_train_steps=3,  # 6 images, each seen once
    )
    pipeline = load_pipeline(tiny_base, "cpu")
    tokenizer, table = pipeline.tokenizer, pipeline.text_encoder.get_input_embeddings().weight
    vocabulary, rows = len(tokenizer), learned(out)
    for token, start in {"<new1>": "ktn", "<new2>": "pll"}.items():
        (word_id,) = tokenizer(start, add_special_tokens=False).input_ids
        assert 1e-3 < (rows[token] - table[word_id]).abs().max().item() < 4e-3

    phrases = ["ktn teddy bear", "teddy bear", "pll barn", "barn"]
    ids = tokenize(tokenizer, [f"a photo of a {phrase}" for phrase in phrases])
    with torch.no_grad():
        hidden = pipeline.text_encoder(ids).last_hidden_state
    eos = [words.index(tokenizer.eos_token_id) for words in ids.tolist()]
    at = [states[position] for states, position in zip(hidden, eos, strict=True)]
    distances = [1 - F.cosine_similarity(at[i], at[i + 1], dim=0).item() for i in (0, 2)]
    assert records(out)[0]["loss_spl"] == pytest.approx(sum(distances) / 2, abs=1e-5)

    concept = load_concept(pipeline, out)
    assert concept.token_ids == {"<new1>": vocabulary, "<new2>": vocabulary + 1}
    assert concept.classes == ("teddy bear", "barn")


def test_prior_preservation(train, base_weights, tmp_path, quick_sampling, monkeypatch):
    settings = dict(with_prior_preservation=True, class_prompt="a photo of a dog", num_class_images=3)
    weights = dict(spl_weight=0.5, prior_loss_weight=2)
    out = train(tmp_path / "out", **settings, **weights)
    folder = out / "class_images" / "0"
    names = [f"class-0000{number}.png" for number in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == names
    for number, name in enumerate(names):
        with Image.open(folder / name) as picture:
            seed = seed_of(0, "class image", number)
            assert picture.text == {"prompt": "a photo of a dog", "seed": str(seed)}
    for line in records(out):
        assert list(line) == ["step", "loss_denoise", "loss_spl", "loss_prior", "loss", *RATES]
        total = line["loss_denoise"] + 0.5 * line["loss_spl"] + 2 * line["loss_prior"]
        assert line["loss"] == pytest.approx(total, abs=1e-6) and line["loss_prior"] > 0.1

    monkeypatch.setattr(utils.training.prior, "sample", None)  # all images are there: none is drawn again
    again = train(tmp_path / "again", **settings, **weights, class_data_dir=folder)
    assert apart(learned(again), learned(out)) == 0
    without = train(
        tmp_path / "without", **settings, spl_weight=0.5, prior_loss_weight=0, class_data_dir=folder
    )
    assert apart(learned(without), learned(out)) > 1e-5  # the gradient of the prior term arrives
    assert apart(learned(out), base_weights) > 1e-3


# The concept, used


def test_saved_concept_is_the_trained_one(train, kept, tiny_base, tmp_path):
    out = train(tmp_path, learning_rate=0.05)
    assert (out / "<new1>.safetensors").stat().st_size < 10_000
    ours, stock = load_pipeline(tiny_base, "cpu"), stock_pipeline(tiny_base)
    assert set(load_concept(ours, out).merged) == KV_NAMES

    # By hand, with diffusers and transformers alone: two lines for the token, two for K and V.
    weights = load_file(out / KV_FILE)
    stock.tokenizer.add_tokens("<new1>")
    stock.text_encoder.resize_token_embeddings(len(stock.tokenizer))
    row = load_file(out / "<new1>.safetensors")["<new1>"]
    stock.text_encoder.get_input_embeddings().weight.data[-1] = row
    for name, parameter in stock.unet.named_parameters():
        if name in KV_NAMES:
            key = re.sub(r"(to_[kv])", r"processor.\1_custom_diffusion", name)
            parameter.data = weights.pop(key)
    assert not weights

    pictures = {
        name: drawn(pipeline) for name, pipeline in {"ours": ours, "stock": stock, "trained": kept[0]}.items()
    }
    assert np.abs(pictures["ours"] - pictures["stock"]).max() < 1e-5
    assert np.abs(pictures["ours"] - pictures["trained"]).max() < 1e-5
    base = stock_pipeline(tiny_base)
    assert np.abs(pictures["ours"] - drawn(base, PROMPT.replace("<new1>", "ktn"))).max() > 0.01


def stock_pipeline(base: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: StableDiffusionPipeline, prompt: str = PROMPT) -> np.ndarray:
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=3, generator=generator, output_type="np").images


@pytest.mark.parametrize("as_bin", [None, True])
def test_token_file_is_a_textual_inversion_to_diffusers(train, tiny_base, tmp_path, as_bin):
    out = train(tmp_path, method="textual_inversion", instance_prompt=None, no_safe_serialization=as_bin)
    file = out / ("<new1>.bin" if as_bin else "<new1>.safetensors")
    row = (torch.load(file, weights_only=True) if as_bin else load_file(file))["<new1>"]
    pipeline = stock_pipeline(tiny_base)
    pipeline.load_textual_inversion(str(file))
    token_id = pipeline.tokenizer.convert_tokens_to_ids("<new1>")
    assert pipeline.tokenizer("<new1>", add_special_tokens=False).input_ids == [token_id]
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[token_id], row)


# Precision, memory, processes


def test_gradient_accumulation_is_a_larger_batch(train, tmp_path):
    # With Adam's usual epsilon, the rounding of gradients near 0 would turn into steps of the full rate.
    settings = dict(adam_epsilon=1e-3, learning_rate=1e-2, max_train_steps=3, scale_lr=True)
    batch = train(tmp_path / "batch", train_batch_size=2, **settings)
    accumulated = train(
        tmp_path / "accumulated", train_batch_size=1, gradient_accumulation_steps=2, **settings
    )
    assert apart(learned(batch), learned(accumulated)) < 1e-6
    for one, two in zip(records(batch), records(accumulated), strict=True):
        assert one == pytest.approx(two, rel=1e-5) and one["lr_cross_attention_kv"] == pytest.approx(
            2e-2, rel=1e-12
        )


def test_gradient_checkpointing_changes_nothing(train, base_weights, tmp_path):
    plain, saving = (
        train(tmp_path / "plain"),
        train(tmp_path / "saving", gradient_checkpointing=True),
    )
    assert apart(learned(plain), learned(saving)) < 1e-6
    assert apart(learned(saving), base_weights) > 1e-3


def test_bf16_keeps_what_learns_in_float32(train, kept, base_weights, tmp_path, quick_sampling):
    settings = dict(with_prior_preservation=True, class_prompt="a dog", num_class_images=2)
    shown = dict(validation_prompt="a <new1> dog", num_validation_images=1, learning_rate=1e-4)
    half = train(tmp_path / "bf16", mixed_precision="bf16", **settings, **shown)
    weights = learned(half)
    for name, value in weights.items():
        assert value.dtype == torch.float32
        moved = (value - base_weights[name]).abs()
        assert 5e-5 < moved.max().item() < 2.1e-4, name
        assert (value.bfloat16() != value).any(), name  # finer than bf16 could hold
    dtypes = {name: weight.dtype for name, weight in kept[0].unet.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == KV_NAMES
    assert {dtype for name, dtype in dtypes.items() if name not in KV_NAMES} == {torch.bfloat16}
    assert {weight.dtype for weight in kept[0].text_encoder.parameters()} == {torch.float32}
    folder = half / "class_images" / "0"
    full = train(tmp_path / "fp32", **settings, learning_rate=1e-4, class_data_dir=folder)
    for one, two in zip(records(half), records(full), strict=True):
        assert one == pytest.approx(two, rel=0.03)
    assert (half / "validation" / "step-00002" / "seed-0.png").is_file()


def test_two_processes_are_one_with_a_larger_batch(train, dog_flags, tmp_path, monkeypatch):
    settings = dict(adam_epsilon=1e-3, learning_rate=5e-3, max_train_steps=3, scale_lr=True, hflip=True)
    settings |= dict(with_prior_preservation=True, class_prompt="a dog", num_class_images=3)
    settings |= dict(class_data_dir=tmp_path / "class", sample_batch_size=1)
    flags = dog_flags(tmp_path / "two", train_batch_size=1, **settings)
    # What `accelerate launch` runs on several GPUs; on a CPU it starts one process, whatever it is asked.
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("--module", "tests.end_to_end.each_process", str(tmp_path), *flags),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        launch, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the concept is in") == 1

    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    two = learned(tmp_path / "two")
    assert apart(ranks[0], two) == 0 and apart(ranks[1], two) == 0
    assert len(list((tmp_path / "class").glob("class-*.png"))) == 3
    monkeypatch.setattr(utils.training.prior, "sample", None)  # the processes have drawn them all
    one = train(tmp_path / "one", train_batch_size=2, **settings)
    assert apart(learned(one), two) < 1e-6
    for ours, theirs in zip(records(one), records(tmp_path / "two"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert ours["lr_cross_attention_kv"] == pytest.approx(2 * 1e-2, rel=1e-12)  # class images double it


# Checkpoints


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("levers", [{}, {"latent_pool": 1, "low_memory": True}])
def test_resumed_run_is_the_unbroken_one(train, tmp_path, quick_sampling, prior, levers):
    settings = dict(hflip=True, checkpointing_steps=2, lr_scheduler="constant_with_warmup", lr_warmup_steps=3)
    settings |= levers
    if prior:
        settings |= dict(with_prior_preservation=True, class_prompt="a dog", num_class_images=3)
    whole = train(tmp_path / "whole", max_train_steps=4, **settings)
    broken = train(tmp_path / "broken", max_train_steps=2, **settings)
    assert len(records(broken)) == 2
    train(broken, max_train_steps=4, resume_from_checkpoint="latest", **settings)
    assert files_in(whole).keys() == files_in(broken).keys()
    assert (whole / "log.jsonl").read_bytes() == (broken / "log.jsonl").read_bytes()
    for name in (KV_FILE, "<new1>.safetensors", "checkpoint-4/training_state.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    assert [line["lr_cross_attention_kv"] for line in records(broken)] == pytest.approx(
        [0, 1e-3 / 3, 2e-3 / 3, 1e-3]
    )


def test_resume_in_the_middle_of_a_schedule_from_a_path(train, tmp_path):
    settings = dict(
        lr_scheduler="cosine", max_train_steps=4, checkpointing_steps=1, gradient_accumulation_steps=2
    )
    whole = train(tmp_path / "whole", **settings)
    rest = train(tmp_path / "rest", resume_from_checkpoint=whole / "checkpoint-1", **settings)
    assert apart(learned(whole), learned(rest)) == 0
    assert records(rest) == records(whole)[1:]
    rate = 1e-3 * 0.5 * (1 + math.cos(math.pi * 3 / 4))
    assert records(whole)[-1]["lr_cross_attention_kv"] == pytest.approx(rate)
    with pytest.raises(UserError, match="max_train_steps was 4, is 5"):
        train(whole, **settings | dict(max_train_steps=5), resume_from_checkpoint="latest")


def test_resume_latest_without_a_checkpoint_starts_anew(train, tmp_path):
    fresh = train(tmp_path / "fresh")
    asked = train(tmp_path / "asked", resume_from_checkpoint="latest")
    assert apart(learned(fresh), learned(asked)) == 0 and records(fresh) == records(asked)
    train(asked, resume_from_checkpoint="latest")  # nothing is left to do
    assert records(asked) == records(fresh) and apart(learned(fresh), learned(asked)) == 0


def test_resume_with_other_settings_is_refused(train, tmp_path):
    out = train(tmp_path)
    before = files_in(out)
    with pytest.raises(UserError, match="learning_rate was 0.001, is 0.01, seed was 0, is 5; give the same"):
        train(out, seed=5, learning_rate=1e-2, resume_from_checkpoint="latest")
    with pytest.raises(UserError, match="checkpoint-7 is not a folder: give 'latest' or a whole checkpoint"):
        train(out, resume_from_checkpoint=out / "checkpoint-7")
    with pytest.raises(UserError, match="checkpoint-2: it is beyond --max_train_steps 1"):
        train(out, max_train_steps=1, resume_from_checkpoint="latest")
    assert files_in(out) == before


def test_checkpoints_total_limit_and_those_of_an_earlier_run(train, tmp_path):
    def left() -> list[str]:
        return sorted(path.name for path in tmp_path.glob("checkpoint-*"))

    train(tmp_path, max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=2)
    assert left() == ["checkpoint-3", "checkpoint-4"]
    before = files_in(tmp_path)
    with pytest.raises(UserError, match=r"holds a run .*--resume_from_checkpoint latest.*--overwrite"):
        train(tmp_path, max_train_steps=2, seed=1)
    assert files_in(tmp_path) == before
    train(tmp_path, max_train_steps=2, checkpoints_total_limit=1, seed=1, overwrite=True)
    assert left() == ["checkpoint-2"] and len(records(tmp_path)) == 2


def test_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"step \d: loss_denoise \S+, loss_spl \S+, loss \S+;"
    ) as stop:
        train(tmp_path, learning_rate=1e30, checkpointing_steps=1, max_train_steps=5)
    step = int(str(stop.value).removeprefix("step ").partition(":")[0])
    assert step >= 2 and ("nan" in str(stop.value) or "inf" in str(stop.value))
    assert [line["step"] for line in records(tmp_path)] == list(range(1, step))
    assert (tmp_path / f"checkpoint-{step - 1}" / "training_state.safetensors").is_file()
    assert not (tmp_path / KV_FILE).exists()


# Mistakes, and what a dry run tells


def test_dry_run_tells_the_plan_and_writes_nothing(train, tmp_path, capfd):
    train(tmp_path / "out", dry_run=True, scale_lr=True, token_learning_rate=1e-2, hflip=True)
    said = capfd.readouterr()
    plan = said.out.splitlines()
    assert json.loads("\n".join(plan[: plan.index("}") + 1]))["token_learning_rate"] == 1e-2
    assert plan[plan.index("}") + 1 : -1] == [
        "method: classdiffusion (Huang et al. 2024, arXiv:2405.17532)",
        "steps 1 to 2: rows 32 at 0.02, K/V 10,240 at 0.002; loss L_denoise + 1 · L_spl",
        "plan: 2 steps of 2 images, 16 x 16, per process, from the beginning",
    ]
    assert plan[-1].startswith("concept: <new1> from ") and plan[-1].endswith(PROMPT)
    assert said.err == "" and list(tmp_path.iterdir()) == []
    train(tmp_path / "out", dry_run=True, method="two_stage", initializer_token="ktn", max_train_steps=10)
    plan = capfd.readouterr().out.splitlines()
    stages = [line for line in plan if line.startswith("steps ")]
    assert stages[0] == "steps 1 to 6: rows 32 at 0.001; loss L_denoise + 0 · L_spl"
    assert re.fullmatch(r"steps 7 to 10: UNet [\d,]+ at 0\.001; loss L_denoise", stages[1])


MISTAKES = {
    "no image folder": (dict(instance_data_dir="{tmp}/none"), "folder {tmp}/none does not exist"),
    "empty image folder": (dict(instance_data_dir="{tmp}/empty"), "no images in {tmp}/empty"),
    "unreadable image": (dict(instance_data_dir="{tmp}/broken"), "cannot read image {tmp}/broken/1.png"),
    "prompt without token": (dict(instance_prompt="a photo of a dog"), "'a photo of a dog' lacks <new1>"),
    "known token": (dict(modifier_token="dog"), "'dog' is already in the vocabulary"),
    "initialiser in pieces": (dict(initializer_token="snowman"), "'snowman' is not a single token"),
    "more tokens than concepts": (
        dict(modifier_token="<new1>+<new2>", cls_token="dog+cat"),
        "--modifier_token <new1>+<new2> for 1 concept",
    ),
    "more tokens than classes": (dict(modifier_token="<new1>+<new2>"), "--cls_token 'dog'"),
    "more classes than tokens": (dict(cls_token="dog+cat"), "--cls_token 'dog+cat'"),
    "more tokens than initialisers": (
        dict(modifier_token="<new1>+<new2>", cls_token="dog+cat", initializer_token="ktn"),
        "--initializer_token ktn",
    ),
    "malformed JSON": (
        dict(instance_data_dir=None, instance_prompt=None, concepts_list="{tmp}/list.json"),
        "{tmp}/list.json is not readable as JSON",
    ),
    "unknown learner": (dict(trains="unet+vae"), "--trains unet+vae: vae is unknown; choose of"),
    "SPL that reaches nothing": (dict(method="dreambooth", use_spl=True), "cannot reach what --method"),
    "rate without use": (dict(method="dreambooth", token_learning_rate=1.0), "--token_learning_rate has no"),
    "SPL without class": (dict(cls_token=None), "needs --cls_token"),
    "added SPL without class": (
        dict(cls_token=None, method="kv_only", use_spl=True),
        "needs --cls_token",
    ),
    "resolution": (dict(resolution=20), "--resolution 20 is not a multiple of 8"),
    "resolution of this model": (
        dict(resolution=24, pretrained_model_name_or_path="{tmp}/deep"),
        "--resolution 24: this base model needs a multiple of 16",
    ),
    "no base model": (dict(pretrained_model_name_or_path="{tmp}/nope"), "base model {tmp}/nope"),
    "base model is a relative path": (dict(pretrained_model_name_or_path="data/nope"), "though data is one"),
    "base model is no name": (dict(pretrained_model_name_or_path="nope"), "base model nope"),
    "wandb": (dict(report_to="wandb"), "--report_to wandb: not installed"),
    "fp16 on a CPU": (dict(mixed_precision="fp16"), "fp16 needs a CUDA device"),
    "output file": (
        dict(output_dir="{tmp}/list.json"),
        "--output_dir {tmp}/list.json cannot be used: {tmp}/list.json is a file",
    ),
    "class images of something else": (
        dict(with_prior_preservation=True, class_prompt="a dog", class_data_dir="{tmp}/cats"),
        "{tmp}/cats/class-00000.png shows 'a cat', not 'a dog'",
    ),
    "unreadable class image": (
        dict(with_prior_preservation=True, class_prompt="a dog", class_data_dir="{tmp}/broken"),
        "cannot read image {tmp}/broken/1.png",
    ),
    "unknown flag": (dict(steps=5), "--steps=5"),
}


@pytest.fixture
def workplace(tmp_path: Path, tiny_base: Path, pictures, monkeypatch) -> Path:
    """The files that the mistakes are about; models must not load, and the Hub not be asked."""
    (tmp_path / "empty").mkdir()
    shutil.copytree(pictures("dog"), tmp_path / "broken")
    (tmp_path / "broken" / "1.png").write_bytes((tmp_path / "broken" / "1.png").read_bytes()[:200])
    (tmp_path / "list.json").write_text('[{"instance_prompt": ')
    shutil.copytree(tiny_base, tmp_path / "deep")
    vae = json.loads((tiny_base / "vae" / "config.json").read_text())
    (tmp_path / "deep" / "vae" / "config.json").write_text(json.dumps(vae | {"block_out_channels": [32] * 5}))
    (tmp_path / "cats").mkdir()
    cat = {"prompt": "a cat", "seed": 1}
    utils.training.prior.save_png(Image.new("RGB", (16, 16)), tmp_path / "cats" / "class-00000.png", cat)
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(train_classdiffusion, "set_up", None)
    monkeypatch.setattr("utils.bases.pretrained.hf_hub_download", None)
    monkeypatch.setattr(utils.training.output_flags, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.mark.parametrize(("settings", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_told_in_one_line(settings, words, train, workplace, capfd):
    before = files_in(workplace)
    given = {"output_dir": workplace / "out"} | settings
    given = {k: v.format(tmp=workplace) if isinstance(v, str) else v for k, v in given.items()}
    output_dir = Path(given.pop("output_dir"))
    with pytest.raises(SystemExit) as left:
        exit_on_user_error(lambda: train(output_dir, **given))
    said = capfd.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.err.endswith("\n")
    assert words.format(tmp=workplace) in said.err
    assert files_in(workplace) == before and not (workplace / "out").exists()


def test_command_tells_a_mistake_without_a_word_from_the_libraries(dog_flags, tmp_path):
    # The last of the checks, so that everything a mistake may import has been imported.
    flags = dog_flags(tmp_path / "out", resume_from_checkpoint=tmp_path / "none", hflip=True)
    command = [sys.executable, "train_classdiffusion.py", *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --resume_from_checkpoint ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_launch_script_ends_a_mistake_with_one_line_and_status_2(tmp_path, processes):
    shutil.copy(REPOSITORY / "requirements.txt", tmp_path / ".requirements")  # nothing to install
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "scripts/train_single.sh", "--max_train_steps=0"],
        cwd=REPOSITORY,
        env=os.environ | {"VIRTUAL_ENV": str(tmp_path), "PATH": path, "NUM_PROCESSES": processes},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == ["error: --max_train_steps 0: give a number of at least 1"]
