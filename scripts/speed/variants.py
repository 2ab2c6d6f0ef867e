"""The variants of a training step that the benchmark compares, and the processes they run in."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.bases.registry import REPOSITORY


@dataclass(frozen=True)
class Variant:
    """engine: "reference" or "ours"; flags: of train_classdiffusion.py; against: the variant it is compared
    with, on the same inputs."""

    name: str
    engine: str
    flags: tuple[str, ...] = ()
    against: str | None = None


BF16 = "--mixed_precision=bf16"
VARIANTS = (
    Variant("reference fp32", "reference"),
    Variant("ours fp32", "ours", (), "reference fp32"),
    Variant("ours fp32 + pool", "ours", ("--latent_pool=1",), "reference fp32"),
    Variant("ours fp32 + pool + low memory", "ours", ("--latent_pool=1", "--low_memory"), "reference fp32"),
    Variant("reference bf16", "reference", (BF16,)),
    Variant("ours bf16", "ours", (BF16,), "reference bf16"),
    Variant("ours bf16 + pool", "ours", (BF16, "--latent_pool=1"), "reference bf16"),
    Variant(
        "ours bf16 + pool + low memory", "ours", (BF16, "--latent_pool=1", "--low_memory"), "reference bf16"
    ),
)


@dataclass
class Worker:
    """A variant's process and what it has answered."""

    variant: Variant
    process: Any
    first: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, variant: Variant, arguments: list[str], compile: str | None = None) -> "Worker":
        """Starts the process and waits for its first step. Raises RuntimeError when it ends instead.

        compile: the mode of torch.compile for our UNet, if it is to be compiled.
        """
        spec = {"engine": variant.engine, "arguments": [*arguments, *variant.flags], "started": time.time()}
        spec["compile"] = compile
        command = [sys.executable, "-m", "scripts.speed.worker", json.dumps(spec)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        worker = cls(variant, subprocess.Popen(command, cwd=REPOSITORY, **pipes))
        worker.first = worker._read()
        return worker

    def ask(self, word: str) -> dict[str, Any]:
        """The answer to a word of scripts/speed/worker.py."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self._read()

    def step(self) -> None:
        """One more timed step."""
        self.steps.append(self.ask("step"))

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.variant.name}: its process ended with {self.process.wait()}, see above"
            )
        return json.loads(line)


def ceiling(dtype_name: str, repeats: int = 5) -> float:
    """The best rate of a square matrix product here, in floating-point operations per second.

    Its side grows until one takes .05 s: some processors take a minute for 2,048 in bf16.
    """
    import torch

    side, seconds = 256, 0.0
    while seconds < 0.05 and side < 8192:
        side *= 2
        seconds = min(_product_seconds(side, getattr(torch, dtype_name)) for _ in range(2))
    return 2 * side**3 / min(_product_seconds(side, getattr(torch, dtype_name)) for _ in range(repeats))


def _product_seconds(side: int, dtype: Any) -> float:
    import torch

    cuda = torch.cuda.is_available()
    a, b = (torch.randn(side, side, device="cuda" if cuda else "cpu").to(dtype) for _ in range(2))
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    a @ b
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def work_folder(path: Path | None, base: str) -> Path:
    """Where the base with random weights is kept from run to run."""
    return path or REPOSITORY / "outputs" / "benchmark" / base
