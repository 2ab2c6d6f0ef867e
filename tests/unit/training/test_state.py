"""Training state and checkpoints: exact resume, what counts as whole, what is refused, what may go."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.optimization import get_scheduler
from safetensors import safe_open
from torch import Tensor, nn

from utils.common.errors import UserError
from utils.common.files import write_json
from utils.common.tensor_files import read_metadata, read_tensors, write_tensors
from utils.config.optimisation_flags import LR_SCHEDULERS
from utils.training.checkpoints import (
    MANIFEST,
    check_same_run,
    checkpoints,
    find_checkpoint,
    new_checkpoint,
    remove_checkpoints,
    remove_old_checkpoints,
    seal,
    why_broken,
)
from utils.training.state import STATE_FILE, load_state, save_state, saved_step

NAMES = ("rows", "down.attn2.to_k.weight")


class Run:
    """Two parameters, AdamW in two groups, a learning rate schedule, a concept file."""

    def __init__(
        self,
        seed: int = 0,
        schedule: str = "cosine",
        names: tuple[str, ...] = NAMES,
        width: int = 3,
        fused: bool | None = None,
    ):
        torch.manual_seed(seed)
        self.trained: dict[str, Tensor] = {name: nn.Parameter(torch.randn(2, width)) for name in names}
        groups = [
            {"params": [value], "lr": 0.1 / n} for n, value in enumerate(self.trained.values(), start=1)
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=fused)
        self.lr_scheduler = get_scheduler(schedule, self.optimizer, num_warmup_steps=1, num_training_steps=10)

    def parts(self, processes: int = 1, scaler: torch.amp.GradScaler | None = None) -> tuple:
        return self.trained, self.optimizer, self.lr_scheduler, scaler, processes

    def go(self, steps: int) -> "Run":
        for _ in range(steps):
            sum(value.pow(4).sum() for value in self.trained.values()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.lr_scheduler.step()
        return self

    def save(self, output_dir: Path, step: int, **config: object) -> Path:
        with new_checkpoint(output_dir, step) as folder:
            write_tensors(folder / "concept.safetensors", self.trained)
            write_json(folder / "training_config.json", config)
            save_state(folder, step, *self.parts(), in_concept=self.trained)
        return output_dir / f"checkpoint-{step}"

    def load(self, checkpoint: Path) -> int:
        return load_state(checkpoint, read_tensors(checkpoint / "concept.safetensors"), *self.parts())

    def values(self) -> list[list]:
        moments = [
            self.optimizer.state[p][k] for p in self.trained.values() for k in ("exp_avg", "exp_avg_sq")
        ]
        tensors = [value.tolist() for value in [*self.trained.values(), *moments]]
        return [*tensors, self.lr_scheduler.get_last_lr(), [g["lr"] for g in self.optimizer.param_groups]]


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("schedule", LR_SCHEDULERS)
def test_resumed_run_goes_on_as_if_unbroken(tmp_path: Path, schedule: str):
    whole = Run(schedule=schedule).go(5)
    checkpoint = Run(schedule=schedule).go(2).save(tmp_path, 2)
    resumed = Run(seed=1, schedule=schedule)
    assert resumed.load(checkpoint) == 2 == saved_step(checkpoint)
    assert resumed.go(3).values() == whole.values()
    assert os.listdir(tmp_path) == ["checkpoint-2"]  # nothing partial is left
    files = ["concept.safetensors", MANIFEST, "training_config.json", STATE_FILE]
    assert sorted(os.listdir(checkpoint)) == sorted(files)


def test_a_checkpoint_holds_nothing_twice(tmp_path: Path):
    checkpoint = Run(width=1000).go(1).save(tmp_path, 1)
    with safe_open(checkpoint / STATE_FILE, "pt") as file:
        held = sorted(file.keys())
    assert held == sorted(f"optimizer/{n}/{k}" for n in NAMES for k in ("exp_avg", "exp_avg_sq", "step"))
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    tensors = 3 * 2 * 2000 * 4  # weights and two moments, float32
    assert tensors < size < tensors + 5000


def test_what_the_concept_files_round_is_kept_in_the_state(tmp_path: Path):
    run, kv = Run().go(2), NAMES[1]
    rounded = {"rows": run.trained["rows"].detach()}
    save_state(tmp_path, 2, *run.parts(), in_concept=["rows"])
    resumed = Run(seed=1)
    assert load_state(tmp_path, rounded, *resumed.parts()) == 2
    assert torch.equal(resumed.trained[kv], run.trained[kv])
    halves = {"rows": rounded["rows"].bfloat16().float()}
    before = resumed.values()
    with pytest.raises(UserError, match="rows is not what was trained"):
        load_state(tmp_path, halves, *resumed.parts())
    assert resumed.values() == before


def test_the_loss_scale_of_fp16_is_kept(tmp_path: Path):
    def scaler(scale: float) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=scale)

    run, loaded = Run().go(1), scaler(1024)
    save_state(tmp_path, 1, *run.parts(scaler=scaler(64)), in_concept=[])
    load_state(tmp_path, {}, *Run().parts(scaler=loaded))
    assert loaded.get_scale() == 64
    with pytest.raises(UserError, match="loss scale; give the same --mixed_precision"):
        load_state(tmp_path, {}, *Run().parts())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: Run(names=("rows",)),
            "it trained 2 tensors, this run 1; they differ in down.attn2.to_k.weight",
        ),
        (lambda: Run(width=4), r"rows has shape \(2, 3\), not \(2, 4\); give the same base"),
        (lambda: Run(names=NAMES[::-1]), "its optimizer has other groups"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, other: Callable[[], Run], message: str):
    checkpoint = Run().go(1).save(tmp_path, 1)
    with pytest.raises(UserError, match=message):
        other().load(checkpoint)


def test_another_number_of_processes_is_refused(tmp_path: Path):
    save_state(tmp_path, 1, *Run().parts(processes=2), in_concept=[])
    with pytest.raises(UserError, match="with 1 processes: it ran with 2"):
        load_state(tmp_path, {}, *Run().parts(processes=1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["trained", "optimizer"])
def test_a_state_that_is_not_finite_is_never_written(tmp_path: Path, bad: float, where: str):
    run = Run().go(1)
    run.save(tmp_path, 1)
    value = run.trained["rows"] if where == "trained" else run.optimizer.state[run.trained["rows"]]["exp_avg"]
    value.detach()[0, 0] = bad
    with pytest.raises(FloatingPointError, match=f"step 2: {where}/rows.* not finite; no checkpoint was"):
        run.save(tmp_path, 2)
    assert os.listdir(tmp_path) == ["checkpoint-1"]


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut state": (lambda c: os.truncate(c / STATE_FILE, 100), r"has 100 of the \d+ bytes of training_state"),
    "no state": (lambda c: (c / STATE_FILE).unlink(), "lacks training_state.safetensors"),
    "zeroed": (
        lambda c: (c / STATE_FILE).write_bytes(bytes((c / STATE_FILE).stat().st_size)),
        "SHA-256 diff",
    ),
    "no config": (lambda c: (c / "training_config.json").unlink(), "lacks training_config.json"),
    "cut config": (lambda c: os.truncate(c / "training_config.json", 1), "1 of the .* of training_config"),
    "no concept": (lambda c: (c / "concept.safetensors").unlink(), "lacks concept.safetensors"),
    "no manifest": (lambda c: (c / MANIFEST).unlink(), "has no manifest.json"),
    "null manifest": (lambda c: (c / MANIFEST).write_text("null"), "has a damaged manifest.json"),
    "manifest of nothing": (
        lambda c: write_json(c / MANIFEST, {"format": 1, "files": {}}),
        "has a damaged manifest.json",
    ),
    "earlier version": (
        lambda c: [(c / MANIFEST).unlink(), (c / "training_state.pt").touch()],
        "was written by an earlier version",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_latest_skips_what_is_damaged_and_says_why(tmp_path: Path, damage: str):
    good, bad = (Run().go(step).save(tmp_path, step) for step in (1, 2))
    assert find_checkpoint("latest", tmp_path) == (bad, [])
    do, reason = DAMAGES[damage]
    do(bad)
    found, skipped = find_checkpoint("latest", tmp_path)
    assert found == good and checkpoints(tmp_path) == [good]
    assert len(skipped) == 1 and re.fullmatch(f"skipped {re.escape(str(bad))}: it .*{reason}.*", skipped[0])
    with pytest.raises(UserError, match=f"--resume_from_checkpoint .*checkpoint-2 .*{reason}"):
        find_checkpoint(str(bad), tmp_path)
    do(good)
    with pytest.raises(UserError, match="no whole checkpoint in .*checkpoint-2.*checkpoint-1"):
        find_checkpoint("latest", tmp_path)


def test_one_flipped_byte_anywhere_is_noticed(tmp_path: Path):
    checkpoint = Run().go(1).save(tmp_path, 1, seed=0)
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        for position in {0, len(content) - 1, *range(0, len(content), max(1, len(content) // 150))}:
            for flip in (1, 0x20, 0xFF):
                changed = bytearray(content)
                changed[position] ^= flip
                path.write_bytes(changed)
                assert why_broken(checkpoint) is not None, f"{path.name} at {position} by {flip}"
        path.write_bytes(content)
    assert why_broken(checkpoint) is None


def test_white_space_in_the_manifest_counts_too(tmp_path: Path):
    checkpoint = Run().save(tmp_path, 1)
    path = checkpoint / MANIFEST
    path.write_text(path.read_text().replace("  ", " \n", 1))
    assert json.loads(path.read_text())["format"] == 1
    assert why_broken(checkpoint) == "has a damaged manifest.json"


def test_checkpoints_are_in_the_order_of_steps(tmp_path: Path):
    for step in (100, 9, 10):
        Run().save(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / ".checkpoint-200.new").mkdir()  # a run died before it was whole
    assert names(checkpoints(tmp_path)) == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    nine = str(tmp_path / "checkpoint-9")
    assert find_checkpoint(nine, tmp_path / "other") == (tmp_path / "checkpoint-9", [])


def test_without_a_checkpoint(tmp_path: Path):
    assert find_checkpoint("latest", tmp_path) == (None, [])
    assert find_checkpoint("latest", tmp_path / "none") == (None, [])
    with pytest.raises(UserError, match="checkpoint-3 is not a folder: give 'latest' or a whole"):
        find_checkpoint(str(tmp_path / "checkpoint-3"), tmp_path)


def test_what_was_sealed_but_not_in_its_place_counts(tmp_path: Path):
    old, new = Run().go(1), Run(seed=1).go(1)
    place = old.save(tmp_path, 1)
    place.rename(tmp_path / "old")
    new.save(tmp_path, 1).rename(tmp_path / ".checkpoint-1.new")
    (tmp_path / "old").rename(place)
    found, _ = find_checkpoint("latest", tmp_path)
    assert found == tmp_path / ".checkpoint-1.new"
    run = Run(seed=2)
    assert run.load(found) == 1 and run.values() == new.values()
    new.go(1).save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1", "checkpoint-2"]
    run.load(place)
    assert run.values() == Run(seed=1).go(1).values()


def test_a_checkpoint_that_cannot_be_filled_leaves_the_others(tmp_path: Path):
    place = Run().go(1).save(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt), new_checkpoint(tmp_path, 1) as folder:
        write_json(folder / "training_config.json", {})
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["checkpoint-1"] and why_broken(place) is None


@pytest.mark.parametrize(
    ("step", "keep", "broken", "left"),
    [
        (12, None, [], [3, 9, 12]),
        (12, 5, [], [3, 9, 12]),
        (12, 2, [], [9, 12]),
        (12, 1, [], [12]),
        (12, 1, [12], [9, 12]),  # a broken one does not count
        (12, 2, [9], [3, 9, 12]),
        (12, 1, [3], [12]),
        (9, None, [], [3, 9, 12]),
        (9, 1, [], [9, 12]),  # 12 is later: it was not asked to go
    ],
)
def test_the_limit_counts_whole_ones(
    tmp_path: Path, step: int, keep: int | None, broken: list[int], left: list[int]
):
    for number in (3, 9, 12):
        Run().save(tmp_path, number)
    for number in broken:
        os.truncate(tmp_path / f"checkpoint-{number}" / STATE_FILE, 5)
    remove_old_checkpoints(tmp_path, step, keep)
    assert sorted(os.listdir(tmp_path)) == sorted(f"checkpoint-{number}" for number in left)


def test_all_checkpoints_are_removed_if_asked_and_nothing_else(tmp_path: Path):
    Run().save(tmp_path, 3)
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / ".checkpoint-5.new").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "log.jsonl").touch()
    remove_checkpoints(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-best", "log.jsonl"]


@pytest.mark.parametrize("keep", [1, None])
def test_a_checkpoint_that_was_moved_and_linked_back(tmp_path: Path, keep: int | None):
    """It is read through the link; when it has to go the link goes, and what it led to stays whole."""
    run, large = tmp_path / "run", tmp_path / "large"
    large.mkdir()
    moved = {step: Run().go(step).save(run, step).rename(large / f"checkpoint-{step}") for step in (1, 2)}
    for step, path in moved.items():
        (run / f"checkpoint-{step}").symlink_to(path)
    assert find_checkpoint("latest", run) == (run / "checkpoint-2", [])
    Run().go(2).save(run, 2)  # in the link's place
    remove_old_checkpoints(run, 2, keep)
    assert sorted(os.listdir(run)) == (["checkpoint-1"] if keep is None else []) + ["checkpoint-2"]
    assert not (run / "checkpoint-2").is_symlink() and why_broken(run / "checkpoint-2") is None
    remove_checkpoints(run)
    assert os.listdir(run) == []
    assert [why_broken(path) for path in moved.values()] == [None, None]


@pytest.mark.parametrize("kind", ["file", "link to nothing", "link to a file", "folder without anything"])
def test_what_is_in_a_checkpoints_place_and_is_none(tmp_path: Path, kind: str):
    Run().go(1).save(tmp_path, 1)
    for place in (tmp_path / "checkpoint-2", tmp_path / ".checkpoint-3.new"):
        if kind == "file":
            place.write_text("notes")
        elif kind == "folder without anything":
            place.mkdir()
        else:
            (tmp_path / "notes").write_text("notes")
            place.symlink_to(tmp_path / ("none" if kind == "link to nothing" else "notes"))
    found, skipped = find_checkpoint("latest", tmp_path)
    assert found == tmp_path / "checkpoint-1" and len(skipped) == 1
    for step in (2, 3):
        Run().go(step).save(tmp_path, step)
        remove_old_checkpoints(tmp_path, step, 1)
    kept = {"checkpoint-3", *(["notes"] if kind.startswith("link") else [])}
    assert {*os.listdir(tmp_path)} == kept and why_broken(tmp_path / "checkpoint-3") is None


def test_settings_that_make_another_run_are_named(tmp_path: Path):
    config = {"seed": 0, "learning_rate": 1e-5, "hflip": False, "max_train_steps": 4, "report_to": "none"}
    checkpoint = Run().save(tmp_path, 3, **config)
    may_differ = frozenset({"report_to", "max_train_steps"})
    check_same_run(checkpoint, config, may_differ)
    check_same_run(checkpoint, config | {"report_to": "wandb", "max_train_steps": 3}, may_differ)
    with pytest.raises(UserError, match=r"hflip was False, is True, seed was 0, is 1; give the same"):
        check_same_run(checkpoint, config | {"seed": 1, "hflip": True}, may_differ)
    with pytest.raises(UserError, match="beyond --max_train_steps 2"):
        check_same_run(checkpoint, config | {"max_train_steps": 2}, may_differ)
    renamed = checkpoint.rename(tmp_path / "checkpoint-2")
    with pytest.raises(UserError, match="cannot resume .*checkpoint-2: its state is of step 3"):
        check_same_run(renamed, config, may_differ)
    check_same_run(checkpoint := renamed.rename(tmp_path / "mine"), config, may_differ)
    for content, message in (("null", "holds no settings"), ("{", "not valid JSON"), ("\udcff", "not valid")):
        (checkpoint / "training_config.json").write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=message):
            check_same_run(checkpoint, config, may_differ)


def forge(path: Path, change: Callable[[dict, dict], object]) -> None:
    tensors, state = read_tensors(path), read_metadata(path, "state")
    change(tensors, state)
    write_tensors(path, tensors, {"state": json.dumps(state)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, s: s.pop("step"), r"is damaged \(step\)"),
        (lambda t, s: s.update(step="2"), r"is damaged \(step\)"),
        (lambda t, s: s.update(groups=None), r"is damaged \(groups\)"),
        (lambda t, s: s.update(scaler=3), r"is damaged \(scaler\)"),
        (lambda t, s: s.update(groups=[3, 4]), "other groups"),
        (lambda t, s: s["groups"][0].update(lr="fast"), "other groups"),
        (lambda t, s: s["lr_scheduler"].update(get_lr=1), "lr_scheduler is of another kind"),
        (lambda t, s: s["lr_scheduler"].update(base_lrs=[1]), "lr_scheduler is of another kind"),
        (lambda t, s: s["digests"].update(rows=None), "rows is not what was trained"),
        (lambda t, s: t.update({"optimizer/rows/exp_avg": torch.zeros(3)}), "exp_avg of shape .* unknown"),
        (lambda t, s: t.update({"optimizer/other/exp_avg": torch.zeros(3)}), "other/exp_avg .* unknown"),
        (lambda t, s: t.update(x=torch.zeros(1)), "its x of shape"),
        (lambda t, s: s.update(step=-5), r"is damaged \(step\)"),
        (lambda t, s: s.update(step=0), r"is damaged \(step\)"),
        (lambda t, s: s.update(step=3), "its optimizer has not done its 3 steps"),
        (lambda t, s: s["lr_scheduler"].update(last_epoch=0), "its optimizer has not done its 1 steps"),
        (lambda t, s: [t.pop(k) for k in [*t] if k[:3] == "opt"], "its optimizer has not done its 1 steps"),
        (lambda t, s: t["optimizer/rows/step"].fill_(7), "its optimizer has not done its 1 steps"),
    ],
)
def test_a_forged_state_is_one_line(tmp_path: Path, change: Callable[[dict, dict], object], message: str):
    checkpoint = Run().go(1).save(tmp_path, 1)
    forge(checkpoint / STATE_FILE, change)
    seal(checkpoint)
    run = Run(seed=1).go(1)
    before = run.values()
    with pytest.raises(UserError, match=message) as error:
        run.load(checkpoint)
    assert "\n" not in str(error.value) and run.values() == before


@pytest.mark.parametrize("saved, loaded", [(None, True), (True, None), (True, True)])
def test_a_fused_optimizer_goes_on_from_one_that_is_not_and_back(tmp_path: Path, saved, loaded):
    """As CUDA fuses AdamW and a CPU does not."""
    folder = Run(fused=saved).go(3).save(tmp_path, 3)
    unbroken, resumed = Run().go(5), Run(seed=1, fused=loaded)
    resumed.load(folder)
    assert [group["fused"] for group in resumed.optimizer.param_groups] == [loaded] * 2
    resumed.go(2)
    for ours, theirs in zip(resumed.trained.values(), unbroken.trained.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
