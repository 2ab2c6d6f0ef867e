"""Images: found in a folder, read as RGB whatever their format, written as PNG with their settings."""

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from utils.common.errors import UserError, one_line_of
from utils.common.files import one_line, shown, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T", bound=Image.Image | None)
IMAGE_SUFFIXES = frozenset(".avif .bmp .gif .heic .heif .jfif .jpeg .jpg .png .tif .tiff .webp".split())
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")  # of iPhones' photographs


ORIENTATION = 0x0112  # the EXIF tag
MASK_SUFFIX = ".mask.png"  # dog.mask.png says where the subject of dog.jpg is (utils/data/masks.py)


def is_image(path: Path) -> bool:
    """Whether `path` is a file that is named like an image, not hidden and no mask of one."""
    name = path.name.lower()
    named = path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    return path.is_file() and named and not name.endswith(MASK_SUFFIX)


def list_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """(images, skipped entries) of `folder`, each sorted by name; hidden files (.DS_Store) are skipped.

    Raises UserError when the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist: give a folder that holds the images")
    images, skipped = [], []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        (images if is_image(path) else skipped).append(path)
    if not images:
        found = [(sub, sum(map(is_image, sub.iterdir()))) for sub in skipped if sub.is_dir()]
        if found := [f"{sub} (images: {count})" for sub, count in found if count]:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise UserError(
                f"no images in {folder} itself: give the folder that holds them, {', '.join(found[:3])}{more}"
            )
        raise UserError(f"no images in {folder}: put some there ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images, skipped


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image's file, of any format that is read here; an animated one shows its first frame.

    Raises UserError naming the file where it cannot be read, in the block too, and for HEIC without
    pillow-heif.
    """
    try:
        _learn_heif(path)
        with Image.open(path) as file:
            yield file
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read image {path} ({error}): replace or remove it") from error


def _learn_heif(path: Path) -> None:
    """Lets Pillow read HEIC, which iPhones write, if the file is one, whatever its name."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] != b"ftyp" or head[8:] not in HEIF_BRANDS:
        return
    if find_spec("pillow_heif") is None:
        raise UserError(f"{path} is HEIC, which needs a package: python -m pip install pillow-heif")
    from pillow_heif import register_heif_opener

    register_heif_opener()


def is_animated(path: Path) -> bool:
    """Whether the file has several frames or pages. The second picture of a camera's JPEG is none."""
    with opened(path) as file:
        return getattr(file, "n_frames", 1) > 1 and file.format in ("GIF", "PNG", "WEBP", "AVIF", "TIFF")


def _decode(path: Path) -> Image.Image:
    """The image as stored, turned as its EXIF orientation says; errors as in `open_image`."""
    with opened(path) as file:
        image = ImageOps.exif_transpose(file)
        image.load()
    return image


def open_image(path: Path) -> Image.Image:
    """The image as 8-bit sRGB, turned as its EXIF orientation says, transparency composited on white.

    Colours are converted by the profile in the file; without one they are sRGB's (CMYK: Pillow's guess). A
    profile that cannot be used is named on stderr, once for each file.
    Raises UserError naming the file when it cannot be decoded to its last byte.
    """
    image = _decode(path)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image, path)
    image = _to_srgb(image, path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def open_alpha(path: Path) -> Image.Image | None:
    """The image's alpha channel, 8-bit grey, turned likewise; None where it is opaque all over."""
    image = _decode(path)
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return alpha if alpha.getextrema()[0] < 255 else None


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as the image is seen, EXIF orientation included; its pixels are not decoded."""
    with opened(path) as file:
        width, height = file.size
        turned = file.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _to_8_bit(image: Image.Image, path: Path) -> Image.Image:
    """Grey values 0 … 65535 to 0 … 255 (Pillow's own conversion of such images clips at 255)."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UserError(
            f"image {path} has {image.mode}-mode values beyond 16 bits: save it with 8 or 16 bits"
        )
    grey = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    grey.info = image.info
    return grey


def _to_srgb(image: Image.Image, path: Path) -> Image.Image:
    """The image in sRGB, transparency kept, if it has a usable colour profile; else as it is, without it."""
    profile = image.info.pop("icc_profile", None)
    if not profile:
        return image
    whole = image.convert("RGBA") if image.has_transparency_data else image
    mode = {"CMYK": "CMYK", "1": "L", "L": "L", "LA": "L"}.get(image.mode, "RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(whole.convert(mode), source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        _say_unusable(path, one_line_of(error))
        return image
    if whole is not image:
        converted.putalpha(whole.getchannel("A"))
    del converted.info["icc_profile"]
    return converted


@cache  # a training reads its images more than once
def _say_unusable(path: Path, reason: str) -> None:
    print(
        f"{shown(path)}: its colour profile cannot be used ({reason}); its colours are taken as sRGB",
        file=sys.stderr,
    )


def check_images(paths: Iterable[Path]) -> None:
    """Decode every image once, so that an unreadable one stops the run before it starts."""
    for path in paths:
        open_image(path)


def to_pixels(image: Image.Image) -> "Tensor":
    """RGB image to (3, height, width) float32 in [-1, 1]."""
    import torch  # seconds, which a command that only looks at its flags need not wait

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, Any]) -> None:
    """Writes a PNG with `metadata` as text chunks; an older file is replaced in one piece or not at all."""
    chunks = PngInfo()
    for key, value in metadata.items():
        chunks.add_text(key, str(value).encode(errors="backslashreplace").decode())
    write_atomically(path, lambda partial: image.save(partial, format="PNG", pnginfo=chunks))


def digest_images(paths: Iterable[Path]) -> tuple[str, dict[Path, str]]:
    """SHA-256 of the files' names and bytes, in order, and that of each file's bytes.

    The first changes when an image is added, renamed or edited; the folder's own path does not count, so a
    run can move. Raises UserError for an unreadable file.
    """
    digest, each = hashlib.sha256(), {}
    for path in paths:
        with one_line("read", path):
            content = path.read_bytes()
        digest.update(f"{len(os.fsencode(path.name))} {len(content)} ".encode())
        digest.update(os.fsencode(path.name) + content)
        each[path] = hashlib.sha256(content).hexdigest()
    return digest.hexdigest(), each


class ImageCache(Generic[T]):
    """`cache(path)` is `read(path)`, kept in memory while all images that are kept fit into `limit` bytes.

    digests: file -> SHA-256, as `digest_images` gives it, of the files as they were; none: they are not
    compared. of: the file to compare for a path. Raises UserError for a file that has changed, come or gone.
    """

    def __init__(
        self,
        read: Callable[[Path], T],
        digests: Mapping[Path, str] = {},
        of: Callable[[Path], Path] = Path,
        limit: int = 2**29,
    ):
        self.read, self.digests, self.of, self.left = read, digests, of, limit
        self.kept: dict[Path, T] = {}

    def __call__(self, path: Path) -> T:
        if path in self.kept:
            return self.kept[path]
        file = self.of(path)
        now = digest_images([file])[1] if self.digests and file.is_file() else {}
        if self.digests and now.get(file) != self.digests.get(file):
            what = "has changed" if file.is_file() else "is gone"
            raise UserError(
                f"{file} {what} since the run began: bring back what was there, and resume the run"
            )
        image = self.read(path)
        size = image.width * image.height * len(image.getbands()) if image is not None else 0
        if size <= self.left:
            self.left -= size
            self.kept[path] = image
        return image
