"""Training and sampling with what Windows lacks taken away: nothing they do needs a POSIX system."""

import os
import re
import shutil

import pytest

import inference
import utils.common.files
import utils.training.lock


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No flock, pread, pwrite, pathconf; folders cannot be opened; names with <>:"|?* cannot be made."""
    monkeypatch.setattr(utils.common.files, "WINDOWS", True)
    monkeypatch.setattr(utils.training.lock, "fcntl", None)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    for name in ("pread", "pwrite", "pathconf"):
        monkeypatch.delattr(os, name)

    def refusing(act, places):
        def checked(*args, **kwargs):
            for path in args[:places]:
                if re.search(r'[<>:"|?*]', str(path)):
                    raise OSError(22, "The filename is incorrect", str(path))
            if act is real_open and os.path.isdir(args[0]):
                raise PermissionError(13, "Permission denied", str(args[0]))
            return act(*args, **kwargs)

        return checked

    real_open = os.open
    for name, places in {"open": 1, "mkdir": 1, "rename": 2, "replace": 2}.items():
        monkeypatch.setattr(os, name, refusing(getattr(os, name), places))


def test_trains_resumes_and_draws(train, tiny_base, tmp_path, windows, capsys):
    settings = {"max_train_steps": 4, "checkpointing_steps": 2, "validation_prompt": "a <new1> dog"}
    settings |= {"num_validation_images": 1, "validation_inference_steps": 1, "validation_steps": 4}
    out = train(tmp_path / "dog", **settings)
    assert "cannot be locked: start no second run there" in capsys.readouterr().err
    train(out, resume_from_checkpoint=out / "checkpoint-2", **settings)
    drawn = tmp_path / "drawn"
    words = f"--concept {out} --base {tiny_base} --num_images 1 --num_inference_steps 1 --output_dir {drawn}"
    inference.main([*words.split(), "--prompt", 'a <new1> dog, "wild": on a beach?'])
    names = [path.name for folder in (out, drawn) for path in folder.rglob("*")]
    assert "new1.safetensors" in names and sum(name.endswith(".png") for name in names) >= 2
    assert [name for name in names if re.search(r'[<>:"|?*\\]|[ .]$', name)] == []
