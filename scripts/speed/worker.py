"""One variant of the training step in a process of its own, so that its memory is its own.

Reads words from the standard input, a line each, and answers each with a line of JSON:
step: one optimizer step; encode: every image that will come; memory: the most that was held so far; end:
floating-point operations of a step, size of a checkpoint, both of which take memory of their own.
"""

import json
import resource
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from utils.common.errors import exit_on_user_error

STARTED = (
    time.time()
)  # a launched process has read its interpreter by now; the launcher's clock is used if given


class Ours:
    """This repository's step: `set_up`, `begin` and `update` of train_classdiffusion.py."""

    def __init__(self, arguments: list[str]):
        import train_classdiffusion
        from utils.config.train_config import parse_config
        from utils.training.run import begin

        self.config = parse_config(arguments)
        self.run = train_classdiffusion.set_up(self.config)
        stage, first, last = next(self.config.plan())
        self.at = begin(self.run, stage, first, last)
        self.device = self.run.accelerator.device
        self.update = train_classdiffusion.update

    def step(self, number: int) -> dict[str, float]:
        return self.update(self.run, self.at, number, False)[0]

    def encode(self) -> dict[str, float]:
        """Encodes every image, and every view of a pool, so that later steps find them; counts them."""
        instances, encoder = self.run.instances, self.run.encode_images
        if not encoder.repeats:
            return {"encoded": 0, "seconds": 0.0}
        count, start = len(instances) * max(1, self.config.latent_pool or 1), time.perf_counter()
        for number in range(count):
            encoder.posterior(instances.instance_item(number).pixels)
        return {"encoded": count, "seconds": time.perf_counter() - start}

    def checkpoint_bytes(self) -> int:
        from utils.training.outputs import save_checkpoint

        save_checkpoint(self.run, self.at, 1)
        folder = Path(self.config.output_dir) / "checkpoint-1"
        return sum(file.stat().st_size for file in folder.iterdir())


class Reference:
    """The published scripts' step (scripts/speed/reference.py)."""

    def __init__(self, arguments: list[str]):
        import torch

        from scripts.speed.reference import ReferenceStep
        from utils.config.train_config import parse_config

        self.config = parse_config(arguments)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.inner = ReferenceStep(self.config, self.config.pretrained_model_name_or_path, self.device)
        self.step, self.checkpoint_bytes = self.inner.step, self.inner.checkpoint_bytes

    def encode(self) -> dict[str, float]:
        return {"encoded": 0, "seconds": 0.0}


def peak_bytes() -> int:
    """The most memory that this process has held: of the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss begins with the launching process's
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(found.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def operation_counter() -> Any:
    """torch's FlopCounterMode with the CPU's attention, which it leaves out."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    attention = {
        forward: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        backward: lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


def timed_step(engine: Any, number: int, count: bool = False) -> dict[str, Any]:
    """A step's terms, seconds of the wall and of the processor and, if asked, floating-point operations."""
    import torch

    counter = operation_counter() if count else nullcontext()
    start, used = time.perf_counter(), time.process_time()
    with counter:
        terms = engine.step(number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    times = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - used}
    return times | {"terms": terms, "flop": counter.get_total_flops() if count else None}


def answer(engine: Any, word: str, number: int) -> dict[str, Any]:
    """What the worker answers to a word."""
    if word == "step":
        return timed_step(engine, number)
    if word == "encode":
        return engine.encode()
    if word == "memory":
        return {"peak_bytes": peak_bytes()}
    assert word == "end", word
    operations = timed_step(engine, number, count=True)["flop"]
    return {"flop": operations, "checkpoint_bytes": engine.checkpoint_bytes()}


def main() -> None:
    spec = json.loads(sys.argv[1])
    output, sys.stdout = sys.stdout, sys.stderr  # what training prints is not an answer
    with TemporaryDirectory() as folder:
        arguments = [*spec["arguments"], f"--output_dir={folder}/run"]
        engine = (Reference if spec["engine"] == "reference" else Ours)(arguments)
        if spec.get("compile"):
            engine.run.base.unet.compile(mode=spec["compile"])
        ready = time.time()
        first = timed_step(engine, 1)
        started = spec.get("started", STARTED)
        answers = first | {"ready_after": ready - started, "first_step_after": time.time() - started}
        print(json.dumps(answers), file=output, flush=True)
        number = 1
        for line in sys.stdin:
            word = line.strip()
            number += word in ("step", "end")
            print(json.dumps(answer(engine, word, number)), file=output, flush=True)
            if word == "end":
                break
        if engine.__class__ is Ours:
            engine.run.accelerator.end_training()


if __name__ == "__main__":
    exit_on_user_error(main)
