"""How well an image fits its prompt, by a BLIP (BLIP-T): BLIP-1 or BLIP-2, and which of them.

As published:

    score = BLIP2T("Salesforce/blip-itm-large-coco", "cuda").text_similarity(prompt, image)[0]

N pairs, B of them at a time, L tokens, V patches of an image, D width, Q query tokens, P projection width.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase

from utils.bases.devices import choose_device_dtype, without_progress_bars
from utils.bases.parts import check_finite
from utils.bases.pretrained import read_config, readable
from utils.bases.registry import BASES, BLIP_HEADS, portable
from utils.common.errors import UserError, short
from utils.scores.blip_families import FAMILIES, Blip1, Blip2
from utils.scores.encoders import batches, check_files

AnImage = TypeVar("AnImage")  # an Image, or the path of one


class BLIP2T:
    """Scores pairs of an image and a prompt. Scores of different models or heads are not comparable.

    model: a folder or a Hub id. The published evaluation's class of this name loads BLIP-1,
    Salesforce/blip-itm-large-coco, and uses ITC; the paper names BLIP-2, Salesforce/blip2-itm-vit-g.
    `name` says which model and head a score is of.
    head: "itc", the raw cosine, in [-1, 1]; of a BLIP-2, the largest over its query tokens. "itm", the match
    head's probability that they match, in [0, 1].
    device: default the fastest here; float32 on a CPU, half precision on a GPU.
    Raises UserError as `check_blip` and `choose_device_dtype` do before it loads, and for a model
    whose weights are incomplete.
    """

    def __init__(
        self,
        model: str | Path = BASES["toon"].judges["blip"],
        device: str | torch.device | None = None,
        head: str = "itc",
    ):
        family = check_blip(model, head)
        self.device, self.dtype = choose_device_dtype(device)
        self.model_id, self.head, self.family = portable(model), head, family.name
        self.name = f"{self.model_id} ({family.name} {head.upper()})"
        with without_progress_bars(), readable("BLIP model", model):
            weights, report = family.model_class.from_pretrained(
                model, dtype=self.dtype, output_loading_info=True
            )
        if report["missing_keys"]:
            raise UserError(
                f"BLIP model {model} lacks {len(report['missing_keys'])} tensors, e.g. "
                f"{sorted(report['missing_keys'])[0]}; its scores would be random: give a complete one"
            )
        check_finite(weights, f"BLIP model {model}")
        self.parts = family(weights.to(self.device).eval())
        with readable("BLIP model", model):
            self.processor = AutoProcessor.from_pretrained(model)
            self.text_limit = family.text_limit(weights.config)

    def text_similarity(
        self, prompt: str | Sequence[str], image: Image.Image | Sequence[Image.Image]
    ) -> Tensor:
        """(N,) float32 on the CPU, paired as `pair_up` does; [0] is one image's score, as published."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        images = [image] if isinstance(image, Image.Image) else list(image)
        return self.scores(*pair_up(prompts, images))

    @torch.no_grad()
    def scores(self, prompts: Sequence[str], images: Iterable[Image.Image], batch_size: int = 32) -> Tensor:
        """(N,) float32 on the CPU, of prompts[i] with the i-th image.

        A prompt that recurs is encoded once (ITC), an image that recurs within a batch once. An iterator of
        images is read batch by batch, so memory does not grow with N.
        Raises UserError for a prompt longer than the model reads; ValueError when the counts differ.
        """
        distinct = list(dict.fromkeys(prompts))
        index = {prompt: i for i, prompt in enumerate(distinct)}
        texts = self._text_features(distinct, batch_size) if self.head == "itc" else None
        if self.head == "itm" and distinct:  # too long a prompt is refused before the first batch
            _tokenize(self.processor.tokenizer, distinct, self.text_limit, self.model_id)
        scores = []
        for pairs in batches(zip(prompts, images, strict=True), batch_size):
            rows, patches = self._patches([image for _, image in pairs])
            if texts is not None:
                vectors = F.normalize(self.parts.image_features(patches).float(), dim=-1)[rows]  # (B, Q, P)
                words = texts[[index[prompt] for prompt, _ in pairs]]  # (B, P)
                scores.append(torch.einsum("bqp,bp->bq", vectors, words).amax(1).cpu())
            else:
                tokens = self._tokens([prompt for prompt, _ in pairs])
                logits = self.parts.match_logits(patches[rows], tokens).float()  # (B, 2)
                scores.append(logits.softmax(1)[:, 1].cpu())
        return torch.cat(scores) if scores else torch.empty(0)

    def _patches(self, images: list[Image.Image]) -> tuple[list[int], Tensor]:
        """(for each image its row, the vision tower's output of each distinct image (≤ B, V, D))."""
        distinct = {id(image): image for image in images}
        rows = {key: row for row, key in enumerate(distinct)}
        converted = [image.convert("RGB") for image in distinct.values()]
        pixels = self.processor.image_processor(converted, return_tensors="pt").pixel_values
        vision = self.parts.model.vision_model(pixel_values=pixels.to(self.device, self.dtype))
        return [rows[id(image)] for image in images], vision.last_hidden_state

    def _tokens(self, prompts: list[str]) -> BatchEncoding:
        return _tokenize(self.processor.tokenizer, prompts, self.text_limit, self.model_id).to(self.device)

    def _text_features(self, prompts: list[str], batch_size: int) -> Tensor:
        """(number of prompts, P) float32 unit vectors."""
        features = [
            self.parts.text_features(self._tokens(batch)).float() for batch in batches(prompts, batch_size)
        ]
        return F.normalize(torch.cat(features), dim=-1) if features else torch.empty(0)


def check_blip(model: str | Path, head: str) -> type[Blip1] | type[Blip2]:
    """The family of `model`; raises UserError unless it is a BLIP for retrieval, with processor, and `head`
    is one of BLIP_HEADS.

    Reads its config.json, which for a Hub id that is not cached is fetched: a few hundred bytes. A BLIP for
    captions has the same model_type, but no heads to score with: its architecture says so.
    """
    if head not in BLIP_HEADS:
        raise UserError(f"unknown head {short(head)!r}; choose one of {', '.join(BLIP_HEADS)}")
    config = read_config(model, "BLIP model")
    architectures = config.get("architectures") or [f"model of type {config.get('model_type')}"]
    name = architectures[0] if isinstance(architectures, list) else architectures
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"BLIP model {model} is a {short(name)}; give a {' or '.join(FAMILIES)}")
    check_files(model, "image processor", "preprocessor_config.json", "processor_config.json")
    check_files(model, "tokenizer", "tokenizer.json", "vocab.txt")
    return FAMILIES[name]


def check_prompts(model: str | Path, prompts: Sequence[str]) -> None:
    """Raises UserError for a blank prompt and for one longer than `model` reads; loads its tokenizer only."""
    for prompt in prompts:
        if not prompt.strip():
            raise UserError("a prompt is empty; say what the image should show")
    with readable("BLIP model", model):
        limit = check_blip(model, BLIP_HEADS[0]).text_limit(AutoConfig.from_pretrained(model))
        _tokenize(AutoTokenizer.from_pretrained(model), list(prompts), limit, str(model))


def pair_up(prompts: Sequence[str], images: Sequence[AnImage]) -> tuple[list[str], list[AnImage]]:
    """N prompts and N images: the i-th with the i-th; or one of either with all of the other.

    Raises UserError for other counts.
    """
    n = max(len(prompts), len(images))
    if min(len(prompts), len(images)) == 0 or {len(prompts), len(images)} - {1, n}:
        raise UserError(
            f"{len(prompts)} prompts and {len(images)} images do not pair up; "
            "give one prompt, one image, or as many of one as of the other"
        )
    return list(prompts) * (n // len(prompts)), list(images) * (n // len(images))


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], limit: int, model_id: str
) -> BatchEncoding:
    """input_ids and attention_mask (B, L), padded to the longest. Nothing is cut: words that are not read
    would be scored as if they had been obeyed."""
    tokens = tokenizer(prompts, padding=True, return_token_type_ids=False, return_tensors="pt")
    for prompt, length in zip(prompts, tokens.attention_mask.sum(1).tolist(), strict=True):
        if length > limit:
            raise UserError(
                f"prompt '{short(prompt)}' has {length} tokens; {model_id} reads {limit}: shorten it"
            )
    return tokens
