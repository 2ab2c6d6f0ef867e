"""File names for prompts, and grids of images under their prompts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from utils.common.images import save_png

GRID_TILE = 256  # smaller images are enlarged to this in the grid


GRID_GAP = 8


def slugs(prompts: Iterable[str], length: int = 50) -> list[str]:
    """A file name's stem for each prompt: lower case, words joined by dashes, no two alike."""
    taken: list[str] = []
    for prompt in prompts:
        stem = re.sub(r"\W+", "-", prompt.lower())[:length].strip("-") or "prompt"
        slug, count = stem, 1
        while slug in taken:
            count += 1
            slug = f"{stem}-{count}"
        taken.append(slug)
    return taken


def save_grid(
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    path: Path,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """One row per prompt under its text, one column per seed.

    images: row by row, as `sample` yields them, all of one size; those under 256 px are enlarged here only.
    """
    columns, left_over = divmod(len(images), len(prompts))
    assert columns and not left_over, (len(images), len(prompts))
    scale = -(-GRID_TILE // min(images[0].size))  # whole, so that every pixel stays a square
    width, height = (side * max(scale, 1) for side in images[0].size)
    font = ImageFont.load_default(size=20)
    full_width = columns * (width + GRID_GAP) - GRID_GAP
    texts = [_wrap(prompt, font, full_width) for prompt in prompts]
    line = 26
    row_heights = [line * len(text) + height + GRID_GAP for text in texts]

    grid = Image.new("RGB", (full_width, sum(row_heights)), "white")
    draw = ImageDraw.Draw(grid)
    top = 0
    for row, text in enumerate(texts):
        for number, words in enumerate(text):
            draw.text((0, top + line * number), words, fill="black", font=font)
        for column, image in enumerate(images[row * columns : (row + 1) * columns]):
            tile = image.resize((width, height), Image.Resampling.NEAREST)
            grid.paste(tile, (column * (width + GRID_GAP), top + line * len(text)))
        top += row_heights[row]
    save_png(grid, path, metadata or {})


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`text` in lines no wider than `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
