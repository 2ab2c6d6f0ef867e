"""CLIP's real tokenizer, the one Stable Diffusion 1.5 uses, rebuilt from its merge rules."""

from pathlib import Path

from transformers import CLIPTokenizer

from utils.bases.single_file.configuration import DATA, END, tokenizer_files, write_files


def write_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Bytes, bytes that end a word, merges, start and end of text: 49,408 tokens, saved in `folder`."""
    write_files(folder, tokenizer_files((DATA / "merges.txt").read_text(encoding="utf-8"), END))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer
