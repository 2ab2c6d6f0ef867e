"""BLIP2T: pairing, what is computed once, mistakes before anything loads; the toon BLIP's batches."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from scripts.toon.models.blip import batch_of, fits, hard_negatives, make_tokenizer
from scripts.toon.models.training import generator, scenes
from scripts.toon.world.captions import attributes, caption
from scripts.toon.world.world import ANIMALS, twin
from tests.tiny_blip import LIMIT, write_blip
from utils.blip2t import BLIP2T, check_blip, check_prompts, pair_up
from utils.common.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("blip"), "BLIP-1")


@pytest.fixture(scope="module")
def blip(folder) -> BLIP2T:
    return BLIP2T(folder, "cpu")


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8))


def rows_seen(module: torch.nn.Module) -> list[int]:
    """Fills with the batch size of each of the module's calls."""
    seen: list[int] = []
    module.register_forward_hook(lambda module, args, kwargs, out: seen.append(len(out[0])), with_kwargs=True)
    return seen


@pytest.mark.parametrize(
    ("prompts", "images", "pairs"),
    [
        ("a", "x", ["ax"]),
        ("a", "xyz", ["ax", "ay", "az"]),
        ("abc", "x", ["ax", "bx", "cx"]),
        ("ab", "xy", ["ax", "by"]),
    ],
)
def test_prompts_and_images_pair_up(prompts, images, pairs):
    assert ["".join(pair) for pair in zip(*pair_up(prompts, images), strict=True)] == pairs


@pytest.mark.parametrize(("prompts", "images"), [("ab", "xyz"), ("", "x"), ("a", ""), ("", "")])
def test_other_counts_do_not(prompts, images):
    with pytest.raises(UserError, match=f"{len(prompts)} prompts and {len(images)} images do not pair up"):
        pair_up(prompts, images)


def test_the_published_call(blip):
    score = blip.text_similarity("a dog", noise(0))
    assert score.shape == (1,) and score[0] == blip.scores(["a dog"], [noise(0)])[0]
    both = blip.text_similarity("a dog", [noise(0), noise(1)])
    torch.testing.assert_close(both, blip.scores(["a dog", "a dog"], [noise(0), noise(1)]))
    assert abs(both[0] - both[1]) > 1e-4


def test_every_score_can_name_its_model(folder, blip):
    assert blip.name == f"{folder} (BLIP-1 ITC)"
    assert (blip.model_id, blip.family, blip.head) == (str(folder), "BLIP-1", "itc")
    assert blip.dtype == torch.float32 == next(blip.parts.model.parameters()).dtype


def test_a_score_is_a_cosine_or_a_probability(folder, blip):
    prompts, images = ["a dog", "a cat"] * 4, [noise(i) for i in range(8)]
    assert blip.scores(prompts, images).abs().max() <= 1
    matches = BLIP2T(folder, "cpu", "itm").scores(prompts, images)
    assert 0 <= matches.min() < matches.max() <= 1


def test_transparent_and_grey_images_are_scored_as_rgb(blip):
    grey = noise(0).convert("L")
    assert torch.equal(blip.scores(["a dog"], [grey]), blip.scores(["a dog"], [grey.convert("RGB")]))


def test_what_recurs_is_encoded_once(folder):
    blip, image = BLIP2T(folder, "cpu"), noise(0)
    pictures, prompts = rows_seen(blip.parts.model.vision_model), rows_seen(blip.parts.model.text_encoder)
    blip.scores(["a dog", "a cat", "a dog", "a dog"], [image] * 4, batch_size=2)
    assert prompts == [2]  # both distinct prompts, for all batches
    assert pictures == [1, 1]  # the one image of either batch


def test_images_are_read_batch_by_batch(folder):
    blip = BLIP2T(folder, "cpu")
    scored, ahead = rows_seen(blip.parts.model.vision_model), []

    def pictures():
        for i in range(9):
            ahead.append(i + 1 - sum(scored))
            yield noise(i)

    assert len(blip.scores(["a dog"] * 9, pictures(), batch_size=2)) == 9
    assert max(ahead) == 2


def test_no_pairs_give_no_scores_and_unequal_counts_an_error(folder, blip):
    assert blip.scores([], []).shape == BLIP2T(folder, "cpu", "itm").scores([], []).shape == (0,)
    with pytest.raises(ValueError, match="zip"):
        blip.scores(["a dog", "a cat"], [noise(0)])


def test_model_mistakes_are_reported_before_it_loads(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    captioner = tmp_path / "captioner"
    captioner.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (captioner / "config.json").write_text(
        json.dumps(config | {"architectures": ["BlipForConditionalGeneration"]})
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(config))
    for model, head, words in (
        (folder, "itx", "unknown head 'itx'; choose one of itc, itm"),
        (tmp_path / "none", "itc", "none is not a folder, though"),
        (tmp_path, "itc", "no config.json"),
        ("a b", "itc", "neither an existing folder nor a Hub id"),
        (captioner, "itc", "is a BlipForConditionalGeneration; give a BlipForImageTextRetrieval or Blip2For"),
        ("data/toon/clip", "itc", "is a CLIPModel; give"),
        (bare, "itc", "no image processor"),
    ):
        with pytest.raises(UserError, match=words):
            check_blip(model, head)
        with pytest.raises(UserError, match=words):
            BLIP2T(model, "cpu", head)
    with pytest.raises(UserError, match="unknown device"):
        BLIP2T(folder, "tpu")


def test_a_model_with_missing_weights_is_refused(folder, tmp_path):
    write_blip(tmp_path, "BLIP-1")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("itm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 tensors, e.g. itm_head.weight"):
        BLIP2T(tmp_path, "cpu")


@pytest.mark.parametrize("family", ["BLIP-1", "BLIP-2"])
def test_a_prompt_is_never_cut(family, tmp_path):
    folder = write_blip(tmp_path, family)
    fitting, long = "dog " * (LIMIT - 2), "dog " * (LIMIT - 1)  # and [CLS], [SEP]
    check_prompts(folder, [fitting])
    words = f"has {LIMIT + 1} tokens; .* reads {LIMIT}: shorten it"
    with pytest.raises(UserError, match=words):
        check_prompts(folder, ["a dog", long])
    with pytest.raises(UserError, match="a prompt is empty"):
        check_prompts(folder, ["a dog", " "])
    for head in ("itc", "itm"):
        blip = BLIP2T(folder, "cpu", head)
        assert blip.scores([fitting], [noise(0)]).isfinite().all()
        with pytest.raises(UserError, match=words):
            blip.scores([long], [noise(0)])


def test_every_toon_caption_is_spelled_in_words_the_model_knows():
    tokenizer = make_tokenizer()
    rng = random.Random(0)
    texts = [caption(scene, rng) for scene in scenes("words", 500) + scenes("words", 100, held_out=True)]
    tokens = tokenizer(texts, padding=True).input_ids
    assert max(map(len, tokens)) <= 24
    assert all(
        len(text.split()) + 2 == sum(i != 0 for i in row) for text, row in zip(texts, tokens, strict=True)
    )
    assert tokenizer.unk_token_id not in {i for row in tokens for i in row}
    assert tokenizer.tokenize("a <new1> Zebra") == "a < n ##e ##w ##1 > z ##e ##b ##r ##a".split()


def test_a_twin_differs_in_one_thing_that_a_caption_tells():
    changed = []
    for i, scene in enumerate(scenes("twins", 400)):
        other = twin(scene, random.Random(i))
        before, after = attributes(scene), attributes(other)
        changed += [name for name in before if before[name] != after[name]]
        assert len(changed) == i + 1
        if other.subject.kind not in ANIMALS:
            assert (other.worn, other.pose) == ("nothing", "standing")
        assert not (other.subject.kind == "teddy bear" and other.pose != "standing")
    assert set(changed) == {"class", "colour", "place", "worn", "pose"}


def test_only_a_caption_without_its_colour_fits_an_image_of_another_colour():
    [scene] = [s for s in scenes("fits", 50) if s.subject.colour == "white"][:1]
    rng = random.Random(0)
    while (other := twin(scene, rng)).subject.colour == scene.subject.colour:
        pass
    kind = scene.subject.kind
    stated = fits([scene, other], [f"a white {kind}", f"a {other.subject.colour} {kind}"])
    silent = fits([scene, other], [f"a {kind}", f"a {other.subject.colour} {kind}"])
    assert stated.tolist() == [[True, False], [False, True]]
    assert silent.tolist() == [[True, False], [True, True]]


def test_hard_negatives_are_never_true_and_mostly_the_closest():
    batch, captions = batch_of("negatives", 48)
    true = fits(batch, captions)
    assert true.diagonal().all() and not true.all(1).any()
    logits = torch.zeros(48, 48)
    rows = torch.arange(48)
    logits[rows, (rows + 24) % 48] = 20.0  # each image's twin
    drawn = torch.stack([hard_negatives(logits, true, generator(f"{i}")) for i in range(20)])  # (20, 48)
    assert not true[rows, drawn].any()
    clear = ~true[rows, (rows + 24) % 48]
    assert (drawn == (rows + 24) % 48)[:, clear].float().mean() > 0.9
