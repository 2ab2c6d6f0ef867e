"""Processes of a launcher that accelerate would not join are refused."""

import pytest
import torch

from utils.bases.devices import check_processes
from utils.common.errors import UserError

ALONE = "2 processes without a GPU would each work alone: set ACCELERATE_USE_CPU=true to join them"


@pytest.fixture
def launched(monkeypatch):
    """launched(processes, gpus, on this machine, use_cpu): a launcher's environment."""

    def launch(processes: int, gpus: int, here: int | None = None, use_cpu: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        variables = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": here, "ACCELERATE_USE_CPU": use_cpu}
        for name, value in variables.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))

    return launch


@pytest.mark.parametrize(
    "settings", [(1, 0), (2, 2), (2, 0, 2, "true"), (2, 0, 2, "1"), (2, 1, 2, "yes"), (4, 2, 2)]
)
def test_processes_that_work_together(launched, settings):
    launched(*settings)
    check_processes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((2, 0), ALONE),
        ((2, 0, 2, "false"), ALONE),
        ((2, 0, 1), ALONE),
        ((2, 1), "2 processes on a machine with 1 GPU(s): start at most 1"),
        ((8, 2, 4), "4 processes on a machine with 2 GPU(s): start at most 2"),
    ],
)
def test_processes_that_would_work_apart(launched, settings, message):
    launched(*settings)
    with pytest.raises(UserError) as mistake:
        check_processes()
    assert str(mistake.value) == message


def test_fsdp_is_refused_where_accelerate_would_ignore_it_and_elsewhere(launched, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for settings in ((2, 0, 2, "true"), (2, 2)):
        launched(*settings)
        with pytest.raises(UserError, match="asks for FSDP, but losses and checkpoints here read parameters"):
            check_processes()


def test_an_accelerate_launch_of_two_on_the_cpu_is_not_one_silently(launched, monkeypatch):
    """What `accelerate launch --num_processes 2 --cpu` sets for its only process."""
    launched(1, 0, use_cpu="true")
    monkeypatch.delenv("WORLD_SIZE")
    for name, value in {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="accelerate launch starts a single process without a GPU, whatever"):
        check_processes()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # of mpirun, which accelerate joins
    check_processes()
