"""Training on images as people have them: captions, masks, aspect ratios, a file of flags."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image

import train_classdiffusion
from tests.end_to_end.training import apart, learned, records
from utils.common.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three wide images and two tall ones of noise, one turned by EXIF, one with an alpha channel."""
    folder = tmp_path / "dogs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(24, 16), (30, 21), (24, 16), (20, 30), (15, 20)]):
        noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        noise.save(folder / f"{number}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "3.png").transpose(Image.Transpose.ROTATE_90).save(folder / "3.jpg", exif=exif)
    (folder / "3.png").unlink()
    mask = Image.new("L", (24, 16))
    mask.paste(255, (0, 0, 16, 16))
    mask.save(folder / "0.mask.png")
    Image.open(folder / "1.png").putalpha(255)
    cut = Image.open(folder / "1.png").convert("RGBA")
    cut.paste((0, 0, 0, 0), (0, 0, 10, 21))
    cut.save(folder / "1.png")
    (folder / "0.txt").write_text("my dog, running, beach")
    lines = [
        {"file_name": "3.jpg", "text": "a <new1> dog on the beach"},
        {"file_name": "4.png", "text": "dog"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


ALL = {"buckets": True, "masked_loss": True, "caption_dropout": 0.2, "shuffle_captions": True, "hflip": True}


def test_says_what_each_image_brings(train, folder, tmp_path, capsys):
    train(tmp_path / "out", instance_data_dir=folder, max_train_steps=1, **ALL)
    lines = capsys.readouterr().out.splitlines()
    assert "captions: 3 of 5 images have their own; 1.png, 2.png take the prompt" in lines
    assert (
        "masks: in 2 of 5 images the subject alone counts; "
        "2.png, 3.jpg, 4.png without a mask: the whole image"
    ) in lines
    assert "buckets: 12 x 16 (1), 12 x 18 (1), 18 x 12 (3)" in lines
    assert not any(line.startswith("skipped") for line in lines)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("classdiffusion", "each is squashed to a square, up to 1.5 : 1"),
        ("dreambooth", "a random square of each is used, up to 33% cut off"),
    ],
)
def test_says_what_becomes_of_images_that_are_not_square(
    train, folder, tmp_path, capsys, pictures, method, what
):
    Image.new("RGB", (20, 20)).save(folder / "square.png")
    own = {"class_data_dir": pictures("class"), "num_class_images": 3, "initializer_token": "ktn"}
    changed = own if method == "dreambooth" else {}
    train(tmp_path / "out", instance_data_dir=folder, method=method, max_train_steps=1, **changed)
    line = f"5 of 6 images are not square (one is 24 x 16): {what}; --buckets keeps their proportions"
    assert line in capsys.readouterr().out.splitlines()


def test_masks_that_no_flag_uses_are_mentioned(train, folder, tmp_path, capsys):
    plain = train(tmp_path / "plain", instance_data_dir=folder)
    assert "masks of 1 images are not used: --masked_loss uses them" in capsys.readouterr().out
    masked = train(tmp_path / "masked", instance_data_dir=folder, masked_loss=True)
    assert apart(learned(plain), learned(masked)) > 0


@pytest.mark.parametrize("method", ["classdiffusion", "custom_diffusion", "dreambooth", "textual_inversion"])
def test_resumes_bit_for_bit(train, folder, tmp_path, method):
    changed = {"instance_prompt": None} if method == "textual_inversion" else {}
    if method == "dreambooth":
        changed["initializer_token"] = "ktn"
    if method in ("custom_diffusion", "dreambooth"):
        own = tmp_path / "class"
        own.mkdir()
        for number in range(3):
            Image.new("RGB", (20, 12 + 4 * number), (number * 90, 0, 0)).save(own / f"{number}.png")
        (own / "1.txt").write_text("a dog on the beach")
        changed |= {"class_data_dir": own, "num_class_images": 3}
    settings = ALL | {"instance_data_dir": folder, "method": method, "checkpointing_steps": 3} | changed
    whole = train(tmp_path / "whole", max_train_steps=6, **settings)
    train(tmp_path / "cut", max_train_steps=3, **settings)
    cut = train(tmp_path / "cut", max_train_steps=6, resume_from_checkpoint="latest", **settings)
    assert records(cut) == records(whole) and len(records(whole)) == 6
    assert apart(learned(cut), learned(whole)) == 0


def test_a_changed_caption_or_mask_makes_another_run(train, folder, tmp_path):
    settings = ALL | {"instance_data_dir": folder, "checkpointing_steps": 1}
    train(tmp_path / "out", max_train_steps=1, **settings)
    (folder / "0.txt").write_text("a dog, sleeping")
    with pytest.raises(UserError, match="cannot resume .*images was"):
        train(tmp_path / "out", resume_from_checkpoint="latest", **settings)


def test_saved_configuration_starts_the_same_run(train, folder, tmp_path, dog_flags, monkeypatch):
    first = train(tmp_path / "first", instance_data_dir=folder, seed=3, **ALL)
    again = tmp_path / "again"
    names = dict.fromkeys(
        ("pretrained_model_name_or_path", "instance_data_dir", "instance_prompt", "cls_token")
    )
    names |= dict.fromkeys(("max_train_steps", "learning_rate", "preset"))  # --config and --output_dir alone
    train(again, config=first / "training_config.json", **names)
    assert records(again) == records(first) and apart(learned(again), learned(first)) == 0


@pytest.mark.parametrize(
    ("name", "content", "flags", "message"),
    [
        ("0.txt", "", ["--buckets"], "0.txt holds an empty caption"),
        ("0.txt", "a cat", [], "0.txt: 'a cat' does not name the concept"),
        ("0.txt", "a photo of the picture " * 9 + "dog", [], "is cut at 24 tokens, before <new1>"),
        ("metadata.jsonl", "{", [], "metadata.jsonl, line 1 is not JSON"),
        ("0.mask.png", "", ["--masked_loss"], "cannot read image"),
        ("class/0.txt", "<new1>", ["--with_prior_preservation"], "0.txt: the caption of a class image holds"),
        ("run.toml", "colour = 1", ["--config=run.toml"], "run.toml: unknown key 'colour'"),
        ("0.txt", "dog", ["--caption_dropout=1"], "--caption_dropout 1.0: give a number of at least 0"),
    ],
)
def test_mistakes_are_one_line_before_any_model(
    folder, dog_flags, tmp_path, capfd, monkeypatch, name, content, flags, message
):
    (folder / "class").mkdir()
    Image.new("RGB", (20, 20)).save(folder / "class" / "0.png")
    (folder / name).write_text(content)
    given = {"instance_data_dir": folder}
    given |= {"class_data_dir": folder / "class"} if "--with_prior_preservation" in flags else {}
    command = dog_flags(tmp_path / "out", **given) + [
        flag.replace("run.toml", str(folder / "run.toml")) for flag in flags
    ]
    import train_classdiffusion
    from utils.common.errors import exit_on_user_error

    monkeypatch.setattr(train_classdiffusion, "set_up", lambda config: pytest.fail("a model loads"))
    with pytest.raises(SystemExit) as stopped:
        exit_on_user_error(lambda: train_classdiffusion.main(command))
    assert stopped.value.code == 2 and not (tmp_path / "out").exists()
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("masked_loss", "--masked_loss has no effect: no image has a mask; give 0.mask.png next to 0.png"),
        ("shuffle_captions", "--shuffle_captions has no effect: no caption has a comma"),
    ],
)
def test_flags_without_effect_are_refused(train, tmp_path, flag, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "out", **{flag: True})


def test_toon_says_that_it_cannot_learn_photographs(tmp_path, capsys):
    (tmp_path / "photographs").mkdir()
    shutil.copy(Path(get_data_path(), "sample_data", "grace_hopper.jpg"), tmp_path / "photographs")
    folders = f"--instance_data_dir={tmp_path / 'photographs'} --output_dir={tmp_path / 'out'}"
    train_classdiffusion.main([*folders.split(), "--cls_token=borzoi", "--dry_run"])
    assert (
        "toon does not know borzoi (only dog, cat, rabbit, pig, teddy bear, backpack, teapot, car, barn) and "
        "cannot learn photographs, and 1 of 1 images look like some: expect no likeness; for photographs use "
        "BASE=sd15, on a GPU"
    ) in capsys.readouterr().out.splitlines()
