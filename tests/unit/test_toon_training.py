"""The training loop of the toon models: a run that was killed and started again equals an unbroken one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.toon import training


def run(state_path: Path, killed_at: int | None = None) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss_of(step: int) -> Tensor:
        if step == killed_at:
            raise KeyboardInterrupt
        return model(torch.randn(5, 3, generator=training.generator(f"batch/{step}"))).square().mean()

    training.fit(model, loss_of, steps=6, lr=0.1, state_path=state_path, warmup=2)
    return model


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    unbroken = run(tmp_path / "unbroken.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.pt", killed_at=4)
    resumed = run(tmp_path / "killed.pt")
    assert torch.equal(resumed.weight, unbroken.weight)
    assert torch.equal(resumed.bias, unbroken.bias)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="nan at step 0"):
        training.fit(model, lambda step: model.weight.sum() * float("nan"), 2, 0.1, tmp_path / "x.pt")


def test_cached_rows_are_made_once_and_only_whole(tmp_path):
    def broken():
        yield torch.ones(1, 2)
        raise KeyboardInterrupt

    path = tmp_path / "rows.pt"
    with pytest.raises(KeyboardInterrupt):
        training.cached(path, broken())
    assert not path.exists()
    rows = training.cached(path, (torch.full((1, 2), float(i)) for i in range(3)))
    assert rows.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert torch.equal(training.cached(path, broken()), rows)
