"""The flags of what a training writes besides the concept: checkpoints, trackers, validation images."""

from dataclasses import dataclass
from importlib.util import find_spec

from utils.common.errors import UserError
from utils.common.flags import option
from utils.common.limits import check_file_name


@dataclass(frozen=True)
class CheckpointFlags:
    """What a run leaves to go on from, and how it is saved."""

    heading = "checkpoints"

    checkpointing_steps: int = option(250, "optimizer steps between checkpoints", minimum=1, may_differ=True)
    checkpoints_total_limit: int | None = option(
        None, "keep only the newest checkpoints", minimum=1, may_differ=True, set_by_evaluation=True
    )
    overwrite: bool = option(False, "start anew in a folder that holds a run", may_differ=True)
    resume_from_checkpoint: str | None = option(
        None, "checkpoint folder, or 'latest' in output_dir", may_differ=True, set_by_evaluation=True
    )
    no_safe_serialization: bool = option(False, "save .bin files instead of .safetensors", may_differ=True)

    def check_checkpoints(self) -> None:
        """Raise UserError for both a new start and a resumption."""
        if self.overwrite and self.resume_from_checkpoint is not None:
            raise UserError("--overwrite contradicts --resume_from_checkpoint: give one of them")


@dataclass(frozen=True)
class ReportFlags:
    """What shows the progress of a run."""

    heading = "reports"

    report_to: str = option(
        "none", "tracker besides the log file", choices=("none", "tensorboard", "wandb"), may_differ=True
    )
    tracker_name: str = option("classdiffusion", "project name given to the tracker", may_differ=True)
    validation_prompt: str | None = option(
        None, "prompt to sample while training (default, or empty: none)", may_differ=True, blank=True
    )
    validation_inference_steps: int | None = option(
        None, "denoising steps of a validation (default: the base model's)", minimum=1, may_differ=True
    )
    num_validation_images: int = option(4, "images per validation", minimum=1, may_differ=True)
    validation_steps: int = option(50, "optimizer steps between validations", minimum=1, may_differ=True)
    dry_run: bool = option(
        False, "print the configuration and the plan, then stop", may_differ=True, set_by_evaluation=True
    )

    def check_reports(self) -> None:
        """Raise UserError for a tracker that is not installed, and a name that leaves its folder."""
        # A folder of that name, such as wandb makes for its files, is found too, and is no module.
        found = find_spec(self.report_to) if self.report_to != "none" else None
        if self.report_to != "none" and getattr(found, "origin", None) is None:
            raise UserError(f"--report_to {self.report_to}: not installed; pip install it or use none")
        if self.report_to != "none":
            check_file_name("--tracker_name", self.tracker_name, "give a name, which names a folder too")
