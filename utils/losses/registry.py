"""The losses that may join the denoising loss, one row each; the terms are in the files next to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.config.methods import Stage
from utils.learners.registry import LEARNERS
from utils.losses.accord import accord_term, prepare_accord
from utils.losses.dco import dco_term
from utils.losses.denoise import prior_term
from utils.losses.mlm import mlm_term, prepare_mlm
from utils.losses.preserve import dop_term, l2_term
from utils.losses.spl import spl_parts, spl_term

if TYPE_CHECKING:
    from utils.bases.base import BaseModel
    from utils.config.train_config import TrainConfig
    from utils.losses.predict import Prediction


def check_finite(terms: dict[str, float], step: int) -> None:
    """Raise FloatingPointError, naming the step and every term, when one of the numbers is not finite."""
    if not all(map(isfinite, terms.values())):
        values = ", ".join(f"{name} {value}" for name, value in terms.items())
        raise FloatingPointError(f"step {step}: {values}; checkpoints of earlier steps are kept")


@dataclass(frozen=True)
class Loss:
    """A term added to the denoising loss: its name in the log, its weight λ, and the term itself.

    title: what users know it by, for messages. weight(config): None where a run does not have it; 0: it is
    logged, without gradient. prior: it needs class images. text: it depends on the text path alone, so that a
    stage which trains nothing there leaves it out. output: it compares predictions on class captions, so that
    a stage which trains tokens alone leaves it out. base: it needs the base's predictions on class captions.
    replaces: it stands in place of the denoising loss, which is logged. start: it needs what trains as it was
    at the start. layered: it can read text states that hold a copy for each layer. one_encoder: it needs a
    base with one text encoder. asked(config): whether the user wants it, where that is not its weight.
    parts: what the log says of it besides: name -> scalar without gradient.
    prepare(base, config): None, or what the loss sets up once, before anything has been trained: an object
    whose draw(step), a function of (run seed, step) alone, holds token `ids` (N, …) to be encoded. plain:
    what it does, for who does not know the terms; "": its name is shown.
    """

    name: str
    weight: Callable[[TrainConfig], float | None]
    of: Callable[[Prediction], Tensor]
    title: str = ""
    prior: bool = False
    text: bool = False
    output: bool = False
    base: bool = False
    replaces: bool = False
    start: bool = False
    layered: bool = True
    one_encoder: bool = False
    asked: Callable[[TrainConfig], bool] | None = None
    parts: Callable[[Prediction], dict[str, Tensor]] | None = None
    prepare: Callable[[BaseModel, TrainConfig], Any] | None = None
    plain: str = ""


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            "loss_spl",
            lambda config: config.lambda_spl if config.cls_token else None,
            spl_term,
            title="the semantic preservation loss",
            text=True,
            asked=lambda config: config.spl,
            parts=spl_parts,
            plain="the new word has to stay close to its class",
        ),
        Loss(
            "loss_prior",
            lambda config: config.prior_loss_weight,
            prior_term,
            title="--with_prior_preservation",
            prior=True,
            plain="images of the class, drawn beforehand, keep the class as it is",
        ),
        Loss(
            "loss_dop",
            lambda config: config.weight("dop_weight"),
            dop_term,
            title="--dop_weight",
            output=True,
            base=True,
            start=True,
            plain="prompts of the class alone have to give what they gave before",
        ),
        Loss(
            "loss_l2",
            lambda config: config.weight("l2_weight"),
            l2_term,
            title="--l2_weight",
            start=True,
            plain="nothing may move far from where it began",
        ),
        Loss(
            "loss_dco",
            lambda config: None if config.dco_beta is None else 1.0,
            dco_term,
            title="--dco_beta",
            base=True,
            replaces=True,
            start=True,
            plain="the images have to become likelier than before, but no more than that takes",
        ),
        Loss(
            "loss_accord",
            lambda config: config.weight("accord_weight"),
            accord_term,
            title="--accord_weight",
            text=True,
            prepare=prepare_accord,
            plain="the new word has to be as close to other things as its class is",
        ),
        Loss(
            "loss_mlm",
            lambda config: config.weight("mlm_weight"),
            mlm_term,
            title="--mlm_weight",
            text=True,
            layered=False,
            one_encoder=True,
            prepare=prepare_mlm,
            plain="the new word must leave the words around it readable",
        ),
    )
}


def asked_for(config: TrainConfig) -> list[Loss]:
    """The losses that the user, or the method, wants."""
    return [
        loss
        for loss in LOSSES.values()
        if (loss.asked(config) if loss.asked else loss.weight(config) is not None)
    ]


def prepare_losses(base: BaseModel, config: TrainConfig) -> dict[str, Any]:
    """Loss -> what it sets up, for the losses that this run has."""
    wanted = [each for each in LOSSES.values() if each.prepare and each.weight(config) is not None]
    return {loss.name: loss.prepare(base, config) for loss in wanted}


def losses_of(config: TrainConfig, stage: Stage) -> list[Loss]:
    """The terms of a stage: those that the run has and that reach what the stage trains."""
    learners = [LEARNERS[name] for name in stage.trains]
    text = any(each.text for each in learners)
    output = not all(each.tokens_only for each in learners)
    return [
        loss
        for loss in LOSSES.values()
        if loss.weight(config) is not None
        and (stage.prior or not loss.prior)
        and (text or not loss.text)
        and (output or not loss.output)
    ]
