"""Train the toon world's byte-pair vocabulary on its own captions and save it as a CLIPTokenizer."""

import argparse
import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from scripts.toon.world import COLOURS, RARE_WORDS, caption, sample_scene

MAX_LENGTH = 32
# Words that prompts use though no caption does: single tokens without a meaning.
PROMPT_WORDS = ["the", "is", "of", "and", "with", "at", "swimming", "standing", "wooden", "toy", "my"]


def corpus() -> list[str]:
    rng = random.Random("tokenizer")
    captions = [caption(sample_scene(rng), rng) for _ in range(20_000)]
    return captions + [*RARE_WORDS, *COLOURS, *PROMPT_WORDS] * 50


def train(folder: Path) -> CLIPTokenizer:
    """CLIP's layout: bytes, bytes that end a word, merged pieces, BOS and, with the highest id, EOS."""
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
    folder.mkdir(parents=True, exist_ok=True)
    vocab, rules = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(
        json.dumps({piece: i for i, piece in enumerate(pieces)}, ensure_ascii=False), encoding="utf-8"
    )
    rules.write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(vocab), str(rules), pad_token="<|endoftext|>", model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data/toon/sd/tokenizer"))
    args = parser.parse_args()
    tokenizer = train(args.output_dir)
    print(f"saved {args.output_dir}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
