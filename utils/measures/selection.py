"""Which checkpoint becomes the result of a run: the best by a criterion that was declared before it began."""

from pathlib import Path
from typing import Any

from utils.common.errors import UserError
from utils.common.files import read_records, shown, write_json
from utils.config.measure_flags import CRITERIA
from utils.config.train_config import TrainConfig
from utils.measures.measures import is_candidate
from utils.training.checkpoints import checkpoints, step_of

SELECTION_FILE = "selection.json"


def candidates(config: TrainConfig) -> dict[int, Path]:
    """step -> the whole checkpoint, for those of the plan: what an interruption saved does not compete."""
    ends = {last for _, _, last in config.plan()}
    found = {step_of(path): path for path in checkpoints(Path(config.output_dir))}
    return {step: path for step, path in found.items() if is_candidate(config, step, step in ends)}


def values_of(config: TrainConfig, steps: list[int]) -> dict[int, float]:
    """step -> the criterion's value in the log. Raises UserError for a checkpoint without one."""
    key, folder = CRITERIA[config.select_checkpoint][0], Path(config.output_dir)
    logged = {record.get("step"): record.get(key) for record in read_records(folder / "log.jsonl")}
    for step in steps:
        if logged.get(step) is None:
            raise UserError(
                f"{shown(folder / f'checkpoint-{step}')} was saved without its {key}: --select_checkpoint "
                f"{config.select_checkpoint} cannot compare it, leave the flag out or start anew"
            )
    return {step: logged[step] for step in steps}


def check_selection(config: TrainConfig, resumed_at: int) -> None:
    """Raise UserError when a run that goes on has checkpoints whose value was not measured."""
    if config.select_checkpoint is not None and resumed_at:
        values_of(config, [step for step in candidates(config) if step <= resumed_at])


def best(values: dict[int, float], lowest: bool) -> int:
    """The step with the best value; of equal ones the earliest, whose training was the least."""
    return min(values, key=lambda step: (values[step] if lowest else -values[step], step))


def select(config: TrainConfig) -> tuple[Path | None, dict[str, Any]]:
    """The chosen checkpoint and what is recorded of the choice; (None, {}) where the last state is kept."""
    if config.select_checkpoint is None:
        return None, {}
    found = candidates(config)
    key, lowest = CRITERIA[config.select_checkpoint]
    values = values_of(config, list(found))
    step = best(values, lowest)
    choice = {"criterion": config.select_checkpoint, "key": key, "best": "lowest" if lowest else "highest"}
    return found[step], choice | {"step": step, "values": {str(k): v for k, v in values.items()}}


def record_choice(output_dir: Path, choice: dict[str, Any]) -> None:
    """selection.json in the run's folder; an earlier one goes where nothing was chosen."""
    if choice:
        write_json(output_dir / SELECTION_FILE, choice)
    else:
        (output_dir / SELECTION_FILE).unlink(missing_ok=True)
