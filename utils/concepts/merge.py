"""Merge concepts that were trained apart into one, in closed form (Custom Diffusion, section 3.2).

Per layer: the W nearest to the base's W⁰ on captions of all sorts, so that the concepts' own words give what
their own W gave.

    min ‖(W − W⁰) Kᵀ‖   with   W Cᵀ = V,      V = [W₁C₁ᵀ  W₂C₂ᵀ …]
    W = W⁰ + (V − W⁰Cᵀ)(d Cᵀ)⁻¹ d,            d = C (KᵀK)⁻¹

W − W⁰ is sought only along directions in which the captions' text states vary. They come out of a layer norm,
so along 1/γ all of them are the same small number, .0013 on toon: there a bias of keys and values would take
weights of hundreds, next to which a LoRA of few ranks would keep nothing else.

Shapes: C channels of a layer, D text width, m rows of target words (Cᵀ above is D × m), n of captions.
All of it is float64, text encoder included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from utils.bases.base import BaseModel
from utils.common.errors import UserError
from utils.concepts.weights import ConceptWeights
from utils.learners.token_rows import ModifierTokens

STILL = 1e-4  # of the largest standard deviation of a direction: below it nothing is learned along it
SAME = 1e-6  # relative distance below which two rows of target words are one


@dataclass(frozen=True)
class Merged:
    """The merged concept's parts, and how well it keeps both sides of the bargain.

    residual: largest |W Cᵀ − V| over the largest |V|. drift: ‖(W − W⁰)Kᵀ‖ / ‖W⁰Kᵀ‖ over all layers. change:
    ‖W − W⁰‖ / ‖W⁰‖ over all layers. conditions: of the captions and of the phrases, see `Solver`.
    """

    weights: dict[str, Tensor]
    rows: dict[str, Tensor]
    classes: tuple[str | None, ...]
    dropped: int
    residual: float
    drift: float
    change: float
    conditions: tuple[float, float]


def without_clashes(concepts: Sequence[ConceptWeights]) -> tuple[list[ConceptWeights], dict[int, dict]]:
    """The concepts with every token different: a later one that clashes becomes the next free <newN>.

    Returns them and, by the concept's number, {old: new}. Case does not tell tokens apart in prompts.
    """
    taken = {token.lower() for concept in concepts for token in concept.rows}
    used: set[str] = set()
    renamed, changes = [], {}
    for number, concept in enumerate(concepts):
        rows = {}
        for token, row in concept.rows.items():
            name = token
            if token.lower() in used:
                name = next(n for i in range(1, 10_000) if (n := f"<new{i}>") not in taken)
                changes.setdefault(number, {})[token] = name
                taken.add(name)
            used.add(name.lower())
            rows[name] = row
        renamed.append(replace(concept, rows=rows))
    return renamed, changes


def install_rows(base: BaseModel, rows: dict[str, Tensor]) -> None:
    """Puts the tokens' rows, (D,) of all text encoders side by side, behind the base's tables, and casts the
    text encoders to float64."""
    widths = [encoder.width for encoder in base.encoders]
    for token, row in rows.items():
        if token in base.tokenizer.get_vocab():
            raise UserError(
                f"{token} is in the base model's vocabulary; train under another --modifier_token"
            )
        if len(row) != sum(widths):
            raise UserError(f"{token} has width {len(row)}, the base model's is {sum(widths)}")
    split = [row.split(widths) for row in rows.values()]
    for encoder, parts in zip(base.encoders, zip(*split, strict=True), strict=False):
        table = encoder.model.double().get_input_embeddings()
        assert len(encoder.tokenizer) == table.num_embeddings, "the base has added tokens of its own"
        encoder.tokenizer.add_tokens(list(rows))
        encoder.model.set_input_embeddings(ModifierTokens(table, torch.stack(parts)))


@torch.no_grad()
def features(base: BaseModel, phrases: list[str], token: str | None = None, batch_size: int = 32) -> Tensor:
    """(n, D) float64 text states of the phrases' words: from `token` to the last, else from the first to EOS.

    Padding is left out, and changes nothing before it: attention looks back only. With `token` EOS is left
    out too. Its state is much like that of "a white dog" and of "a <new1> dog on the beach": to ask there for
    the concept's keys and values gives toon's dogs the concept's colours, and takes its beach away.
    """
    rows = []
    for start in range(0, len(phrases), batch_size):
        batch = phrases[start : start + batch_size]
        lines = base.tokenizer(batch, truncation=True).input_ids
        ids = base.tokenize(batch)[..., : max(map(len, lines))]  # (B, …, L)
        states = base.encode(ids)[0]  # (B, L, D)
        for line, own in zip(lines, states, strict=True):
            first = 1 if token is None else line.index(base.tokenizer.convert_tokens_to_ids(token))
            rows.append(own[first : len(line) - (token is not None)])
    return torch.cat(rows)


def target_phrases(token: str, name: str | None) -> list[str]:
    """Adobe's choice: "<new1> dog" and "photo of a <new1> dog"."""
    subject = f"{token} {name}" if name else token
    return [subject, f"photo of a {subject}"]


def varying(states: Tensor) -> Tensor:
    """(D, r) orthonormal: the directions along which states (n, D) differ from one another.

    A direction counts if its standard deviation is at least STILL of the largest.
    """
    _, deviations, directions = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    return directions[deviations > STILL * deviations[0]].T


class Solver:
    """The closed form for one C and K, which all layers share.

    With B the directions of `varying`, K B = QR and A = R⁻ᵀ(C B)ᵀ the formula is
    W = W⁰ + (V − W⁰Cᵀ) A⁺ R⁻ᵀ Bᵀ, which does not square K's condition.
    conditions: the condition numbers of R and of A.
    """

    def __init__(self, targets: Tensor, captions: Tensor):
        """targets: C, (m, D); captions: K, (n, D). Raises UserError if they do not determine W."""
        self.targets, self.captions, self.basis = targets, captions, varying(captions)
        self.root = torch.linalg.qr(captions @ self.basis, mode="r").R  # (r, r)
        whitened = torch.linalg.solve_triangular(self.root.T, (targets @ self.basis).T, upper=False)  # (r, m)
        if int(torch.linalg.matrix_rank(whitened)) < len(targets):
            raise UserError("the concepts' phrases depend on one another; merge fewer concepts at a time")
        self.inverse = torch.linalg.pinv(whitened)  # A⁺, (m, r)
        self.conditions = torch.linalg.cond(self.root).item(), torch.linalg.cond(whitened).item()

    def __call__(self, start: Tensor, values: Tensor) -> Tensor:
        """W (C, D) from W⁰ (C, D) and V (C, m)."""
        missing = values - start @ self.targets.T  # (C, m)
        step = missing @ self.inverse  # (C, r), (W − W⁰) B Rᵀ
        return start + torch.linalg.solve_triangular(self.root, step.T, upper=True).T @ self.basis.T

    def drift(self, step: Tensor, start: Tensor) -> tuple[float, float]:
        """‖(W − W⁰)Kᵀ‖² and ‖W⁰Kᵀ‖² of a layer."""
        return tuple((each @ self.captions.T).square().sum().item() for each in (step, start))


def distinct(rows: Tensor) -> Tensor:
    """The numbers of the rows (m, D) that equal no earlier one."""
    distances = torch.cdist(rows, rows) / rows.norm(dim=1, keepdim=True)
    return (distances < SAME).long().argmax(1).eq(torch.arange(len(rows))).nonzero().flatten()


def merge(
    concepts: Sequence[ConceptWeights],
    base_kv: dict[str, Tensor],
    base: BaseModel,
    captions: list[str],
) -> Merged:
    """One concept from several whose tokens differ.

    base_kv: the base's own attn2.to_k/to_v, name -> (C, D). A concept without K/V counts with the base's.
    base: the tokens are added to it, and its text encoders are float64 afterwards.
    Raises UserError where there is nothing to merge, and for concepts that contradict one another.
    """
    rows = {token: row for concept in concepts for token, row in concept.rows.items()}
    install_rows(base, rows)
    groups = []  # of each concept, the rows of its target words
    for concept in concepts:
        names = [*concept.classes, *[None] * len(concept.rows)]
        of_token = [
            features(base, target_phrases(token, name), token)
            for token, name in zip(concept.rows, names, strict=False)
        ]
        groups.append(torch.cat(of_token))
    targets = torch.cat(groups)  # (m, D)
    kept = distinct(targets)
    solver = Solver(targets[kept], features(base, captions))
    weights, residual, drifts, changes = {}, 0.0, [], []
    for name, own in base_kv.items():
        start = own.double()
        values = torch.cat([_tuned(c, name, start) @ g.T for c, g in zip(concepts, groups, strict=True)], 1)
        weights[name] = solver(start, values[:, kept])
        error = (weights[name] @ targets.T - values).abs().max() / values.abs().max()
        residual = max(residual, error.item())
        drifts.append(solver.drift(weights[name] - start, start))
        changes.append(tuple(each.square().sum().item() for each in (weights[name] - start, start)))
    if residual > 1e-3:
        raise UserError("two concepts have the same token row and different K/V; merge only one of them")
    classes = tuple(name for c in concepts for _, name in zip_longest(c.rows, c.classes[: len(c.rows)]))
    dropped = len(targets) - len(kept)
    relative = (relative_norm(drifts), relative_norm(changes))
    return Merged(weights, rows, classes, dropped, residual, *relative, solver.conditions)


def relative_norm(squares: Sequence[tuple[float, float]]) -> float:
    """The norm of what moved over that of what there was, from both squared, layer by layer."""
    moved, whole = map(sum, zip(*squares, strict=True))
    return (moved / whole) ** 0.5


def _tuned(concept: ConceptWeights, name: str, start: Tensor) -> Tensor:
    if name in concept.weights:
        return concept.weights[name].double()
    return start + concept.deltas[name].double() if name in concept.deltas else start
