"""The files of a clip: GIF, WebP, MP4 and the contact sheet, with their settings in them."""

import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from utils.common.errors import UserError
from utils.sampling import clip_files
from utils.sampling.clip_files import (
    check_formats,
    durations,
    save_contact_sheet,
    save_gif,
    save_mp4,
    save_webp,
)

METADATA = {"prompt": "a <new1> dög 狗", "seed": 3, "fps": 8, "num_frames": 4}
WRITTEN = {"prompt": "a <new1> dög 狗", "seed": "3", "fps": "8", "num_frames": "4"}


@pytest.fixture
def frames():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.mark.parametrize(("fps", "expected"), [(8, [120, 130, 120, 130]), (10, [100] * 4), (50, [20] * 4)])
def test_a_gif_keeps_its_frames_per_second_on_the_whole(fps, expected):
    assert durations(4, fps) == expected
    assert sum(durations(fps, fps)) == 1000


@pytest.mark.parametrize(("save", "suffix"), [(save_gif, "gif"), (save_webp, "webp")])
def test_an_animation_has_its_frames_times_and_settings(save, suffix, frames, tmp_path):
    path = tmp_path / f"dog.{suffix}"
    for shown in (frames[:2], frames):  # the second replaces the first
        save(shown, path, fps=8, metadata=METADATA)
    with Image.open(path) as image:
        assert image.n_frames == 4 and image.size == (16, 12) and image.info["loop"] == 0
        seen = [np.asarray(frame.convert("RGB"), dtype=int) for frame in ImageSequence.Iterator(image)]
        for number in range(4):
            image.seek(number)
            image.load()
            assert image.info["duration"] == (120, 130, 120, 130)[number]
        written = image.getexif()[0x010E] if suffix == "webp" else image.info["comment"]
    assert json.loads(written) == WRITTEN
    assert np.abs(np.stack(seen) - np.stack([np.asarray(frame, dtype=int) for frame in frames])).max() == 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_film_has_its_frames_and_settings(frames, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    check_formats(["mp4"], 8)
    save_mp4(frames, tmp_path / "dog.mp4", fps=8, metadata=METADATA)
    film = ffmpeg.read_frames(str(tmp_path / "dog.mp4"))
    about = next(film)
    assert len(list(film)) == 4 and about["fps"] == 8 and about["size"] == (16, 12)
    assert list(tmp_path.iterdir()) == [tmp_path / "dog.mp4"]
    assert json.dumps(WRITTEN).encode() in (tmp_path / "dog.mp4").read_bytes()


def test_a_contact_sheet_shows_every_frame_in_rows_of_eight(tmp_path):
    shown = [Image.new("RGB", (64, 64), (10 * i, 0, 255 - 10 * i)) for i in range(10)]
    save_contact_sheet(shown, tmp_path / "dog.png", fps=8, title="a dog", metadata=METADATA)
    with Image.open(tmp_path / "dog.png") as sheet:
        assert sheet.width == 8 * 256 + 7 * 8 and sheet.text == WRITTEN
        row = 26 + 256 + 8
        seen = [sheet.getpixel((264 * (i % 8) + 128, row * (i // 8) + 26 + 128)) for i in range(16)]
    assert seen == [(10 * i, 0, 255 - 10 * i) for i in range(10)] + [(255, 255, 255)] * 6


def test_format_mistakes(monkeypatch):
    check_formats(["gif", "webp"], 8)
    with pytest.raises(UserError, match="unknown format 'avi'; choose among gif, webp, mp4"):
        check_formats(["avi"], 8)
    for fps in (0, 51):
        with pytest.raises(UserError, match=f"fps is {fps}; a GIF can have 1 to 50"):
            check_formats(["gif"], fps)
    monkeypatch.setattr(clip_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="mp4 needs imageio-ffmpeg: pip install"):
        check_formats(["mp4"], 8)
