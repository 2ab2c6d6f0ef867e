"""Images are written whole or not at all, and a set of images has a digest."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.common.errors import UserError
from utils.common.images import (
    ImageCache,
    digest_images,
    image_size,
    is_animated,
    list_images,
    open_image,
    save_png,
)


def test_a_png_is_replaced_whole_with_the_umasks_mode(tmp_path: Path):
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (2, 2), "red"), path, {"prompt": "é", "seed": 3})
    with Image.open(path) as image:
        assert image.text == {"prompt": "é", "seed": "3"} and image.getpixel((1, 1)) == (255, 0, 0)
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask

    class Torn(Image.Image):
        def save(self, file: Path, **_: object) -> None:
            file.write_bytes(b"\x89PNG")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot write .*a.png: No space left on device; make room"):
        save_png(Torn(), path, {})
    assert open_image(path).getpixel((0, 0)) == (255, 0, 0) and os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(UserError, match="cannot write .*none/a.png: No such file"):
        save_png(Image.new("RGB", (2, 2)), tmp_path / "none" / "a.png", {})


def test_the_digest_changes_with_any_image(tmp_path: Path):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    a.write_bytes(b"12")
    b.write_bytes(b"3")
    before = digest_images([a, b])[0]
    assert before == digest_images(iter([a, b]))[0] and len(before) == 64
    assert len({before, *(digest_images(each)[0] for each in ([b, a], [a], []))}) == 4
    a.write_bytes(b"1")
    b.write_bytes(b"23")  # the same bytes, cut elsewhere
    assert digest_images([a, b])[0] != before
    a.write_bytes(b"12")
    b.write_bytes(b"3")
    (tmp_path / "other").mkdir()
    moved = [path.rename(tmp_path / "other" / path.name) for path in (a, b)]
    assert digest_images(moved)[0] == before  # a run's folders can move
    assert digest_images([moved[0].rename(tmp_path / "c.png"), moved[1]])[0] != before
    with pytest.raises(UserError, match="cannot read .*a.png: No such file"):
        digest_images([a])


def test_a_cache_keeps_what_fits_and_notices_what_has_changed(tmp_path: Path):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    cache = ImageCache(open_image, digest_images(paths)[1], limit=2 * 4 * 4 * 3)
    assert [cache(path).getpixel((0, 0))[0] for path in paths] == [0, 1, 2]
    for path in paths:
        Image.new("RGB", (4, 4), (9, 0, 0)).save(path)
    assert [cache(path).getpixel((0, 0))[0] for path in paths[:2]] == [0, 1]  # read once, whatever comes
    with pytest.raises(UserError, match="2.png has changed since the run began: bring back"):
        cache(paths[2])
    paths[2].unlink()
    with pytest.raises(UserError, match="2.png is gone since the run began"):
        cache(paths[2])
    with pytest.raises(UserError, match="3.png has changed"):  # a file that was not there
        ImageCache(open_image, digest_images(paths[:2])[1])(paths[0].rename(tmp_path / "3.png"))


def test_images_one_folder_down_are_named(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    for name in ("phone", "camera"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (2, 2)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(UserError) as raised:
        list_images(tmp_path)
    assert str(raised.value) == (
        f"no images in {tmp_path} itself: give the folder that holds them, "
        f"{tmp_path}/camera (images: 2), {tmp_path}/phone (images: 2)"
    )
    with pytest.raises(UserError, match=r"notes: put some there \(\."):
        list_images(tmp_path / "notes")


def test_avif_and_jfif_are_read(tmp_path: Path):
    smooth = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    smooth.save(tmp_path / "a.avif", quality=95)
    smooth.save(tmp_path / "b.jfif", format="JPEG", quality=95)
    images, skipped = list_images(tmp_path)
    assert [path.name for path in images] == ["a.avif", "b.jfif"] and not skipped
    for path in images:
        apart = np.abs(np.asarray(open_image(path)).astype(int) - np.asarray(smooth)).max()
        assert apart <= 6 and not is_animated(path)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_an_animated_file_the_first_frame_is_read(tmp_path: Path, name: str):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **LOSSLESS.get(name, {}))
    assert is_animated(tmp_path / name)
    assert open_image(tmp_path / name).getpixel((4, 4)) == (255, 0, 0)


LOSSLESS = {"a.webp": {"lossless": True}}


def test_heic_without_its_package_is_one_line_whatever_its_name(tmp_path: Path, monkeypatch):
    file = tmp_path / "IMG_1.jpg"
    file.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    monkeypatch.setattr("utils.common.images.find_spec", lambda name: None)
    for read in (open_image, image_size):
        with pytest.raises(UserError) as mistake:
            read(file)
        assert (
            str(mistake.value) == f"{file} is HEIC, which needs a package: python -m pip install pillow-heif"
        )


def test_heic_is_read_and_turned(tmp_path: Path):
    heif = pytest.importorskip("pillow_heif")
    smooth = Image.linear_gradient("L").resize((64, 32)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.register_heif_opener()
    smooth.save(tmp_path / "a.HEIC", format="HEIF", quality=95, exif=exif.tobytes())
    (path,), _ = list_images(tmp_path)
    turned = np.asarray(smooth.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert image_size(path) == (32, 64)
    assert np.abs(np.asarray(open_image(path)).astype(int) - turned).max() <= 6
