"""Images are written whole or not at all, and a set of images has a digest."""

import os
import stat
from pathlib import Path

import pytest
from PIL import Image

from utils.common.errors import UserError
from utils.common.images import digest_images, open_image, save_png


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
    before = digest_images([a, b])
    assert before == digest_images(iter([a, b])) and len(before) == 64
    assert before != digest_images([b, a]) != digest_images([a]) != digest_images([])
    a.write_bytes(b"1")
    b.write_bytes(b"23")  # the same bytes, cut elsewhere
    assert digest_images([a, b]) != before
    a.write_bytes(b"12")
    b.write_bytes(b"3")
    (tmp_path / "other").mkdir()
    moved = [path.rename(tmp_path / "other" / path.name) for path in (a, b)]
    assert digest_images(moved) == before  # a run's folders can move
    assert digest_images([moved[0].rename(tmp_path / "c.png"), moved[1]]) != before
    with pytest.raises(UserError, match="cannot read .*a.png: No such file"):
        digest_images([a])
