"""Choose toon's learning rates and SPL weight by personalising tuning individuals, none of them an example.

For every setting it prints, as a mean over the individuals, what prompt_accuracy.py measures: how many
pictures obey every word of their prompt, and likeness. Finished runs are kept and not repeated.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

from scripts.toon.draw_examples import pictures
from scripts.toon.render import render
from scripts.toon.world import sample_look

KINDS = ("dog", "cat", "rabbit", "pig")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/tune"))
    parser.add_argument("--individuals", type=int, default=2)
    parser.add_argument("--learning_rates", nargs="+", default=["1e-4", "2e-4", "4e-4"], help="of K/V")
    parser.add_argument("--token_learning_rates", nargs="+", default=["1e-3"])
    parser.add_argument("--spl_weights", nargs="+", default=["0", "1"])
    parser.add_argument("--steps", nargs="+", default=["300"])
    parser.add_argument("--augment", action="store_true", help="with Custom Diffusion's scale augmentation")
    args = parser.parse_args()
    settings = itertools.product(args.learning_rates, args.token_learning_rates, args.spl_weights, args.steps)
    extra = [] if args.augment else ["--noaug"]
    for kv_rate, token_rate, spl_weight, steps in settings:
        name = f"kv{kv_rate}_token{token_rate}_spl{spl_weight}_steps{steps}" + "_augmented" * args.augment
        scores = [
            personalise(args.output_dir, name, i, kv_rate, token_rate, spl_weight, steps, extra)
            for i in range(args.individuals)
        ]
        for measure in ("class", "concept"):
            obeyed = sum(score[measure]["all"][0] for score in scores) / len(scores)
            plain, placed = (
                sum(score[f"{measure} {kind}"] for score in scores) / len(scores)
                for kind in ("likeness", "likeness in situations")
            )
            told = f"all words {obeyed:.1%}, likeness {plain:.3f}, in situations {placed:.3f}"
            print(f"{name} {measure}: {told}", flush=True)


def personalise(
    folder: Path,
    name: str,
    i: int,
    kv_rate: str,
    token_rate: str,
    spl_weight: str,
    steps: str,
    extra: list[str],
) -> dict:
    """Train individual i with a setting and `extra` flags, and judge it."""
    kind = KINDS[i % len(KINDS)]
    look = sample_look(random.Random(f"tuning/{i}"), kind)
    images = folder / f"individual-{i}"
    if not images.exists():
        images.mkdir(parents=True)
        for j, scene in enumerate(pictures(look, f"tuning/{i}")):
            render(scene, 256).save(images / f"{j}.png")
    output = folder / name / str(i)
    result = output / "accuracy" / "accuracy.json"
    if not result.exists():
        train = ["train_classdiffusion.py", f"--instance_data_dir={images}", f"--cls_token={kind}"]
        train += [
            f"--instance_prompt=a photo of a <new1> {kind}",
            "--scale_lr",
            "--hflip",
            f"--output_dir={output}",
        ]
        train += [f"--learning_rate={kv_rate}", f"--token_learning_rate={token_rate}"]
        train += [f"--spl_weight={spl_weight}", f"--max_train_steps={steps}", "--checkpointing_steps=100000"]
        train += extra
        subprocess.run([sys.executable, *train], check=True)
        judge = ["-m", "scripts.toon.prompt_accuracy", f"--concept={output}", "--images=2"]
        subprocess.run([sys.executable, *judge, f"--output_dir={output / 'accuracy'}"], check=True)
    return json.loads(result.read_text())


if __name__ == "__main__":
    main()
