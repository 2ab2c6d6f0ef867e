"""Images and lists that change, or go, while a run learns from them: what was learned is what is recorded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.end_to_end.training import files_in, learned
from tests.faults.shim import survived, tried
from utils.common.errors import UserError
from utils.training.logger import Logger

FLAGS = {"max_train_steps": 6, "checkpointing_steps": 2, "hflip": True}


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """during(step, act): `act()` once a run has done `step` steps."""
    log = Logger.log

    def install(step: int, act: Callable[[], object]) -> None:
        def noting(self: Logger, number: int, values: dict[str, float]) -> None:
            log(self, number, values)
            if number == step:
                act()

        monkeypatch.setattr(Logger, "log", noting)

    return install


@pytest.fixture
def images(pictures: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictures("dog"), tmp_path / "images"))


def listed(images: Path, tmp_path: Path, prompt: str = "a photo of a <new1> dog") -> dict:
    """Flags that name the images by a list of concepts."""
    entry = {"instance_data_dir": str(images), "instance_prompt": prompt}
    (tmp_path / "list.json").write_text(json.dumps([entry]))
    given = {"instance_data_dir": None, "instance_prompt": None, "concepts_list": tmp_path / "list.json"}
    return FLAGS | given


def test_a_run_needs_neither_its_images_nor_its_list_again(train, images, during, tmp_path):
    flags = listed(images, tmp_path)
    whole = train(tmp_path / "whole", **flags)
    tried("images and list gone in mid-run")
    during(4, lambda: [shutil.rmtree(images), (tmp_path / "list.json").unlink()])
    out = train(tmp_path / "out", **flags)
    recorded = [json.loads((each / "training_config.json").read_text()) for each in (whole, out)]
    assert recorded[0]["images"] == recorded[1]["images"] and len(recorded[0]["images"]) == 64
    assert all(map(lambda name: (learned(out)[name] == learned(whole)[name]).all(), learned(whole)))
    survived("images and list gone in mid-run")


def test_class_images_are_read_once_too(train, images, during, tmp_path):
    flags = FLAGS | {"instance_data_dir": images, "class_data_dir": tmp_path / "class"}
    flags |= {"with_prior_preservation": True, "class_prompt": "a dog", "num_class_images": 2}
    shutil.copytree(images, tmp_path / "class")
    tried("class images gone in mid-run")
    during(4, lambda: shutil.rmtree(tmp_path / "class"))
    out = train(tmp_path / "out", **flags)
    assert len(learned(out)) == 9
    survived("class images gone in mid-run")


def test_what_is_recorded_is_what_was_learned(train, images, during, tmp_path):
    """An image is replaced after checkpoint-2: the run goes on with the right one, and with no other."""
    flags = FLAGS | {"instance_data_dir": images}
    right = files_in(images)
    whole = train(tmp_path / "whole", **flags)
    tried("image replaced in mid-run")
    during(3, lambda: Image.new("RGB", (24, 20), "red").save(images / "0.png"))
    out = train(tmp_path / "out", **flags)
    assert all((learned(out)[name] == value).all() for name, value in learned(whole).items())
    for name in ("pytorch_custom_diffusion_weights.safetensors", "checkpoint-6"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="cannot resume .*: images was '.+', is '.+'; give the same settings"):
        train(out, **flags, resume_from_checkpoint="latest")
    (images / "0.png").write_bytes(right["0.png"])
    train(out, **flags, resume_from_checkpoint="latest")
    assert all((learned(out)[name] == value).all() for name, value in learned(whole).items())
    survived("image replaced in mid-run")


@pytest.mark.parametrize("what", ["has changed", "is gone"])
def test_an_image_that_was_not_read_yet_is_compared(what, train, pictures, during, tmp_path):
    images = Path(shutil.copytree(pictures("dog", 12), tmp_path / "images"))

    def act() -> None:
        for path in images.iterdir():
            path.unlink() if what == "is gone" else path.write_bytes(path.read_bytes() + b"\0")

    tried("unread image changed or gone")
    during(2, act)
    with pytest.raises(UserError, match=rf"images/\d+\.png {what} since the run began: bring back"):
        train(tmp_path / "out", **FLAGS, instance_data_dir=images)
    assert (tmp_path / "out" / "checkpoint-2" / "manifest.json").is_file()
    survived("unread image changed or gone")


def test_other_prompts_in_a_list_are_another_run(train, images, tmp_path):
    flags = listed(images, tmp_path)
    train(tmp_path / "out", **flags | {"max_train_steps": 2})
    listed(images, tmp_path, "a drawing of a <new1> dog")
    with pytest.raises(UserError, match=r"prompts was \[\['a photo of .*'a drawing of a <new1> dog"):
        train(tmp_path / "out", **flags, resume_from_checkpoint="latest")
    listed(images, tmp_path)
    train(tmp_path / "out", **flags, resume_from_checkpoint="latest")
