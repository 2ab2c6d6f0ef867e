"""Cross-attention of concepts and of their base: on images with known masks, noised, and while sampling.

For every prompt: each word's share of the words' attention, how much of it lies in its own object's mask, and
the symmetric KL of the concept's map, and of its class's, against the other words'. And how much the words
attend to each other in the text encoder.

s side of the maps.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils.analysis.attention import Recorder, inside, shares, symmetric_kl, word_maps, word_positions
from utils.analysis.scenes import SUBJECT, Scene, read_image, read_mask
from utils.analysis.text_attention import attention_paid, can_read, text_attention
from utils.analysis.tuned import Tuned
from utils.bases.attention import attention_sides
from utils.bases.base import BaseModel
from utils.bases.families import family_of
from utils.bases.registry import Sampling, as_dict
from utils.common.errors import UserError
from utils.common.images import to_pixels
from utils.measures.drift import noise_images, predict
from utils.sampling.images import sample
from utils.scores.similarity import LINKS

FILLERS = frozenset((*LINKS, "photo", "next", "front"))  # words that name no thing
Record = dict[str, Any]
Watched = dict[str, list[tuple[Record, dict[str, Tensor], Image.Image]]]  # "scenes", "samples"


def check_map_side(path: str, side: int) -> None:
    """Raises UserError where no layer of the base at `path` has maps of this side; loads no weights."""
    outline = family_of(path).outline(path)
    sides = attention_sides(outline.unet, outline.resolution // outline.latent_factor)
    if side not in sides:
        raise UserError(f"--map_side {side}: {path} has maps of side {', '.join(map(str, sides))}")


def prompt_of(prompt: str, tuned: Tuned | None, word: str) -> str:
    """The prompt about the concept, or with None about its class."""
    return prompt.replace(SUBJECT, tuned.subject if tuned else word)


def measure(
    maps: Tensor,
    tokenizer: Any,
    prompt: str,
    tuned: Tuned | None,
    word: str,
    masks: dict[str, Tensor],
    text: Tensor | None = None,
) -> tuple[Record, dict[str, Tensor]]:
    """What is read off the maps (L, s, s) of one prompt, and the words' maps.

    masks: word -> (s, s); SUBJECT's is that of the concept's token and of its class word. text: the text
    encoder's self-attention (L, L), None where there is none to read.
    """
    asked = prompt_of(prompt, tuned, word)
    places = word_positions(tokenizer, asked, [word])
    words, tokens = word_maps(maps, places), sum(map(len, places.values()))
    subject = [name for name in (tuned.token if tuned else None, word) if name in words]
    own = {name: masks[SUBJECT] for name in subject if SUBJECT in masks} | {
        name: mask for name, mask in masks.items() if name != SUBJECT
    }
    context = [name for name in words if name not in subject and name not in FILLERS]
    part = shares(words)
    record = {
        "prompt": asked,
        "token": tuned.token if tuned else None,
        "class": word if word in words else None,
        "share": part,
        "chance_share": {name: len(own_places) / tokens for name, own_places in places.items()},
        "inside": {name: inside(words[name], mask) for name, mask in own.items()},
        "area": {name: mask.mean().item() for name, mask in own.items()},
        "kl_to_context": {
            name: {other: symmetric_kl(words[name], words[other]) for other in context} for name in subject
        },
    }
    paid = ({}, {}) if text is None else attention_paid(text, places)
    return record | dict(zip(("text_attention", "chance_text_attention"), paid, strict=True)), words


def on_scene(
    base: BaseModel, scene: Scene, tuned: Tuned | None, word: str, seed: int, side: int | None = None
) -> tuple[Record, dict[str, Tensor], Image.Image]:
    """Maps of an image noised to several timesteps, one forward pass each, without guidance.

    side: only layers whose maps have it; None: all, brought to the latents' side.
    """
    image = read_image(scene.image, base.resolution)
    text = prompt_of(scene.prompt, tuned, word)
    whole = base.resolution // base.latent_factor
    noisy = noise_images(base, [to_pixels(image)], [text], seed)
    with Recorder(base.unet, side or whole, own_side=side is not None) as recorder:
        predict(base, noisy)
    masks = {name: read_mask(path, side or whole).to(base.device) for name, path in scene.masks.items()}
    between = text_attention(base, text) if can_read(base) else None
    record, words = measure(recorder.maps(), base.tokenizer, scene.prompt, tuned, word, masks, between)
    return {"image": scene.image.name} | record, words, image


def while_sampling(
    base: BaseModel,
    prompt: str,
    tuned: Tuned | None,
    word: str,
    seed: int,
    sampling: Sampling,
    side: int | None = None,
) -> tuple[Record, dict[str, Tensor], Image.Image]:
    """Maps of one image while it is drawn with the base's own settings."""
    text = prompt_of(prompt, tuned, word)
    guided = sampling.guidance_scale > 1
    whole = base.resolution // base.latent_factor
    with Recorder(base.unet, side or whole, guided, own_side=side is not None) as recorder:
        (image,) = sample(base.pipeline, [text], [seed], **as_dict(sampling))
    between = text_attention(base, text) if can_read(base) else None
    record, words = measure(recorder.maps(), base.tokenizer, prompt, tuned, word, {}, between)
    return {"seed": seed} | record, words, image


def watch(
    base: BaseModel,
    tuned: Tuned | None,
    word: str,
    scenes: Sequence[Scene],
    prompts: Sequence[tuple[str, int]],
    sampling: Sampling,
    seed: int,
    side: int | None = None,
) -> Watched:
    """All scenes, and all (prompt, seed) sampled, of one model."""
    bar = tqdm(total=len(scenes) + len(prompts), desc=tuned.name if tuned else "base", unit="image")
    watched: Watched = {"scenes": [], "samples": []}
    for number, scene in enumerate(scenes):
        watched["scenes"].append(on_scene(base, scene, tuned, word, seed + number, side))
        bar.update()
    for prompt, own_seed in prompts:
        watched["samples"].append(while_sampling(base, prompt, tuned, word, own_seed, sampling, side))
        bar.update()
    bar.close()
    return watched
