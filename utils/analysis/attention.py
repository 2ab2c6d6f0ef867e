"""Where a UNet looks for each word: cross-attention maps, and what is read off them.

A map is softmax(Q Kᵀ / √d) of the cross-attention layers, the mean over heads, layers and denoising steps, of
the conditional half where there is guidance. Maps of all layers count, brought to the latents' side, or
those of one side alone.

Shapes: B images, N places of a layer, L tokens, s side of the maps.
"""

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.bases.attention import cross_attention_layers
from utils.common.errors import UserError, short
from utils.concepts.names import written_out

TINY = 1e-12  # added to maps, so that a logarithm exists where a map is 0


class Recorder:
    """Within its `with` block, every call of the UNet adds to the mean of its cross-attention maps.

    side: s. guided: whether calls hold the negative prompts first, as a pipeline's with guidance do.
    own_side: only layers whose maps have side s themselves. What the UNet computes stays as it is, bit for
    bit.
    """

    def __init__(self, unet: nn.Module, side: int, guided: bool = False, own_side: bool = False):
        self.unet, self.side, self.guided, self.own_side = unet, side, guided, own_side
        self.total: Tensor | None = None  # (L, s, s)
        self.count, self.hooks = 0, []

    def __enter__(self) -> "Recorder":
        for name in cross_attention_layers(self.unet):
            module = self.unet.get_submodule(name)
            # After the hooks of layer rows, which cut out the layer's own text states.
            self.hooks.append(module.register_forward_pre_hook(self._record, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self.hooks:
            hook.remove()

    def maps(self) -> Tensor:
        """(L, s, s): the mean over layers, calls and images; at each place the tokens' maps sum to 1."""
        assert self.total is not None, "the UNet was not called"
        return self.total / self.count

    @torch.no_grad()
    def _record(self, attention: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]  # (B, N, C)
        states = kwargs["encoder_hidden_states"]  # (B, L, D)
        if self.own_side and hidden.shape[1] != self.side**2:
            return
        if self.guided:
            hidden, states = hidden.chunk(2)[1], states.chunk(2)[1]
        maps = attention_maps(attention, hidden, states, self.side).sum(dim=0)
        self.total = maps if self.total is None else self.total + maps
        self.count += len(hidden)


def attention_maps(attention: nn.Module, hidden: Tensor, states: Tensor, side: int) -> Tensor:
    """(B, N, C), (B, L, D) -> (B, L, s, s) float32, the mean over heads. Layers see squares: N = n²."""
    query = attention.head_to_batch_dim(attention.to_q(hidden))
    key = attention.head_to_batch_dim(attention.to_k(states))
    scores = attention.get_attention_scores(query, key).float()  # (B · heads, N, L)
    scores = scores.unflatten(0, (len(hidden), -1)).mean(dim=1)  # (B, N, L)
    own = math.isqrt(scores.shape[1])
    assert own * own == scores.shape[1], f"{scores.shape[1]} places do not form a square"
    maps = scores.transpose(1, 2).unflatten(2, (own, own))  # (B, L, n, n)
    # Bilinear, for bicubic (DAAM's) may leave [0, 1]; places still sum to 1 over the tokens.
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)


def word_positions(tokenizer: Any, prompt: str, phrases: Sequence[str] = ()) -> dict[str, list[int]]:
    """Word -> where its tokens stand in the ids, BOS at 0; a phrase of several words counts as one.

    A word that comes again has the places of all. Raises UserError for a prompt that would be cut.
    """
    words, places, position = prompt.split(), {}, 1
    split = {phrase: phrase.split() for phrase in phrases}
    counts = [_length(tokenizer, word) for word in words]
    whole = _length(tokenizer, prompt)
    assert sum(counts) == whole, f"'{prompt}' has {whole} tokens, its words {sum(counts)}"
    if whole + 2 > tokenizer.model_max_length:
        raise UserError(
            f"'{short(prompt)}' has {whole + 2} tokens, more than {tokenizer.model_max_length}: shorten it"
        )
    i = 0
    while i < len(words):
        name = next((p for p, parts in split.items() if words[i : i + len(parts)] == parts), words[i])
        used = len(split.get(name, [name]))
        length = sum(counts[i : i + used])
        places.setdefault(name, []).extend(range(position, position + length))
        position, i = position + length, i + used
    return places


def _length(tokenizer: Any, text: str) -> int:
    """Tokens of a text, without BOS and EOS."""
    return len(tokenizer(written_out(tokenizer, text), add_special_tokens=False).input_ids)


def word_maps(maps: Tensor, positions: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """(L, s, s) -> word -> (s, s), the sum over its tokens."""
    return {word: maps[list(places)].sum(dim=0) for word, places in positions.items()}


def shares(words: Mapping[str, Tensor]) -> dict[str, float]:
    """Each word's share of the attention that all words get; BOS, EOS and padding do not count."""
    total = sum(each.sum().item() for each in words.values())
    return {word: each.sum().item() / total for word, each in words.items()}


def inside(word: Tensor, mask: Tensor) -> float:
    """The share of a word's attention in a mask, (s, s) of 0 … 1. By chance it is the mask's area."""
    return ((word * mask).sum() / word.sum()).item()


def symmetric_kl(one: Tensor, other: Tensor) -> float:
    """½ (KL(p‖q) + KL(q‖p)) in nats, of two maps as distributions over places; 0 for equal ones."""
    p, q = ((each.double() + TINY) / (each.double() + TINY).sum() for each in (one, other))
    return 0.5 * ((p - q) * (p.log() - q.log())).sum().item()
