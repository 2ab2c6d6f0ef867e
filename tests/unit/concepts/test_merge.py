"""Merging in closed form, against its own least-squares conditions, and the merged concept in use."""

import re
from pathlib import Path

import pytest
import torch

from scripts.merge_concepts import main as merge_concepts
from tests.tiny_models import tiny_pipeline
from utils.bases import as_base, load_pipeline
from utils.common.errors import UserError
from utils.concepts.captions import regularisation_captions
from utils.concepts.formats import read_concept
from utils.concepts.load import load_concept
from utils.concepts.lora import is_kv_name
from utils.concepts.merge import Solver, distinct, features, install_rows, merge, without_clashes
from utils.concepts.save import save_concept
from utils.concepts.weights import ConceptWeights


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# the closed form

START, TARGETS, VALUES = draws(7, 12), draws(5, 12, seed=1), draws(7, 5, seed=2)
CAPTIONS = draws(60, 12, seed=3) * torch.logspace(0, -3, 12, dtype=torch.float64)  # an uneven spectrum


def objective(weight):
    return ((weight - START) @ CAPTIONS.T).square().sum()


def test_the_constraints_hold():
    weight = Solver(TARGETS, CAPTIONS)(START, VALUES)
    assert (weight @ TARGETS.T - VALUES).abs().max() < 1e-8


def test_no_step_that_keeps_the_constraints_is_better():
    weight = Solver(TARGETS, CAPTIONS)(START, VALUES)
    _, _, basis = torch.linalg.svd(TARGETS)
    free = basis[5:]  # (7, 12), the directions that no target sees
    least = objective(weight)
    for seed in range(20):
        step = draws(7, 7, seed=seed) @ free * 10.0 ** (-seed % 4)
        assert (step @ TARGETS.T).abs().max() < 1e-8
        assert objective(weight + step) > least
    gradient = (weight - START) @ CAPTIONS.T @ CAPTIONS @ free.T  # 0 along what is free
    assert gradient.abs().max() < 1e-8 * (START @ CAPTIONS.T @ CAPTIONS).abs().max()


def test_it_is_the_published_formula():
    inverse = torch.linalg.inv(CAPTIONS.T @ CAPTIONS)
    d = TARGETS @ inverse
    published = START + (VALUES - START @ TARGETS.T) @ torch.linalg.inv(d @ TARGETS.T) @ d
    torch.testing.assert_close(Solver(TARGETS, CAPTIONS)(START, VALUES), published, atol=1e-6, rtol=1e-6)


def test_nothing_to_change_changes_nothing():
    weight = Solver(TARGETS, CAPTIONS)(START, START @ TARGETS.T)
    torch.testing.assert_close(weight, START, atol=1e-12, rtol=0)


def test_nothing_is_learned_along_a_direction_that_no_caption_varies_in():
    still = CAPTIONS.clone()
    still[:, 11] = 0.0013  # as a layer norm leaves it, to 1e-7
    still[:, 11] += 1e-7 * draws(len(still), 1, seed=9)[:, 0]
    targets = TARGETS.clone()
    targets[:, 11] = 0.0013
    solver = Solver(targets, still)
    weight = solver(START, VALUES)
    assert (weight - START)[:, 11].abs().max() < 1e-3
    assert (weight @ targets.T - VALUES).abs().max() < 1e-8
    without = Solver(targets[:, :11], still[:, :11])
    expected = without(START[:, :11], VALUES - START[:, 11:] @ targets[:, 11:].T)
    torch.testing.assert_close(weight[:, :11], expected, atol=1e-4, rtol=1e-4)
    assert solver.conditions[0] == pytest.approx(torch.linalg.cond(still[:, :11]).item(), rel=1e-3)
    few = Solver(TARGETS[:3], CAPTIONS[:8])  # 7 directions in which 8 captions differ
    assert few.basis.shape == (12, 7)
    assert (few(START, VALUES[:, :3]) @ TARGETS[:3].T - VALUES[:, :3]).abs().max() < 1e-8


def test_dependent_targets_are_refused():
    with pytest.raises(UserError, match="depend on one another"):
        Solver(torch.cat([TARGETS, TARGETS[:1] + TARGETS[1:2]]), CAPTIONS)


def test_equal_rows_count_once():
    assert distinct(torch.cat([TARGETS, TARGETS[1:3], TARGETS[:1] * 2])).tolist() == [0, 1, 2, 3, 4, 7]


# tokens, features and captions


def test_clashing_tokens_become_the_next_free_ones():
    row = torch.zeros(2)
    rows = [{"<new1>": row}, {"<New1>": row, "<new2>": row}, {"<new2>": row, "<dog>": row}]
    concepts, changes = without_clashes([ConceptWeights(rows=each) for each in rows])
    assert [list(c.rows) for c in concepts] == [["<new1>"], ["<new3>", "<new2>"], ["<new4>", "<dog>"]]
    assert changes == {1: {"<New1>": "<new3>"}, 2: {"<new2>": "<new4>"}}


def test_features_run_from_the_token_to_the_last_word_whatever_the_batch(tmp_path):
    base = tiny_pipeline(tmp_path / "words")
    install_rows(as_base(base), {"<new1>": torch.ones(32)})
    phrases = ["<new1> dog", "a photo of a <new1> dog on the beach"]
    together = features(as_base(base), phrases, "<new1>")
    alone = [features(as_base(base), [phrase], "<new1>") for phrase in phrases]
    assert together.dtype == torch.float64 and [len(rows) for rows in alone] == [2, 5]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-12, rtol=0)
    whole = features(as_base(base), phrases[:1])  # BOS left out, and EOS with a token
    torch.testing.assert_close(whole[:2], alone[0], atol=1e-12, rtol=0)
    padded = base.tokenizer(phrases[:1], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = base.text_encoder(padded).last_hidden_state[0, 1:4]
    torch.testing.assert_close(hidden, whole, atol=1e-12, rtol=0)  # as the pipeline encodes it


def test_captions_are_many_and_different():
    captions = regularisation_captions()
    assert len(set(captions)) == len(captions) >= 200
    words = {word for caption in captions for word in caption.split()}
    assert {"teddy", "bear", "dog", "barn", "beach", "painting", "striped"} <= words


# concepts


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion whose final layer norm has learned: a fresh one's features have rank D − 1."""
    folder = tmp_path_factory.mktemp("base")
    pipeline = tiny_pipeline(folder / "words")
    norm = pipeline.text_encoder.get_submodule(
        next(n for n, _ in pipeline.text_encoder.named_modules() if n.endswith("final_layer_norm"))
    )
    with torch.no_grad():
        norm.weight.copy_(draws(32, seed=4).abs() + 0.5)
        norm.bias.copy_(draws(32, seed=5))
    pipeline.save_pretrained(folder / "sd")
    return folder / "sd"


@pytest.fixture(scope="module")
def concepts(base, tmp_path_factory) -> Path:
    """dog, barn and cat, each with K/V of its own and all called <new1>; inversion has a row alone."""
    folder = tmp_path_factory.mktemp("concepts")
    unet = tiny_pipeline(folder / "words").unet
    for seed, name in enumerate(("dog", "barn", "cat")):
        torch.manual_seed(seed)
        kv = {
            name: (weight + 0.1 * torch.randn_like(weight)).detach()
            for name, weight in unet.named_parameters()
            if is_kv_name(name)
        }
        save_concept(folder / name, kv, {"<new1>": torch.randn(32)}, base=str(base), classes=[name])
    save_concept(folder / "inversion", {}, {"<new9>": torch.randn(32)}, base=str(base), classes=[None])
    return folder


def hidden_states(pipeline, phrase):
    ids = pipeline.tokenizer(phrase, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return pipeline.text_encoder(ids).last_hidden_state[0].double()


@pytest.mark.parametrize("others", [["barn"], ["barn", "inversion"]])
def test_the_merged_concept_says_what_each_said(concepts, base, tmp_path, capsys, others):
    paths = [str(concepts / name) for name in ["dog", *others]]
    merge_concepts([*paths, f"--output={tmp_path / 'both'}"])
    assert "<new1> of" in (out := capsys.readouterr().out) and "barn is called <new2>" in out
    both = load_pipeline(base, "cpu", "fp32")
    loaded = load_concept(both, tmp_path / "both")
    assert list(loaded.token_ids)[:2] == ["<new1>", "<new2>"] and loaded.classes[:2] == ("dog", "barn")
    assert loaded.base == str(base)

    merged = dict(both.unet.named_parameters())
    for number, name in enumerate(["dog", "barn"], start=1):
        alone = load_pipeline(base, "cpu", "fp32")
        load_concept(alone, concepts / name)
        own = hidden_states(alone, f"photo of a <new1> {name}")[4:6]  # token, class
        shared = hidden_states(both, f"photo of a <new{number}> {name}")[4:6]
        torch.testing.assert_close(shared, own, atol=1e-5, rtol=0)
        trained = dict(alone.unet.named_parameters())
        for layer in filter(is_kv_name, merged):
            expected = own @ trained[layer].double().T
            torch.testing.assert_close(shared @ merged[layer].double().T, expected, atol=1e-3, rtol=1e-3)


def test_constraints_hold_on_real_features_to_1e8(concepts, base):
    pipeline = load_pipeline(base, "cpu", "fp32")
    own = {name: p.detach() for name, p in pipeline.unet.named_parameters() if is_kv_name(name)}
    pair, _ = without_clashes([read_concept(concepts / name) for name in ("dog", "barn")])
    merged = merge(pair, own, as_base(pipeline), regularisation_captions())
    assert merged.residual < 1e-8 and merged.dropped == 0 and 0 < merged.drift < 1
    targets = features(as_base(pipeline), ["<new2> barn"], "<new2>")
    for name, weight in merged.weights.items():
        expected = targets @ pair[1].weights[name].double().T
        assert (targets @ weight.T - expected).abs().max() < 1e-8 * expected.abs().max()


def test_a_concept_merged_with_itself_is_itself_on_its_words(concepts, base, tmp_path, capsys):
    merge_concepts([str(concepts / "dog"), str(concepts / "dog"), f"--output={tmp_path / 'twice'}"])
    assert "4 rows of target words were equal to earlier ones" in capsys.readouterr().out
    assert read_concept(tmp_path / "twice").rows.keys() == {"<new1>", "<new2>"}


def test_concepts_that_contradict_each_other_are_refused(concepts, base, tmp_path):
    dog, cat = read_concept(concepts / "dog"), read_concept(concepts / "cat")
    save_concept(tmp_path / "same", cat.weights, dog.rows, base=str(base), classes=["dog"])
    with pytest.raises(UserError, match="same token row and different K/V"):
        merge_concepts([str(concepts / "dog"), str(tmp_path / "same"), f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_named(concepts, tmp_path):
    dog = read_concept(concepts / "dog")
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    whole = {"unet": dog.weights | {name: torch.zeros(64, 64)}, "modifier_token": dog.rows}
    torch.save(whole, tmp_path / "crossattn.bin")
    with pytest.raises(UserError, match="crossattn.bin trained 9 weights that are not the 8 K and V"):
        merge_concepts(
            [str(concepts / "dog"), str(tmp_path / "crossattn.bin"), f"--output={tmp_path / 'out'}"]
        )
    assert not (tmp_path / "out").exists()


def test_the_constant_direction_of_a_layer_norm_is_left_alone(concepts, tiny_base):
    """Of a fresh layer norm the features' mean is 0, so that one direction is never seen."""
    pipeline = load_pipeline(tiny_base, "cpu", "fp32")
    own = {name: p.detach() for name, p in pipeline.unet.named_parameters() if is_kv_name(name)}
    pair, _ = without_clashes([read_concept(concepts / name) for name in ("dog", "barn")])
    merged = merge(pair, own, as_base(pipeline), regularisation_captions())
    assert merged.residual < 1e-8 and merged.change < 10
    for name, weight in merged.weights.items():
        assert (weight - own[name].double()).sum(dim=1).abs().max() < 1e-8 * weight.abs().max() * 32


REFUSED = {
    "one": (["dog"], "alone is nothing to merge; give two"),
    "no output": (["dog", "barn", "--output"], "--output"),
    "rows alone": (["inversion", "inversion"], "no concept has K/V, so nothing needs merging"),
    "missing": (["dog", "nowhere"], "nowhere does not exist"),
    "no token": (["dog", "kv.bin"], "has no token"),
    "no base": (["bare.bin", "bare.bin"], "does not say what base model"),
    "another base": (["dog", "other"], "trained on different base models"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_write_nothing(concepts, tmp_path, arguments, message):
    dog = read_concept(concepts / "dog")
    torch.save({"unet": dog.weights}, concepts / "kv.bin")
    torch.save({"unet": dog.weights, "modifier_token": dog.rows}, concepts / "bare.bin")
    save_concept(concepts / "other", dog.weights, dog.rows, base="sd15", classes=["dog"])
    given = [str(concepts / a) if not a.startswith("--") else a for a in arguments]
    given += [] if arguments[-1] == "--output" else [f"--output={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=re.escape(message)) as mistake:
        merge_concepts(given)
    assert "\n" not in str(mistake.value) and not list(tmp_path.iterdir())
