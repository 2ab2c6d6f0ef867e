"""The training flags that suit a base model and a method, for the launch scripts and the evaluation alike.

scripts/settings/<base>/common.txt holds those of all methods, <method>.txt what one method adds or changes: a
flag a line, lines with # are remarks, "several: --flag" is for two concepts or more at once. On the command
line it prints a base's flags:

python -m utils.config.settings toon --method textual_inversion
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from utils.bases.pretrained import HUB_ID
from utils.bases.registry import BASES, REPOSITORY, Base, base_row, portable
from utils.common.errors import UserError, exit_on_user_error, short

SETTINGS = REPOSITORY / "scripts" / "settings"
SEVERAL = "several: "
SEMANTIC = "classdiffusion"  # the default method; its λ suits any method to which --use_spl adds the loss


def read_setting(settings: str, method: str, several: bool = False) -> list[str]:
    """The flags of scripts/settings/<settings> for a method, as --name=value or --name.

    settings: a base's `settings` (see utils/bases/registry.py). several: whether more than one concept is
    trained at once. A method without a file has the common flags.
    """
    lines: list[str] = []
    for name in ("common", method):
        file = SETTINGS / settings / f"{name}.txt"
        lines += file.read_text(encoding="utf-8").splitlines() if name == "common" or file.is_file() else []
    if several:
        lines += [line.removeprefix(SEVERAL) for line in lines if line.startswith(SEVERAL)]
    stripped = (line.strip() for line in lines)
    return list({line.partition("=")[0]: line for line in stripped if line.startswith("--")}.values())


def training_flags(row: Base, arguments: Sequence[str]) -> list[str]:
    """The flags to put before a user's `arguments`, which win where both set a flag.

    They name the method and the tokens, several of these joined by +.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", default=SEMANTIC)
    parser.add_argument("--modifier_token", default="")
    parser.add_argument("--use_spl", action="store_true")
    given, _ = parser.parse_known_args(arguments)
    flags = read_setting(row.settings, given.method, several="+" in given.modifier_token)
    if given.use_spl and given.method != SEMANTIC:
        flags += [flag for flag in read_setting(row.settings, SEMANTIC) if flag.startswith("--spl_weight=")]
    return [f"--pretrained_model_name_or_path={portable(row.path)}", *flags]


def main() -> None:
    base, arguments = sys.argv[1], sys.argv[2:]
    row = base_row(base)
    if row.name not in BASES and not (REPOSITORY / base).is_dir() and not HUB_ID.fullmatch(base):
        raise UserError(
            f"BASE={short(base)} is unknown: use {', '.join(BASES)}, a folder or a Hub id (owner/name)"
        )
    print("\n".join(training_flags(row, arguments)))


if __name__ == "__main__":
    exit_on_user_error(main)
