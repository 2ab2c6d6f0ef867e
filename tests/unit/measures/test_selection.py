"""The choice of a checkpoint: flags that it needs, and which value is the best."""

import pytest

from utils.common.errors import UserError
from utils.config.measure_flags import CRITERIA
from utils.config.train_config import TrainConfig
from utils.measures.measures import is_candidate
from utils.measures.selection import best

DOG = {"instance_data_dir": "dog", "cls_token": "dog", "max_train_steps": 6, "checkpointing_steps": 2}


def config(**settings) -> TrainConfig:
    return TrainConfig(**DOG | settings)


def test_the_lowest_or_highest_wins_and_of_equals_the_earliest():
    values = {2: 0.5, 4: 0.1, 6: 0.1, 8: 0.5}
    assert best(values, lowest=True) == 4
    assert best(values, lowest=False) == 2


def test_validation_alone_is_better_when_higher():
    assert [name for name, (_, lowest) in CRITERIA.items() if not lowest] == ["validation"]


def test_checkpoints_of_an_interruption_do_not_compete():
    chosen = config(select_checkpoint="drift")
    assert [step for step in range(1, 7) if is_candidate(chosen, step, step == 5)] == [2, 4, 5, 6]
    assert not is_candidate(config(), 2, False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"select_checkpoint": "validation"}, "--validation_prompt"),
        ({"select_checkpoint": "drift", "checkpoints_total_limit": 1}, "--checkpoints_total_limit"),
        ({"select_checkpoint": "drift", "checkpointing_steps": 6}, "one checkpoint to choose from"),
        ({"select_checkpoint": "best"}, "choose from drift, spl, error, validation"),
        ({"drift_steps": 2, "method": "kv_only", "cls_token": None}, "--drift_steps compares with the class"),
        (
            {"select_checkpoint": "spl", "method": "kv_only", "cls_token": None},
            "--select_checkpoint spl compares with the class",
        ),
        ({"drift_steps": -1}, "at least 0"),
    ],
)
def test_settings_without_sense_are_refused(settings, words):
    with pytest.raises(UserError, match="--(select|drift)") as refused:
        config(**settings)
    assert words in str(refused.value)
