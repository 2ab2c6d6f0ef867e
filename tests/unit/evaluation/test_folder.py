"""The results folder: settings that must agree, records that survive a kill."""

import json
from dataclasses import replace

import pytest

from utils.common.errors import UserError
from utils.common.files import append_records, read_json, read_records, write_json
from utils.evaluation.folder import Drawing, Scores, Settings, check_settings


def test_a_torn_last_record_is_dropped_and_the_next_starts_a_line_of_its_own(tmp_path):
    path = tmp_path / "records.jsonl"
    assert read_records(path) == []
    append_records(path, [{"image": "狗.png"}, {"image": "b.png"}])
    whole = path.read_bytes()
    for torn in (whole[:-1], whole[:-5], whole + b'{"image": "c', whole + "狗".encode()[:1]):
        path.write_bytes(torn)
        kept = [{"image": "狗.png"}, {"image": "b.png"}][: torn.count(b"\n")]
        assert read_records(path) == kept
        append_records(path, [{"image": "d.png"}])
        assert read_records(path) == [*kept, {"image": "d.png"}]


def test_a_broken_record_in_the_middle_is_reported(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"image": "a.png"}\n{"image"\n{"image": "c.png"}\n')
    with pytest.raises(UserError, match="records.jsonl is not JSON lines"):
        read_records(path)


def test_a_json_file_is_replaced_in_one_piece(tmp_path):
    path = tmp_path / "folder" / "scores.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1} and list(path.parent.iterdir()) == [path]
    path.write_text("{")
    with pytest.raises(UserError, match="scores.json is not valid JSON"):
        read_json(path)


SETTINGS = Settings(
    dataset="toon",
    source="pictures",
    digest="",
    base="toon",
    methods=["base"],
    subjects=["rex"],
    templates=["a {}"],
    metrics=["clip_t"],
    models={"clip": "data/toon/clip", "blip_head": "itc"},
    seeds=[0, 1],
    versions={"torch": "2"},
    hardware={"cpus": 2},
    drawing=Drawing({}, 10, 50, 3.0, 1.0, "torch.float32"),
)
# As settings.json was written before its settings were a dataclass.
EARLIER = {
    "dataset": "toon",
    "source": "pictures",
    "digest": "",
    "base": "toon",
    "methods": ["base"],
    "subjects": ["rex"],
    "templates": ["a {}"],
    "metrics": ["clip_t"],
    "models": {"clip": "data/toon/clip", "blip_head": "itc"},
    "seeds": [0, 1],
    "train_flags": {},
    "num_class_images": 10,
    "num_inference_steps": 50,
    "guidance_scale": 3.0,
    "eta": 1.0,
    "scheduler": "ddim",
    "dtype": "torch.float32",
    "versions": {"torch": "2"},
    "hardware": {"cpus": 2},
}


def test_settings_are_written_as_before():
    assert SETTINGS.as_json() == EARLIER
    adjusted = {"embedding_adjustment": 0.2, "embedding_adjustment_norm": 0.5}
    turned = replace(SETTINGS, drawing=replace(SETTINGS.drawing, **adjusted))
    assert turned.as_json() == EARLIER | adjusted
    there = replace(SETTINGS, drawing=None).as_json()
    assert there.keys() == EARLIER.keys() - vars(SETTINGS.drawing).keys()


def test_a_folder_goes_on_with_its_own_settings_alone(tmp_path):
    check_settings(tmp_path / "new", SETTINGS)
    write_json(tmp_path / "base" / "rex" / "scores.json", {})  # something was done with the settings
    write_json(tmp_path / "settings.json", EARLIER)
    more = SETTINGS.models | {"siglip": "a SigLIP"}
    for change in (
        {"hardware": {"cpus": 64}},
        {"methods": ["base", "custom_diffusion"]},
        {"metrics": ["clip_t", "siglip_t"], "models": more},
    ):
        check_settings(tmp_path, replace(SETTINGS, **change))
    for change in (
        {"seeds": [0, 1, 2]},
        {"methods": ["custom_diffusion"]},
        {"metrics": ["clip_i"]},
        {"models": {"clip": "another", "blip_head": "itc"}},
        {"drawing": replace(SETTINGS.drawing, embedding_adjustment=0.5)},
    ):
        changed = next(iter(change)).replace("drawing", "embedding_adjustment")
        with pytest.raises(UserError, match=f"other settings: {changed} was .*another --output_dir"):
            check_settings(tmp_path, replace(SETTINGS, **change))
    assert json.loads((tmp_path / "settings.json").read_text()) == EARLIER


def test_a_file_without_scores_is_reported(tmp_path):
    write_json(tmp_path / "scores.json", {"metric": {}})
    with pytest.raises(UserError, match="scores.json holds no scores: remove it"):
        Scores.read(tmp_path)


def test_a_file_is_no_results_folder(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        check_settings(tmp_path / "results", SETTINGS)
