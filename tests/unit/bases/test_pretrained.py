"""A model on the Hub: from the cache without network, and one line where there is neither."""

import json
import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from utils.bases import pretrained
from utils.bases.pretrained import hub_answers, pipeline_class, read_config
from utils.common.errors import UserError


@pytest.fixture
def no_hub(monkeypatch) -> str:
    """The Hub's address is a local port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return address


def test_without_network_one_line_says_what_to_download_and_where(no_hub, monkeypatch):
    monkeypatch.setattr(pretrained, "hf_hub_download", None)  # it would try again and again
    started = time.monotonic()
    with pytest.raises(UserError) as mistake:
        pipeline_class("owner/no-such-model")
    assert time.monotonic() - started < 5
    assert str(mistake.value) == (
        f"base model owner/no-such-model is not here, and {no_hub} does not answer: where it does, run "
        "'hf download owner/no-such-model --local-dir no-such-model', bring the folder here, give its path "
        "instead of owner/no-such-model"
    )


def test_a_silent_hub_is_given_up(no_hub):
    with socket.socket() as silent:  # accepts, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        constants.ENDPOINT = f"http://127.0.0.1:{silent.getsockname()[1]}"  # no_hub puts it back
        started = time.monotonic()
        assert not hub_answers(seconds=0.5)
        assert time.monotonic() - started < 3


def test_offline_by_choice_asks_nobody(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(pretrained, "urlopen", None)
    assert not hub_answers()


def test_a_cached_file_needs_no_network(no_hub, tmp_path: Path, monkeypatch):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "clip"}))
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    look = pretrained.try_to_load_from_cache
    monkeypatch.setattr(
        pretrained, "try_to_load_from_cache", lambda *a, **k: look(*a, **k, cache_dir=tmp_path)
    )
    monkeypatch.setattr(pretrained, "hub_answers", None)
    assert read_config("owner/name", "CLIP model") == {"model_type": "clip"}
