"""Every command answers --help and a mistaken flag before it imports what takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
COMMANDS = sorted(
    path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")
    for folder in (".", "scripts", "scripts/toon")
    for path in (REPOSITORY / folder).glob("*.py")
)
ASK = """
import importlib, sys
from utils.common.errors import UserError
module = importlib.import_module(sys.argv[1])
subcommands = [[name] for name in getattr(module, "SUBCOMMANDS", ())]
for command in ([], *subcommands):
    for flag, answer in (("--help", SystemExit), ("--no_such_flag", UserError)):
        try:
            module.main([*command, flag])
            sys.exit(f"{command} takes {flag}")
        except answer as end:
            assert getattr(end, "code", 0) == 0
loaded = [name for name in ("torch", "diffusers", "transformers", "tokenizers") if name in sys.modules]
print("loaded", loaded)
"""


def test_they_are_found():
    assert {"train_classdiffusion", "inference", "scripts.evaluate", "scripts.toon.build"} <= {*COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_a_mistake_wait_for_no_library(name):
    done = subprocess.run([sys.executable, "-c", ASK, name], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ") and done.stdout.splitlines()[-1] == "loaded []"
