"""Masked language modelling in the training command, and toon's contextualizer."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts.contextualizer import PretrainFlags, main, read_text_encoder
from utils.bases.registry import base_row
from utils.common.errors import UserError
from utils.common.files import read_records
from utils.common.tensor_files import write_tensors
from utils.losses import contextualizer, pretraining
from utils.losses.contextualizer import folder_of, load_contextualizer, show_mask_row
from utils.losses.mlm import Masker
from utils.losses.registry import LOSSES

STATE = "checkpoint-4/training_state.safetensors"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Contextualizers of other bases than toon are looked for here."""
    monkeypatch.setattr(contextualizer, "REPOSITORY", tmp_path / "places")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "places"


@pytest.fixture
def pretrained(places: Path, tiny_base: Path) -> None:
    main(["pretrain", f"--base={tiny_base}", "--steps=1"])


def test_without_a_contextualizer_the_command_that_makes_one_is_named(train, tmp_path, places, tiny_base):
    with pytest.raises(UserError, match=rf"scripts\.contextualizer pretrain --base {tiny_base}$"):
        train(tmp_path / "out", mlm_weight=1e-3)
    assert not (tmp_path / "out").exists()


def test_refused_where_no_text_trains_or_no_class_is_known(train, tmp_path):
    with pytest.raises(
        UserError, match=r"--mlm_weight cannot reach what --method dreambooth trains \(unet\)"
    ):
        train(tmp_path / "out", method="dreambooth", mlm_weight=1e-3, class_prompt="a photo of a dog")
    with pytest.raises(UserError, match="--mlm_weight needs --cls_token"):
        train(tmp_path / "out", method="custom_diffusion", mlm_weight=1e-3, cls_token=None, class_prompt="a")
    with pytest.raises(UserError, match="--mlm_weight -1.0: give a number of at least 0"):
        train(tmp_path / "out", mlm_weight=-1)


def test_a_contextualizer_of_another_text_encoder_is_refused(train, tmp_path, pretrained, tiny_base):
    file = folder_of(base_row(tiny_base)) / "config.json"
    file.write_text(file.read_text().replace('"text_encoder": "', '"text_encoder": "x'))
    with pytest.raises(UserError, match="was made for another text encoder .* --base"):
        train(tmp_path / "out", mlm_weight=1e-3)


@pytest.mark.parametrize("trains", ["token_rows+cross_attention_kv", "text_encoder"])
def test_resumed_run_is_the_unbroken_one(train, tmp_path, pretrained, trains):
    settings = dict(mlm_weight=1e-2, trains=trains, checkpointing_steps=2, method="kv_only")
    whole = train(tmp_path / "whole", max_train_steps=4, **settings)
    broken = train(tmp_path / "broken", max_train_steps=2, **settings)
    train(broken, max_train_steps=4, resume_from_checkpoint="latest", **settings)
    assert (whole / STATE).read_bytes() == (broken / STATE).read_bytes()
    losses = [record["loss_mlm"] for record in read_records(whole / "log.jsonl")]
    assert losses == [record["loss_mlm"] for record in read_records(broken / "log.jsonl")]
    assert all(loss > 1 for loss in losses) and len(set(losses)) == 4


def test_weight_0_is_logged_and_changes_nothing(train, tmp_path, pretrained):
    without = train(tmp_path / "without", max_train_steps=4)
    logged = train(tmp_path / "logged", max_train_steps=4, mlm_weight=0)
    trained = train(tmp_path / "trained", max_train_steps=4, mlm_weight=1)
    rows = [load_file(out / "new1.safetensors")["<new1>"] for out in (without, logged, trained)]
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=1e-6)
    assert not torch.allclose(rows[0], rows[2], rtol=0, atol=1e-6)
    assert read_records(logged / "log.jsonl")[0]["loss_mlm"] > 1


def test_only_a_stage_that_trains_text_has_the_term(train, tmp_path, pretrained):
    out = train(
        tmp_path / "out",
        method="two_stage",
        initializer_token="ktn",
        noaug=None,
        max_train_steps=4,
        mlm_weight=1e-3,
    )
    has = ["loss_mlm" in record for record in read_records(out / "log.jsonl")]
    assert has == [True, True, False, False]


def test_pre_training_goes_on_where_it_was_interrupted(places, tiny_base, tmp_path, monkeypatch):
    save = pretraining.save_state
    monkeypatch.setattr(pretraining, "CHECKPOINT_EVERY", 2)
    flags = [f"--base={tiny_base}", "--steps=3"]
    main(["pretrain", *flags, f"--output_dir={tmp_path / 'whole'}"])
    next(Path("outputs/pretrain_contextualizer").glob("*.pt")).unlink()

    def killed(state, settings, step, *parts):
        save(state, settings, step, *parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["pretrain", *flags, f"--output_dir={tmp_path / 'broken'}"])
    monkeypatch.setattr(pretraining, "save_state", save)
    main(["pretrain", *flags, f"--output_dir={tmp_path / 'broken'}"])
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_a_base_whose_text_encoder_changed_is_pre_trained_anew(places, tiny_base, tmp_path):
    base, made = Path(shutil.copytree(tiny_base, tmp_path / "base")), {}
    file = base / "text_encoder" / "model.safetensors"
    for name in ("before", "after"):
        main(["pretrain", f"--base={base}", "--steps=1", f"--output_dir={tmp_path / name}"])
        made[name] = load_file(tmp_path / name / "model.safetensors")
        write_tensors(file, {key: value * 1.5 for key, value in load_file(file).items()})
    assert any(not made["before"][key].equal(made["after"][key]) for key in made["before"])


def test_the_loss_is_a_row():
    assert LOSSES["loss_mlm"].text and LOSSES["loss_mlm"].prepare is not None


def test_toon_s_contextualizer_knows_more_than_frequencies():
    """On 200 held-out prompts: the shares of hidden tokens that it, and two baselines, name rightly."""
    row = base_row("toon")
    text_encoder, tokenizer = read_text_encoder(row, torch.device("cpu"))
    model = load_contextualizer(row, text_encoder)
    show_mask_row(text_encoder, model.mask_row, tokenizer.bos_token_id)
    config = PretrainFlags(base="toon")
    scores = pretraining.accuracy(model, text_encoder, Masker(tokenizer), config.source, 200)
    assert scores["contextualizer"] > max(scores["unigram"], scores["no_context"]) + 0.3, scores
    files = list(folder_of(row).iterdir())
    assert {file.name for file in files} == {"config.json", "model.safetensors"}
    assert sum(file.stat().st_size for file in files) < 3e6
