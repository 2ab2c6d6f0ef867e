"""Train the toon world's byte-pair vocabulary on its own captions and save it as a CLIPTokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.toon.models.flags import TokenizerFlags
from scripts.toon.world.captions import caption
from scripts.toon.world.world import COLOURS, RARE_WORDS, sample_scene
from utils.common.files import write_text

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MAX_LENGTH = 32
# Words that prompts use though no caption does: single tokens without a meaning.
PROMPT_WORDS = ["the", "is", "of", "and", "with", "at", "swimming", "standing", "wooden", "toy", "my"]


def corpus() -> list[str]:
    rng = random.Random("tokenizer")
    captions = [caption(sample_scene(rng), rng) for _ in range(20_000)]
    return captions + [*RARE_WORDS, *COLOURS, *PROMPT_WORDS] * 50


def build(folder: Path) -> CLIPTokenizer:
    """CLIP's layout: bytes, bytes that end a word, merged pieces, BOS and, with the highest id, EOS."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
    merges = [" ".join(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = alphabet + [symbol + "</w>" for symbol in alphabet]
    pieces += list(dict.fromkeys(merge.replace(" ", "") for merge in merges))
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab, rules = folder / "vocab.json", folder / "merges.txt"
    write_text(vocab, json.dumps({piece: i for i, piece in enumerate(pieces)}, ensure_ascii=False))
    write_text(rules, "#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer(str(vocab), str(rules), pad_token="<|endoftext|>", model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def train(config: TokenizerFlags) -> None:
    """Build the tokenizer and save it."""
    tokenizer = build(config.output_dir)
    print(f"saved {config.output_dir}: {len(tokenizer)} tokens")
