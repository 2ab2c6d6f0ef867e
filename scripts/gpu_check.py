"""What a GPU has to prove: every check in a process of its own, its result a key of one JSON file.

python -m scripts.gpu_check                      on the first GPU, at SD 1.5's shape and on toon
python -m scripts.gpu_check --device cpu --tiny  the same code on tiny models, to test the program

A check whose result is in the file is not run again, unless it failed. Exits with 1 if one has failed.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.speed.gpu_checks import CHECKS
from utils.bases.registry import REPOSITORY
from utils.common.errors import UserError, exit_on_user_error
from utils.common.files import check_writable_folder, read_json, write_json
from utils.common.flags import check_fields, option, parse


@dataclass(frozen=True)
class GpuCheckConfig:
    device: str = option("cuda", "where the checks run", choices=("cuda", "cpu"))
    tiny: bool = option(False, "tiny models and few steps: says nothing of speed")
    checks: str = option(",".join(CHECKS), "which checks, joined by commas")
    output_dir: Path = option(Path("outputs/gpu_check"), "folder of results.json and of what is made")
    inside: bool = option(False, "run one check in this process: what the program calls itself with")

    def __post_init__(self) -> None:
        check_fields(self)
        if unknown := [name for name in self.names if name not in CHECKS]:
            raise UserError(f"--checks {unknown[0]}: choose from {', '.join(CHECKS)}")

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.checks.split(",")]

    @property
    def results(self) -> Path:
        return self.output_dir / "results.json"

    @property
    def conditions(self) -> dict[str, str | bool]:
        """What results depend on: those of another device or size are not mixed with these."""
        return {"device": device_name(self.device), "tiny": self.tiny}


def device_name(device: str) -> str:
    """The GPU's name, or "cpu". Raises UserError where there is none."""
    if device == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "no CUDA device: use a machine that has one, or --device cpu --tiny to test the program"
        )
    return torch.cuda.get_device_name()


def run_check(config: GpuCheckConfig, name: str) -> dict:
    """A check's result: {"ok", "seconds"} and what it found, or "error" with the end of what it printed."""
    command = [sys.executable, "-m", "scripts.gpu_check", f"--device={config.device}", f"--checks={name}"]
    command += [f"--output_dir={config.output_dir.resolve()}", "--inside", *["--tiny"] * config.tiny]
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if config.device == "cpu" else {})
    limit = CHECKS[name].limit * (5 if config.device == "cpu" else 1)
    found, log = config.output_dir / f"{name}.json", config.output_dir / f"{name}.log"
    found.unlink(missing_ok=True)
    start = time.monotonic()
    with log.open("w") as file:
        how = {"cwd": REPOSITORY, "env": environment, "stdout": file, "stderr": subprocess.STDOUT}
        try:
            code = subprocess.run(command, timeout=limit, **how).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {limit} s"
    result = {"seconds": round(time.monotonic() - start, 1)}
    if code == 0 and found.is_file():
        return result | read_json(found)
    return result | {"ok": False, "error": f"{code}; {log}: {log.read_text()[-500:]}"}


def main(argv: list[str] | None = None) -> None:
    config = parse(GpuCheckConfig, argv, __doc__)
    check_writable_folder(config.output_dir, "output_dir")
    config.output_dir.mkdir(parents=True, exist_ok=True)
    if config.inside:
        (name,) = config.names
        write_json(config.output_dir / f"{name}.json", CHECKS[name].run(config))
        return
    held = read_json(config.results) if config.results.is_file() else {}
    results = held if held.get("conditions") == config.conditions else {"conditions": config.conditions}
    for name in config.names:
        if not results.get(name, {}).get("ok"):
            print(f"{name}: {CHECKS[name].title} …", flush=True)
            results[name] = run_check(config, name)
            write_json(config.results, results)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    failed = [name for name in config.names if not results[name]["ok"]]
    print(f"{len(config.names) - len(failed)} of {len(config.names)} checks passed; {config.results}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    exit_on_user_error(main)
