"""Flags from the fields of a dataclass: types, limits, mistakes in one line; and help without torch."""

import subprocess
import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import pytest

from utils.common.errors import UserError, short
from utils.common.flags import SEEDS, check_fields, option, parse, parser_of, seed_option
from utils.config.replaced_flags import REPLACED_FLAGS
from utils.config.train_config import TrainConfig

REPOSITORY = Path(__file__).parents[3]


@dataclass(frozen=True)
class Config:
    prompt: tuple[str, ...] = option((), "repeatable, 100 % yours")
    image: tuple[Path, ...] = option((), "repeatable")
    output_dir: Path = option(Path("out"), "a folder", may_differ=True)
    num_inference_steps: int | None = option(None, "steps", minimum=1)
    eta: float = option(0.0, "noise", minimum=0, below=1)
    rate: float | None = option(None, "rate", above=0)
    scheduler: str = option("ddim", "sampler", choices=("ddim", "pndm"))
    seed: int = seed_option("seed")
    json: bool = option(False, "as JSON")

    def __post_init__(self) -> None:
        check_fields(self)


def given(*argv: str) -> Config:
    return parse(Config, argv, "A command.", {"old_flag": "use --seed"})


def test_no_flags_are_the_defaults():
    assert given() == Config()


def test_every_type():
    config = given(
        "--prompt=a", "--prompt", "b=c", "--image=x", "--output_dir", "o/p", "--num_inference_steps=3",
        "--eta=.5", "--rate=1e-5", "--scheduler=pndm", "--seed=7", "--json",
    )  # fmt: skip
    assert config == Config(
        ("a", "b=c"), (Path("x"),), Path("o/p"), 3, 0.5, 1e-5, "pndm", 7, True
    )  # fmt: skip


def test_a_flag_may_take_several_values_at_once():
    @dataclass(frozen=True)
    class Other:
        widths: tuple[int, ...] = option((64, 128), "of each level", minimum=16, several=True)
        seed: int = seed_option("seed")

        def __post_init__(self) -> None:
            check_fields(self)

    assert parse(Other, [], "") == Other((64, 128), 0)
    assert parse(Other, ["--widths", "16", "32", "48", "--seed=1"], "") == Other((16, 32, 48), 1)
    assert "of each level (default: 64 128)" in parser_of(Other, "").format_help()
    with pytest.raises(UserError, match="--widths 8: give a number of at least 16"):
        parse(Other, ["--widths", "16", "8"], "")


def test_further_facts_stay_with_the_field():
    facts = {each.name: each.metadata.get("may_differ") for each in fields(Config)}
    assert facts["output_dir"] is True and facts["seed"] is None


def test_positional_and_required():
    @dataclass(frozen=True)
    class Other:
        folder: Path = option(MISSING, "folder", positional=True)
        name: str = option(MISSING, "must be given")
        more: tuple[int, ...] = option((), "numbers", positional=True)

    assert parse(Other, ["f", "1", "2", "--name=x"], "") == Other(Path("f"), "x", (1, 2))
    assert parse(Other, ["f", "--name=x"], "") == Other(Path("f"), "x")
    for argv, words in ((["--name=x"], "FOLDER"), (["f"], "--name")):
        with pytest.raises(UserError, match=f"required: {words}; see --help"):
            parse(Other, argv, "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--promt=x", "unknown flag --promt=x: did you mean --prompt? See --help"),
        ("--steps 3", "unknown flag --steps: did you mean --num_inference_steps? See --help"),
        ("--zzz=1", "unknown flag --zzz=1; see --help"),
        ("--seeds 3 --zzz", "unknown flag --seeds: did you mean --seed? See --help"),
        (
            "--num_inference=3",
            "unknown flag --num_inference=3: did you mean --num_inference_steps? See --help",
        ),
        ("--old_flag", "--old_flag does not exist here: use --seed"),
        ("--old_flag=3", "--old_flag does not exist here: use --seed"),
        ("stray", "'stray' is not the value of a flag; see --help"),
        ("--seed", "--seed: expected one argument; see --help"),
        ("--seed=1.5", "--seed: '1.5' is not a whole number; see --help"),
        ("--seed=-1", f"--seed -1: give a number of at least 0, below {2**63}"),
        (f"--seed={2**63}", f"--seed {2**63}: give a number of at least 0, below {2**63}"),
        ("--eta=fast", "--eta: 'fast' is not a number; see --help"),
        ("--eta=nan", "--eta nan: give a finite number"),
        ("--eta=-inf", "--eta -inf: give a finite number"),
        ("--eta=1", "--eta 1.0: give a number of at least 0, below 1"),
        ("--rate=inf", "--rate inf: give a finite number"),
        ("--rate=0", "--rate 0.0: give a number above 0"),
        ("--num_inference_steps=0", "--num_inference_steps 0: give a number of at least 1"),
        ("--scheduler=heun", "--scheduler heun is unknown: choose from ddim, pndm"),
        ("--output_dir=", "--output_dir: '' is not a path; see --help"),
        ("--json=yes", "--json: ignored explicit argument 'yes'; see --help"),
    ],
)
def test_a_mistake_is_one_line(argv, message):
    with pytest.raises(UserError) as mistake:
        given(*argv.split())
    assert str(mistake.value) == message


def test_a_long_value_is_repeated_shortened():
    assert short("a  b\nc") == "a b c" and short("x" * 61) == "x" * 59 + "…" and short("x" * 60) == "x" * 60
    for flag in ("--scheduler", "--eta", "--nonsense"):
        with pytest.raises(UserError) as mistake:
            given(f"{flag}={'y' * 10_000}")
        assert len(str(mistake.value)) < 200


def test_the_largest_seed_is_allowed():
    assert given(f"--seed={SEEDS - 1}").seed == 2**63 - 1


def test_help_has_every_flag_its_default_and_the_description():
    text = parser_of(Config, "A command.\n\n  python command.py").format_help()
    assert "A command.\n\n  python command.py" in text and "repeatable, 100 % yours" in text
    assert all(f"--{each.name}" in text for each in fields(Config))
    assert "ddim|pndm" in text and "(default: ddim)" in text and "(default: out)" in text


@pytest.mark.parametrize("name", REPLACED_FLAGS)
def test_flags_of_other_trainings_say_what_replaces_them(name):
    assert name not in {each.name for each in fields(TrainConfig)}, "it exists by now: drop its line"
    with pytest.raises(UserError) as mistake:
        parse(TrainConfig, [f"--{name}", "1"], "", REPLACED_FLAGS)
    message = str(mistake.value)
    assert message == f"--{name} does not exist here: {REPLACED_FLAGS[name]}"
    assert "\n" not in message and len(message) < 200
    named = [word.strip(":,.;") for word in REPLACED_FLAGS[name].split() if word.startswith("--")]
    assert {word.removeprefix("--") for word in named} <= {each.name for each in fields(TrainConfig)}


WITHOUT_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as left:
    loaded = [name for name in ("torch", "diffusers", "transformers", "accelerate") if name in sys.modules]
    print("exit", left.code, "loaded", loaded)
"""


@pytest.mark.parametrize("command", ["inference.py", "videogen.py", "blip2t.py"])
@pytest.mark.parametrize(
    ("flag", "code"), [("--help", 0), ("--promt=x", 2), ("--batch_size=nan", 2), ("--seed=-1", 2)]
)
def test_help_and_a_mistake_wait_for_no_library(command, flag, code, tmp_path):
    # From another directory, as a user may call it.
    script = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{WITHOUT_TORCH}"
    done = subprocess.run(
        [sys.executable, "-c", script, str(REPOSITORY / command), flag],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == f"exit {code} loaded []", done.stderr
    assert done.stderr.count("\n") == (code == 2)


def test_inherited_groups_of_flags_stand_under_their_heading():
    @dataclass(frozen=True)
    class Where:
        heading = "where"
        folder: Path = option(Path("out"), "folder")

    @dataclass(frozen=True)
    class How:
        heading = "how"
        eta: float = option(0.0, "noise", minimum=0)

    @dataclass(frozen=True)
    class Both(How, Where):
        last: bool = option(False, "its own")

    lines = [line.split()[0] for line in parser_of(Both, "").format_help().splitlines() if line.strip()]
    assert lines[-4:] == ["where:", "--folder", "how:", "--eta"] and "--last" in lines
    assert parse(Both, ["--eta=1", "--last"], "") == Both(eta=1.0, last=True)
