"""Pre-train the contextualizer of masked language modelling, which --mlm_weight needs, for a base.

python -m scripts.pretrain_contextualizer --base toon

On the prompts of scripts.context_prompts about common words, and on captions where there are any. When
interrupted, it goes on where it was. Ends with its accuracy on held-out prompts. B prompts, L tokens.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.toon.world import caption, sample_scene
from utils.bases.devices import without_progress_bars
from utils.bases.registry import Base, base_row
from utils.bases.sd import check_base
from utils.errors import UserError, exit_on_user_error
from utils.files import check_writable_folder, read_lines
from utils.flags import check_fields, option, parse, seed_option
from utils.seeds import seed_of
from utils.training.context_prompts import COLOURS, EXAMPLES, KINDS, draw_parts
from utils.training.contextualizer import (
    Contextualizer,
    Sizes,
    folder_of,
    save_contextualizer,
    show_mask_row,
    text_digest,
)
from utils.training.masked_prompts import NO_ANSWER, MaskedPrompts, Masker, stack

RARE_WORDS = (
    "sks",
    "ktn",
    "pll",
    "ucd",
    "ohwx",
)  # such a word before the noun is what a concept's token is like
MASKED_WEIGHT = 5.0  # of the error at masked tokens, as published
SHARE_OF_CAPTIONS = 0.5
HELD_OUT = 20  # one in so many prompts is never trained on
CHECKPOINT_EVERY = 200


@dataclass(frozen=True)
class Recipe:
    """steps, prompts a step, learning rate after `warmup` steps, from where it falls linearly to 0."""

    steps: int
    batch: int
    rate: float
    warmup: int


PUBLISHED = Recipe(100_000, 300, 1e-4, 0)  # whose rate stays as it is; falling suits shorter trainings too
RECIPES = {"toon": Recipe(2400, 64, 1.5e-3, 100)}
CAPTIONS: dict[str, Callable[[random.Random], str]] = {"toon": lambda rng: caption(sample_scene(rng), rng)}


@dataclass(frozen=True)
class Config:
    base: str = option("toon", "base model: a name, a folder or a Hub id")
    captions: str | None = option(None, "text file with a caption in every line, e.g. COCO's")
    steps: int | None = option(None, "steps (default: the base's, else the published 100,000)", minimum=1)
    seed: int = seed_option("seed of every draw")
    output_dir: str | None = option(None, "folder (default: where --mlm_weight looks for it)")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.captions is not None and len({is_held_out(line) for line in captions_in(self.captions)}) < 2:
            raise UserError(
                f"--captions {self.captions} has too few lines to keep one in {HELD_OUT} for the accuracy: "
                "give more, or leave it out"
            )
        if self.output_dir is not None:
            check_writable_folder(self.output_dir, "output_dir")

    @property
    def row(self) -> Base:
        return base_row(self.base)

    @property
    def recipe(self) -> Recipe:
        recipe = RECIPES.get(self.row.name, PUBLISHED)
        return Recipe(self.steps or recipe.steps, recipe.batch, recipe.rate, recipe.warmup)

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) if self.output_dir else folder_of(self.row)


@cache
def captions_in(file: str) -> list[str]:
    """The lines of a captions file that are not blank. Raises UserError as `read_lines` does."""
    return list(read_lines(Path(file), "captions file", "caption").values())


def is_held_out(text: str) -> bool:
    return seed_of("held-out prompt", text) % HELD_OUT == 0


def draw_synthetic(rng: random.Random, held_out: bool) -> str:
    """A prompt about a common word, at times with a colour or a rare word before it."""
    while True:
        kind = rng.choice(KINDS)
        head, prompt = draw_parts(kind, rng)
        before = rng.choice(("", rng.choice(COLOURS), rng.choice(RARE_WORDS)))
        if is_held_out(prompt) == held_out:
            return f"{head} {prompt.format(f'{before} {rng.choice(EXAMPLES[kind])}')}".strip()


def sources_of(config: Config) -> dict[str, Callable[[random.Random, bool], str]]:
    """Name -> draw(rng, held_out): the synthetic prompts, and captions where there are any."""
    sources: dict[str, Callable[[random.Random, bool], str]] = {"prompts": draw_synthetic}
    draw = CAPTIONS.get(config.row.name)
    if config.captions is not None:
        lines = captions_in(config.captions)

        def draw(rng: random.Random) -> str:
            return rng.choice(lines)

    if draw is not None:

        def draw_caption(rng: random.Random, held_out: bool) -> str:
            while is_held_out(text := draw(rng)) != held_out:
                pass
            return text

        sources["captions"] = draw_caption
    return sources


def texts_of(
    config: Config, masker: Masker, rng: random.Random, count: int, held_out: bool = False
) -> list[str]:
    """Prompts that fit; a caption with SHARE_OF_CAPTIONS where there are captions."""
    sources, texts = sources_of(config), []
    while len(texts) < count:
        name = "captions" if "captions" in sources and rng.random() < SHARE_OF_CAPTIONS else "prompts"
        if masker.fits(text := sources[name](rng, held_out)):
            texts.append(text)
    return texts


def pretraining_loss(model: Contextualizer, text_encoder: CLIPTextModel, batch: MaskedPrompts) -> Tensor:
    """Cross-entropy at all tokens but padding, five-fold at masked ones, divided by B·L, as published."""
    logits = model(text_encoder(batch.ids).last_hidden_state, batch.answers != NO_ANSWER)
    errors = F.cross_entropy(logits, batch.answers[batch.answers != NO_ANSWER], reduction="none")
    weights = 1 + (MASKED_WEIGHT - 1) * batch.masked[batch.answers != NO_ANSWER]
    return (weights * errors).sum() / batch.ids.numel()


def fit(
    config: Config, model: Contextualizer, text_encoder: CLIPTextModel, masker: Masker, state: Path
) -> None:
    """All steps; batch and masks of a step are functions of (seed, step). Goes on from `state`."""
    recipe, settings, done = (
        config.recipe,
        asdict(replace(config, output_dir=None)) | asdict(config.recipe),
        0,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.0)
    if state.is_file():
        saved = torch.load(state, map_location=model.mask_row.device, weights_only=True)
        if saved["settings"] != settings:
            raise UserError(f"{state} is of other settings: give the same, or remove it")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
    with tqdm(range(done, recipe.steps), "pre-training", recipe.steps, initial=done, mininterval=5) as bar:
        for step in bar:
            rng = random.Random(seed_of(config.seed, "pre-training", step))
            texts = texts_of(config, masker, rng, recipe.batch)
            loss = pretraining_loss(
                model, text_encoder, stack([masker.mask(text, (), rng) for text in texts], model)
            )
            optimizer.param_groups[0]["lr"] = recipe.rate * min(
                (step + 1) / (recipe.warmup + 1), 1 - step / recipe.steps
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == recipe.steps:
                save_state(state, settings, step + 1, model, optimizer)


def save_state(
    state: Path, settings: dict, step: int, model: Contextualizer, optimizer: torch.optim.AdamW
) -> None:
    """Atomically."""
    state.parent.mkdir(parents=True, exist_ok=True)
    parts = {
        "settings": settings,
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(parts, state.with_suffix(".partial"))
    os.replace(state.with_suffix(".partial"), state)


@torch.no_grad()
def accuracy(
    config: Config, model: Contextualizer, text_encoder: CLIPTextModel, masker: Masker, count: int
) -> dict[str, float]:
    """Shares of right answers at the masked tokens of `count` held-out prompts.

    unigram: always the commonest token of training prompts; no_context: the commonest at that position.
    """
    rng = random.Random("held-out")
    batch = stack([masker.mask(text, (), rng) for text in texts_of(config, masker, rng, count, True)], model)
    seen = [masker.mask(text, (), rng)[1] for text in texts_of(config, masker, rng, 4000)]
    positions = [
        Counter(token for token in column if token != NO_ANSWER) for column in zip(*seen, strict=True)
    ]
    most = Counter()
    for column in positions[1:]:  # without BOS, which is never masked
        most += Counter({token: n for token, n in column.items() if token != masker.tokenizer.eos_token_id})
    for column in positions:
        del column[masker.tokenizer.eos_token_id]
    best = [(column or most).most_common(1)[0][0] for column in positions]
    answers, place = batch.answers[batch.masked], batch.masked.nonzero()[:, 1].tolist()
    given = [
        model(text_encoder(ids).last_hidden_state, masked).argmax(dim=-1)
        for ids, masked in zip(batch.ids.split(64), batch.masked.split(64), strict=True)
    ]
    guesses = {
        "contextualizer": torch.cat(given),
        "unigram": torch.full_like(answers, most.most_common(1)[0][0]),
        "no_context": torch.tensor([best[i] for i in place], device=answers.device),
    }
    return {name: round((guess == answers).float().mean().item(), 4) for name, guess in guesses.items()}


def read_text_encoder(row: Base, device: torch.device) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Float32, frozen."""
    check_base(row.path)
    with without_progress_bars():
        encoder = CLIPTextModel.from_pretrained(row.path, subfolder="text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(row.path, subfolder="tokenizer")
    return encoder.to(device).eval().requires_grad_(False), tokenizer


def build(text_encoder: CLIPTextModel, seed: int) -> Contextualizer:
    """An untrained one of the text encoder's sizes; [MASK]'s row is random, of the table's mean L1 norm."""
    torch.manual_seed(seed)
    table = text_encoder.get_input_embeddings().weight
    model = Contextualizer(Sizes(table.shape[0], text_encoder.config.max_position_embeddings, table.shape[1]))
    with torch.no_grad():
        model.mask_row.mul_(table.abs().sum(dim=1).mean() / model.mask_row.abs().sum())
    return model.to(table.device)


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text_encoder, tokenizer = read_text_encoder(config.row, device)
    model, masker = build(text_encoder, config.seed), Masker(tokenizer)
    digest = text_digest(text_encoder)
    show_mask_row(text_encoder, model.mask_row, tokenizer.bos_token_id)
    state = Path("outputs") / "pretrain_contextualizer" / f"{config.row.name.replace('/', '--')}.pt"
    fit(config, model, text_encoder, masker, state)
    scores = accuracy(config, model.eval(), text_encoder, masker, 2000)
    facts = {
        "base": config.row.name,
        "seed": config.seed,
        "recipe": asdict(config.recipe),
        "accuracy": scores,
    }
    save_contextualizer(model, config.folder, digest, facts)
    for name, score in scores.items():
        print(f"{name:15} {score:.1%} of masked tokens right, on held-out prompts")
    print(f"the contextualizer is in {config.folder}")


if __name__ == "__main__":
    exit_on_user_error(main)
