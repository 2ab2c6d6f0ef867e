"""One training step against numbers recorded from the official code (provenance: golden/README.md, .json).

Noise, timesteps, weights and ids are inputs, so only the arithmetic is compared.
"""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from utils.bases.text import feature_at
from utils.learners.cross_attention_kv import trainable_kv
from utils.learners.token_rows import ModifierTokens
from utils.losses.denoise import loss_denoise, target_of
from utils.losses.spl import loss_spl

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "official_step.json").read_text())
TENSORS = load_file(GOLDEN / "official_step.safetensors")
MODIFIER, EOS = RECORD["ids"]["modifier"], RECORD["ids"]["eos"]
AFTER_ADAMW_OF = "step_eos"  # the step whose weights after the update were recorded


def recorded_name(name: str) -> str:
    """…attn2.to_k.weight -> …attn2.processor.to_k_custom_diffusion.weight, the processor's key."""
    return name.replace("attn2.to_", "attn2.processor.to_").replace(".weight", "_custom_diffusion.weight")


def assert_recorded(actual: Tensor, name: str) -> None:
    torch.testing.assert_close(actual.detach(), TENSORS[name], rtol=1e-5, atol=1e-5)
    # An absolute bound says nothing about a small gradient: bound the error by the tensor's own size too.
    assert (actual - TENSORS[name]).norm() <= 1e-5 * TENSORS[name].norm(), name


class OfficialStep:
    """The recorded models with our trained parts in place."""

    def __init__(self) -> None:
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**RECORD["text_config"])).eval()
        self.text_encoder.load_state_dict(self.weights("text_encoder."))
        self.unet = UNet2DConditionModel(**RECORD["unet_config"]).eval()
        self.unet.load_state_dict(self.weights("unet."))
        self.noise_scheduler = DDPMScheduler(**RECORD["scheduler"])
        self.text_encoder.requires_grad_(False)
        self.tokens = ModifierTokens(self.text_encoder.get_input_embeddings(), TENSORS["row"][None])
        self.text_encoder.set_input_embeddings(self.tokens)
        self.kv = trainable_kv(self.unet)

    @staticmethod
    def weights(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): w for name, w in TENSORS.items() if name.startswith(prefix)}

    @contextmanager
    def without_position(self):
        """The official SPL class writes the bare row over the sum of token and position embedding."""

        def bare_row(embeddings, args, kwargs, output):
            is_modifier = (kwargs["input_ids"] == MODIFIER)[..., None]
            return torch.where(is_modifier, self.tokens.rows[0], output)

        hook = self.text_encoder.embeddings.register_forward_hook(bare_row, with_kwargs=True)
        yield
        hook.remove()

    def pooled(self, input_ids: Tensor, token_id: int) -> Tensor:
        return feature_at(self.text_encoder(input_ids).last_hidden_state, input_ids, token_id)

    def loss_spl(self, reading: str, ids: str = "spl_modifier_ids") -> Tensor:
        class_features = self.pooled(TENSORS["spl_class_ids"], EOS)
        if reading == "spl_official":
            with self.without_position():
                return loss_spl(self.pooled(TENSORS[ids], MODIFIER), class_features)
        return loss_spl(self.pooled(TENSORS[ids], EOS if reading == "spl_eos" else MODIFIER), class_features)

    def predict_noise(self) -> Tensor:
        noisy_latents = self.noise_scheduler.add_noise(
            *(TENSORS[n] for n in ("latents", "noise", "timesteps"))
        )
        encoder_hidden_states = self.text_encoder(TENSORS["input_ids"]).last_hidden_state
        return self.unet(noisy_latents, TENSORS["timesteps"], encoder_hidden_states).sample


@pytest.fixture
def step() -> OfficialStep:
    return OfficialStep()


@pytest.mark.parametrize("reading", ["spl_official", "spl_modifier", "spl_eos"])
def test_spl_value_and_gradient(step, reading):
    loss = step.loss_spl(reading)
    loss.backward()
    assert loss.item() == pytest.approx(RECORD["values"][reading], rel=1e-5)
    assert_recorded(step.tokens.rows.grad[0], f"grad_row.{reading}")


@pytest.mark.parametrize("reading", ["spl_official", "spl_eos"])
def test_spl_value_and_gradient_with_another_class_word(step, reading):
    loss = step.loss_spl(reading, "spl_modifier_ids_other")
    loss.backward()
    assert loss.item() == pytest.approx(RECORD["values"][f"{reading}_other_class_word"], rel=1e-5)
    assert_recorded(step.tokens.rows.grad[0], f"grad_row.{reading}_other_class_word")


@pytest.mark.parametrize(("name", "reading"), [("step_official", "spl_official"), ("step_eos", "spl_eos")])
def test_the_whole_step(step, name, reading):
    recorded, adamw = RECORD["values"][name], RECORD["adamw"]
    noise_pred = step.predict_noise()
    target = target_of(step.noise_scheduler, TENSORS["latents"], TENSORS["noise"], TENSORS["timesteps"])
    denoise, spl = loss_denoise(noise_pred, target, TENSORS["mask"]), step.loss_spl(reading)
    assert denoise.item() == pytest.approx(recorded["loss_denoise"], rel=1e-5)
    assert spl.item() == pytest.approx(recorded["loss_spl"], rel=1e-5)
    assert_recorded(noise_pred, f"{name}.noise_pred")

    (denoise + spl).backward()
    assert_recorded(step.tokens.rows.grad[0], f"{name}.grad_row")
    for parameter_name, weight in step.kv.items():
        assert_recorded(weight.grad, f"{name}.grad.{recorded_name(parameter_name)}")

    trained = [step.tokens.rows, *step.kv.values()]
    norm = torch.nn.utils.clip_grad_norm_(trained, adamw["max_grad_norm"])
    assert norm.item() == pytest.approx(recorded["grad_norm_before_clip"], rel=1e-5)
    if name == AFTER_ADAMW_OF:
        torch.optim.AdamW(trained, adamw["lr"], adamw["betas"], adamw["eps"], adamw["weight_decay"]).step()
        assert_recorded(step.tokens.rows[0], "after_adamw.row")
        for parameter_name, weight in step.kv.items():
            assert_recorded(weight, f"after_adamw.{recorded_name(parameter_name)}")
