"""Motion adapters: what one says of itself, whether it fits a base model, and the noise levels it wants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.bases.pretrained import base_config, read_config, readable
from utils.bases.registry import BASES
from utils.common.errors import UserError, short
from utils.sampling.settings import BETA_SCHEDULES

PUBLISHED = BASES["sd15"].motion_adapter  # AnimateDiff's, for Stable Diffusion 1.5


def adapter_config(adapter: str | Path) -> dict[str, Any]:
    """The config.json of a motion adapter: a folder, or a Hub id (owner/name; fetched, a few hundred bytes).

    Raises UserError if there is none, or if it is another model's.
    """
    config = read_config(adapter, "motion adapter", writer="MotionAdapter.save_pretrained")
    if config.get("_class_name") != "MotionAdapter":
        raise UserError(
            f"motion adapter {adapter} is a {short(config.get('_class_name'))}; give a MotionAdapter"
        )
    return config


def check_adapter(adapter: str | Path, base: str | Path) -> int:
    """How many frames the adapter knows; raises UserError unless it fits the base model's UNet.

    Reads configuration files only. The groups of the normalisations count too: diffusers builds them as the
    UNet has them, and an adapter of other groups would load and draw nonsense.
    """
    with readable("motion adapter", adapter):
        return _frames_if_it_fits(adapter, base)


def _frames_if_it_fits(adapter: str | Path, base: str | Path) -> int:
    config = adapter_config(adapter)
    unet = base_config(base, "unet/config.json")
    blocks = len(unet["block_out_channels"])
    pairs = {
        "block channels": (config["block_out_channels"], unet["block_out_channels"]),
        "layers per block": (
            _per_block(config["motion_layers_per_block"], blocks),
            _per_block(unet["layers_per_block"], blocks),
        ),
        "normalisation groups": (config["motion_norm_num_groups"], unet["norm_num_groups"]),
        "input channels": (config.get("conv_in_channels") or unet["in_channels"], unet["in_channels"]),
    }
    recorded = recorded_schedule(adapter)
    if recorded:
        scheduler = base_config(base, "scheduler/scheduler_config.json")
        pairs["prediction type"] = tuple(
            each.get("prediction_type", "epsilon") for each in (recorded, scheduler)
        )
    for name, (its, wanted) in pairs.items():
        if its != wanted:
            raise UserError(
                f"motion adapter {adapter} has {name} {its}, base model {base} {wanted}: it does not fit; "
                f"give one trained on this base, such as {PUBLISHED} for Stable Diffusion 1.5"
            )
    frames = config["motion_max_seq_length"]
    if type(frames) is not int or frames < 1:
        raise UserError(
            f"motion adapter {adapter} has motion_max_seq_length {short(repr(frames))}: no number"
        )
    return frames


def recorded_schedule(adapter: str | Path) -> dict[str, Any] | None:
    """The scheduler_config.json of an adapter's folder: the noise levels it was trained on; or None."""
    name = "scheduler_config.json"
    return read_config(adapter, "motion adapter", name) if (Path(adapter) / name).is_file() else None


def noise_levels(
    base_config: Mapping[str, Any], adapter: str | Path, beta_schedule: str | None = None
) -> dict[str, Any]:
    """A scheduler's configuration for clips: the base model's, with the adapter's betas.

    beta_schedule: one of BETA_SCHEDULES. Default: as recorded in the adapter's folder, else linear, on which
    AnimateDiff (Guo et al. 2023, arXiv 2307.04725) trained its published adapters and which they do not say.
    Timesteps are spaced evenly from the first to the last ("linspace"), as AnimateDiff samples.
    Raises UserError for an unknown schedule.
    """
    if beta_schedule is not None and beta_schedule not in BETA_SCHEDULES:
        raise UserError(f"unknown beta schedule {beta_schedule!r}; choose one of {', '.join(BETA_SCHEDULES)}")
    recorded = recorded_schedule(adapter) or {"beta_schedule": "linear"}
    betas = {key: recorded[key] for key in ("beta_start", "beta_end", "beta_schedule") if key in recorded}
    if beta_schedule is not None:
        betas["beta_schedule"] = beta_schedule
    changed = betas | {"timestep_spacing": "linspace"}
    # diffusers drops the values that it lists here, because they were a scheduler's defaults.
    defaults = [key for key in base_config.get("_use_default_values", ()) if key not in changed]
    return {**base_config, **changed, "_use_default_values": defaults}


def _per_block(layers: int | list[int], blocks: int) -> list[int]:
    return [layers] * blocks if isinstance(layers, int) else list(layers)
