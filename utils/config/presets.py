"""Presets: the training flags that suit a base and a method, where a user does not give them.

scripts/presets/NAME.toml holds those of a base (its `preset`, utils/bases/registry.py). The table [common] is
for all methods, [METHOD] adds to it or changes it, and [METHOD.several], or [common.several], is for two
concepts or more at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.bases.registry import REPOSITORY, portable
from utils.common.config_file import read_table, refuse_key, typed_values
from utils.common.errors import UserError, short
from utils.common.files import shown
from utils.config.methods import METHODS

if TYPE_CHECKING:
    from utils.config.train_config import TrainConfig

FOLDER = REPOSITORY / "scripts" / "presets"
PRESET_HELP = (
    "where flags that you do not give come from: none, or a TOML file like scripts/presets/sd15.toml "
    "(default: that of the base model); --no_hflip switches off an --hflip that a preset or file gives, and "
    "so on"
)
COMMON, SEVERAL, NONE = "common", "several", "none"
SEMANTIC = "classdiffusion"  # its λ suits any method to which --use_spl adds the loss


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset gave to a configuration: field -> value. path: None if there was no preset."""

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flags(self) -> list[str]:
        """The values as flags of a command line."""
        return [f"--{name}" if v is True else f"--{name}={v}" for name, v in self.values.items()]

    def describe(self) -> list[str]:
        """The line that names the values the preset gave; none if it gave none."""
        if not self.values:
            return []
        return [f"preset {shown(portable(self.path))}: {' '.join(self.flags)} (--preset none: without them)"]


def preset_file(preset: str | None, default: str) -> Path | None:
    """The file that --preset names: None for "none". default: the name of the base's preset.

    Raises UserError if there is no such file.
    """
    if preset is None:
        return FOLDER / f"{default}.toml"
    if preset == NONE:
        return None
    path = Path(preset)
    if path.suffix != ".toml" or not path.is_file():
        raise UserError(f"--preset {short(preset)} is not a TOML file: give one, or none")
    return path


def read_preset(config: type["TrainConfig"], path: Path) -> dict[str, dict[str, Any]]:
    """Table -> flags, "METHOD.several" too, all of them checked for their names and types.

    Raises UserError for a table that names no method, and a key that is not a flag or says what is trained.
    """
    of_a_run = {each.name for each in fields(config) if each.metadata.get("set_by_evaluation")}
    tables: dict[str, dict[str, Any]] = {}
    for name, table in read_table("--preset", path).items():
        if not isinstance(table, dict) or name not in (COMMON, *METHODS):
            refuse_key(f"--preset {shown(path)}", name, [COMMON, *METHODS], "write tables named by methods")
        several = table.pop(SEVERAL, {})
        if not isinstance(several, dict):
            raise UserError(f"--preset {shown(path)}: {name}.{SEVERAL} must be a table")
        for key, values in ((name, table), (f"{name}.{SEVERAL}", several)):
            where = f"--preset {shown(path)}: [{key}]"
            tables[key] = typed_values(config, values, where)
            if wrong := sorted(of_a_run & values.keys()):
                raise UserError(f"{where}: {wrong[0]} belongs to a run: give it by --{wrong[0]} or --config")
    return tables


def preset_values(
    config: type["TrainConfig"], path: Path, method: str, several: bool = False, use_spl: bool = False
) -> dict[str, Any]:
    """The flags of a preset for a method. several: whether more than one concept is trained at once.

    use_spl: whether --use_spl adds the semantic preservation loss to the method. Errors as `read_preset`.
    """
    tables = read_preset(config, path)
    chosen = [COMMON, method, *([f"{COMMON}.{SEVERAL}", f"{method}.{SEVERAL}"] if several else [])]
    values = {name: value for table in chosen for name, value in tables.get(table, {}).items()}
    weight = tables.get(SEMANTIC, {}).get("spl_weight")
    if use_spl and weight is not None:
        values.setdefault("spl_weight", weight)
    return values


def without_unreached(values: Mapping[str, Any], trains: str) -> dict[str, Any]:
    """The values without learning rates that nothing of --trains has."""
    from utils.learners.registry import LEARNERS  # imports torch, which --trains alone has to wait for

    reached = {LEARNERS[name].rate for name in trains.split("+") if name in LEARNERS}
    unreached = {"token_learning_rate", "text_encoder_learning_rate"} - reached
    return {name: value for name, value in values.items() if name not in unreached}
