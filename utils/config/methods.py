"""The personalisation methods, one row each: what trains in which stage, on which view of the images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

CLASS_NAMED = "{token} {cls}"  # how most methods' prompts name a concept


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a training: its learners (rows of utils/learners/registry.py) and its share of the steps.

    prior: class images join the batch. Each stage has a fresh optimizer and learning-rate schedule.
    """

    trains: tuple[str, ...]
    share: float = 1.0
    prior: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """What `--method` stands for; `--use_spl`, `--with_prior_preservation` and `--trains` change it.

    spl_weight: λ of the semantic preservation loss; 0: not part of the method.
    weights: default weights of other losses, by their flag: {"mlm_weight": 1e-4}; the flag wins.
    subject: how prompts name the concept, of the token and its class word.
    captions: "prompt": the concept's own; "templates": one of a list per item.
    view: "scaled" (Custom Diffusion's augmentation), "crop" (DreamBooth), "square" (textual inversion).
    channels: of the squared error: "sum" (the Custom Diffusion family) or "mean".
    start: the token's first row: a vocabulary entry as spelled ("piece", the official code), a whole "word"
    (DreamBooth's sks), or the concept's "class" word (textual inversion).
    prior_doubles_rate: with `--scale_lr` and prior preservation the rate doubles, as in the three published
    training scripts of the Custom Diffusion family, whose batch then holds twice the images.
    """

    name: str
    title: str
    stages: tuple[Stage, ...]
    source: str
    spl_weight: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)
    subject: str = CLASS_NAMED
    captions: str = "prompt"
    view: str = "scaled"
    channels: str = "sum"
    start: str = "piece"
    initializer: str = "ktn+pll+ucd"
    prior_doubles_rate: bool = False


ROWS_AND_KV = ("token_rows", "cross_attention_kv")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="classdiffusion",
            title="ClassDiffusion",
            stages=(Stage(trains=ROWS_AND_KV),),
            source="Huang et al. 2024, arXiv:2405.17532",
            spl_weight=1.0,
            prior_doubles_rate=True,
        ),
        Method(
            name="custom_diffusion",
            title="Custom Diffusion",
            stages=(Stage(trains=ROWS_AND_KV, prior=True),),
            source="Kumari et al. 2023, arXiv:2212.04488, with prior preservation as published",
            prior_doubles_rate=True,
        ),
        Method(
            name="kv_only",
            title="K/V only (ClassDiffusion at λ = 0)",
            stages=(Stage(trains=ROWS_AND_KV),),
            source="the ablation of Huang et al. 2024, arXiv:2405.17532",
            prior_doubles_rate=True,
        ),
        Method(
            name="textual_inversion",
            title="Textual Inversion",
            stages=(Stage(trains=("token_rows",)),),
            source="Gal et al. 2022, arXiv:2208.01618",
            subject="{token}",
            captions="templates",
            view="square",
            channels="mean",
            start="class",
        ),
        Method(
            name="dreambooth",
            title="DreamBooth",
            stages=(Stage(trains=("unet",), prior=True),),
            source="Ruiz et al. 2023, arXiv:2208.12242",
            view="crop",
            channels="mean",
            start="word",
            initializer="sks+pll+ucd",
        ),
        Method(
            name="two_stage",
            title="Two-stage",
            stages=(Stage(trains=("token_rows",), share=0.6), Stage(trains=("unet",), share=0.4)),
            source="Zeng et al. 2024, arXiv:2407.05312; rates, steps and the initial word are not published",
            view="square",
            channels="mean",
            start="word",
            initializer="sks+pll+ucd",
        ),
        Method(
            name="xti",
            title="Extended Textual Inversion",
            stages=(Stage(trains=("layer_rows",)),),
            source="Voynov et al. 2023, arXiv:2303.09522",
            subject="{token}",
            captions="templates",
            view="square",
            channels="mean",
            start="class",
        ),
        Method(
            name="neti",
            title="NeTI",
            stages=(Stage(trains=("mapper",)),),
            source="Alaluf et al. 2023, arXiv:2305.15391",
            subject="{token}",
            captions="templates",
            view="square",
            channels="mean",
            start="class",
        ),
        Method(
            name="svdiff",
            title="SVDiff",
            stages=(Stage(trains=("spectral",), prior=True),),
            source="Han et al. 2023, arXiv:2303.11305, its shifts of the matrices without those of the norms",
            view="crop",
            channels="mean",
            start="word",
            initializer="sks+pll+ucd",
        ),
    )
}


def share_steps(stages: Sequence[Stage], steps: int) -> Iterator[tuple[Stage, int, int]]:
    """(stage, its first step, its last step); steps count from 1, and every stage has at least one."""
    first, total, done = 1, sum(stage.share for stage in stages), 0.0
    for number, stage in enumerate(stages):
        done += stage.share
        left = len(stages) - number - 1  # stages that still need a step
        last = min(max(round(steps * done / total), first), steps - left)
        yield stage, first, last
        first = last + 1
