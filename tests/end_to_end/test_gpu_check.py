"""scripts.gpu_check: what it keeps, what it runs again; all of its checks with -m gpu."""

import json
import subprocess
import sys

import pytest

from scripts import gpu_check
from scripts.speed.gpu_checks import CHECKS
from utils.bases.registry import REPOSITORY
from utils.common.errors import UserError


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The checks that were run; sampling fails."""
    names = []

    def run_check(config, name):
        names.append(name)
        return {"ok": name != "sampling", "seconds": 1.0}

    monkeypatch.setattr(gpu_check, "run_check", run_check)
    return names


def test_what_passed_is_not_run_again_and_what_failed_is(tmp_path, ran):
    flags = ["--device=cpu", "--tiny", "--checks=parity,sampling", f"--output_dir={tmp_path}"]
    for expected in (["parity", "sampling"], ["sampling"]):
        ran.clear()
        with pytest.raises(SystemExit, match="failed: sampling"):
            gpu_check.main(flags)
        assert ran == expected
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["conditions"] == {"device": "cpu", "tiny": True} and results["parity"]["ok"]
    ran.clear()
    with pytest.raises(SystemExit):
        gpu_check.main([each for each in flags if each != "--tiny"])  # another size: all of it again
    assert ran == ["parity", "sampling"]


def test_a_check_that_ends_badly_says_what_it_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu_check.subprocess, "run", lambda command, stdout, **_: stdout.write("boom") and _done(3)
    )
    config = gpu_check.GpuCheckConfig(device="cpu", output_dir=tmp_path)
    result = gpu_check.run_check(config, "video")
    assert not result["ok"] and result["error"].startswith("3; ") and result["error"].endswith("boom")


def _done(code: int) -> subprocess.CompletedProcess:
    return subprocess.CompletedProcess([], code)


def test_an_unknown_check_and_a_missing_gpu_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--checks speed: choose from parity, "):
        gpu_check.main(["--checks=speed"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        gpu_check.main([f"--output_dir={tmp_path}"])


def test_sampling_is_the_same_at_once_and_one_by_one(tmp_path):
    gpu_check.main(["--device=cpu", "--tiny", "--checks=sampling", "--inside", f"--output_dir={tmp_path}"])
    found = json.loads((tmp_path / "sampling.json").read_text())
    assert found["ok"] and found["steps"] == 2 and found["mean_difference"] < 2


@pytest.mark.slow
def test_a_check_runs_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "scripts.gpu_check", "--device=cpu", "--tiny", "--checks=sampling"]
    subprocess.run([*command, f"--output_dir={tmp_path}"], cwd=REPOSITORY, check=True)
    found = json.loads((tmp_path / "results.json").read_text())["sampling"]
    assert found["ok"] and found["steps"] == 2 and found["mean_difference"] < 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_every_check_passes_on_the_gpu(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "gpu_check"
    gpu_check.main([f"--checks={name}", f"--output_dir={folder}"])
