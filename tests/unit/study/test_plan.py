"""A study's plan: which variants it comes to, and its mistakes in one line."""

from pathlib import Path

import pytest

from utils.common.errors import UserError
from utils.study.plan import read_plan

DATA = '[data.toon]\nsubjects = ["dog_4", "cat_5"]\nnum_images = 2\n'
PLANS = Path(__file__).parents[3] / "scripts" / "plans"


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_lists_make_every_combination(tmp_path):
    head = "steps = 4\nrates = [1, 2]\nreference = 'kv_only,rate=1'\n"
    arms = "[arms.kv_only]\nembedding_adjustment = 0.2\n[arms.spl]\nmethod = 'classdiffusion'\n"
    path = written(
        tmp_path,
        f"{head}{DATA}{arms}spl_weight = [1, 10]\nnoaug = false",
    )
    plan = read_plan(path)
    assert [variant.name for variant in plan.variants] == [
        *("kv_only,rate=1", "kv_only,rate=2"),
        *(f"spl,spl_weight={w},rate={r}" for r in (1, 2) for w in (1, 10)),
    ]
    last = plan.variants[-1]
    assert (last.method, last.flags) == ("classdiffusion", ("--spl_weight=10", "--no_noaug"))
    assert (last.rate, last.steps, last.checkpoints, last.adjustment) == (2.0, 4.0, 4, None)
    assert plan.variants[0].adjustment == 0.2 and plan.seeds == (0,)
    assert plan.data == {"toon": {"subjects": "dog_4,cat_5", "num_images": 2}}
    assert {each.arm for each in read_plan(path, ["spl"]).variants} == {"kv_only", "spl"}
    assert len(read_plan(path, ["spl"]).variants) == 5  # of the reference's arm only the reference


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_plans_of_the_repository_can_be_read(path):
    plan = read_plan(path)
    names = [variant.name for variant in plan.variants]
    assert len(set(names)) == len(names) and plan.reference in names
    # individuals 0 to 3 are those of results/toon
    subjects = plan.data["toon"]["subjects"].split(",")
    assert all(int(name.rpartition("_")[2]) >= 4 for name in subjects) and len(subjects) >= 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[arms.kv_only]", r"has no \[data.…\]"),
        (DATA, r"has no \[arms.…\]"),
        (f"{DATA}[arms.kv_onl]", "method 'kv_onl' is unknown: give one of classdiffusion"),
        (f"{DATA}[arms.kv_only]\nspl_weigh = 1", "unknown key 'spl_weigh': did you mean spl_weight?"),
        (f"{DATA}[arms.kv_only]\nspl_weight = ['a']", "spl_weight must be a number, is 'a'"),
        (f"{DATA}[arms.kv_only]\nspl_weight = []", "spl_weight is an empty list: give a value"),
        (f"{DATA}[arms.kv_only]\nembedding_adjustment = 2", r"embedding_adjustment is \[2\]; give .* to 1"),
        (f"{DATA}[arms.kv_only]\nseed = 1", "seed is set by the study: leave it out"),
        (f"{DATA}[arms.kv_only]\nrates = [1, 1]", r"rates is \[1, 1\]; give distinct numbers above 0"),
        (f"seeds = [-1]\n{DATA}[arms.kv_only]", r"seeds is \[-1\]; give distinct whole numbers from 0"),
        (f"lost = 2\n{DATA}[arms.kv_only]", r"lost is \[2\]; give distinct numbers from 0 to 1"),
        (f"reference = 'x'\n{DATA}[arms.kv_only]", "reference 'x' is none of kv_only"),
        (f"{DATA}colours = 1\n[arms.kv_only]", "unknown key 'colours'; it takes subjects"),
        ("step = 1", "unknown key 'step': did you mean steps?"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_plan(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_an_unknown_arm_is_named(tmp_path):
    with pytest.raises(UserError, match="--arms spl is not in .*plan.toml; it has kv_only"):
        read_plan(written(tmp_path, f"{DATA}[arms.kv_only]"), ["spl"])
