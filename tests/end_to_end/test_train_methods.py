"""What trains, by how much and on which losses."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

import utils.bases.sd
import utils.config.output_flags
import utils.config.train_config
import utils.data.class_images
import utils.measures.validation
from tests.end_to_end.training import (
    KV_NAMES,
    PROMPT,
    RATES,
    apart,
    learned,
    records,
)
from utils.bases import load_pipeline
from utils.bases.sd import encode_images
from utils.bases.text import tokenize
from utils.common.images import save_png
from utils.common.seeds import seed_of
from utils.concepts.load import load_concept
from utils.config.methods import METHODS
from utils.data.dataset import InstanceDataset, collate
from utils.data.noise import draw_noise


def hand_made_first_step(base: Path, settings: dict[str, object]) -> tuple[float, float]:
    """(loss_denoise, loss_spl) of step 1 from the stock base: every <new1> starts as the rare word ktn."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    concepts = utils.config.train_config.TrainConfig(**settings).concepts()
    instances = InstanceDataset(concepts, METHODS["classdiffusion"], 16, 2, seed=7, hflip=True, noaug=False)
    batch = collate([instances.instance_item(number) for number in (0, 1)])
    keys = [("instance", 0), ("instance", 1)]
    posterior_noise, noise, timesteps, _ = draw_noise(7, keys, (4, 8, 8), 1000)
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

    said = train(tmp_path / "b", method="kv_only")  # the class is known: SPL is logged, not added
    assert all(line["loss"] == line["loss_denoise"] and line["loss_spl"] > 0 for line in records(said))
    assert apart(learned(said), learned(out)) < 1e-5

    added = train(tmp_path / "c", method="kv_only", use_spl=True)
    assert apart(learned(added), learned(train(tmp_path / "d"))) == 0  # then it is classdiffusion


def test_textual_inversion_learns_the_row_alone(train, kept, tiny_base, tmp_path):
    out = train(tmp_path, method="textual_inversion", instance_prompt=None, token_learning_rate=1e-2)
    assert [file.name for file in out.glob("*.safetensors")] == ["new1.safetensors"]
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


def test_prior_preservation(train, base_weights, tiny_base, tmp_path, quick_sampling, monkeypatch, capsys):
    settings = dict(with_prior_preservation=True, class_prompt="a photo of a dog", num_class_images=3)
    weights = dict(spl_weight=0.5, prior_loss_weight=2)
    out = train(tmp_path / "out", **settings, **weights)
    folder = out / "class_images" / "0"
    names = [f"class-0000{number}.png" for number in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == names
    for number, name in enumerate(names):
        with Image.open(folder / name) as picture:
            seed = seed_of(0, "class image", number)
            assert picture.text == {"prompt": "a photo of a dog", "seed": str(seed), "base": str(tiny_base)}
    for line in records(out):
        assert list(line) == ["step", "loss_denoise", "loss_spl", "loss_prior", "loss", *RATES]
        total = line["loss_denoise"] + 0.5 * line["loss_spl"] + 2 * line["loss_prior"]
        assert line["loss"] == pytest.approx(total, abs=1e-6) and line["loss_prior"] > 0.1

    monkeypatch.setattr(utils.data.class_images, "draw", None)  # all images are there: none is drawn again
    assert "class images:" not in capsys.readouterr().out
    with Image.open(folder / names[0]) as picture:
        save_png(picture, folder / names[0], {**picture.text, "base": "toon"})
    again = train(tmp_path / "again", **settings, **weights, class_data_dir=folder)
    assert f"class images: 1 of 3 are by toon, not by {tiny_base}\n" in capsys.readouterr().out
    assert apart(learned(again), learned(out)) == 0
    without = train(
        tmp_path / "without", **settings, spl_weight=0.5, prior_loss_weight=0, class_data_dir=folder
    )
    assert apart(learned(without), learned(out)) > 1e-5  # the gradient of the prior term arrives
    assert apart(learned(out), base_weights) > 1e-3
