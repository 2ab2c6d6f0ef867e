"""DreamBooth, two-stage, and other learners: what trains, what stays, and what a saved concept gives back."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import train_classdiffusion
from utils.bases import load_pipeline
from utils.bases.sd import encode_images
from utils.bases.text import tokenize
from utils.common.tensor_files import read_metadata
from utils.concepts.load import load_concept
from utils.config.methods import METHODS
from utils.data.dataset import InstanceDataset, collate
from utils.data.noise import draw_noise
from utils.training.state import STATE_FILE

CLASS = {"num_class_images": 2, "class_prompt": "a photo of a dog"}


@pytest.fixture
def runs(monkeypatch) -> list:
    """What the trainings worked with, their modules as they are at the end."""
    kept, set_up = [], train_classdiffusion.set_up

    def set_up_and_keep(config):
        kept.append(set_up(config))
        return kept[-1]

    monkeypatch.setattr(train_classdiffusion, "set_up", set_up_and_keep)
    return kept


@pytest.fixture
def class_images(pictures) -> dict:
    return CLASS | {"class_data_dir": pictures("class", 2)}


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def differing(module: torch.nn.Module, before: torch.nn.Module) -> set[str]:
    """The names of parameters that are no longer the same, bit for bit."""
    now = dict(module.named_parameters())
    return {name for name, value in before.named_parameters() if not torch.equal(now[name], value)}


def predicted(pipeline, prompt: str) -> Tensor:
    """The UNet's prediction for fixed noise."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = pipeline.text_encoder(tokenize(pipeline.tokenizer, [prompt])).last_hidden_state
        return pipeline.unet(noise, torch.tensor([500]), text).sample


def test_dreambooth_trains_the_unet_alone_with_class_images(train, runs, tiny_base, class_images, tmp_path):
    out = train(tmp_path, method="dreambooth", initializer_token="ktn", learning_rate=1e-3, **class_images)
    base, (run,) = load_pipeline(tiny_base, "cpu"), runs
    assert differing(run.base.unet, base.unet) == {name for name, _ in base.unet.named_parameters()}
    assert differing(run.base.vae, base.vae) == set()
    text = {k.replace("table.", ""): v for k, v in run.base.text_encoder.state_dict().items()}
    assert all(torch.equal(text[name], value) for name, value in base.text_encoder.state_dict().items())
    (ktn,) = base.tokenizer("ktn", add_special_tokens=False).input_ids
    row = load_file(out / "new1.safetensors")["<new1>"]
    assert torch.equal(row, base.text_encoder.get_input_embeddings().weight[ktn])  # the word's, untrained
    for line in log(out):
        assert list(line) == ["step", "loss_denoise", "loss_prior", "loss", "lr_unet"]
        assert line["loss"] == pytest.approx(line["loss_denoise"] + line["loss_prior"], abs=1e-6)


def test_dreambooths_first_loss_is_the_papers(train, tiny_base, pictures, class_images, tmp_path):
    """||eps - eps_theta(z_t, t, c)||^2 as a mean, with the rare word itself in the prompt."""
    out = train(
        tmp_path, method="dreambooth", initializer_token="ktn", seed=4, max_train_steps=1, **class_images
    )
    base = load_pipeline(tiny_base, "cpu")
    from utils.config.train_config import read_config

    (concept,) = read_config(out / "training_config.json")[0].concepts()
    items = InstanceDataset([concept], METHODS["dreambooth"], 16, 2, seed=4, hflip=False, noaug=False)
    batch = collate([items.instance_item(number) for number in (0, 1)])
    draws = draw_noise(4, [("instance", 0), ("instance", 1)], (4, 8, 8), 1000)
    with torch.no_grad():
        latents = encode_images(base.vae, batch.pixels, draws.posterior_noise)
        alpha = base.scheduler.alphas_cumprod[draws.timesteps].reshape(2, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * draws.noise
        text = base.text_encoder(tokenize(base.tokenizer, ["a photo of a ktn dog"] * 2)).last_hidden_state
        expected = F.mse_loss(base.unet(noisy, draws.timesteps, text).sample, draws.noise).item()
    assert log(out)[0]["loss_denoise"] == pytest.approx(expected, rel=1e-5)


def test_textual_inversions_first_loss_is_the_papers(train, tiny_base, tmp_path):
    """||eps - eps_theta(z_t, t, c(S*))||^2 as a mean, S* in a template for the noun and starting as it."""
    settings = {"method": "textual_inversion", "instance_prompt": None, "hflip": True}
    out = train(tmp_path, seed=3, max_train_steps=1, **settings)
    base = load_pipeline(tiny_base, "cpu")
    from utils.config.train_config import read_config

    (concept,) = read_config(out / "training_config.json")[0].concepts()
    items = InstanceDataset([concept], METHODS["textual_inversion"], 16, 2, seed=3, hflip=True, noaug=False)
    batch = collate([items.instance_item(number) for number in (0, 1)])
    prompts = [caption.replace("<new1>", "dog") for caption in batch.captions]
    assert all(caption.count("<new1>") == 1 and "dog" not in caption for caption in batch.captions)
    draws = draw_noise(3, [("instance", 0), ("instance", 1)], (4, 8, 8), 1000)
    with torch.no_grad():
        latents = encode_images(base.vae, batch.pixels, draws.posterior_noise)
        alpha = base.scheduler.alphas_cumprod[draws.timesteps].reshape(2, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * draws.noise
        text = base.text_encoder(tokenize(base.tokenizer, prompts)).last_hidden_state
        expected = F.mse_loss(base.unet(noisy, draws.timesteps, text).sample, draws.noise).item()
    assert log(out)[0]["loss_denoise"] == pytest.approx(expected, rel=1e-5)
    assert log(out)[0]["loss"] == log(out)[0]["loss_denoise"]


def test_a_trained_text_encoder_is_in_effect_without_the_token(
    train, runs, tiny_base, class_images, tmp_path
):
    settings = {"method": "dreambooth", "trains": "unet+text_encoder", "initializer_token": "ktn"}
    out = train(tmp_path, learning_rate=1e-2, **settings, **class_images)
    untouched, loaded = load_pipeline(tiny_base, "cpu"), load_pipeline(tiny_base, "cpu")
    load_concept(loaded, out)
    ids = tokenize(loaded.tokenizer, ["a photo of a cat on the beach"])
    with torch.no_grad():
        before, after, trained = (
            each.text_encoder(ids).last_hidden_state for each in (untouched, loaded, runs[0].base.pipeline)
        )
    change = (trained - before).abs().max()
    assert change > 0.05
    # Differences are stored in bfloat16: an error of at most 0.4 % of each change of a weight.
    assert (after - trained).abs().max() < 0.02 * change


@pytest.mark.parametrize("trains", ["unet", "unet+text_encoder", "text_encoder+token_rows"])
def test_a_saved_concept_predicts_what_the_trained_model_does(train, runs, tiny_base, tmp_path, trains):
    out = train(tmp_path, method="kv_only", trains=trains, learning_rate=1e-2)
    files = {path.stem for path in out.glob("*.safetensors")}
    assert files == {"new1"} | set(trains.split("+")) - {"token_rows"}
    prompt, base = "a photo of a <new1> dog", load_pipeline(tiny_base, "cpu")
    untrained = predicted(base, "a photo of a ktn dog")
    concept = load_concept(base, out)
    assert len(concept.merged) > 10
    trained = predicted(runs[0].base.pipeline, prompt)
    change = (trained - untrained).abs().max()
    assert change > 0.05
    # Differences are stored in bfloat16: an error of at most 0.4 % of each change of a weight.
    assert (predicted(base, prompt) - trained).abs().max() < 0.02 * change


def test_two_stage_trains_the_row_then_the_unet(train, runs, tiny_base, tmp_path):
    settings = {"method": "two_stage", "initializer_token": "ktn", "token_learning_rate": 1e-2}
    out = train(tmp_path / "a", max_train_steps=4, **settings)
    rates = [[key for key in line if key.startswith("lr_")] for line in log(out)]
    assert rates == [["lr_token_rows"]] * 2 + [["lr_unet"]] * 2
    halfway = load_file(out / "checkpoint-2" / "new1.safetensors")["<new1>"]
    assert torch.equal(load_file(out / "new1.safetensors")["<new1>"], halfway)  # frozen in stage 2
    changes = load_file(out / "checkpoint-2" / "unet.safetensors")
    assert all(not value.any() for value in changes.values())  # and the UNet in stage 1
    early = load_pipeline(tiny_base, "cpu")
    unet = {name: value.clone() for name, value in early.unet.named_parameters()}
    loaded = load_concept(early, out / "checkpoint-2")  # whose row is all that it has learned
    assert loaded.merged == () and torch.equal(
        early.text_encoder.get_input_embeddings().weight[loaded.token_ids["<new1>"]], halfway
    )
    assert all(torch.equal(value, unet[name]) for name, value in early.unet.named_parameters())
    base = load_pipeline(tiny_base, "cpu")
    (ktn,) = base.tokenizer("ktn", add_special_tokens=False).input_ids
    assert (halfway - base.text_encoder.get_input_embeddings().weight[ktn]).abs().max().item() > 5e-3
    assert differing(runs[0].base.unet, base.unet) == {name for name, _ in base.unet.named_parameters()}


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_two_stage_resumes_before_at_and_after_the_boundary(train, tmp_path, cut):
    settings = {"method": "two_stage", "initializer_token": "ktn", "max_train_steps": 4, "seed": 2}
    settings["checkpointing_steps"] = 1
    whole = train(tmp_path / "whole", **settings)
    rest = train(tmp_path / "rest", resume_from_checkpoint=whole / f"checkpoint-{cut}", **settings)
    assert log(rest) == log(whole)[cut:]
    for step in range(cut + 1, 5):  # the optimizer's moments and the schedule too, not the weights alone
        states = [folder / f"checkpoint-{step}" / STATE_FILE for folder in (whole, rest)]
        assert read_metadata(states[0], "state") == read_metadata(states[1], "state")
        tensors = [load_file(state) for state in states]
        assert tensors[0].keys() == tensors[1].keys() and any("exp_avg" in name for name in tensors[0])
        assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    for name in ("unet.safetensors", "new1.safetensors"):
        assert (whole / name).read_bytes() == (rest / name).read_bytes()
