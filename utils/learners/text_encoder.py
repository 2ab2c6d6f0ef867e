"""The whole text encoder: 123,060,480 numbers of SD 1.5's, its token table included, the new rows not.

A concept's file holds the difference to the base in bfloat16, under the stock names (see unet.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from utils.learners.learner import Learner, Parameters, Tensors, train_whole
from utils.learners.unet import added, differences

if TYPE_CHECKING:
    from utils.bases.base import BaseModel

INSTALLED, STOCK = ".token_embedding.table.", ".token_embedding."  # the table stands behind the new rows
LEARNED = (".token_embedding.learned.", "layer_rows.", "mappers.")


def attach(base: "BaseModel") -> Parameters:
    """Every parameter of the text encoder but the modifier tokens' rows, which are a learner of their own."""
    rows = {name for name, _ in base.text_encoder.named_parameters() if any(part in name for part in LEARNED)}
    trained = train_whole(base.text_encoder)
    for name in rows:
        trained.pop(name).requires_grad_(False)
    return trained


def pack(base: "BaseModel", parameters: Parameters) -> Tensors:
    """The differences to the base model's own weights, under the stock names."""
    stock = {name.replace(INSTALLED, STOCK): value for name, value in parameters.items()}
    return differences(base.original("text_encoder").state_dict(), stock)


def merge(base: "BaseModel", tensors: Tensors, path: Path) -> dict[str, Tensors]:
    """The text encoder's weights plus their differences. The token table may have grown: its first rows."""
    own = {k: v for k, v in base.text_encoder.named_parameters()}
    table = next(name for name in own if name.endswith("token_embedding.weight"))
    own[table] = own[table][: len(tensors[table])] if table in tensors else own[table]
    return {"text_encoder": added(own, tensors, "text encoder", path)}


LEARNER = Learner(
    "text_encoder",
    "text encoder",
    attach,
    pack,
    merge,
    "text_encoder_learning_rate",
    text=True,
    plain="the text model",
    one_encoder=True,
)
