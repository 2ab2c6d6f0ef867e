"""The contextualizer of masked language modelling: names hidden tokens from the text encoder's states.

Kim et al. 2024, arXiv:2410.10058. It is pre-trained for one text encoder, then frozen, so that its error
shows how well a concept's token leaves room for the words around it (scripts/contextualizer.py).

N prompts, L tokens, D text width, V rows of the token table, M masked tokens.
"""

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.bases.registry import REPOSITORY, Base
from utils.common.errors import UserError
from utils.common.files import read_json, write_json
from utils.common.folders import replace_folder
from utils.common.tensor_files import read_tensors, write_tensors

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Sizes:
    """vocabulary: V; length: L; width: D. The defaults of the others are the published ones."""

    vocabulary: int
    length: int
    width: int
    heads: int = 4
    blocks: int = 3
    expansion: int = 4


class Block(nn.Module):
    """Attention with a residual, layer norm, then a two-layer perceptron, as published without a residual."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        wide = sizes.expansion * sizes.width
        self.attention = nn.MultiheadAttention(sizes.width, sizes.heads, batch_first=True)
        self.norm = nn.LayerNorm(sizes.width)
        self.mlp = nn.Sequential(nn.Linear(sizes.width, wide), nn.ReLU(), nn.Linear(wide, sizes.width))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        return self.mlp(self.norm(hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]))


class Contextualizer(nn.Module):
    """Learned positions, the blocks, a last attention with residual and norm, and V + 1 logits.

    The last logit is that of [MASK], whose input row is `mask_row`, (D,). Padding is not masked out.
    """

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.mask_row = nn.Parameter(torch.randn(sizes.width))
        self.positions = nn.Parameter(0.02 * torch.randn(sizes.length, sizes.width))
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.blocks)))
        self.attention = nn.MultiheadAttention(sizes.width, sizes.heads, batch_first=True)
        self.norm = nn.LayerNorm(sizes.width)
        self.output = nn.Linear(sizes.width, sizes.vocabulary + 1)

    def forward(self, states: Tensor, at: Tensor) -> Tensor:
        """states: (N, L, D) of the text encoder; at: (N, L), True where to answer. Returns (M, V + 1)."""
        assert states.shape[1:] == self.positions.shape, (states.shape, self.positions.shape)
        hidden = self.blocks(states.float() + self.positions)
        hidden = self.norm(hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0])
        return self.output(hidden[at])


def show_mask_row(text_encoder: Any, row: Tensor, bos: int) -> None:
    """From now on the text encoder reads BOS anywhere but in front as [MASK], whose embedding is `row`, (D,).

    BOS stands nowhere else in a prompt, so that no other text changes and the token table keeps its size.
    """

    def replace(table: nn.Module, args: tuple[Tensor], embedded: Tensor) -> Tensor:
        masked = args[0] == bos  # (..., L)
        masked = torch.cat([torch.zeros_like(masked[..., :1]), masked[..., 1:]], dim=-1)
        return torch.where(masked.unsqueeze(-1), row.to(embedded.dtype), embedded)

    text_encoder.get_input_embeddings().register_forward_hook(replace)


def text_digest(text_encoder: nn.Module) -> str:
    """16 hexadecimal digits of all weights but the modifier tokens' rows, rounded to float16."""
    digest = hashlib.sha256()
    for name, value in text_encoder.named_parameters():
        if ".token_embedding.learned." not in name:
            digest.update(value.detach().to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


def folder_of(row: Base) -> Path:
    """Where a base's contextualizer is: as its row says, else where pre-training puts it."""
    made = REPOSITORY / "ckpt" / "contextualizers" / row.name.strip("/.").replace("/", "--")
    return Path(row.contextualizer) if row.contextualizer else made


def check_contextualizer(row: Base) -> None:
    """Raise UserError for a base that has no contextualizer."""
    if not all((folder_of(row) / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
        raise UserError(f"--mlm_weight: base {row.name} has no contextualizer; {_how_to_make(row)}")


def _how_to_make(row: Base) -> str:
    return f"make one: python -m scripts.contextualizer pretrain --base {row.name}"


def save_contextualizer(
    model: Contextualizer, folder: Path, text_encoder: str, facts: dict[str, Any]
) -> None:
    """Float16 weights and config.json. text_encoder: the digest; facts: how it was trained, its accuracy."""

    def fill(staging: Path) -> None:
        write_tensors(
            staging / WEIGHTS_FILE, {name: each.half() for name, each in model.state_dict().items()}
        )
        write_json(staging / CONFIG_FILE, asdict(model.sizes) | {"text_encoder": text_encoder} | facts)

    replace_folder(folder, fill)


def load_contextualizer(row: Base, text_encoder: nn.Module) -> Contextualizer:
    """A base's contextualizer, frozen, float32, on the text encoder's device.

    Raises UserError if there is none, or if it was made for another text encoder.
    """
    check_contextualizer(row)
    folder = folder_of(row)
    config = read_json(folder / CONFIG_FILE)
    if config.get("text_encoder") != text_digest(text_encoder):
        raise UserError(f"{folder} was made for another text encoder than {row.name}'s; {_how_to_make(row)}")
    model = Contextualizer(Sizes(**{each.name: config[each.name] for each in fields(Sizes)}))
    model.load_state_dict(read_tensors(folder / WEIGHTS_FILE))
    return model.to(text_encoder.device).float().eval().requires_grad_(False)
