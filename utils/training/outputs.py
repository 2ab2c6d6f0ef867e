"""What a training writes and prints: the concept, checkpoints, validation images, the opening lines."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import torch
from PIL import Image
from torch import Tensor

from utils.bases.registry import base_row
from utils.common.files import one_line
from utils.concepts.formats import read_concept
from utils.concepts.save import save_concept
from utils.config.presets import Preset
from utils.data.open import describe_data
from utils.learners.registry import LEARNERS, laid_out
from utils.measures.measures import is_candidate
from utils.measures.selection import record_choice, select
from utils.measures.validation import validate
from utils.training.checkpoints import new_checkpoint, remove_old_checkpoints, settle
from utils.training.interrupt import Interruption
from utils.training.logger import Logger
from utils.training.plan import describe_stages
from utils.training.run import Run, StageRun
from utils.training.state import load_averages, load_state, load_trained, save_state


def announce(run: Run, preset: Preset) -> None:
    """What trains on what, before the first step, and which of the flags the preset gave."""
    config, base = run.config, base_row(run.config.pretrained_model_name_or_path)
    sizes = {name: sum(value.numel() for value in each.values()) for name, each in run.learned.items()}
    for entry in run.instances.skipped:
        run.accelerator.print(f"skipped {entry}: not an image")
    subjects = " and ".join(concept.subject for concept in config.concepts())
    run.accelerator.print(
        f"{config.recipe.title}: {subjects}, {len(run.instances)} images of {run.instances.size} px, on "
        f"{base.title}, {run.accelerator.num_processes} x {run.accelerator.device.type}"
    )
    for line in (*preset.describe(), *describe_data(config, run.instances, run.classes)):
        run.accelerator.print(line)
    if run.encode_images.repeats:
        run.accelerator.print("images that come again unchanged are encoded once")
    for line in describe_stages(config, sizes, run.accelerator.num_processes):
        run.accelerator.print(line)


def save_run(run: Run, folder: Path) -> None:
    """The concept and the configuration it came from."""
    config, base = run.config, run.base
    concepts = config.concepts()
    tokens = [concept.modifier_token for concept in concepts]
    with run.averaged():  # in which what is packed has to be copied
        packed = {learner: _pack(run, learner) for learner in run.learned}
        rows = torch.cat(list(base.rows.values()), dim=1)  # (K·n, D), of several text encoders side by side
    each = rows.unflatten(0, (len(tokens), -1))  # (K, n, D)
    save_concept(
        folder,
        packed.pop(laid_out(packed, "official"), {}),
        {token: row.squeeze(0) for token, row in zip(tokens, each, strict=True)},
        not config.no_safe_serialization,
        base_row(config.pretrained_model_name_or_path).name,
        [concept.cls_token for concept in concepts],
        {name: tensors for name, tensors in packed.items() if LEARNERS[name].layout == "own"},
        widths=[encoder.width for encoder in base.encoders],
        method=config.method,
        subject=config.recipe.subject,
        base_digest=run.digest,
    )
    config.save(folder / "training_config.json", **run.sources)


def _pack(run: Run, learner: str) -> dict[str, Tensor]:
    """The tensors of a learner's file."""
    packed = LEARNERS[learner].pack(run.base, run.learned[learner])
    return {name: value.detach().clone() for name, value in packed.items()} if run.averages else packed


def save_checkpoint(run: Run, at: StageRun, step: int) -> None:
    """The concept so far and all that the run needs to go on, bit for bit; nothing is written twice."""
    output_dir, accelerator = Path(run.config.output_dir), run.accelerator
    exact = {name for name in run.trained if LEARNERS[name.partition("/")[0]].exact and not run.averages}
    averages = run.averages.tensors if run.averages else {}
    state = (run.trained, at.optimizer, at.lr_scheduler, accelerator.scaler, accelerator.num_processes)
    with new_checkpoint(output_dir, step) as folder:
        save_run(run, folder)
        save_state(folder, step, *state, in_concept=exact, averages=averages)
    remove_old_checkpoints(output_dir, step, run.config.checkpoints_total_limit)


def load_weights(run: Run, checkpoint: Path) -> int:
    """Put the trained parameters of a checkpoint, and their averages, in place; the steps it has done."""
    done = load_trained(checkpoint, concept_tensors(run, checkpoint), run.trained)
    if run.averages:
        run.averages.load(load_averages(checkpoint, run.averages.tensors), done)
    return done


def load_optimizer(run: Run, at: StageRun, checkpoint: Path, first: int) -> None:
    """Put the optimizer, the schedule and the loss scale of the stage's checkpoint in place.

    first: the stage's first step.
    """
    state = (run.trained, at.optimizer, at.lr_scheduler, run.accelerator.scaler)
    load_state(checkpoint, concept_tensors(run, checkpoint), *state, run.accelerator.num_processes, first - 1)


def concept_tensors(run: Run, folder: Path) -> dict[str, Tensor]:
    """The trained tensors that the concept's files hold bit for bit, by the names of `run.trained`."""
    concept = read_concept(folder)
    kv, token_rows = laid_out(run.learned, "official"), laid_out(run.learned, "tokens")
    tensors = {f"{kv}/{name}": value for name, value in concept.weights.items()}
    for learner, values in concept.parts.items():
        if LEARNERS[learner].exact:
            tensors |= {f"{learner}/{name}": value for name, value in values.items()}
    if token_rows is not None:
        tokens = [each.modifier_token for each in run.config.concepts()]
        rows = torch.cat([torch.atleast_2d(concept.rows[token]) for token in tokens])  # (K·n, D), as saved
        own = run.learned[token_rows]
        parts = rows.split([value.shape[1] for value in own.values()], dim=1)
        tensors |= {f"{token_rows}/{name}": part for name, part in zip(own, parts, strict=True)}
    return tensors


def stop(run: Run, interrupted: Interruption, step: int) -> NoReturn:
    """End a run whose state after `step` has been saved, as a signal asked."""
    if run.accelerator.is_main_process:
        with suppress(OSError):  # a closed terminal
            print(interrupted.line(step, Path(run.config.output_dir) / f"checkpoint-{step}"))
    run.accelerator.end_training()
    sys.exit(interrupted.exit_code)


def save_result(run: Run, output_dir: Path) -> None:
    """The concept as it is, or as the checkpoint that --select_checkpoint chooses left it."""
    # Again, for a kill may have come after the last checkpoint was sealed, and before old ones were removed.
    with one_line("write", output_dir):
        settle(output_dir)
    remove_old_checkpoints(output_dir, run.config.max_train_steps, run.config.checkpoints_total_limit)
    checkpoint, choice = select(run.config)
    if checkpoint is not None:
        load_weights(run, checkpoint)
        print(f"{checkpoint.name} is the result: {choice['best']} {choice['key']} of {len(choice['values'])}")
    save_run(run, output_dir)
    record_choice(output_dir, choice)


def validate_run(run: Run, step: int, last_of_stage: bool, logger: Logger) -> list[Image.Image]:
    """Images of the validation prompt where it is time for them, the last step included; else none."""
    config = run.config
    due = step % config.validation_steps == 0 or step == config.max_train_steps
    due |= config.select_checkpoint == "validation" and is_candidate(config, step, last_of_stage)
    if not config.validation_prompt or not due:
        return []
    sampling = base_row(config.pretrained_model_name_or_path).sampling
    images = validate(
        run.base.pipeline,
        config.validation_prompt,
        config.num_validation_images,
        config.seed,
        Path(config.output_dir) / "validation" / f"step-{step:05d}",
        config.validation_inference_steps or sampling.num_inference_steps,
        sampling.guidance_scale,
        sampling.eta,
    )
    logger.images(step, "validation", images)
    return images
