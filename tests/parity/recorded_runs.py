"""Short trainings on the tiny model, recorded before the house was rebuilt (commit f3c5bfd).

`python -m tests.parity.recorded_runs FILE` runs all of them and writes what they logged and learned.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from tests.tiny_models import tiny_pipeline

DOG = {"instance_data_dir": "{images}/dog", "instance_prompt": "a photo of a <new1> dog", "cls_token": "dog"}
PAIR = {
    "concepts_list": "{images}/concepts.json",
    "modifier_token": "<new1>+<new2>",
    "cls_token": "teddy bear+barn",
}
PRIOR = {
    "with_prior_preservation": True,
    "class_data_dir": "{images}/class",
    "class_prompt": "a photo of a dog",
    "num_class_images": 3,
}
# name -> flags. The method names are today's; then, kv_only was called custom_diffusion, and rows_only
# (textual_inversion's trained part in Custom Diffusion's frame) was called textual_inversion.
RUNS: dict[str, dict[str, Any]] = {
    "classdiffusion": DOG | {"hflip": True, "spl_weight": 0.25},
    "no_augmentation": DOG | {"noaug": True, "seed": 5},
    "spl_at_the_modifier": DOG | {"spl_pool": "modifier"},
    "two_concepts": PAIR,
    "prior": DOG | PRIOR,
    "bf16": DOG | {"mixed_precision": "bf16"},
    "checkpointed": DOG | {"gradient_checkpointing": True, "train_batch_size": 1},
    "accumulated": DOG | {"gradient_accumulation_steps": 2, "train_batch_size": 1},
    "scheduled": DOG | {"lr_scheduler": "cosine", "scale_lr": True, "token_learning_rate": 5e-3},
    "kv_only": DOG | {"method": "kv_only"},
    "rows_only": DOG | {"method": "rows_only"},
}
COMMON = {"preset": "none", "max_train_steps": 3, "learning_rate": 1e-3, "seed": 3}


def write_images(folder: Path) -> None:
    """Coloured noise, the same everywhere."""
    for number, name in enumerate(("dog", "bear", "house", "class")):
        rng = np.random.default_rng(number)
        (folder / name).mkdir(parents=True)
        for i in range(3):
            noise = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
            noise.resize((24, 20), Image.Resampling.BICUBIC).save(folder / name / f"{i}.png")
    entries = [
        {"instance_prompt": "a photo of a <new1> teddy bear", "instance_data_dir": str(folder / "bear")},
        {"instance_prompt": "a photo of a <new2> barn", "instance_data_dir": str(folder / "house")},
    ]
    (folder / "concepts.json").write_text(json.dumps(entries))


def flags_of(name: str, images: Path, base: Path, output_dir: Path) -> list[str]:
    """The command line of a run."""
    settings = COMMON | RUNS[name] | {"pretrained_model_name_or_path": base, "output_dir": output_dir}
    return [
        f"--{key}" if value is True else f"--{key}={str(value).format(images=images)}"
        for key, value in settings.items()
    ]


def what_came_of(output_dir: Path) -> dict[str, Any]:
    """The log's numbers; of every learned tensor the sum of its values and of their magnitudes; all bits."""
    lines = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    digest, tensors = hashlib.sha256(), {}
    for file in sorted(output_dir.glob("*.safetensors")):
        for key, value in sorted(load_file(file).items()):
            digest.update(value.numpy().tobytes())
            name = re.sub(r"processor\.(to_[kv])_custom_diffusion", r"\1", key)
            tensors[name] = [value.double().sum().item(), value.double().abs().sum().item()]
    return {"log": lines, "tensors": tensors, "sha256": digest.hexdigest()}


def run_all(main: Callable[[list[str]], None], renamed: dict[str, str]) -> dict[str, Any]:
    """Every run through a training script's `main`; renamed: method names of another version."""
    from accelerate.state import AcceleratorState, GradientState

    os.environ["ACCELERATE_USE_CPU"] = "true"
    results = {}
    with TemporaryDirectory() as folder:
        images, base = Path(folder, "images"), Path(folder, "sd")
        write_images(images)
        tiny_pipeline(Path(folder, "words")).save_pretrained(base)
        for name in RUNS:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            flags = flags_of(name, images, base, Path(folder, name))
            for new, old in renamed.items():
                flags = [old if flag == new else flag for flag in flags]
            main(flags)
            results[name] = what_came_of(Path(folder, name))
    return results


if __name__ == "__main__":
    import train_classdiffusion

    before = {
        "--method=kv_only": "--method=custom_diffusion",
        "--method=rows_only": "--method=textual_inversion",
    }
    found = run_all(train_classdiffusion.main, before)
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")
