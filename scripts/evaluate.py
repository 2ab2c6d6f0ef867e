"""Scores: a trained concept, a folder of images, or a whole benchmark -> table and report.

python -m scripts.evaluate concept ckpt/dog
python -m scripts.evaluate generated outputs --real data/dog --cls_token dog
python -m scripts.evaluate dataset toon --methods base,custom_diffusion,classdiffusion --num_images 2
python -m scripts.evaluate dataset toon --subjects dog_0,cat_1 --max_prompts 5

A killed run goes on where it was when it is started again. Several processes share the subjects and methods,
on as many GPUs, or on a CPU with ACCELERATE_USE_CPU=true in the environment:

torchrun --standalone --nproc_per_node 2 -m scripts.evaluate dataset toon
"""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.common.errors import MORE_MEMORY, exit_on_user_error, in_memory
from utils.common.flags import option
from utils.common.subcommands import Subcommand, parse_subcommand, run_subcommand
from utils.evaluation.config import EvaluationConfig, without_effect
from utils.training.interrupt import catch

if TYPE_CHECKING:
    from utils.evaluation.data_sets import DataSet


@dataclass(frozen=True)
class Flags(EvaluationConfig):
    """The flags of this command."""

    dataset: str | None = option(
        None,
        "toon, dreambooth, customconcept101, customconcept101_pairs or dreambench_plus",
        modes=("dataset",),
        positional=True,
    )


def parse(argv: list[str] | None = None) -> Flags:
    argv = sys.argv[1:] if argv is None else argv
    return parse_subcommand(SUBCOMMANDS, argv, __doc__, PROGRAM)[1]


def benchmarks() -> "dict[str, DataSet]":
    """The published benchmarks, and that of the embedded model."""
    from scripts.toon import benchmark_set
    from scripts.toon.world.world import ANIMALS
    from utils.evaluation.data_sets import DataSet
    from utils.evaluation.published_sets import DATA_SETS

    def word_judge(subjects):
        judge = benchmark_set.Obedience()
        return judge if judge.knows(subjects) else None

    toon = DataSet(
        benchmark_set.benchmark,
        base="toon",
        draw=benchmark_set.draw,
        word_judge=word_judge,
        templates=lambda word: tuple(benchmark_set.facts_of_templates()) if word in ANIMALS else (),
    )
    return {"toon": toon, **DATA_SETS}


@in_memory("evaluating", less=f"give a smaller --batch_size; {MORE_MEMORY}")
def run(config: Flags) -> None:
    """Evaluates, prints the table and writes the report."""
    # Imported when the flags are known to be right: a mistake is answered at once.
    from utils.bases.pretrained import check_named_base

    check_named_base(config.base)
    from utils.evaluation.evaluation import evaluate

    table = evaluate(config, benchmarks())
    if table is not None:
        from utils.report.page import write_report

        print(table)
        page = write_report(config.output_dir)
        print(f"the table and all behind it are in {config.output_dir}, to look at in {page}")


PROGRAM = "python -m scripts.evaluate"
SUBCOMMANDS = {
    mode: Subcommand(Flags, run, text, hidden=without_effect(Flags, mode))
    for mode, text in (
        ("concept", "sample and score a trained concept"),
        ("generated", "score images that are there, of any program"),
        ("dataset", "train, sample and score a benchmark with several methods"),
    )
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    run_subcommand(SUBCOMMANDS, argv, __doc__, PROGRAM)


def stop(number: int, _: object) -> None:
    """Ends the evaluation at a signal; a training that it has started saves first."""
    with suppress(OSError):  # a closed terminal
        os.write(2, b"stopped; the same command goes on from here\n")
    sys.exit(128 + number)


if __name__ == "__main__":
    catch(stop)
    exit_on_user_error(main)
