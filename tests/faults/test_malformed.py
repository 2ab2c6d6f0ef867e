"""Files of junk, damaged and forged: read right, or refused in one line; never a traceback, never half."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from tests.faults.malformed import BYTES, damaged, each, examples, forged
from tests.faults.writes import Run
from utils.common.errors import UserError
from utils.common.files import append_records, check_writable_folder, read_json, read_records
from utils.common.folders import COMPLETE, STAGING, files_of, replace_folder
from utils.common.tensor_files import read_metadata, read_tensors, write_tensors
from utils.training.checkpoints import MANIFEST, check_same_run, find_checkpoint, seal, why_broken
from utils.training.lock import LOCK_FILE, RunLock
from utils.training.state import STATE_FILE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint-1 of a run whose values are 1; tests put back what they change."""
    folder = tmp_path_factory.mktemp("run")
    Run(1).save(folder, 1)
    return folder / "checkpoint-1"


@pytest.fixture
def restored(checkpoint: Path):
    contents = {path: path.read_bytes() for path in checkpoint.iterdir()}
    yield checkpoint
    for path, content in contents.items():
        path.write_bytes(content)


@examples
def test_records(tmp_path: Path, examples: int):
    path, good = tmp_path / "r.jsonl", b'{"step": 1}\n{"step": 2}\n'

    def check(content: bytes) -> None:
        path.write_bytes(content)
        records = read_records(path)
        assert all(isinstance(record, dict) for record in records)
        append_records(path, [{"step": 3}], durable=False)
        after = read_records(path)
        assert repr(after) == repr([*records, {"step": 3}])  # by repr, for NaN is not itself

    each("records", examples, BYTES | damaged(good), check)


@examples
def test_json(tmp_path: Path, examples: int):
    def check(content: bytes) -> None:
        (tmp_path / "a.json").write_bytes(content)
        read_json(tmp_path / "a.json")

    each("JSON file", examples, BYTES | damaged(b'{"a": [1, "x"]}'), check)


@examples
def test_tensor_files(tmp_path: Path, examples: int):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {"state": '{"step": 1}'})
    good = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        for read in (read_tensors, lambda path: read_metadata(path, "state")):
            try:
                assert isinstance(read(path), dict)
            except UserError as error:
                assert "\n" not in str(error)

    each("tensor file", examples, BYTES | damaged(good), check)


@examples
def test_manifests(restored: Path, examples: int):
    good = (restored / MANIFEST).read_bytes()
    value = json.loads(good)

    def check(content: bytes) -> None:
        (restored / MANIFEST).write_bytes(content)
        if why_broken(restored) is None:  # as it was; or a list, rightly written, that leaves a file out
            files = json.loads(content)["files"]
            assert content == good or files.items() < value["files"].items()
        else:
            assert content != good
        find_checkpoint(str(restored), restored.parent)

    forgeries = forged(value).map(lambda v: (json.dumps(v, indent=2) + "\n").encode())
    each("manifest", examples, BYTES | damaged(good) | forgeries, check)


@examples
def test_damaged_states_are_noticed_before_they_are_read(restored: Path, examples: int):
    good = (restored / STATE_FILE).read_bytes()

    def check(content: bytes) -> None:
        (restored / STATE_FILE).write_bytes(content)
        assert (why_broken(restored) is None) == (content == good)

    each("state, damaged", examples, BYTES | damaged(good), check)


@examples
def test_forged_states_that_are_sealed(restored: Path, examples: int):
    path = restored / STATE_FILE
    tensors, state = read_tensors(path), read_metadata(path, "state")

    def check(value: Any) -> None:
        write_tensors(path, tensors, {"state": json.dumps(value)})
        seal(restored)
        assert Run().load(restored.parent) == 1.0

    each("state, forged and sealed", examples, forged(state), check)


@examples
def test_training_configurations(restored: Path, examples: int):
    config = {"seed": 0, "max_train_steps": 5}

    def check(content: bytes) -> None:
        (restored / "training_config.json").write_bytes(content)
        check_same_run(restored, config, frozenset({"max_train_steps"}))

    each("training_config.json", examples, BYTES | damaged(b'{"seed": 0}'), check)


@examples
def test_lists_of_an_interrupted_replacement(tmp_path: Path, examples: int):
    folder = tmp_path / "concept"
    (tmp_path / "kept").write_text("kept")
    good = {"files": ["a", "b"], "stale": ["c"]}

    def check(content: bytes) -> None:
        replace_folder(folder, lambda staging: [(staging / name).write_text("1") for name in "abc"])
        (folder / STAGING).mkdir()
        for name in "ab":
            (folder / STAGING / name).write_text("2")
        (folder / STAGING / COMPLETE).write_bytes(content)
        seen = {name: path.read_text() for name, path in files_of(folder).items()}
        replace_folder(folder, lambda staging: None)
        assert {name: path.read_text() for name, path in files_of(folder).items()} == seen
        assert (tmp_path / "kept").read_text() == "kept"

    forgeries = forged(good).map(lambda v: json.dumps(v).encode())
    each("list of a replacement", examples, BYTES | forgeries | damaged(json.dumps(good).encode()), check)


@examples
def test_lock_files(tmp_path: Path, examples: int):
    def check(content: bytes) -> None:
        (tmp_path / LOCK_FILE).write_bytes(content)
        with RunLock(tmp_path):
            (tmp_path / LOCK_FILE).write_bytes(content)
            with RunLock(tmp_path):
                raise AssertionError("held twice")

    good = b'{"pid": 1, "host": "a", "since": "2026-01-01"}'
    each(
        "lock file",
        examples,
        BYTES | damaged(good) | forged(json.loads(good)).map(json.dumps).map(str.encode),
        check,
    )


@examples
def test_output_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    names = st.text(st.characters(exclude_categories=[]), max_size=300) | st.sampled_from(
        ["file", "x" * 5000]
    )
    paths = st.lists(names.map(lambda name: name.lstrip("/")), min_size=1, max_size=3).map("/".join)

    def check(path: str) -> None:
        check_writable_folder(path, "output_dir")
        (tmp_path / path).mkdir(parents=True, exist_ok=True)  # it said that this works
        for made in sorted(tmp_path.rglob("*"), reverse=True):
            if made.is_dir():
                os.rmdir(made)

    each("output folder", examples, paths.filter(lambda path: ".." not in path), check)
