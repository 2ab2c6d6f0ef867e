"""Colours of images with a profile, against published conversions; differences are CIE 1976 ΔE.

Shapes: N colours, as rows of three or four values.
"""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from utils.common.images import open_alpha, open_image, save_png

WHITE = (0.9642, 1.0, 0.8249)  # D50, which every profile is relative to
# Colorants adapted to D50, columns X Y Z of red, green and blue, as the vendors' profiles hold them.
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
# To linear sRGB, from CSS Color 4 and Adobe RGB (1998)'s definition; their rows sum to 1: white stays.
P3_TO_SRGB = [[1.2249401, -0.2249402, 0], [-0.0420569, 1.0420571, 0], [-0.0196376, -0.0786361, 1.0982735]]
ADOBE_TO_SRGB = [[1.3983557, -0.3983557, 0], [0, 1, 0], [0, -0.0429290, 1.0429290]]
COLOURS = [(200, 100, 50), (60, 150, 90), (90, 110, 180), (128, 128, 128), (250, 250, 250), (40, 20, 10)]


def linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def encoded(values: np.ndarray) -> np.ndarray:
    values = values.clip(0, 1)
    return 255 * np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def lab(srgb: np.ndarray) -> np.ndarray:
    """(N, 3) in 0 … 255 -> (N, 3), D50."""
    to_xyz = [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169]]
    to_xyz.append([0.0139322, 0.0971045, 0.7141733])  # sRGB, adapted by Bradford
    xyz = linear(np.asarray(srgb) / 255) @ np.array(to_xyz).T / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def delta_e(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(lab(a) - lab(b), axis=1)


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile, version 2."""
    xyz = b"XYZ \0\0\0\0" + b"".join(fixed(value) for value in WHITE)
    tags = {b"wtpt": xyz, b"cprt": b"text\0\0\0\0none\0", b"desc": description("test")} | tags
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        tag += b"\0" * (-len(tag) % 4)
        table += name + struct.pack(">II", start + len(body), len(tag))
        body += tag
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(
        ">I4sI4s4s4s12x4s28x", start + len(body), b"\0\0\0\0", 0x02100000, kind, space, pcs, b"acsp"
    )
    head += b"".join(map(fixed, WHITE)) + b"\0" * 48
    assert len(head) == 128
    return head + struct.pack(">I", len(tags)) + table + body


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def description(text: str) -> bytes:
    name = text.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + b"\0" * 78


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def of_table(values: np.ndarray) -> bytes:
    levels = np.rint(values * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(levels)) + levels.tobytes()


def matrix_profile(colorants: tuple, curve: bytes) -> bytes:
    tags = {}
    for name, column in zip(b"rgb".decode(), colorants, strict=True):
        tags[f"{name}XYZ".encode()] = b"XYZ \0\0\0\0" + b"".join(map(fixed, column))
        tags[f"{name}TRC".encode()] = curve
    return profile(b"RGB ", tags)


P3 = matrix_profile(DISPLAY_P3, of_table(linear(np.linspace(0, 1, 1024))))
ADOBE = matrix_profile(ADOBE_RGB, gamma(563 / 256))
GREY = profile(b"GRAY", {b"kTRC": gamma(1.8)})
# Lab of solid inks on coated paper (ISO 12647-2), paper and black as the ends of the scale; what is left out
# is black.
INKS = {"": (100, 0, 0), "C": (55, -37, -50), "M": (48, 74, -3), "Y": (89, -5, 93), "K": (0, 0, 0)}
INKS |= {"MY": (47, 68, 48), "CY": (50, -68, 25), "CM": (24, 17, -46), "CMY": (23, 0, 0)}


def cmyk_profile() -> bytes:
    """Straight lines between the solid inks: a lookup table of two points a channel, to Lab."""
    nodes = []
    for corner in np.ndindex(2, 2, 2, 2):
        inks = "".join(name for name, there in zip("CMYK", corner, strict=True) if there)
        level, a, b = INKS.get(inks, INKS["K"])
        nodes += [round(level * 255 / 100), a + 128, b + 128]
    ramp = bytes(range(256))
    matrix = b"".join(fixed(float(i == j)) for i in range(3) for j in range(3))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + bytes(nodes) + ramp * 3
    return profile(b"CMYK", {b"A2B0": table}, pcs=b"Lab ")


def write(path: Path, mode: str, colours: list, icc: bytes | None, **how) -> Path:
    """An image of one row, a block of 8 pixels for each colour."""
    size = (8 * len(colours), 8)
    image = Image.new(mode, size)
    for number, colour in enumerate(colours):
        image.paste(colour, (8 * number, 0, 8 * number + 8, 8))
    image.save(path, icc_profile=icc, **how)
    return path


def read(path: Path) -> np.ndarray:
    return np.asarray(open_image(path), dtype=float)[4, 4::8]


@pytest.mark.parametrize(
    ("icc", "matrix", "power", "apart"),
    [(P3, P3_TO_SRGB, None, 1.0), (ADOBE, ADOBE_TO_SRGB, 563 / 256, 1.0)],
    ids=["Display P3", "Adobe RGB"],
)
def test_rgb_profiles_are_converted(tmp_path, icc, matrix, power, apart):
    values = np.array(COLOURS) / 255
    light = linear(values) if power is None else values**power
    expected = encoded(light @ np.array(matrix).T)
    found = read(write(tmp_path / "a.png", "RGB", COLOURS, icc))
    assert delta_e(found, expected).max() < apart  # of rounding to 8 bits
    assert delta_e(np.array(COLOURS), expected).mean() > 3  # what ignoring the profile costs
    assert np.abs(found[3:5] - COLOURS[3:5]).max() <= 1  # greys are the same in all three
    in_jpeg = read(write(tmp_path / "a.jpg", "RGB", COLOURS, icc, quality=100, subsampling=0))
    assert delta_e(in_jpeg, expected).max() < 2


def test_cmyk_is_converted_by_its_profile(tmp_path):
    inks = {"CM": (255, 255, 0, 0), "": (0, 0, 0, 0), "CMY": (255, 255, 255, 0), "K": (0, 0, 0, 255)}
    path = write(tmp_path / "a.tif", "CMYK", list(inks.values()), cmyk_profile())
    wanted = np.array([INKS[name] for name in inks], dtype=float)
    assert np.linalg.norm(lab(read(path)) - wanted, axis=1).max() < 1.5
    with Image.open(path) as image:
        plain = np.asarray(image.convert("RGB"), dtype=float)[4, 4::8]
    assert np.linalg.norm(lab(plain) - wanted, axis=1).mean() > 9.8
    halves = read(write(tmp_path / "b.tif", "CMYK", [(128, 0, 0, 0)], cmyk_profile()))
    between = (np.array(INKS["C"]) + INKS[""]) / 2  # (77.5, -18.5, -25)
    assert np.linalg.norm(lab(halves) - between, axis=1).max() < 1.5


def test_grey_palettes_and_transparency_are_converted_too(tmp_path):
    expected = encoded(np.array([(128 / 255) ** 1.8] * 3))
    for mode, colour in (("L", 128), ("LA", (128, 255)), ("I;16", 128 * 257)):
        assert np.abs(read(write(tmp_path / f"{mode[0]}.png", mode, [colour], GREY)) - expected).max() <= 1.5
    plain = read(write(tmp_path / "rgb.png", "RGB", COLOURS, P3))
    palette = Image.open(tmp_path / "rgb.png").quantize(len(COLOURS))
    palette.save(tmp_path / "p.png", icc_profile=P3)
    assert np.abs(read(tmp_path / "p.png") - plain).max() <= 1
    path = write(tmp_path / "half.png", "RGBA", [(*COLOURS[0], 128), (*COLOURS[1], 255)], P3)
    assert np.abs(read(path) - [plain[0] * 128 / 255 + 127, plain[1]]).max() <= 1.5
    assert open_alpha(path).getextrema() == (128, 255)


def test_without_a_profile_and_with_srgbs_colours_stay(tmp_path):
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read(write(tmp_path / "none.png", "RGB", COLOURS, None)), COLOURS)
    assert np.abs(read(write(tmp_path / "srgb.png", "RGB", COLOURS, own)) - COLOURS).max() <= 1


@pytest.mark.parametrize(
    "icc", [b"no profile", P3[:200], GREY, P3[:128] + b"\xff" * 400], ids=["text", "cut", "grey", "noise"]
)
def test_a_broken_profile_is_said_once_and_taken_as_srgb(tmp_path, capsys, icc):
    path = write(tmp_path / "a.png", "RGB", COLOURS, icc)
    for _ in range(2):
        assert np.array_equal(read(path), COLOURS)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: its colour profile cannot be used (") and "as sRGB" in line


def test_a_converted_image_is_saved_without_the_profile_it_had(tmp_path):
    for icc in (P3, b"no profile"):
        save_png(open_image(write(tmp_path / "a.png", "RGB", COLOURS, icc)), tmp_path / "b.png", {})
        with Image.open(tmp_path / "b.png") as image:
            assert "icc_profile" not in image.info
        assert np.array_equal(read(tmp_path / "b.png"), read(tmp_path / "a.png"))
