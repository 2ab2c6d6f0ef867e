"""The results folder: settings that must agree, records that survive a kill."""

import json

import pytest

from utils.common.errors import UserError
from utils.common.files import append_records, read_json, read_records, write_json
from utils.evaluation.folder import check_settings


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


def test_a_broken_record_in_the_middle_is_told(tmp_path):
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


def test_a_folder_goes_on_with_its_own_settings_alone(tmp_path):
    settings = {"methods": ["base"], "seeds": [0, 1], "hardware": {"cpus": 2}, "templates": ["a {}"]}
    check_settings(tmp_path / "new", settings)
    write_json(tmp_path / "base" / "rex" / "scores.json", {})  # something was done with the settings
    write_json(tmp_path / "settings.json", settings)
    check_settings(tmp_path, settings | {"hardware": {"cpus": 64}})
    check_settings(tmp_path, settings | {"methods": ["base", "custom_diffusion"]})
    for change in ({"seeds": [0, 1, 2]}, {"methods": ["custom_diffusion"]}, {"new": 1}):
        with pytest.raises(
            UserError, match=f"other settings: {next(iter(change))} was .*another --output_dir"
        ):
            check_settings(tmp_path, settings | change)
    assert json.loads((tmp_path / "settings.json").read_text()) == settings


def test_a_file_is_no_results_folder(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        check_settings(tmp_path / "results", {})
