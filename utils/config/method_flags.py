"""The flags that choose a method and change it: what trains, and which losses join with which weight."""

from dataclasses import dataclass, replace

from utils.common.errors import UserError
from utils.common.flags import option
from utils.config.methods import CLASS_NAMED, METHODS, Method, Stage


@dataclass(frozen=True)
class MethodFlags:
    """The method and what changes it."""

    heading = "method"

    method: str = option(
        "classdiffusion", "what trains and which losses join", choices=METHODS, set_by_evaluation=True
    )
    trains: str | None = option(None, "what trains instead, e.g. unet+token_rows (one-stage methods)")
    freeze_model: str = option(
        "crossattn_kv",
        "of the cross-attention trains K and V, or all: K, V, Q and out, for faces and fine detail",
        choices=("crossattn_kv", "crossattn"),
    )
    use_spl: bool = option(False, "semantic preservation loss, SPL (classdiffusion has it anyway)")
    spl_weight: float | None = option(
        None, "SPL weight (default: the method's, else 1); 0: logged", minimum=0
    )
    spl_pool: str = option("eos", "where SPL reads the modified phrase", choices=("eos", "modifier"))
    mlm_weight: float | None = option(
        None, "weight of masked language modelling (published: 1e-5 to 1e-3); 0: logged", minimum=0
    )
    with_prior_preservation: bool = option(False, "class images join each batch")
    prior_loss_weight: float = option(1.0, "weight of the class images' loss", minimum=0)
    dop_weight: float | None = option(
        None, "weight of output preservation: class captions give what the base gives; 0: logged", minimum=0
    )
    l2_weight: float | None = option(
        None, "weight of the squared distance of what trains from its start; 0: logged", minimum=0
    )
    dco_beta: float | None = option(
        None,
        "direct consistency optimisation in place of the denoising loss, with this beta (published: 1000)",
        above=0,
    )
    accord_weight: float | None = option(
        None,
        "weight of ACCORD's prior decouple loss: as close to other things as the class; 0: logged",
        minimum=0,
    )
    num_class_images: int = option(200, "class images per concept; missing ones are generated", minimum=1)
    sample_batch_size: int = option(4, "batch size when generating class images", minimum=1, may_differ=True)

    name_class: bool = option(
        False, "captions and prompts say '<new1> dog' where the method's token stands for the noun alone"
    )
    unet_steps: int | None = option(
        None, "two_stage: steps of its second stage, the UNet's (default: 2 of 5)", minimum=1
    )

    @property
    def recipe(self) -> Method:
        """The row of METHODS; with --name_class its captions name the class."""
        row = METHODS[self.method]
        return replace(row, subject=CLASS_NAMED) if self.name_class else row

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The method's stages, changed by --trains, --freeze_model and --with_prior_preservation."""
        whole = {"cross_attention_kv": "cross_attention"} if self.freeze_model == "crossattn" else {}
        return tuple(
            Stage(
                trains=tuple(whole.get(name, name) for name in self._trained_in(stage)),
                share=stage.share,
                prior=stage.prior or self.with_prior_preservation,
            )
            for stage in self.recipe.stages
        )

    def _trained_in(self, stage: Stage) -> tuple[str, ...]:
        return stage.trains if self.trains is None else tuple(self.trains.split("+"))

    @property
    def spl(self) -> bool:
        """Whether the semantic preservation loss is asked for (with weight 0 it is only logged)."""
        return self.use_spl or self.recipe.spl_weight > 0

    @property
    def lambda_spl(self) -> float:
        """Weight of the semantic preservation loss: the flag, else the method's, else the paper's 1."""
        if not self.spl:
            return 0.0
        return self.spl_weight if self.spl_weight is not None else self.recipe.spl_weight or 1.0

    def weight(self, flag: str) -> float | None:
        """Of the loss with this flag, e.g. "mlm_weight": the flag's, else the method's; None: without it."""
        given = getattr(self, flag)
        return given if given is not None else self.recipe.weights.get(flag)

    @property
    def uses_prior(self) -> bool:
        return any(stage.prior for stage in self.stages)

    def check_method(self) -> None:
        """Raise UserError for flags that have no effect on the method."""
        if self.trains is not None and len(self.recipe.stages) > 1:
            raise UserError(f"--trains cannot replace the stages of --method {self.method}: leave it out")
        if self.freeze_model == "crossattn" and not any("cross_attention" in s.trains for s in self.stages):
            raise UserError(
                f"--freeze_model crossattn has no effect on what --method {self.method} trains: leave it out"
            )
        if self.name_class and METHODS[self.method].subject == CLASS_NAMED:
            raise UserError(
                f"--name_class has no effect on --method {self.method}, whose captions name the class "
                "anyway: leave it out"
            )
        if self.unet_steps is not None and [stage.trains for stage in self.recipe.stages][1:] != [("unet",)]:
            raise UserError(
                f"--unet_steps has no effect on --method {self.method}, of one stage: leave it out"
            )
        if not self.spl and self.spl_weight is not None:
            raise UserError(f"--spl_weight has no effect on --method {self.method}: add --use_spl")

    def check_without_class(self) -> None:
        """Raise UserError for losses that need the class word; called when --cls_token is not given."""
        if self.spl:
            raise UserError("the semantic preservation loss needs --cls_token, e.g. --cls_token dog")
        if self.weight("mlm_weight") is not None:
            raise UserError(
                "--mlm_weight needs --cls_token, e.g. --cls_token dog: class words are never masked"
            )
        if self.weight("accord_weight") is not None:
            raise UserError("--accord_weight needs the class: give --cls_token, e.g. --cls_token dog")
        if self.dco_beta is not None:
            raise UserError("--dco_beta needs the class in captions: give --cls_token, e.g. --cls_token dog")
        if self.weight("dop_weight") is not None:
            raise UserError(
                "--dop_weight needs the class in captions: give --cls_token, e.g. --cls_token dog"
            )
