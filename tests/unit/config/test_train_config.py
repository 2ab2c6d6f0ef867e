"""The training configuration: official command lines, saved configurations, one line per mistaken flag."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from tests.training_flags import mistake, single
from utils.bases import pretrained
from utils.config.train_config import TrainConfig, build_parser, parse_config, read_config

pytestmark = pytest.mark.usefixtures("workplace")

# scripts/train_single.sh and train_multi.sh of the official repository, their shell variables filled in
OFFICIAL_SINGLE = [
    "--pretrained_model_name_or_path=runwayml/stable-diffusion-v1-5",
    "--instance_data_dir=./data/dog",
    "--output_dir=./ckpt/dog_cls",
    "--instance_prompt=a photo of a <new1> dog",
    "--resolution=512",
    "--train_batch_size=2",
    "--learning_rate=1e-5",
    "--lr_warmup_steps=0",
    "--max_train_steps=500",
    "--scale_lr",
    "--hflip",
    *("--modifier_token", "<new1>"),
    "--no_safe_serialization",
    "--use_spl",
    "--spl_weight=1",
    *("--cls_token", "dog"),
    *("--report_to", "wandb"),
    "--validation_steps=50",
    "--validation_prompt=a <new1> dog is swimming",
    *("--tracker_name", "custom-diffusion-multi"),
]
OFFICIAL_MULTI = [
    "--pretrained_model_name_or_path=runwayml/stable-diffusion-v1-5",
    "--output_dir=ckpt/teddybear_barn",
    "--concepts_list=config/concept.json",
    "--resolution=512",
    "--train_batch_size=2",
    "--learning_rate=1e-5",
    "--lr_warmup_steps=0",
    "--max_train_steps=800",
    "--scale_lr",
    "--hflip",
    *("--modifier_token", "<new1>+<new2>"),
    "--use_spl",
    "--spl_weight=1.0",
    *("--cls_token", "teddybear+barn"),
    "--no_safe_serialization",
    *("--report_to", "wandb"),
    "--validation_steps=25",
    "--validation_prompt=a <new1> teddybear sitting in front of a <new2> barn",
    *("--tracker_name", "custom-diffusion-multi"),
]


@pytest.fixture
def hub(monkeypatch):
    """The Hub gives out a Stable Diffusion 1.5 by the name that the official scripts use."""
    monkeypatch.setattr(pretrained, "pipeline_class", lambda *_: "StableDiffusionPipeline")


def test_official_single_command(hub):
    config = parse_config(OFFICIAL_SINGLE)
    assert config == TrainConfig(
        pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5",
        instance_data_dir="./data/dog",
        output_dir="./ckpt/dog_cls",
        instance_prompt="a photo of a <new1> dog",
        resolution=512,
        train_batch_size=2,
        learning_rate=1e-5,
        lr_warmup_steps=0,
        max_train_steps=500,
        scale_lr=True,
        hflip=True,
        modifier_token="<new1>",
        no_safe_serialization=True,
        use_spl=True,
        spl_weight=1.0,
        cls_token="dog",
        report_to="wandb",
        validation_steps=50,
        validation_prompt="a <new1> dog is swimming",
        tracker_name="custom-diffusion-multi",
    )
    assert config.method == "classdiffusion" and config.spl and config.lambda_spl == 1.0
    assert config.learning_rate_of("learning_rate") == config.learning_rate_of("token_learning_rate") == 2e-5
    (concept,) = config.concepts()
    assert (concept.modifier_token, concept.initializer_token, concept.cls_token) == ("<new1>", "ktn", "dog")
    assert concept.instance_prompt == "a photo of a <new1> dog"
    assert concept.instance_data_dir == Path("data/dog")
    assert (concept.class_prompt, concept.class_data_dir) == (None, None)


def test_official_multi_command(hub):
    config = parse_config(OFFICIAL_MULTI)
    assert config == parse_config([*OFFICIAL_MULTI, "--preset=none"])  # it gives every value itself
    assert (config.max_train_steps, config.validation_steps, config.spl_weight) == (800, 25, 1.0)
    assert config.validation_prompt == "a <new1> teddybear sitting in front of a <new2> barn"
    teddy, barn = config.concepts()
    assert (teddy.modifier_token, teddy.initializer_token, teddy.cls_token) == ("<new1>", "ktn", "teddybear")
    assert (barn.modifier_token, barn.initializer_token, barn.cls_token) == ("<new2>", "pll", "barn")
    assert teddy.instance_prompt == "a photo of a <new1> teddy bear"
    assert (barn.instance_data_dir, barn.class_prompt) == (Path("data/barn"), "barn")


def test_every_field_is_a_flag_with_help():
    actions = build_parser()._option_string_actions
    for each in fields(TrainConfig):
        assert actions[f"--{each.name}"].dest == each.name
        assert actions[f"--{each.name}"].help
    build_parser().format_help()  # a stray % in a help text would raise here


def test_a_saved_configuration_of_another_version_is_read(tmp_path: Path):
    path = tmp_path / "training_config.json"
    single("--seed=7").save(path)
    saved = json.loads(path.read_text())
    assert read_config(path) == (single("--seed=7"), [])
    del saved["trains"]  # an earlier version had no such field
    path.write_text(json.dumps(saved | {"gone": 1}))
    assert read_config(path) == (single("--seed=7"), ["gone"])
    for broken in ("", "[]", "{"):
        path.write_text(broken)
        mistake(lambda: read_config(path), str(path))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--instance_prompt=a photo of a dog", ["a photo of a dog", "lacks <new1>"]),
        ("--modifier_token=<new1>+<new2>", ["--cls_token 'dog'", "<new1>+<new2>"]),
        ("--modifier_token=<new1>+", ["--modifier_token ''", "is empty"]),
        ("--modifier_token=my dog", ["my dog", "<new1>"]),
        ("--modifier_token=a/b", ["a/b"]),
        ("--cls_token=dog+cat", ["dog+cat", "<new1>"]),
        ("--cls_token=", ["--cls_token"]),
        ("--resolution=100", ["100", "multiple of 8"]),
        ("--resolution=0", ["--resolution 0", "at least 8"]),
        ("--resolution=-64", ["--resolution -64"]),
        ("--spl_weight=-1", ["--spl_weight -1.0", "at least 0"]),
        ("--spl_weight=nan", ["--spl_weight nan"]),
        ("--spl_pool=cls", ["--spl_pool cls", "eos, modifier"]),
        (
            "--method=dreamboth",
            [
                "--method dreamboth",
                "classdiffusion, custom_diffusion, kv_only, textual_inversion, dreambooth",
            ],
        ),
        ("--lr_scheduler=cosin", ["--lr_scheduler cosin", "cosine_with_restarts"]),
        ("--lr_warmup_steps=10", ["--lr_warmup_steps", "constant_with_warmup"]),
        ("--lr_warmup_steps=-1", ["--lr_warmup_steps -1", "at least 0"]),
        ("--learning_rate=0", ["--learning_rate 0.0", "above 0"]),
        ("--learning_rate=inf", ["--learning_rate inf"]),
        ("--learning_rate=fast", ["--learning_rate", "'fast'", "--help"]),
        ("--adam_beta1=1", ["--adam_beta1 1.0", "below 1"]),
        ("--mixed_precision=fp8", ["fp8", "no, fp16, bf16"]),
        ("--report_to=comet", ["comet", "none, tensorboard, wandb"]),
        ("--class_prompt=a dog", ["--class_prompt", "--with_prior_preservation"]),
        ("--class_data_dir=data/dog", ["--class_data_dir", "--with_prior_preservation"]),
        ("--concepts_list=config/concept.json", ["--concepts_list", "--instance_data_dir"]),
        ("--steps=5", ["--steps=5", "--help"]),
        ("--real_prior", ["--real_prior", "--class_data_dir"]),
        ("--max_train_step=5", ["--max_train_step=5", "--max_train_steps"]),  # no guessing of abbreviations
    ],
)
def test_mistake_in_one_flag(flag: str, words: list[str]):
    mistake(lambda: single(flag), *words)


COUNTS = [each.name for each in fields(TrainConfig) if each.metadata.get("minimum") == 1]


@pytest.mark.parametrize("name", COUNTS)
def test_count_below_one(name: str):
    mistake(lambda: single(f"--{name}=0"), f"--{name} 0", "at least 1")
