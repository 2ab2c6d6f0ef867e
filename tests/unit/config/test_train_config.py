"""The training configuration: official command lines, derived values, one line per user mistake."""

import json
from dataclasses import fields, replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from PIL import Image

import utils.config.output_flags
from utils.common.errors import UserError
from utils.config.optimisation_flags import LR_SCHEDULERS
from utils.config.train_config import TrainConfig, build_parser, parse_config, read_config

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
TEDDY = {"instance_prompt": "a photo of a <new1> teddy bear", "instance_data_dir": "data/teddybear"}
BARN = {"instance_prompt": "a photo of a <new2> barn", "instance_data_dir": "data/barn"}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders and files that the official commands name; every tracker counts as installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        utils.config.output_flags, "find_spec", lambda name: ModuleSpec(name, None, origin=name)
    )
    for name in ("dog", "teddybear", "barn"):
        Path("data", name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(Path("data", name, "0.png"))
    Path("config").mkdir()
    write_list([TEDDY | {"class_prompt": "bear"}, BARN | {"class_prompt": "barn"}])
    return tmp_path


def write_list(content: object) -> None:
    Path("config/concept.json").write_text(content if isinstance(content, str) else json.dumps(content))


def single(*more: str) -> TrainConfig:
    flags = ["--instance_data_dir=data/dog", "--instance_prompt=a photo of a <new1> dog", "--cls_token=dog"]
    return parse_config(["--preset=none", *flags, *more])


def multi(*more: str) -> TrainConfig:
    flags = [
        "--concepts_list=config/concept.json",
        "--modifier_token=<new1>+<new2>",
        "--cls_token=teddy bear+barn",
    ]
    return parse_config([*flags, *more])


def test_official_single_command():
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


def test_official_multi_command():
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


def test_scaled_learning_rates():
    sizes = ["--train_batch_size=3", "--gradient_accumulation_steps=5"]
    config = single("--scale_lr", "--token_learning_rate=1e-3", *sizes)
    assert config.learning_rate_of("learning_rate", processes=2) == pytest.approx(30e-5, rel=1e-12)
    assert config.learning_rate_of("token_learning_rate", processes=2) == pytest.approx(30e-3, rel=1e-12)


def test_the_custom_diffusion_family_doubles_its_rates_with_a_prior_under_scale_lr():
    """As in all three published scripts; DreamBooth's does not."""
    rates = {
        method: single(f"--method={method}", *flags).learning_rate_of("learning_rate", prior=True)
        for method, flags in {"custom_diffusion": ["--scale_lr"], "dreambooth": ["--scale_lr"]}.items()
    }
    assert rates == {"custom_diffusion": 4e-5, "dreambooth": 2e-5}  # 1e-5 x batch 2, and twice that
    assert single("--method=custom_diffusion").learning_rate_of("learning_rate", prior=True) == 1e-5
    assert single("--scale_lr").learning_rate_of("learning_rate", prior=False) == 2e-5


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


def test_trains_replaces_the_learners_of_a_single_stage():
    config = single("--trains=unet+text_encoder")
    assert [stage.trains for stage in config.stages] == [("unet", "text_encoder")]
    mistake(lambda: single("--method=two_stage", "--trains=unet"), "--trains", "two_stage")
    mistake(lambda: single("--method=two_stage", "--max_train_steps=1"), "2 stages")


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


def test_a_pool_of_views_where_there_is_one_view_is_refused():
    mistake(lambda: single("--noaug", "--latent_pool=4"), "--latent_pool", "--noaug", "leave it out")
    flags = ["--preset=none", "--instance_data_dir=data/dog", "--cls_token=dog", "--latent_pool=4"]
    mistake(lambda: parse_config([*flags, "--method=textual_inversion"]), "--latent_pool has no effect")
    assert parse_config([*flags, "--method=dreambooth"]).latent_pool == 4  # its random crops are views


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


def test_prior_adds_class_images_and_keeps_spl():
    config = single("--with_prior_preservation", "--class_prompt=a photo of a dog", "--output_dir=out")
    (concept,) = config.concepts()
    assert config.uses_prior and config.spl
    assert (concept.class_prompt, concept.class_data_dir) == ("a photo of a dog", Path("out/class_images/0"))
    (concept,) = replace(config, class_data_dir="data/dogs").concepts()
    assert concept.class_data_dir == Path("data/dogs")


def test_schedules_are_known_to_diffusers():
    from diffusers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

    assert {SchedulerType(name) for name in LR_SCHEDULERS} == TYPE_TO_SCHEDULER_FUNCTION.keys() - {
        SchedulerType.PIECEWISE_CONSTANT
    }


def mistake(make, *words: str) -> None:
    """`make()` raises a UserError of one line that contains every word."""
    with pytest.raises(UserError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


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
