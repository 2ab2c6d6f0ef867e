"""Images of a trained concept, or of the base model alone: concept + prompts -> PNG files and a grid.

python inference.py --concept ckpt/concept --prompt "a <new1> dog wearing headphones on the beach"
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.bases.registry import describe_base
from utils.common.errors import MORE_MEMORY, UserError, exit_on_user_error, in_memory
from utils.common.flags import option, parse
from utils.common.words import counted
from utils.sampling.prompts import classes_of, subjects_of, without_token
from utils.sampling.settings import ADJUSTED_NORM, DrawingFlags, check_rotation

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from utils.concepts.formats import ConceptWeights


@dataclass(frozen=True)
class InferenceConfig(DrawingFlags):
    """What to draw, and how. Raises UserError when fields contradict each other."""

    num_images: int = option(4, "images per prompt", minimum=1)
    batch_size: int = option(4, "images at a time", minimum=1)
    embedding_adjustment: float | None = option(
        None,
        "turn text states towards those of the class prompt by this share of the angle, 0 to 1 "
        "(published: 0.2)",
    )
    embedding_adjustment_norm: float | None = option(
        None, "and mix their lengths by this share, 0 to 1 (default: 0.5, as published)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rotation(self.embedding_adjustment, self.embedding_adjustment_norm)
        if self.embedding_adjustment is not None and not self.concept:
            raise UserError("--embedding_adjustment has no effect without --concept; leave it out")


@in_memory("preparing to draw images", less=f"give a smaller --batch_size, or --dtype bf16; {MORE_MEMORY}")
def main(argv: list[str] | None = None) -> None:
    draw(parse(InferenceConfig, argv, __doc__))


def draw(config: InferenceConfig) -> None:
    """Check what only the files can tell, load the base and its concepts, draw.

    Imports what takes seconds, for which a mistaken flag need not wait.
    """
    from utils.bases.pretrained import check_named_base

    check_named_base(config.base)
    from utils.concepts.embeddings import check_one_vector
    from utils.learners.registry import check_has_text_states
    from utils.sampling.drawing import prepare
    from utils.sampling.embedding_adjustment import adjustment

    drawing, rotation = prepare(config, config.concept, default_prompts), config.embedding_adjustment
    settings, record = drawing.settings, drawing.record
    norm = ADJUSTED_NORM if config.embedding_adjustment_norm is None else config.embedding_adjustment_norm
    if rotation is not None:
        check_rotation(rotation, norm, classes_of(drawing.concepts))
        check_one_vector(drawing.concepts, "--embedding_adjustment")
        for concept in drawing.concepts:
            check_has_text_states(concept.parts, "the concept")
        record |= {"embedding_adjustment": rotation, "embedding_adjustment_norm": norm}
    print(f"{describe_base(drawing.row)} on {drawing.device}, {drawing.dtype}")
    for note in without_token(drawing.prompts, drawing.concepts):
        print(note)
    pipeline = drawing.load()
    if rotation is not None:
        rows_only = [token for concept in drawing.concepts for token in concept.rows_only]
        turned = adjustment(pipeline, classes_of(drawing.concepts), rows_only, rotation, norm)
        settings = settings | {"adjust": turned}
    save_images(config, drawing.prompts, pipeline, settings, record)


def save_images(
    config: InferenceConfig,
    prompts: list[str],
    pipeline: "DiffusionPipeline",
    settings: dict,
    record: dict,
) -> None:
    """A PNG per prompt and seed, and the grid of all; each carries its prompt, its seed and `record`."""
    from tqdm import tqdm

    from utils.sampling.grids import save_grid
    from utils.sampling.images import draw, jobs_of

    folder = config.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    jobs = jobs_of(prompts, range(config.seed, config.seed + config.num_images), folder)
    drawn = draw(pipeline, jobs, record, batch_size=config.batch_size, **settings)
    images = list(tqdm(drawn, total=len(jobs), unit="image"))
    grid = folder / "grid.png"
    save_grid(images, prompts, grid, {"prompt": "\n".join(prompts), "seed": config.seed} | record)
    print(f"{counted(len(images), 'image')} in {folder}, all of them in {grid}")


def default_prompts(concepts: "list[ConceptWeights]") -> list[str]:
    """Likeness first, then whether the concept still obeys a prompt, then the concepts together."""
    subjects = subjects_of(concepts) if concepts else ["dog"]  # the base model alone
    prompts = [f"a photo of a {subject}" for subject in subjects]
    prompts += [f"a {subject} wearing headphones on the beach" for subject in subjects]
    if len(subjects) > 1:
        prompts.append("a " + " in front of a ".join(subjects[:2]))
    return prompts


if __name__ == "__main__":
    exit_on_user_error(main)
