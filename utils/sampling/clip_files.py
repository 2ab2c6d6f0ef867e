"""The files a clip is kept in: GIF, animated WebP, MP4 and a contact sheet, each carrying its settings.

A clip is a list of F PIL images of one size.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, features

from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.sampling.grids import save_grid

COLUMNS = 8  # of a contact sheet
MOST_FPS = 50  # a GIF counts time in hundredths of a second, and viewers slow down single ones
DESCRIPTION = 0x010E  # the EXIF tag ImageDescription
Metadata = Mapping[str, Any]


def check_formats(formats: Sequence[str], fps: int) -> None:
    """Raises UserError for a format that is unknown or lacks its library, and an fps that no GIF has."""
    for name in formats:
        if name not in WRITERS:
            raise UserError(f"unknown format {name!r}; choose among {', '.join(WRITERS)}")
    if "webp" in formats and not features.check("webp"):
        raise UserError("this Pillow was built without WebP; install another build, or leave webp out")
    if "mp4" in formats and not find_spec("imageio_ffmpeg"):
        raise UserError("mp4 needs imageio-ffmpeg: pip install imageio-ffmpeg, or leave mp4 out")
    if not 1 <= fps <= MOST_FPS:
        raise UserError(f"fps is {fps}; a GIF can have 1 to {MOST_FPS}")


def durations(frames: int, fps: int) -> list[int]:
    """Milliseconds of each frame in whole hundredths of a second, so that a clip as a whole keeps its fps."""
    ends = [100 * (i + 1) // fps for i in range(frames)]
    return [10 * (end - start) for start, end in zip([0, *ends], ends, strict=False)]


def save_gif(
    frames: Sequence[Image.Image], path: str | Path, fps: int, metadata: Metadata | None = None
) -> None:
    """An endless GIF with `metadata` as JSON in its comment, each frame in 256 colours of its own.

    Equal frames in a row become one of their joint duration: the format's writer does that.
    """
    first, *others = [frame.convert("RGB").quantize(256) for frame in frames]
    settings = {"duration": durations(len(frames), fps), "loop": 0, "comment": _json(metadata).encode()}
    write_atomically(
        Path(path), lambda to: first.save(to, "GIF", save_all=True, append_images=others, **settings)
    )


def save_webp(
    frames: Sequence[Image.Image], path: str | Path, fps: int, metadata: Metadata | None = None
) -> None:
    """An endless lossless WebP with `metadata` as JSON in its EXIF description."""
    exif = Image.Exif()
    exif[DESCRIPTION] = _json(metadata)
    settings = {"duration": durations(len(frames), fps), "loop": 0, "exif": exif, "lossless": True}
    first, *others = frames
    write_atomically(
        Path(path), lambda to: first.save(to, "WEBP", save_all=True, append_images=others, **settings)
    )


def save_mp4(
    frames: Sequence[Image.Image], path: str | Path, fps: int, metadata: Metadata | None = None
) -> None:
    """An H.264 film with `metadata` as JSON in its comment; sides must be even. Needs imageio-ffmpeg."""
    from imageio_ffmpeg import write_frames

    def write(to: Path) -> None:
        # The format is named, for the partial file's name says none.
        about = ["-f", "mp4", "-metadata", f"comment={_json(metadata)}"]
        look = {"fps": fps, "codec": "libx264", "quality": 9, "macro_block_size": 2}
        film = write_frames(str(to), frames[0].size, output_params=about, **look)
        film.send(None)
        for frame in frames:
            film.send(frame.convert("RGB").tobytes())
        film.close()

    write_atomically(Path(path), write)


def save_contact_sheet(
    frames: Sequence[Image.Image], path: Path, fps: int, title: str, metadata: Metadata | None = None
) -> None:
    """The frames in rows of up to 8, read like a page, each row under the title and the time it begins."""
    columns = min(COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    blank = Image.new("RGB", frames[0].size, "white")
    titles = [f"{title}, from {row * columns / fps:.2f} s" for row in range(rows)]
    save_grid([*frames, *[blank] * (rows * columns - len(frames))], titles, path, metadata)


WRITERS: dict[str, Callable[..., None]] = {"gif": save_gif, "webp": save_webp, "mp4": save_mp4}


def _json(metadata: Metadata | None) -> str:
    """ASCII, so that every format can hold it."""
    return json.dumps({key: str(value) for key, value in (metadata or {}).items()})
