"""NUM_PROCESSES of the launch scripts, really started, on a machine without a GPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.training import REPOSITORY, apart, learned, records
from utils.common.errors import UserError

SETTINGS = ("--learning_rate=1e-2", "--adam_epsilon=1e-3", "--resolution=16", "--max_train_steps=2")


def test_two_processes_of_a_launch_script_are_one_with_a_larger_batch(
    train, tiny_base, pictures, tmp_path, monkeypatch
):
    shutil.copy(REPOSITORY / "requirements.txt", tmp_path / ".requirements")  # nothing to install
    variables = {
        "VIRTUAL_ENV": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "BASE": str(tiny_base),
        "INSTANCE_DIR": str(pictures("dog")),
        "OUTPUT_DIR": "two",
        "NUM_PROCESSES": "2",
    }
    command = ["bash", str(REPOSITORY / "scripts" / "train_single.sh"), "--train_batch_size=1", *SETTINGS]
    done = subprocess.run(
        [*command, "--validation_prompt=", "--preset=none", "--scale_lr"],
        cwd=tmp_path,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the concept is in") == 1
    assert "training in 2 processes, on the CPU" in done.stdout

    same = {"learning_rate": 1e-2, "adam_epsilon": 1e-3, "scale_lr": True, "validation_steps": 200}
    same |= {"resolution": 16, "instance_prompt": None, "modifier_token": "<new1>"}
    two, one = tmp_path / "two", train(tmp_path / "one", train_batch_size=2, **same)
    assert apart(learned(two), learned(one)) < 5e-6
    for ours, theirs in zip(records(two), records(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert ours["lr_cross_attention_kv"] == pytest.approx(2e-2)  # one process alone would have 1e-2

    for folder, batch, now, ran in ((two, 1, 1, "2 processes"), (one, 2, 2, "1 process")):
        monkeypatch.setenv("WORLD_SIZE", str(now))
        number = ran.split()[0]
        with pytest.raises(
            UserError, match=f"with {now} process.*: it ran with {number}; give NUM_PROCESSES={number}"
        ):
            train(folder, train_batch_size=batch, **same, resume_from_checkpoint="latest", dry_run=True)


def test_a_launcher_whose_processes_would_work_alone_is_refused(train, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(
        UserError, match="2 processes without a GPU would each work alone: set ACCELERATE_USE_CPU"
    ):
        train(tmp_path / "out")
    assert not (tmp_path / "out").exists()
