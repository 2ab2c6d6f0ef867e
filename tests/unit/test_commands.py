"""Every command: its help and a mistaken flag are answered before torch loads."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
COMMANDS = sorted(
    path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")
    for folder in (".", "scripts", "scripts/toon")
    for path in (REPOSITORY / folder).glob("*.py")
)
IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    for library in ("torch", "diffusers", "transformers"):
        if library in sys.modules:
            sys.exit(f"{name} imports {library}")
"""


def test_no_command_imports_what_takes_seconds():
    assert {"train_classdiffusion", "scripts.evaluate", "scripts.toon.build"} <= {*COMMANDS}
    command = [sys.executable, "-c", IMPORT, *COMMANDS]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
