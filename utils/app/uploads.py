"""Uploaded images: copied together, checked by the commands' own functions, shown small."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from utils.app.form import unknown_to
from utils.common.errors import UserError
from utils.common.images import MASK_SUFFIX, check_images, is_animated, list_images, open_image
from utils.data.image_captions import read_captions
from utils.report.samples import data_uri

FEWEST, MOST = 3, 6  # images that the method was made for
THUMBNAIL = 128  # pixels
NONE = "no images: drop 3 to 6 images of one thing, or use the example"


@dataclass(frozen=True)
class Thumbnail:
    name: str
    uri: str
    width: int  # of the image itself, in pixels
    height: int


@dataclass(frozen=True)
class Preview:
    """The images as they will be read, what there is to say of them, and that the base cannot learn them."""

    thumbnails: list[Thumbnail]
    notes: list[str]
    warning: str = ""


def gather(uploads: Sequence[str | Path], folder: Path) -> None:
    """Copies the uploads into an empty folder; a second file of a name gets a number.

    Raises UserError when there are none.
    """
    if not uploads:
        raise UserError(NONE)
    for upload in map(Path, uploads):
        name, number = upload.name, 2
        while (folder / name).exists():
            name, number = f"{upload.stem}-{number}{upload.suffix}", number + 1
        shutil.copyfile(upload, folder / name)


def preview(uploads: Sequence[str | Path], base: str) -> Preview:
    """Decodes every image, as a training does before it starts; nothing stays on the disk.

    Raises UserError, which names the file, for one that cannot be read, and when there are none.
    """
    with TemporaryDirectory(prefix="classdiffusion-") as name:
        folder = Path(name)
        gather(uploads, folder)
        with plain_names(folder):
            images, skipped = list_images(folder)
            check_images(images)
            captions = read_captions(folder, images)
            thumbnails = [_thumbnail(path) for path in images]
            animated = [path.name for path in images if is_animated(path)]
            warning = unknown_to(base, [], [open_image(path) for path in images])
    captioned = {file for _, file in captions.values()}
    left_out = [path for path in skipped if path not in captioned and not path.name.endswith(MASK_SUFFIX)]
    notes = [f"{name} is animated: its first frame is used" for name in animated]
    notes += _notes(len(images), len(captions), left_out)
    return Preview(thumbnails, notes, warning or "")


class plain_names:
    """`with plain_names(folder):` a UserError of inside loses the folder, which its reader never saw."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError):
            message = str(error).replace(f"{self.folder}/", "").replace(str(self.folder), "your files")
            raise UserError(message) from error


def _thumbnail(path: Path) -> Thumbnail:
    uri, _ = data_uri(path, THUMBNAIL)
    return Thumbnail(path.name, uri, *open_image(path).size)


def _notes(count: int, captions: int, left_out: Sequence[Path]) -> list[str]:
    notes = [f"{path.name} is left out: it is not an image" for path in left_out]
    if captions:
        notes.append(f"{captions} of {count} images have captions of their own")
    if count < FEWEST:
        notes.append(
            f"{count} image{'s' * (count > 1)} will do, but with {FEWEST} to {MOST}, before different "
            "backgrounds, the model can tell your subject from what is around it"
        )
    return notes
