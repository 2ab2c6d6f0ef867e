"""Presets: what they give to a command line, what wins over them, and mistakes in them."""

import json
import subprocess
import sys

import pytest
from huggingface_hub import constants

from utils.bases import pretrained
from utils.bases.registry import BASES, REPOSITORY, base_row
from utils.common.errors import UserError
from utils.config.methods import METHODS
from utils.config.presets import FOLDER, SEMANTIC, read_preset
from utils.config.train_config import TrainConfig, parse_config, parse_with_preset

DOG = ["--instance_data_dir=data/dog", "--cls_token=dog"]
PAIR = ["--concepts_list=data/concepts.json", "--modifier_token=<new1>+<new2>", "--cls_token=teddy bear+barn"]
MINE = """
[common]
hflip = true
learning_rate = 1
seed = 3
[common.several]
noaug = true
[kv_only]
learning_rate = 2
[kv_only.several]
learning_rate = 4
[classdiffusion]
spl_weight = 0.5
"""


@pytest.fixture
def mine(tmp_path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return f"--preset={path}"


def given(*flags: str) -> dict[str, object]:
    return dict(parse_with_preset([*DOG, *flags])[1].values)


def test_a_methods_table_adds_to_the_common_one_and_overrides_it(mine):
    assert given(mine, "--method=kv_only") == {"hflip": True, "learning_rate": 2.0, "seed": 3}
    assert given(mine, "--method=svdiff") == {"hflip": True, "learning_rate": 1.0, "seed": 3}
    pair = parse_with_preset([*PAIR, mine, "--method=kv_only"])[1].values
    assert pair == {"hflip": True, "learning_rate": 4.0, "seed": 3, "noaug": True}


def test_flags_win_over_the_file_and_that_over_the_preset(mine, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('method = "kv_only"\nseed = 5\nhflip = false\ntrain_batch_size = 7\n')
    config, preset = parse_with_preset([*DOG, mine, f"--config={file}", "--train_batch_size=9"])
    assert (config.method, config.seed, config.hflip, config.train_batch_size) == ("kv_only", 5, False, 9)
    assert (config.learning_rate, dict(preset.values)) == (2.0, {"learning_rate": 2.0})
    config = parse_config([*DOG, mine, "--no_hflip"])
    assert (config.hflip, config.spl_weight) == (False, 0.5)


def test_use_spl_brings_the_bases_weight_to_any_method(mine):
    assert given(mine, "--method=kv_only", "--use_spl")["spl_weight"] == 0.5
    assert "spl_weight" not in given(mine, "--method=kv_only")
    assert given("--use_spl") == given()


def test_none_is_without(mine):
    assert parse_config([*DOG, "--preset=none"]) == TrainConfig(instance_data_dir="data/dog", cls_token="dog")
    assert parse_with_preset([*DOG, "--preset=none"])[1].describe() == []


def test_the_mission_s_own_command_trains_toon_by_its_tuned_values():
    config, preset = parse_with_preset(DOG)
    assert [config.learning_rate_of(rate) for rate in ("learning_rate", "token_learning_rate")] == [
        4e-4,
        6.32e-3,
    ]
    assert (config.max_train_steps, config.hflip, config.noaug) == (300, True, True)
    (line,) = preset.describe()
    assert line == (
        "preset scripts/presets/toon.toml: --train_batch_size=2 --learning_rate=0.0002 "
        "--token_learning_rate=0.00316 --scale_lr --hflip --noaug --max_train_steps=300 --spl_weight=1.0 "
        "(--preset none: without them)"
    )


@pytest.mark.parametrize(
    ("method", "images", "rate", "steps", "flips"),
    [
        ("xti", 8, 5e-3, 500, True),  # prompt-plus: 1 x 8 accumulated, its rate not multiplied
        ("neti", 8, 8e-3, 1000, True),  # 1e-3 x 8 images
        ("textual_inversion", 4, 2e-3, 3000, True),
    ],
)
def test_published_batches_and_rates_of_stable_diffusion(method, images, rate, steps, flips):
    config = parse_config([*DOG, "--pretrained_model_name_or_path=sd15", f"--method={method}"])
    assert config.train_batch_size * config.gradient_accumulation_steps == images
    assert config.learning_rate_of("token_learning_rate") == pytest.approx(rate)
    assert (config.max_train_steps, config.hflip) == (steps, flips)


def test_rates_of_what_does_not_train_are_left_out():
    assert "token_learning_rate" not in given("--method=kv_only", "--trains=unet")
    both = given("--method=kv_only", "--trains=token_rows+text_encoder")
    assert both["token_learning_rate"] == 3.16e-3


def test_a_saved_configuration_is_complete(tmp_path):
    path = tmp_path / "training_config.json"
    before = TrainConfig(instance_data_dir="data/dog", cls_token="dog")
    before.save(path)
    assert parse_with_preset([f"--config={path}"])[0] == before
    saved = json.loads(path.read_text())
    del saved["hflip"]  # of an earlier version
    path.write_text(json.dumps(saved))
    assert parse_config([f"--config={path}"]) == before
    with pytest.raises(UserError, match="--preset has no effect on --config .*training_config.json"):
        parse_config([f"--config={path}", "--preset=none"])


@pytest.mark.parametrize(
    ("base", "file"), [("toon", "toon"), ("sd15", "sd15"), ("sd21", "sd15"), ("sdxl", "sdxl"), ("a/b", None)]
)
def test_every_base_has_a_preset(base, file, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    flags = [*DOG, f"--pretrained_model_name_or_path={base}"]
    if file is None:  # of an unknown family: another's flags would suit it badly
        with pytest.raises(UserError, match="base model a/b is not here"):
            parse_with_preset(flags)
        assert parse_with_preset([*flags, "--preset=none"])[1].path is None
    else:
        assert parse_with_preset(flags)[1].path.stem == file


@pytest.mark.parametrize(
    ("name", "preset"), [("StableDiffusionXLPipeline", "sdxl"), ("StableDiffusionPipeline", "sd15")]
)
def test_a_hub_id_has_the_preset_of_its_family(name, preset, tmp_path, monkeypatch):
    """The index is fetched, and found again in the cache."""

    def download(model, file, revision=None):
        folder = tmp_path / "models--some--model" / "snapshots" / "1"
        folder.mkdir(parents=True)
        (folder / file).write_text(json.dumps({"_class_name": name}))
        return str(folder / file)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "hub_answers", lambda: True)
    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    flags = [*DOG, "--pretrained_model_name_or_path=some/model", "--revision=fp16"]
    assert parse_with_preset(flags)[1].path.stem == preset
    assert base_row("some/model").preset == preset and base_row("some/model").path == "some/model"


@pytest.mark.parametrize(("base", "one", "two"), [("sd15", 500, 800), ("sd21", 500, 800), ("toon", 300, 400)])
def test_two_concepts_train_longer(base, one, two):
    for concepts, steps in ((DOG, one), (PAIR, two)):
        config = parse_config([*concepts, f"--pretrained_model_name_or_path={base}"])
        assert config.max_train_steps == steps


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_training_configuration(base, method):
    config = parse_config([*DOG, f"--pretrained_model_name_or_path={base}", f"--method={method}"])
    assert base_row(config.pretrained_model_name_or_path) is BASES[base]
    assert config.lambda_spl == (1.0 if method == SEMANTIC else 0.0)
    assert config.resolution is None  # the base model's own
    if (base, method) not in {("sdxl", "xti"), ("sdxl", "neti")}:  # refused: they need one text encoder
        assert method in read_preset(TrainConfig, FOLDER / f"{BASES[base].preset}.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[kv_onl]", "unknown key 'kv_onl': did you mean kv_only?"),
        ("hflip = true", "unknown key 'hflip'; write tables named by methods"),
        ("kv_only = 3", "unknown key 'kv_only': did you mean kv_only?"),
        ("[kv_only]\nlearning_rat = 1", "[kv_only]: unknown key 'learning_rat': did you mean learning_rate?"),
        ("[svdiff.several]\nhflip = 1", "[svdiff.several]: hflip must be true or false, is 1"),
        ("[svdiff]\nseveral = 1", "svdiff.several must be a table"),
        ("[common]\ncls_token = 'dog'", "[common]: cls_token belongs to a run: give it by --cls_token"),
        ("[common]\nseed = -1", "--seed -1: give a number of at least 0"),
        ("[common", "is not TOML"),
    ],
)
def test_mistakes_are_one_line(tmp_path, content, message):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        parse_config([*DOG, f"--preset={path}"])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("preset", ["toon", "nothing.toml", "."])
def test_a_preset_that_is_no_file_is_refused(preset):
    with pytest.raises(UserError, match=f"--preset {preset} is not a TOML file: give one, or none"):
        parse_config([*DOG, f"--preset={preset}"])


def test_presets_are_read_without_torch():
    code = f"import sys, utils.config.train_config as c; c.parse_config({DOG}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
