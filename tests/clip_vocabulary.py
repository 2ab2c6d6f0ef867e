"""CLIP's real tokenizer, the one Stable Diffusion 1.5 uses, rebuilt from its merge rules."""

import json
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

MERGES = Path(__file__).parent / "parity" / "clip_tokenizer" / "merges.txt"


def write_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Bytes, bytes that end a word, merges, start and end of text: 49,408 tokens, saved in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = MERGES.read_text(encoding="utf-8").splitlines()[1:]
    letters = list(bytes_to_unicode().values())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *(m.replace(" ", "") for m in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    vocab = folder / "vocab.json"
    vocab.write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}), encoding="utf-8")
    tokenizer = CLIPTokenizer(str(vocab), str(MERGES), pad_token="<|endoftext|>", model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer
