"""The images of a run as its flags ask for them: opened, checked before any model loads, described."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from utils.bases.base import BaseModel
from utils.bases.registry import base_row, recorded_name
from utils.common.errors import UserError, short
from utils.common.files import shown
from utils.common.images import check_images, image_size, is_animated, is_image, list_images, open_image
from utils.concepts.names import check_apart
from utils.config.concepts import Concept
from utils.config.train_config import TrainConfig
from utils.data.augmentation import LONGEST_PREFIX, sides
from utils.data.buckets import LOSS, cut_share, make_buckets
from utils.data.captions import captions_of
from utils.data.class_images import drawn_by_others
from utils.data.dataset import ClassDataset, ImageOptions, InstanceDataset
from utils.data.image_captions import class_captions, read_captions
from utils.data.masks import mask_file, unmasked
from utils.data.world import strangers

OBLONG = 0.05  # an image of which a centred square has less than 95 % is called not square


def open_instances(config: TrainConfig, base: BaseModel, digests: Mapping[Path, str] = {}) -> InstanceDataset:
    """The concepts' images. base: opened, or its outline. digests: of their files (`sources_of`).

    Raises UserError for a caption that does not name its concept, and a resolution too small for buckets.
    """
    size = config.resolution or base.resolution
    steps = (base.coarsest_factor, base.latent_factor)
    options = ImageOptions(
        config.masked_loss,
        tuple(make_buckets(size, *steps)) if config.buckets else (),
        config.caption_dropout,
        config.shuffle_captions,
        config.latent_pool,
    )
    view = (size, base.latent_factor, config.seed, config.hflip, config.noaug)
    return InstanceDataset(config.concepts(), config.recipe, *view, options, digests)


def open_classes(config: TrainConfig, base: BaseModel) -> ClassDataset | None:
    """The class images, all of them drawn by now; None without prior preservation."""
    if not config.uses_prior:
        return None
    size = config.resolution or base.resolution
    return ClassDataset(config.concepts(), size, base.latent_factor, config.seed, config.num_class_images)


def check_data(config: TrainConfig, base: BaseModel) -> None:
    """Raise UserError for what is wrong with captions and masks, or flags of theirs without an effect.

    base: an outline whose tokenizer has the tokens.
    """
    instances = open_instances(config, base)
    prefix = LONGEST_PREFIX if config.recipe.view == "scaled" and not config.noaug else ""
    tokens = [concept.modifier_token for concept in config.concepts()]
    check_apart(tokens, instances.captions.values())
    for concept, path in instances.images:
        if path in instances.captions:
            base.within_limit(prefix + instances.captions[path], [concept.modifier_token])
    images = [path for _, path in instances.images]
    if config.masked_loss and len(unmasked(images)) == len(images):
        raise UserError(
            f"--masked_loss has no effect: no image has a mask; give {mask_file(images[0]).name} next to "
            f"{images[0].name}, or an alpha channel, or leave it out"
        )
    if config.shuffle_captions and not any("," in caption for caption in _captions(config, instances)):
        raise UserError("--shuffle_captions has no effect: no caption has a comma; leave it out")
    for concept in config.concepts():
        if concept.class_data_dir is not None and concept.class_data_dir.is_dir():
            class_captions(concept.class_data_dir, _images_in(concept.class_data_dir), tokens)


def _captions(config: TrainConfig, instances: InstanceDataset) -> Iterator[str]:
    """Every caption that an image may have."""
    for concept, path in instances.images:
        own = instances.captions.get(path)
        yield from captions_of(config.recipe, concept) if own is None else (own,)


def _images_in(folder: Path) -> list[Path]:
    """The images of a folder that may hold none yet."""
    return [path for path in sorted(folder.iterdir()) if is_image(path)]


def data_files(config: TrainConfig) -> list[Path]:
    """What a run learns from: the images, then the captions' files, those of class images too, and masks."""
    images, notes = [], []
    for concept in config.concepts():
        own = list_images(concept.instance_data_dir)[0]
        images += own
        folders = [(concept.instance_data_dir, own)]
        if concept.class_data_dir is not None and concept.class_data_dir.is_dir():
            folders.append((concept.class_data_dir, _images_in(concept.class_data_dir)))
        for folder, paths in folders:
            notes += sorted({file for _, file in read_captions(folder, paths).values()})
        if config.masked_loss:
            notes += [mask_file(path) for path in own if mask_file(path).is_file()]
    return images + notes


def check_instance_images(concept: Concept) -> None:
    """Raise UserError for an image that cannot be read."""
    check_images(list_images(concept.instance_data_dir)[0])


def describe_data(
    config: TrainConfig, instances: InstanceDataset, classes: ClassDataset | None
) -> Iterator[str]:
    """A line each on captions, class images of another base, masks and buckets, where a run has them."""
    images = [path for _, path in instances.images]
    row = base_row(config.pretrained_model_name_or_path)
    words = [word for word in config.cls_tokens if word]
    if row.world is not None and (line := strangers(row, words, [open_image(path) for path in images])):
        yield line
    if animated := [path for path in images if is_animated(path)]:
        yield f"{_names(animated)}: animated, or of several pages; the first one alone is used"
    if instances.captions:
        yield _own_captions(images, instances.captions, "the prompt")
    if classes is not None:
        paths = [path for _, path in classes.images]
        if classes.captions:
            yield "class " + _own_captions(paths, classes.captions, "the class prompt")
        base = recorded_name(row)
        for other, count in sorted(drawn_by_others(paths, base).items()):
            yield f"class images: {count} of {len(paths)} are by {short(other)}, not by {base}"
    if instances.options.masked:
        whole = unmasked(images)
        line = f"masks: in {len(images) - len(whole)} of {len(images)} images the subject alone counts"
        yield line + (f"; {_names(whole)} without a mask: the whole image" if whole else "")
    elif unused := [path for path in images if mask_file(path).is_file()]:
        yield f"masks of {len(unused)} images are not used: --masked_loss uses them"
    if instances.options.buckets:
        counts = Counter(map(sides, instances.sizes))
        yield "buckets: " + ", ".join(f"{w} x {h} ({count})" for (w, h), count in sorted(counts.items()))
        for path, size in zip(images, instances.sizes, strict=True):
            if (share := cut_share(image_size(path), sides(size))) > LOSS:
                yield f"{shown(path)} is long: {share:.0%} of it is cut off"
    else:
        yield from _not_square(config, images)


def _not_square(config: TrainConfig, images: list[Path]) -> Iterator[str]:
    """A line on the images whose shape the method's view changes by more than OBLONG, and on --buckets."""
    sizes = [image_size(path) for path in images]
    if oblong := [(w, h) for w, h in sizes if cut_share((w, h), (1, 1)) > OBLONG]:
        width, height = max(oblong, key=lambda size: cut_share(size, (1, 1)))
        if config.recipe.view == "crop":
            done = f"a random square of each is used, up to {cut_share((width, height), (1, 1)):.0%} cut off"
        else:
            done = f"each is squashed to a square, up to {max(width / height, height / width):.2g} : 1"
        yield (
            f"{len(oblong)} of {len(images)} images are not square (one is {width} x {height}): {done}; "
            "--buckets keeps their proportions"
        )


def _own_captions(images: list[Path], captions: dict[Path, str], otherwise: str) -> str:
    without = [path for path in images if path not in captions]
    line = f"captions: {len(images) - len(without)} of {len(images)} images have their own"
    return line + (f"; {_names(without)} take {otherwise}" if without else "")


def _names(paths: list[Path]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(path.name for path in paths[:5]) + more
