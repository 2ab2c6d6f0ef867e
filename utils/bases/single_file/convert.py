"""A single file in the original layout as a pipeline folder in the cache, made once."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig

from utils.bases.parts import OLD_BUFFER, WITH_WEIGHTS
from utils.bases.pretrained import readable
from utils.bases.single_file.cache import (
    FILES,
    VARIABLE,
    cache_folder,
    check_unchanged,
    digest_of,
    is_whole,
    made_once,
    stamp_of,
)
from utils.bases.single_file.configuration import configuration_of
from utils.bases.single_file.recognise import (
    SD2,
    UNET,
    VAE,
    Header,
    SingleFile,
    is_file,
    read_header,
    single_file,
)
from utils.common.errors import UserError, short
from utils.common.files import shown
from utils.common.tensor_files import write_tensors

Tensors = dict[str, Tensor]
VAE_PARTS = tuple(f"{VAE}{part}." for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"))
FIRST, SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # the others': "model"


def folder_of(base: str | Path) -> str | Path:
    """A pipeline folder with the weights of a base; of one that is a file it is made once in the cache, of
    any other it is the base itself.

    Raises UserError as `single_file` does, for weights that are not those of the configuration or not finite,
    and where the cache cannot be written.
    """
    if not is_file(base):
        return base
    file, configuration = single_file(base), Path(configuration_of(base))
    both = f"{digest_of(file.path)} {configuration.name}"
    folder = cache_folder() / "models" / hashlib.sha256(both.encode()).hexdigest()[:32]
    if is_whole(folder):
        return folder
    check_layout(file, configuration)
    return made_once(folder, lambda partial: convert(file, configuration, partial))


def convert(file: SingleFile, configuration: Path, folder: Path) -> None:
    """Fills an empty folder: configuration files, and the weights in the file's own precision."""
    _check_room(file, folder)
    size = f"{file.path.stat().st_size / 1e9:.2g} GB"
    print(f"converting {shown(file.path)} ({size}), once, into {shown(folder.parent)}", flush=True)
    stamp = stamp_of(file.path)
    shutil.copytree(configuration, folder, ignore=shutil.ignore_patterns(FILES), dirs_exist_ok=True)
    header = read_header(file.path)
    with safe_open(file.path, framework="pt") as opened:
        for name, names in _sources(file, header).items():
            weights = _converted(file, configuration, name, {each: opened.get_tensor(each) for each in names})
            _check_finite(file, name, weights)
            write_tensors(folder / name / f"{WEIGHTS.get(name, 'model')}.safetensors", weights)
    check_unchanged(file.path, stamp)


def check_layout(file: SingleFile, configuration: Path) -> None:
    """Raises UserError unless names and shapes are those of the configuration; no weight is read."""
    header = read_header(file.path)
    for name, names in _sources(file, header).items():
        shapes = {each: torch.empty(header.tensors[each][1], device="meta") for each in names}
        _converted(file, configuration, name, shapes)


def _sources(file: SingleFile, header: Header) -> dict[str, list[str]]:
    """component -> names of its tensors in the file."""
    texts = {"text_encoder": [file.family.text]}
    if file.family.name == "sdxl":
        texts = {"text_encoder": [FIRST], "text_encoder_2": [SECOND]}
    prefixes = {"unet": [UNET], "vae": VAE_PARTS} | texts
    return {name: header.under(*each) for name, each in prefixes.items()}


def _converted(file: SingleFile, configuration: Path, name: str, source: Tensors) -> Tensors:
    """The weights of a component by the names of its class. Raises UserError unless they are all of them, of
    their shapes, and none is left over."""
    with readable(f"{name} of base model", file.path):
        part = _outline(name, json.loads((configuration / name / "config.json").read_text(encoding="utf-8")))
        expected = {each: value.shape for each, value in part.named_parameters()}
        found = _CONVERTERS.get((name, file.family.name), _CONVERTERS[name])(source, part.config)
    plain = {_plain(each): each for each in expected}  # transformers' classes differ in this prefix
    found = {plain.get(_plain(each), each): value for each, value in found.items()}
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "differently shaped": sorted(
            each for each in expected.keys() & found.keys() if expected[each] != found[each].shape
        ),
    }
    for how, names in wrong.items():
        if names:
            raise UserError(
                f"base model {shown(file.path)}: its {name} has {len(names)} {how} weights, e.g. "
                f"{short(names[0])}: it is damaged, or no ordinary {file.family.title}, whose configuration "
                f"has to be in the folder {shown(file.path.with_suffix(''))}"
            )
    return found


def _plain(name: str) -> str:
    return name.removeprefix("text_model.")


def _outline(name: str, config: dict[str, Any]) -> nn.Module:
    """The component without numbers."""
    kind = WITH_WEIGHTS[name]
    with torch.device("meta"):
        if name.startswith("text_encoder"):
            return kind(CLIPTextConfig.from_dict(config))
        return kind.from_config(config)


def _unet(source: Tensors, config: Any) -> Tensors:
    found = convert_ldm_unet_checkpoint(source, config)
    return {each: value for each, value in found.items() if value is not None} | _left_over(source, found)


def _vae(source: Tensors, config: Any) -> Tensors:
    found = convert_ldm_vae_checkpoint(source, config)
    reshaped = {each: value for each, value in source.items() if ".attn_1." not in each}
    return found | _left_over(reshaped, found)


def _left_over(source: Tensors, found: Tensors) -> Tensors:
    """What the converter, which passes tensors on as they are, did not take."""
    taken = {id(value) for value in found.values()}
    return {each: value for each, value in source.items() if id(value) not in taken}


def _clip(source: Tensors, config: Any) -> Tensors:
    """A text encoder in transformers' layout."""
    names = {each.partition("transformer.")[2]: each for each in source}
    return {each: source[name] for each, name in names.items() if not each.endswith(OLD_BUFFER)}


def _open_clip(source: Tensors, config: Any) -> Tensors:
    """A text encoder in OpenCLIP's layout. Its last layer is left out where the configuration has one less,
    as that of Stable Diffusion 2, which reads the layer before the last."""
    prefix = SD2.text if any(each.startswith(SD2.text) for each in source) else SECOND
    last = f"{prefix}transformer.resblocks.{config.num_hidden_layers}."
    kept = {each: value for each, value in source.items() if not each.startswith(last)}
    found = convert_open_clip_checkpoint(SimpleNamespace(config=config), kept, prefix)
    if prefix == SD2.text:
        found.pop("text_projection.weight", None)
    return found


_CONVERTERS: dict[str | tuple[str, str], Callable[[Tensors, Any], Tensors]] = {
    "unet": _unet,
    "vae": _vae,
    "text_encoder": _clip,
    ("text_encoder", "sd2"): _open_clip,
    "text_encoder_2": _open_clip,
}


def _check_finite(file: SingleFile, name: str, weights: Tensors) -> None:
    for each, value in weights.items():
        if value.numel() and not all(end.isfinite() for end in value.aminmax()):
            raise UserError(
                f"base model {shown(file.path)}: {each} of its {name} is not finite; the file is damaged"
            )


def _check_room(file: SingleFile, folder: Path) -> None:
    """Raises UserError where the disk has less room than the file takes."""
    needed, free = file.path.stat().st_size, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"converting {shown(file.path)} takes {needed / 1e9:.2g} GB in {shown(cache_folder())}, where "
            f"{free / 1e9:.2g} GB are free: make room, or name another folder by {VARIABLE}"
        )
