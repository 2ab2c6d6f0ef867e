"""The page's fields as flags of the training command, and its messages."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from utils.app.form import (
    Form,
    default_prompts,
    default_steps,
    flags_of,
    in_words_of_the_page,
    plan,
    unknown_to,
)
from utils.bases.registry import BASES
from utils.common.errors import UserError
from utils.config.methods import METHODS
from utils.config.train_config import TrainConfig, parse_config
from utils.learners.registry import LEARNERS
from utils.losses.registry import LOSSES

KV = sum(
    value.numel()
    for file in Path(BASES["toon"].path, "unet").glob("*.safetensors")
    for name, value in load_file(file).items()
    if re.search(r"attn2\.to_[kv]\.weight", name)
)


def config(form: Form) -> TrainConfig:
    return parse_config(flags_of(form, Path("/images"), Path("/out")))


def test_a_training_has_the_settings_of_its_base_and_method():
    found = config(Form("dog"))
    assert (found.method, found.learning_rate, found.token_learning_rate) == ("classdiffusion", 2e-4, 3.16e-3)
    assert (found.max_train_steps, found.hflip, found.lambda_spl) == (300, True, 1.0)
    assert (found.cls_token, found.modifier_token, found.seed) == ("dog", "<new1>", 0)
    assert (found.instance_data_dir, found.output_dir) == ("/images", "/out")
    assert (found.resume_from_checkpoint, found.checkpoints_total_limit) == ("latest", 1)
    assert found.validation_prompt == "a <new1> dog on the beach"


def test_fields_win_over_the_settings():
    found = config(Form("dog", "sd15", "textual_inversion", 10, 7, "<x>", " one <x> "))
    assert found.pretrained_model_name_or_path == BASES["sd15"].path
    assert (found.method, found.max_train_steps, found.seed) == ("textual_inversion", 10, 7)
    assert (found.modifier_token, found.validation_prompt) == ("<x>", "one <x>")
    assert (found.learning_rate, found.gradient_accumulation_steps) == (5e-4, 4)


@pytest.mark.parametrize(("steps", "part"), [(300, 75), (3, 1), (1, 1), (10, 3)])
def test_a_training_is_saved_and_shown_four_times_at_most(steps: int, part: int):
    found = config(Form("dog", steps=steps))
    assert found.checkpointing_steps == found.validation_steps == part
    assert -(-steps // part) <= 4


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_asked_for(method: str):
    assert config(Form("dog", method=method)).max_train_steps == default_steps("toon", method) >= 224


def test_default_steps_are_those_of_the_settings():
    assert default_steps("toon", "dreambooth") == 224
    assert default_steps("sd15", "textual_inversion") == 3000


def test_the_plan_says_in_plain_words_what_learns_on_what():
    about, line = plan(Form("dog", steps=40))
    assert about == BASES["toon"].about and "cannot learn photographs" in about
    assert line == (
        "Steps 1 to 40 learn the new word and how images follow words (keys and values): "
        f"{KV + 128:,} numbers. The new word has to stay close to its class."
    )
    _, first, second = plan(Form("dog", method="two_stage"))
    assert first == "Steps 1 to 240 learn the new word: 128 numbers."
    assert second.startswith("Steps 241 to 400 learn the whole image model: ")
    _, custom = plan(Form("dog", method="custom_diffusion"))
    assert custom.endswith(" numbers. Images of the class, drawn beforehand, keep the class as it is.")


def test_a_base_may_be_a_folder_or_a_file(tiny_base: Path, tmp_path: Path):
    assert plan(Form("dog", base=str(tiny_base)))[0] == f"{tiny_base}."
    file = tmp_path / "words.safetensors"
    file.write_bytes(b"no model")
    with pytest.raises(UserError, match="words.safetensors is not a whole safetensors file"):
        plan(Form("dog", base=str(file)))


def test_every_learner_and_loss_has_plain_words():
    assert all(each.plain for each in [*LEARNERS.values(), *LOSSES.values()])
    assert all(row.about for row in BASES.values())


def test_what_the_base_does_not_know_is_said_in_the_words_of_the_page():
    assert unknown_to("sd15", ["borzoi"]) is None and unknown_to("toon", ["teddy bear", "Dog"]) is None
    assert unknown_to("toon", ["borzoi"]) == (
        "toon does not know borzoi (only dog, cat, rabbit, pig, teddy bear, backpack, teapot, car, barn): "
        "expect no likeness; for photographs use the base model sd15"
    )


def test_a_plan_of_mistaken_settings_is_refused():
    with pytest.raises(UserError, match="--max_train_steps 1: --method two_stage has 2 stages"):
        plan(Form("dog", method="two_stage", steps=1))


def test_prompts_name_the_concept_as_its_method_does():
    assert default_prompts(Form("dog").subject)[0] == "a photo of a <new1> dog"
    assert default_prompts(Form("dog", method="xti").subject)[2] == "a <new1> in the snow"


def test_messages_speak_of_fields_in_one_line():
    given = (
        "--modifier_token has '<new1>\n': and --max_train_steps 0, not --prompts_file, use --format lora, so"
    )
    said = "Token has '<new1> ': and Steps 0, not --prompts_file, use the LoRA, so"
    assert in_words_of_the_page(given) == said
