"""What this machine has, what will run on it, and what it would cost: the first thing a bug report needs.

python -m scripts.doctor               readable
python -m scripts.doctor --json        the same as one JSON object
python -m scripts.doctor --costs none  without what trainings cost, in seconds

Every precision is tried by a tiny training step on every device. Memory and time of a training with its
preset's flags are estimates: counted operations, by what a measured step of a part of the UNet reaches here.
"""

import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils.bases.registry import BASES
from utils.common.errors import UserError, exit_on_user_error, short
from utils.common.flags import option, parse
from utils.common.limits import check_fields

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "Pillow")
# module -> what it is for, and how it is installed
OPTIONAL = {
    "bitsandbytes": ("--optimizer adamw8bit", "pip install bitsandbytes"),
    "imageio_ffmpeg": ("videogen.py --format mp4", "pip install imageio-ffmpeg"),
    "pillow_heif": ("HEIC photographs", "pip install pillow-heif"),
    "gradio": ("the page", "bash scripts/app.sh installs it"),
    "tensorboard": ("--report_to tensorboard", "pip install tensorboard"),
    "wandb": ("--report_to wandb", "pip install wandb"),
}
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


@dataclass(frozen=True)
class DoctorConfig:
    json: bool = option(False, "print one JSON object")
    costs: str = option("toon,sd15", f"bases whose trainings are estimated: of {','.join(BASES)}; or none")

    def __post_init__(self) -> None:
        check_fields(self)
        if unknown := [name for name in self.bases if name not in BASES]:
            raise UserError(f"--costs {short(unknown[0])}: choose from {', '.join(BASES)}, or none")

    @property
    def bases(self) -> list[str]:
        return [] if self.costs == "none" else [name.strip() for name in self.costs.split(",")]


def processor() -> dict[str, Any]:
    """Its name, cores and the instructions that matter here; Linux says which, other systems None."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", fields.get("Features", "")).split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = fields.get("model name") or platform.processor() or platform.machine()
    return {"name": name, "cores": cores, "features": [f for f in FEATURES if f in flags] if flags else None}


def memory() -> dict[str, float | None]:
    """GiB in all and free; None where the system does not say."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return {"total_gib": None, "available_gib": None}
    sizes = dict(line.split(":") for line in info.read_text().splitlines())
    kib = {name: int(sizes[name].split()[0]) for name in ("MemTotal", "MemAvailable")}
    return {"total_gib": kib["MemTotal"] / 2**20, "available_gib": kib["MemAvailable"] / 2**20}


def gpus() -> list[dict[str, Any]]:
    """Name, memory and capability of each CUDA device, and Apple's if there is one."""
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        capability = f"{facts.major}.{facts.minor}"
        found.append({"device": f"cuda:{number}", "name": facts.name, "capability": capability})
        found[-1]["memory_gib"] = facts.total_memory / 2**30
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "capability": None, "memory_gib": None})
    return found


def versions() -> dict[str, str | None]:
    """Of the packages that the results depend on; None: not installed."""

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {"python": platform.python_version()} | {package: of(package) for package in PACKAGES}


def precisions(devices: list[str]) -> dict[str, dict[str, str]]:
    """device -> precision -> "runs", or why a tiny training step does not."""
    import torch
    from diffusers import UNet2DConditionModel

    from scripts.speed.bases import TINY
    from utils.bases.devices import DTYPES

    found: dict[str, dict[str, str]] = {}
    for device in devices:
        found[device] = {}
        for name, torch_name in DTYPES.items():
            try:  # what is asked is whether it fails
                unet = UNet2DConditionModel(**TINY["unet"]).to(device, getattr(torch, torch_name))
                given = [
                    torch.ones(shape, device=device, dtype=unet.dtype)
                    for shape in ((1, 4, 8, 8), (1, 24, 32))
                ]
                loss = unet(given[0], torch.zeros(1, device=device), given[1]).sample.float().square().mean()
                loss.backward()
                found[device][name] = "runs" if loss.isfinite() else f"gives {loss.item()}"
            except (RuntimeError, NotImplementedError, TypeError) as error:
                found[device][name] = f"fails: {str(error).splitlines()[0]}"
    return found


def models() -> dict[str, dict[str, bool]]:
    """Which bases, judges and motion adapters are here: in a folder, or in the Hub's cache."""
    judges = {model for row in BASES.values() for model in row.judges.values()}
    adapters = {row.motion_adapter for row in BASES.values() if row.motion_adapter}
    return {
        "bases": {name: is_here(row.path, "model_index.json") for name, row in BASES.items()},
        "judges": {shown_model(model): is_here(model, "config.json") for model in sorted(judges)},
        "motion adapters": {shown_model(model): is_here(model, "config.json") for model in sorted(adapters)},
    }


def is_here(model: str, name: str) -> bool:
    """Whether the file `name` of a model, a folder or a Hub id, can be read without the network."""
    from huggingface_hub import try_to_load_from_cache

    return (Path(model) / name).is_file() or isinstance(try_to_load_from_cache(model, name), str)


def shown_model(model: str) -> str:
    from utils.bases.registry import portable

    return portable(model)


def advice(report: dict[str, Any]) -> list[str]:
    """What could be installed or brought here, a line each."""
    lines = []
    if not report["gpus"]:
        lines.append("no GPU: SD 1.5 trains in hours, toon in a minute; a CUDA build of torch finds NVIDIA's")
    lines += [f"{uses}: {how}" for module, (uses, how) in OPTIONAL.items() if not report["optional"][module]]
    lines += [
        f"base {name}: hf download {BASES[name].path}"
        for name, here in report["models"]["bases"].items()
        if not here
    ]
    return lines


def examine(config: DoctorConfig) -> dict[str, Any]:
    """The whole report."""
    import torch

    cards = gpus()
    devices = ["cpu", *(card["device"] for card in cards)]
    report: dict[str, Any] = {
        "system": platform.platform(),
        "processor": processor(),
        "memory": memory(),
        "gpus": cards,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "optional": {module: find_spec(module) is not None for module in OPTIONAL},
        "precisions": precisions(devices),
        "models": models(),
    }
    if config.bases:
        from scripts.speed.estimates import RATES, estimates, measured_rate

        device = "cuda" if torch.cuda.is_available() else "cpu"
        shapes = dict.fromkeys(RATES[base] for base in config.bases)
        rates = {shape: measured_rate(shape, device) for shape in shapes}
        rows = estimates(config.bases, rates, device)
        report["costs"] = {"device": device, "operations_per_second": rates, "trainings": rows}
    return report | {"advice": advice(report)}


def lines_of(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    cpu, mem = report["processor"], report["memory"]
    features = "unknown" if cpu["features"] is None else ", ".join(cpu["features"]) or "none"
    lines = [
        f"system      {report['system']}",
        f"processor   {cpu['name']}, {cpu['cores']} cores: {features}",
    ]
    if mem["total_gib"]:
        lines.append(f"memory      {mem['total_gib']:.1f} GiB, {mem['available_gib']:.1f} available")
    for card in report["gpus"] or [{"device": "GPU", "name": "none", "memory_gib": None}]:
        size = f", {card['memory_gib']:.1f} GiB" if card["memory_gib"] else ""
        lines.append(f"{card['device']:11} {card['name']}{size}")
    lines.append("versions    " + ", ".join(f"{name} {each}" for name, each in report["versions"].items()))
    lines.append(
        "optional    " + ", ".join(f"{m}{'' if here else ' (no)'}" for m, here in report["optional"].items())
    )
    for device, found in report["precisions"].items():
        lines.append(f"{device:11} " + ", ".join(f"{name} {result}" for name, result in found.items()))
    for kind, here in report["models"].items():
        lines.append(f"{kind:11} " + ", ".join(f"{name}{'' if ok else ' (no)'}" for name, ok in here.items()))
    if "costs" in report:
        lines += cost_lines(report["costs"])
    return lines + ["", *(f"to do: {line}" for line in report["advice"])]


def cost_lines(found: dict[str, Any]) -> list[str]:
    """The table of what trainings cost."""
    reached = ", ".join(f"{base} {rate / 1e12:.3f}" for base, rate in found["operations_per_second"].items())
    lines = [
        "",
        f"Trainings on {found['device']} in float32 with the preset's flags, estimated from measured TFLOP/s "
        f"({reached}):",
        f"  {'base':5} {'method':18} {'images':>6} {'GiB':>6} {'s a step':>9} {'steps':>6} {'hours':>7}",
    ]
    for row in found["trainings"]:
        start = f"  {row['base']:5} {row['method']:18} "
        if "refused" in row:
            lines.append(start + row["refused"])
            continue
        cost = f"{row['images']:6} {row['gib']:6.1f} {row['seconds']:9.2f} {row['steps']:6} "
        lines.append(f"{start}{cost}{row['hours']:7.2f}")
    return lines


def main(argv: list[str] | None = None) -> None:
    config = parse(DoctorConfig, argv, __doc__)
    report = examine(config)
    print(json.dumps(report, indent=2) if config.json else "\n".join(lines_of(report)))


if __name__ == "__main__":
    exit_on_user_error(main)
