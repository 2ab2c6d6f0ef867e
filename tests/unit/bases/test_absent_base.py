"""A base that is not here is said before torch is imported, which alone takes longer than the answer."""

import subprocess
import sys

import pytest

from utils.bases.registry import REPOSITORY

ABSENT = "owner/no-such-model"
COMMANDS = {
    "train_classdiffusion": [
        f"--pretrained_model_name_or_path={ABSENT}",
        "--instance_data_dir=data/dog",
        "--cls_token=dog",
    ],
    "inference": [f"--base={ABSENT}"],
    "videogen": [f"--base={ABSENT}"],
    "blip2t": [f"--model={ABSENT}"],
    "scripts.evaluate": ["dataset", "toon", f"--base={ABSENT}"],
    "scripts.export": ["data/dog", f"--base={ABSENT}"],
    "scripts.merge_concepts": ["data/dog", "data/dog", "--output=x", f"--base={ABSENT}"],
    "scripts.contextualizer": ["pretrain", f"--base={ABSENT}"],
    "scripts.analyse": ["attention_maps", "data/dog", "--prompt=a {}", f"--base={ABSENT}"],
}
CODE = """
import importlib, sys
from utils.bases import pretrained
from utils.common.errors import UserError
pretrained.hub_answers = lambda: False
try:
    importlib.import_module(sys.argv[1]).main(sys.argv[2:])
except UserError as mistake:
    print(mistake)
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_absent_base_is_said_before_torch_is_imported(name):
    command = [sys.executable, "-c", CODE, name, *COMMANDS[name]]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    said, torch_is_imported = done.stdout.splitlines()
    assert said.partition(",")[0].endswith(f" model {ABSENT} is not here"), done.stderr
    assert torch_is_imported == "False"
