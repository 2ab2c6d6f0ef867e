"""A study: many trainings by a plan, each checkpoint judged, words obeyed against likeness.

python -m scripts.study scripts/plans/toon_short.toml --dry_run
python -m scripts.study scripts/plans/toon_short.toml --output_dir outputs/study
python -m scripts.study scripts/plans/spl.toml --dataset dreambooth --data_dir my/dreambooth --base sd15

A killed study goes on where it was when it is started again. Start the same command several times, on as many
GPUs or machines that share the folder, and they share the trainings.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from scripts.evaluate import benchmarks, stop
from utils.common.errors import MORE_MEMORY, UserError, exit_on_user_error, in_memory
from utils.common.flags import option, parse
from utils.evaluation.config import EvaluationConfig, JudgeFlags, split
from utils.study.plan import read_plan
from utils.training.interrupt import catch


@dataclass(frozen=True)
class Flags(JudgeFlags):
    """The flags of this command."""

    plan: Path | None = option(None, "a TOML file like scripts/plans/spl.toml", positional=True)
    dataset: str | None = option(None, "one of the plan's [data.…] tables (default: its first)")
    data_dir: Path | None = option(None, "your copy of the benchmark")
    base: str | None = option(None, "Stable Diffusion, by name, folder or Hub id (default: the benchmark's)")
    subjects: str | None = option(None, "these alone, joined by commas (default: the plan's)", longest=10_000)
    arms: str | None = option(None, "these of the plan's [arms.…] and its reference, joined by commas")
    batch_size: int | None = option(None, "images drawn at a time (default: 8)", minimum=1)
    output_dir: Path = option(Path("outputs/study"), "the results folder")
    table_only: bool = option(False, "write the table and the figure of what is judged so far; train nothing")
    dry_run: bool = option(
        False, "count the trainings and images, time one step of each, estimate the whole; write nothing"
    )

    def __post_init__(self) -> None:
        if self.plan is None:
            raise UserError("no plan: give a TOML file, e.g. scripts/plans/toon_short.toml")


@in_memory("carrying out a study", less=f"give a smaller --batch_size; {MORE_MEMORY}")
def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    plan = read_plan(config.plan, split(config.arms))
    dataset = config.dataset or next(iter(plan.data))
    if dataset not in plan.data:
        raise UserError(f"--dataset {dataset} is not in {config.plan}; it has {', '.join(plan.data)}")
    shared = {each.name for each in fields(EvaluationConfig)} & {each.name for each in fields(Flags)}
    given = {name: getattr(config, name) for name in shared if getattr(config, name) is not None}
    evaluation = EvaluationConfig(**plan.data[dataset] | given | {"dataset": dataset, "methods": "base"})
    # Imported when the plan is known to be right: a mistake is answered at once.
    from utils.bases.pretrained import check_named_base

    check_named_base(config.base)
    from utils.study.study import carry_out, describe, device_of, prepare, table_of

    study = prepare(plan, evaluation, benchmarks())
    if config.dry_run:
        for line in describe(study, device_of()):
            print(line, flush=True)
        return
    table = table_of(study) if config.table_only else carry_out(study)
    if table is not None:
        print(table)
        print(f"the table, study.json and curves.png are in {config.output_dir}")


if __name__ == "__main__":
    catch(stop)
    exit_on_user_error(main)
