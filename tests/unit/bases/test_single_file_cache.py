"""The cache of what is made from a single file: whole or not there, whatever happens meanwhile."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.original_layout import write_original
from tests.tiny_models import tiny_pipeline
from utils.bases.registry import REPOSITORY
from utils.bases.single_file import cache, convert
from utils.bases.single_file.cache import VARIABLE, cache_folder, is_whole
from utils.bases.single_file.convert import folder_of
from utils.common.errors import UserError

BIAS = "model.diffusion_model.out.2.bias"


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A tiny file with an empty cache, `tmp_path / "cache"`."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return write_original(tiny_pipeline(tmp_path / "words"), "sd1", tmp_path / "model.safetensors")


def bias_of(folder: str | Path) -> torch.Tensor:
    return load_file(Path(folder) / "unet" / "diffusion_pytorch_model.safetensors")["conv_out.bias"]


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("models/*") if not path.name.endswith(".lock")]


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv(VARIABLE, "~/models of mine")
    assert cache_folder() == Path("/home/somebody/models of mine")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "classdiffusion"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which its specification says to ignore
    assert cache_folder() == Path("/home/somebody/.cache/classdiffusion")


def test_a_file_is_converted_and_read_whole_once(file, monkeypatch, capsys):
    folder = folder_of(file)
    assert (
        capsys.readouterr().out == f"converting {file} (0.006 GB), once, into {cache_folder() / 'models'}\n"
    )
    monkeypatch.setattr(convert, "convert", None)
    monkeypatch.setattr(cache.hashlib, "file_digest", None)
    assert folder_of(file) == folder and capsys.readouterr().out == ""
    monkeypatch.undo()


def test_another_file_of_the_same_size_and_time_is_another_model(file):
    earlier, stat = folder_of(file), file.stat()
    tensors = load_file(file)
    tensors[BIAS] = tensors[BIAS] + 1
    save_file(tensors, file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size and file.stat().st_mtime_ns == stat.st_mtime_ns
    later = folder_of(file)
    assert later != earlier and torch.equal(bias_of(later), bias_of(earlier) + 1)


def test_a_file_under_another_name_is_not_converted_again(file, monkeypatch):
    folder = folder_of(file)
    file.with_suffix("").rename(file.with_name("other"))
    other = file.rename(file.with_name("other.safetensors"))
    monkeypatch.setattr(convert, "convert", None)
    assert folder_of(other) == folder


def test_a_folder_whose_files_were_deleted_or_cut_is_made_again(file):
    folder = Path(folder_of(file))
    (folder / "vae" / "config.json").unlink()
    assert not is_whole(folder) and is_whole(Path(folder_of(file)))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert torch.equal(bias_of(folder_of(file)), load_file(file)[BIAS])


def test_a_file_that_changes_while_it_is_read(file, monkeypatch):
    write = convert.write_tensors

    def writing(*arguments) -> None:
        file.write_bytes(file.read_bytes())
        write(*arguments)

    monkeypatch.setattr(convert, "write_tensors", writing)
    with pytest.raises(UserError, match="model.safetensors changed while it was read"):
        folder_of(file)
    assert left_in(cache_folder()) == []


def test_a_cache_that_cannot_be_written(file, monkeypatch):
    (cache_folder().parent / "cache").write_text("a file")
    with pytest.raises(
        UserError,
        match="cannot write the cache .*: (Not a directory|File exists)",
    ):
        folder_of(file)


def test_a_cache_that_can_only_be_read_serves(file, monkeypatch):
    folder = folder_of(file)
    for memo in cache_folder().glob("digests/*"):
        memo.unlink()
    monkeypatch.setattr(cache.os, "access", lambda *_: False)
    monkeypatch.setattr(cache, "write_json", None)
    assert folder_of(file) == folder


def test_a_full_disk_leaves_nothing(file, monkeypatch):
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=f"takes 0.006 GB in .*, where 1e-06 GB are free: .* by {VARIABLE}"):
        folder_of(file)
    assert left_in(cache_folder()) == []


LOAD = "import sys; from utils.bases.single_file.convert import folder_of; print(folder_of(sys.argv[1]))"
SLOW = (
    "import time\nfrom utils.bases.single_file import convert\nwrite = convert.write_tensors\n"
    "def slow(*a):\n    write(*a); open(sys.argv[2], 'a').write('x'); time.sleep(float(sys.argv[3]))\n"
    "convert.write_tensors = slow\n"
)


def converting(file: Path, *more: str) -> subprocess.Popen:
    slow = LOAD.replace("import sys; ", f"import sys\n{SLOW}" if more else "import sys\n")
    return subprocess.Popen(
        [sys.executable, "-c", slow, str(file), *more], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.faults
def test_two_processes_at_once_and_one_that_was_killed(file, tmp_path):
    killed = converting(file, str(tmp_path / "killed"), "60")
    while not (tmp_path / "killed").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (partial,) = left_in(cache_folder())
    assert partial.endswith(".new")

    both = [converting(file, str(tmp_path / "written"), "0.5") for _ in range(2)]
    outputs = [each.communicate()[0].splitlines() for each in both]
    assert [each.returncode for each in both] == [0, 0] and outputs[0][-1] == outputs[1][-1]
    assert (tmp_path / "written").read_text() == "xxx"  # three parts, by one of the two
    assert left_in(cache_folder()) == [Path(outputs[0][-1]).name]
    assert torch.equal(bias_of(outputs[0][-1]), load_file(file)[BIAS])
