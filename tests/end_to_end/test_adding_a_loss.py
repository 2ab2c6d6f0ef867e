"""A loss that is added as docs/methods.md says is trained, logged and announced."""

import re
from dataclasses import replace

import pytest

from tests.end_to_end.training import REPOSITORY, apart, learned, records
from utils.config.methods import METHODS
from utils.config.train_config import TrainConfig
from utils.losses.registry import LOSSES, Loss


def snippets() -> list[str]:
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8").partition("### Adding a loss")[2]
    blocks = re.findall(r"^   ```python\n(.*?)^   ```", text, re.MULTILINE | re.DOTALL)
    return [re.sub("^   ", "", block, flags=re.MULTILINE) for block in blocks]


def test_the_guides_loss(train, tmp_path, monkeypatch, capsys):
    term, flag, row = snippets()
    plain = train(tmp_path / "plain", max_train_steps=3)
    names = {"Loss": Loss}
    exec(term, names)
    monkeypatch.setattr(TrainConfig, flag.partition(":")[0], None, raising=False)
    monkeypatch.setitem(LOSSES, "loss_distance", eval(row, names))
    assert "loss_distance" not in records(plain)[0]

    method = replace(METHODS["classdiffusion"], weights={"distance_weight": 100.0})
    monkeypatch.setitem(METHODS, "classdiffusion", method)
    capsys.readouterr()
    out = train(tmp_path / "with", max_train_steps=3)
    assert "loss L_denoise + 1 · L_spl + 100 · L_distance" in capsys.readouterr().out
    for line in records(out):
        assert line["loss_distance"] > 0
        parts = line["loss_denoise"] + line["loss_spl"] + 100 * line["loss_distance"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
    assert apart(learned(plain), learned(out)) > 1e-4
