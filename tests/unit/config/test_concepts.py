"""The concepts of a command line or a list: what they are called, and mistakes in them."""

from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import utils.config.output_flags
from tests.training_flags import BARN, TEDDY, mistake, multi, single, write_list
from utils.config.train_config import parse_config

pytestmark = pytest.mark.usefixtures("workplace")


def test_what_prompts_call_the_concept():
    flags = ["--preset=none", "--instance_data_dir=data/dog", "--cls_token=dog"]
    (concept,) = parse_config(flags).concepts()
    assert (concept.subject, concept.instance_prompt) == ("<new1> dog", "a photo of a <new1> dog")
    (concept,) = parse_config([*flags, "--method=textual_inversion"]).concepts()
    assert (concept.subject, concept.initializer_token) == ("<new1>", "dog")  # the token for the noun
    (concept,) = parse_config([*flags, "--method=dreambooth"]).concepts()
    assert (concept.initializer_token, concept.class_prompt) == ("sks", "a photo of a dog")
    config = parse_config([*flags, "--method=textual_inversion", "--initializer_token=cat"])
    assert (config.start, config.concepts()[0].initializer_token) == ("word", "cat")
    mistake(lambda: single("--method=textual_inversion"), "--instance_prompt", "templates")
    mistake(lambda: single("--method=dreambooth", "--noaug"), "--noaug", "dreambooth")


def test_prior_adds_class_images_and_keeps_spl():
    config = single("--with_prior_preservation", "--class_prompt=a photo of a dog", "--output_dir=out")
    (concept,) = config.concepts()
    assert config.uses_prior and config.spl
    assert (concept.class_prompt, concept.class_data_dir) == ("a photo of a dog", Path("out/class_images/0"))
    (concept,) = replace(config, class_data_dir="data/dogs").concepts()
    assert concept.class_data_dir == Path("data/dogs")


def test_mistakes_of_a_single_concept(monkeypatch: pytest.MonkeyPatch):
    folder, prompt = "--instance_data_dir=data/dog", "--instance_prompt=a photo of a <new1> dog"
    mistake(lambda: parse_config([folder, prompt]), "needs --cls_token")
    mistake(lambda: parse_config([prompt, "--cls_token=dog"]), "--instance_data_dir is missing")
    mistake(lambda: parse_config([folder, "--method=custom_diffusion"]), "prior preservation", "--cls_token")
    mistake(lambda: parse_config([folder, prompt, "--method=kv_only", "--use_spl"]), "needs --cls_token")
    mistake(lambda: single("--method=kv_only", "--spl_weight=1"), "--spl_weight", "--use_spl")
    mistake(
        lambda: single("--modifier_token=<new1>+<new2>", "--cls_token=dog+cat"), "1 concept", "<new1>+<new2>"
    )
    monkeypatch.setattr(utils.config.output_flags, "find_spec", lambda name: None)
    mistake(lambda: single("--report_to=wandb"), "wandb", "not installed")
    folder_of_that_name = ModuleSpec("wandb", None, is_package=True)
    monkeypatch.setattr(utils.config.output_flags, "find_spec", lambda name: folder_of_that_name)
    mistake(lambda: single("--report_to=wandb"), "wandb", "not installed")
    assert single().report_to == "none"


def test_mistakes_of_several_concepts():
    mistake(lambda: multi("--modifier_token=<new1>+<new1>"), "<new1>+<new1>", "repeats")
    mistake(lambda: multi("--initializer_token=ktn"), "--initializer_token ktn", "2")
    mistake(lambda: multi("--modifier_token=<new1>", "--cls_token=barn"), "2 concept(s)", "<new1>")
    mistake(lambda: multi("--cls_token=teddy bear+"), "--cls_token 'teddy bear+'")
    mistake(
        lambda: multi("--with_prior_preservation", "--concepts_list=none.json"), "none.json", "does not exist"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[{]", ["concept.json", "JSON"]),
        ({"concepts": []}, ["must hold a list"]),
        (["dog"], ["must hold a list"]),
        ([TEDDY, {"instance_prompt": "a <new2> barn"}], ["concept 2", "lacks instance_data_dir"]),
        ([TEDDY, BARN | {"class": "barn"}], ["concept 2 has class", "class_prompt"]),
        ([TEDDY, BARN | {"class_prompt": 3}], ["concept 2", "not text"]),
        ([TEDDY, TEDDY], ["a photo of a <new1> teddy bear", "lacks <new2>"]),
        ([TEDDY], ["1 concept(s)", "<new1>+<new2>"]),
    ],
)
def test_mistake_in_the_concepts_list(content: object, words: list[str]):
    write_list(content)
    mistake(multi, *words)


def test_class_prompts_of_a_concepts_list():
    write_list([TEDDY | {"class_prompt": "bear"}, BARN])
    prompts = [concept.class_prompt for concept in multi("--with_prior_preservation").concepts()]
    assert prompts == ["bear", "a photo of a barn"]  # the second from its class word
