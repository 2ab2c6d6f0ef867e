"""The pre-training of the contextualizer for one text encoder: its loss, its loop and its accuracy.

N prompts, L tokens.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel

from utils.common.errors import UserError
from utils.common.seeds import seed_of
from utils.common.tensor_files import read_pickle, write_pickle
from utils.losses.contextualizer import Contextualizer, Sizes
from utils.losses.mlm import NO_ANSWER, MaskedPrompts, Masker, stack
from utils.losses.pretraining_prompts import Draw, Recipe, texts_of

MASKED_WEIGHT = 5.0  # of the error at masked tokens, as published
CHECKPOINT_EVERY = 200


def build(text_encoder: CLIPTextModel, seed: int) -> Contextualizer:
    """An untrained one of the text encoder's sizes; [MASK]'s row is random, of the table's mean L1 norm."""
    torch.manual_seed(seed)
    table = text_encoder.get_input_embeddings().weight
    model = Contextualizer(Sizes(table.shape[0], text_encoder.config.max_position_embeddings, table.shape[1]))
    with torch.no_grad():
        model.mask_row.mul_(table.abs().sum(dim=1).mean() / model.mask_row.abs().sum())
    return model.to(table.device)


def pretraining_loss(model: Contextualizer, text_encoder: CLIPTextModel, batch: MaskedPrompts) -> Tensor:
    """Cross-entropy at all tokens but padding, five-fold at masked ones, divided by B·L, as published."""
    logits = model(text_encoder(batch.ids).last_hidden_state, batch.answers != NO_ANSWER)
    errors = F.cross_entropy(logits, batch.answers[batch.answers != NO_ANSWER], reduction="none")
    masked = batch.masked.to(batch.answers.device)[batch.answers != NO_ANSWER]
    weights = 1 + (MASKED_WEIGHT - 1) * masked
    return (weights * errors).sum() / batch.ids.numel()


def fit(
    model: Contextualizer,
    text_encoder: CLIPTextModel,
    masker: Masker,
    captions: Draw | None,
    recipe: Recipe,
    settings: dict[str, Any],
    state: Path,
) -> None:
    """All steps; batch and masks of a step are functions of (settings["seed"], step). Goes on from `state`.

    Raises UserError if `state` is of other settings.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.0)
    done = read_state(state, settings, model, optimizer) if state.is_file() else 0
    with tqdm(range(done, recipe.steps), "pre-training", recipe.steps, initial=done, mininterval=5) as bar:
        for step in bar:
            rng = random.Random(seed_of(settings["seed"], "pre-training", step))
            texts = texts_of(captions, masker.fits, rng, recipe.batch)
            batch = stack([masker.mask(text, (), rng) for text in texts], model)
            loss = pretraining_loss(model, text_encoder, batch)
            share = min((step + 1) / (recipe.warmup + 1), 1 - step / recipe.steps)
            optimizer.param_groups[0]["lr"] = recipe.rate * share
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == recipe.steps:
                save_state(state, settings, step + 1, model, optimizer)


def save_state(
    state: Path, settings: dict[str, Any], step: int, model: Contextualizer, optimizer: torch.optim.AdamW
) -> None:
    """What `read_state` reads, atomically."""
    state.parent.mkdir(parents=True, exist_ok=True)
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    write_pickle(state, {"settings": settings, "step": step} | parts)


def read_state(
    state: Path, settings: dict[str, Any], model: Contextualizer, optimizer: torch.optim.AdamW
) -> int:
    """Restores model and optimizer; returns the steps that are done. Raises UserError for a damaged file and
    for other settings."""
    saved = read_pickle(state, model.mask_row.device)
    if saved["settings"] != settings:
        raise UserError(f"{state} is of other settings: give the same, or remove it")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"]


@torch.no_grad()
def accuracy(
    model: Contextualizer, text_encoder: CLIPTextModel, masker: Masker, captions: Draw | None, count: int
) -> dict[str, float]:
    """Shares of right answers at the masked tokens of `count` held-out prompts.

    unigram: always the commonest token of training prompts; no_context: the commonest at that position.
    """
    rng = random.Random("held-out")
    held_out = texts_of(captions, masker.fits, rng, count, held_out=True)
    batch = stack([masker.mask(text, (), rng) for text in held_out], model)
    commonest, at_position = commonest_tokens(masker, texts_of(captions, masker.fits, rng, 4000), rng)
    answers, place = batch.answers[batch.masked], batch.masked.nonzero()[:, 1].tolist()
    given = [
        model(text_encoder(ids).last_hidden_state, masked).argmax(dim=-1)
        for ids, masked in zip(batch.ids.split(64), batch.masked.split(64), strict=True)
    ]
    guesses = {
        "contextualizer": torch.cat(given),
        "unigram": torch.full_like(answers, commonest),
        "no_context": torch.tensor([at_position[i] for i in place], device=answers.device),
    }
    return {name: round((guess == answers).float().mean().item(), 4) for name, guess in guesses.items()}


def commonest_tokens(masker: Masker, texts: list[str], rng: random.Random) -> tuple[int, list[int]]:
    """The commonest token of the texts, and that of each of the L positions; BOS and EOS do not count."""
    seen = [masker.mask(text, (), rng)[1] for text in texts]
    positions = [
        Counter(token for token in column if token != NO_ANSWER) for column in zip(*seen, strict=True)
    ]
    most: Counter = Counter()
    for column in positions[1:]:  # without BOS, which is never masked
        most += Counter({token: n for token, n in column.items() if token != masker.tokenizer.eos_token_id})
    for column in positions:
        del column[masker.tokenizer.eos_token_id]
    best = [(column or most).most_common(1)[0][0] for column in positions]
    return most.most_common(1)[0][0], best
