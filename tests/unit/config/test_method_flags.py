"""What a method trains in which steps, and the weight of the semantic preservation loss."""

import pytest

from tests.training_flags import mistake, single
from utils.config.train_config import parse_config

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.mark.parametrize(
    ("flags", "spl", "lambda_spl"),
    [
        ("", True, 1.0),
        ("--use_spl --spl_weight 0", True, 0.0),
        ("--spl_weight 0.25", True, 0.25),
        ("--method custom_diffusion", False, 0.0),
        ("--method custom_diffusion --use_spl", True, 1.0),
        ("--method kv_only", False, 0.0),
        ("--method kv_only --use_spl --spl_weight 3", True, 3.0),
    ],
)
def test_spl_weight(flags: str, spl: bool, lambda_spl: float):
    config = single(*flags.split())
    assert (config.spl, config.lambda_spl) == (spl, lambda_spl)


@pytest.mark.parametrize(
    ("steps", "boundaries"),
    [(2, [(1, 1), (2, 2)]), (3, [(1, 2), (3, 3)]), (5, [(1, 3), (4, 5)]), (400, [(1, 240), (241, 400)])],
)
def test_stages_share_the_steps_and_each_has_one(steps: int, boundaries: list[tuple[int, int]]):
    config = single("--method=two_stage", f"--max_train_steps={steps}")
    assert [(first, last) for _, first, last in config.plan()] == boundaries
    assert [stage.trains for stage, _, _ in config.plan()] == [("token_rows",), ("unet",)]


def test_the_unets_steps_can_be_given():
    config = single("--method=two_stage", "--max_train_steps=1400", "--unet_steps=800")
    assert [(first, last) for _, first, last in config.plan()] == [(1, 600), (601, 1400)]
    mistake(lambda: single("--unet_steps=100"), "--unet_steps has no effect", "classdiffusion")
    mistake(
        lambda: single("--method=two_stage", "--max_train_steps=400", "--unet_steps=400"),
        "--unet_steps 400 leaves none",
        "--max_train_steps 400",
    )


def test_captions_of_a_token_for_the_noun_can_name_the_class():
    flags = "--preset=none --method=textual_inversion --instance_data_dir=data/dog --cls_token=dog".split()
    plain, named = parse_config(flags), parse_config([*flags, "--name_class"])
    assert [config.concepts()[0].subject for config in (plain, named)] == ["<new1>", "<new1> dog"]
    assert named.start == "class"  # the token still starts from the class word
    mistake(lambda: single("--name_class"), "--name_class has no effect", "classdiffusion")


def test_trains_replaces_the_learners_of_a_single_stage():
    config = single("--trains=unet+text_encoder")
    assert [stage.trains for stage in config.stages] == [("unet", "text_encoder")]
    mistake(lambda: single("--method=two_stage", "--trains=unet"), "--trains", "two_stage")
    mistake(lambda: single("--method=two_stage", "--max_train_steps=1"), "2 stages")
