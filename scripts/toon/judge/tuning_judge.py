"""The judge of a tuning point: words obeyed and likeness in situations that no training image shows."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from scripts.toon.prompt_accuracy import obeyed
from scripts.toon.world.prompts import situations
from utils.bases.families import load_pipeline
from utils.bases.registry import Base, as_dict
from utils.common.images import list_images, open_image
from utils.concepts.load import load_concept
from utils.config.methods import METHODS
from utils.sampling.images import sample
from utils.scores.encoders import DinoEncoder
from utils.scores.similarity import dino_i

if TYPE_CHECKING:
    from scripts.toon.judge.tuning_training import Individual

STEPS, SEED, BATCH = 25, 0, 12


class Judge:
    """`Judge(base)(method, individual, concept)` -> {"obeyed", "dino_i", "likeness", "score"}, floats."""

    def __init__(self, base: Base):
        self.base, self.dino = base, DinoEncoder(base.judges["dino"], "cpu")
        self.ends: dict[int, tuple[float, float, Tensor]] = {}  # of an individual: base, real, features

    def __call__(self, method: str, each: "Individual", concept: Path) -> dict[str, float]:
        start, goal, real = self._ends(each)
        subject = METHODS[method].subject.format(token="<new1>", cls=each.kind)
        share, likeness = self._judge(each.kind, subject, real, concept)
        way = min(1.0, max(0.0, (likeness - start) / (goal - start)))
        score = 2 * share * way / (share + way) if share + way else 0.0
        return {"obeyed": share, "dino_i": likeness, "likeness": way, "score": score}

    def _ends(self, each: "Individual") -> tuple[float, float, Tensor]:
        """DINO-I of the base's images, of the real ones among themselves, and their features (M, D)."""
        if each.number not in self.ends:
            real = self.dino.image_features(map(open_image, list_images(each.images)[0]))
            m = len(real)
            among = ((real @ real.T).sum() - m).item() / (m * (m - 1))
            self.ends[each.number] = (self._judge(each.kind, each.kind, real)[1], among, real)
        return self.ends[each.number]

    def _judge(
        self, kind: str, subject: str, real: Tensor, concept: Path | None = None
    ) -> tuple[float, float]:
        """The share of images that obey every word, and DINO-I."""
        pipeline = load_pipeline(self.base.path)
        if concept:
            load_concept(pipeline, concept)
        prompts = situations(kind, subject)
        texts = [text for text, _ in prompts]
        settings = as_dict(self.base.sampling) | {"num_inference_steps": STEPS}
        seeds = [SEED + 1000 * i for i in range(len(texts))]
        drawn = list(sample(pipeline, texts, seeds, batch_size=BATCH, **settings))
        return obeyed(prompts, 1, drawn)["all"][0], dino_i(self.dino.image_features(drawn), real)
