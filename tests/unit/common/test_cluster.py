"""Jobs of a cluster: what Slurm is told, and whose jobs are waited for; Slurm's programs are stand-ins."""

from pathlib import Path

import pytest

from scripts import evaluate
from utils.common import cluster
from utils.common.cluster import Cluster, check_executor, run_jobs
from utils.common.errors import UserError
from utils.common.files import read_json, write_json
from utils.common.flags import as_argv
from utils.evaluation.runs import job_command

GPU = Cluster("slurm", "a100", at_once=2, hours=1.5, gpu=True)


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_configuration_gives_the_command_line_that_gives_it():
    argv = ["dataset", "toon", "--subjects=dog_0", "--train_flags=--seed=1 --method x", "--num_images=2"]
    config = evaluate.parse([*argv, "--executor=slurm", "--partition=a100", "--gpus=8", "--hours=0.5"])
    assert evaluate.parse(["dataset", *as_argv(config)]) == config
    command = job_command(config, "dog_0", "kv_only")
    assert command[1:5] == ["-m", "scripts.evaluate", "dataset", "toon"]
    job = evaluate.parse(command[3:])
    assert (job.only, job.executor, job.gpus, job.num_images) == ("dog_0,kv_only", None, None, 2)


def test_slurm_is_told_partition_time_and_a_gpu_for_each_job():
    assert GPU.parameters == {
        "timeout_min": 90,
        "name": "classdiffusion",
        "gpus_per_node": 1,
        "slurm_signal_delay_s": 120,
        "slurm_partition": "a100",
    }
    assert Cluster("local", None, 1, 0.001, False).parameters == {"timeout_min": 1, "name": "classdiffusion"}


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(cluster, "which", lambda _: None)
    monkeypatch.setattr(cluster, "find_spec", lambda _: True)
    with pytest.raises(UserError, match="needs Slurm's sbatch"):
        check_executor("slurm")
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install -r requirements-cluster.txt"):
        check_executor("local")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--gpus=2", "--gpus has no effect without --executor"),
        ("--executor=local --partition=a", "--partition is Slurm's"),
        ("--executor=pbs", "slurm, local"),
        ("--only=dog_0", "--only is SUBJECT,METHOD"),
        ("--only=dog_0,base --executor=local", "without --executor"),
    ],
)
def test_flags_that_contradict_each_other(flags, words):
    with pytest.raises(UserError, match=words):
        evaluate.parse(["dataset", "toon", *flags.split()])


def test_jobs_left_on_slurm_are_waited_for_and_the_others_submitted(tmp_path, monkeypatch):
    """Job 77 of an earlier command is at work, 78 unknown by now; sacct says so."""
    pytest.importorskip("submitit")
    programs, folder = tmp_path / "bin", tmp_path / "jobs"
    programs.mkdir()
    program(programs, "srun", "true")
    program(
        programs,
        "sbatch",
        f"cp $1 {tmp_path}/script.$(ls {tmp_path} | grep -c script); echo Submitted batch job 90",
    )
    states = f"if [ -e {tmp_path}/over ]; then s=COMPLETED; else s=RUNNING; fi"
    program(programs, "sacct", f'{states}; echo \'JobID|State|NodeList\'; echo "77|$s|n1"; echo "90|$s|n1"')
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setattr(cluster, "POLL", 0.01)
    write_json(folder / "jobs.json", {"kv_only/dog": "77", "kv_only/cat": "78", "gone/dog": "79"})
    said, done = [], {"kv_only/dog"}

    def say(line: str) -> None:
        said.append(line)
        (tmp_path / "over").touch()

    commands = {name: ["true"] for name in ("kv_only/dog", "kv_only/cat")}
    asked = iter(range(1000))
    failed = run_jobs(GPU, commands, folder, lambda name: name in done and next(asked) > 2, say)
    assert failed == ["kv_only/cat"]
    assert said[0] == "[1/2] job 77, kv_only/dog: done"
    assert said[1].startswith("[2/2] job 90, kv_only/cat: not done, see") and said[1].endswith(
        "kv_only_cat.txt"
    )
    assert read_json(folder / "jobs.json") == {"kv_only/dog": "77", "kv_only/cat": "90"}
    (script,) = tmp_path.glob("script.*")
    lines = script.read_text().splitlines()
    for line in ("--partition=a100", "--gpus-per-node=1", "--time=90", "--signal=USR2@120"):
        assert f"#SBATCH {line}" in lines
