"""Images are written whole or not at all, and a set of images has a digest."""

import os
import stat
from pathlib import Path

import pytest
from PIL import Image

from utils.common.errors import UserError
from utils.common.images import ImageCache, digest_images, list_images, open_image, save_png


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
