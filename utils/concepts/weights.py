"""What a trained concept's files hold.

Shapes: C channels of a cross-attention layer, D text width.
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ConceptWeights:
    """What a concept's files hold, under the UNet's own parameter names.

    weights: name -> (C, D), replaces the parameter (attn2.to_q and attn2.to_out.0 too if they were
    trained). deltas: name -> (C, D), is added to the parameter (Adobe's compressed layout). rows:
    modifier token -> (D,), or (n, D) for a token of n vectors. parts: learner -> the tensors of its own
    file, for learners other than K/V and rows. base: name, folder or Hub id of the base model; digest:
    its `base_digest`. method, subject: of the method's row; subject: how prompts name the concept.
    classes: a class word for each token. widths: of the parts of a row, one for each text encoder; empty:
    of one, or not known.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    deltas: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    base: str | None = None
    classes: tuple[str | None, ...] = ()
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    method: str | None = None
    digest: str | None = None
    subject: str = "{token} {cls}"
    widths: tuple[int, ...] = ()

    @property
    def changes_weights(self) -> bool:
        """Whether it holds more than token rows."""
        return bool(self.weights or self.deltas or self.parts)

    @property
    def rows_only(self) -> list[str]:
        """The tokens, where they are all that it holds."""
        return [] if self.changes_weights else list(self.rows)
