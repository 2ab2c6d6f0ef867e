"""A vision-language model on this machine, of any kind that transformers loads as image-text-to-text."""

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from utils.bases.devices import choose_device_dtype
from utils.bases.pretrained import read_config, readable
from utils.common.errors import UserError
from utils.scores.encoders import check_files, load_judge
from utils.scores.endpoint import TEMPERATURE, TOKENS


class LocalModel:
    """model: a folder or a Hub id, with a processor that has a chat template. Raises UserError as
    `check_local` does, and for a processor without one."""

    parallel = 1

    def __init__(self, model: str, device: str | torch.device | None = None):
        check_local(model)
        self.device, dtype = choose_device_dtype(device)
        if self.device.type == "cuda" and torch.cuda.is_bf16_supported():
            dtype = torch.bfloat16  # what these models are published in; some overflow in float16
        self.name = self.notice = model
        with readable("vision-language model", model):
            self.processor = AutoProcessor.from_pretrained(model, backend="pil")
        if not getattr(self.processor, "chat_template", None):
            raise UserError(
                f"--vlm {model} has no chat template: give a model that was trained to follow one"
            )
        self.model = load_judge(AutoModelForImageTextToText, model, dtype=dtype).to(self.device).eval()

    def stop(self) -> None:
        """Nothing waits here."""

    @torch.no_grad()
    def answer(self, parts: Sequence[str | Image.Image], seed: int) -> str:
        """Sampled at TEMPERATURE; the same parts and seed give the same answer."""
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.device, dtype=self.model.dtype)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            ids = self.model.generate(
                **inputs, do_sample=True, temperature=TEMPERATURE, max_new_tokens=TOKENS
            )
        return self.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def check_local(model: str) -> None:
    """Raises UserError unless `model` is image-text-to-text and has a processor; reads small files only."""
    kind = read_config(model, "vision-language model").get("model_type")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(
            f"--vlm {model} is a {kind}; give a model that transformers loads as image-text-to-text, or "
            "<base URL>#<model>"
        )
    check_files(model, "processor", "processor_config.json", "preprocessor_config.json")
