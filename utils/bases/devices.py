"""Where a model runs and in which precision, and quiet loading.

The libraries are imported when a function needs them, so that the names here cost nothing.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from utils.common.errors import UserError, short

if TYPE_CHECKING:
    import torch
    from torch import nn

# How long training processes wait for one that validates or saves; one that dies ends the others at once, by
# torchrun. By default NCCL would give up after ten minutes.
PATIENCE = timedelta(hours=6)
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # a flag's value -> torch's name


def choose_device_dtype(
    device: "str | torch.device | None" = None, dtype: "str | torch.dtype | None" = None
) -> "tuple[torch.device, torch.dtype]":
    """Where to sample and in which precision; whatever is given wins.

    device: default CUDA, else Apple's MPS, else the CPU.
    dtype: a key of DTYPES or one of its torch types; default fp16 on CUDA, fp32 elsewhere (on a CPU half
    precision saves nothing, on MPS it is not dependable).
    Raises UserError for a device this machine lacks and for an unknown dtype.
    """
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        device = next(name for name, here in present.items() if here)
    usable = [name for name, here in present.items() if here]
    try:
        device = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {short(device)!r}; this machine has {', '.join(usable)}") from None
    if device.type not in usable:
        raise UserError(f"device {str(device)!r} is not available; this machine has {', '.join(usable)}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {str(device)!r} does not exist; the last is cuda:{torch.cuda.device_count() - 1}"
        )

    if dtype is None:
        dtype = "fp16" if device.type == "cuda" else "fp32"
    types = {name: getattr(torch, torch_name) for name, torch_name in DTYPES.items()}
    if dtype not in types and dtype not in types.values():
        raise UserError(f"unknown dtype {str(dtype)!r}; choose one of {', '.join(DTYPES)}")
    return device, types.get(dtype, dtype)


MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # launchers that accelerate joins too


def check_processes() -> None:
    """Raises UserError for a launcher that asks for FSDP, or whose processes would each work alone.

    accelerate joins processes that have a GPU each, or all on the CPU if ACCELERATE_USE_CPU says so.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise UserError(
            "the launcher asks for FSDP, but losses and checkpoints here read parameters whole: launch it "
            "without (each process then holds the model); --low_memory and --mixed_precision bf16 save memory"
        )
    # `accelerate launch --num_processes 2 --cpu` starts one process, and names a meeting place for two.
    lone = "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ
    if lone and not any(name in os.environ for name in ("WORLD_SIZE", *MPI)):
        raise UserError(
            "accelerate launch starts a single process without a GPU, whatever --num_processes says: "
            "NUM_PROCESSES=2 bash scripts/train_single.sh starts two, and so does torchrun --nproc_per_node 2"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", processes)), torch.cuda.device_count()
    if processes == 1 or here <= gpus or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return
    if gpus:
        raise UserError(f"{here} processes on a machine with {gpus} GPU(s): start at most {gpus}")
    raise UserError(
        f"{processes} processes without a GPU would each work alone: set ACCELERATE_USE_CPU=true to join them"
    )


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Both libraries draw a bar per weights file; their switches are global, so put them back."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    silenced = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in silenced:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in silenced:
            log.enable_progress_bar()


def cast_frozen(modules: "Sequence[nn.Module]", dtype: "torch.dtype") -> None:
    """Cast the parameters that do not learn, and only them (`to` casts all; diffusers' also warns of it).

    Those that learn are copied: as views of the weights' file they would keep all of it in memory.
    """
    for module in modules:
        for parameter in module.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
            elif dtype != parameter.dtype:
                parameter.data = parameter.data.clone()
