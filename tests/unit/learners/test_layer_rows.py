"""Rows of each layer: the base at the start, every layer its own, alone in being trained."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel, UNetMotionModel

from tests.tiny_models import tiny_pipeline
from tests.tiny_motion import tiny_adapter
from utils.bases import load_pipeline
from utils.bases.sd import StableDiffusion
from utils.common.errors import UserError
from utils.concepts.load import load_concept
from utils.concepts.save import save_concept
from utils.learners.layer_rows import (
    KOHYA,
    attach,
    cross_attention_layers,
    hook_copy,
    layer_keys,
    merge,
    pack,
)
from utils.sampling.images import sample

LAYERS = 4  # of the tiny UNet: one down, the middle, two up


@pytest.fixture
def base(tmp_path):
    base = StableDiffusion(tiny_pipeline(tmp_path / "words")).freeze()
    base.add_tokens(["<new1>", "<new2>"], ["dog", "cat"], "class")
    return base


def predict(base, prompts: list[str]) -> torch.Tensor:
    latents = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.full((len(prompts),), 500)
    return base.predict(latents, timesteps, base.encode(base.tokenize(prompts)))


PROMPTS = ["a photo of a <new1>", "a <new2> on the beach in front of a <new1>"]


def test_equal_rows_give_the_base_bit_for_bit(base):
    before = predict(base, PROMPTS)
    attach(base)
    assert torch.equal(predict(base, PROMPTS), before)


def test_each_row_is_read_by_its_own_layer_alone(base):
    rows = attach(base)["rows"]
    seen: dict[int, torch.Tensor] = {}
    for number, name in enumerate(cross_attention_layers(base.unet)):
        projection = base.unet.get_submodule(name).to_k
        projection.register_forward_pre_hook(lambda _, args, n=number: seen.__setitem__(n, args[0].detach()))
    predict(base, PROMPTS)
    before = dict(seen)
    with torch.no_grad():
        rows[2 * 2 + 1] += 1.0  # layer 2, token <new2>
    predict(base, PROMPTS)
    changed = [(n, k) for n in range(LAYERS) for k in range(2) if not torch.equal(seen[n][k], before[n][k])]
    assert changed == [(2, 1)]
    assert all(states.shape == (2, 24, 32) for states in seen.values())


def test_states_equal_encoding_the_caption_once_per_layer(base):
    reference = copy.deepcopy(base.text_encoder)
    rows = attach(base)["rows"]
    with torch.no_grad():
        rows += torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    ids = base.tokenize(PROMPTS)
    layers = base.encode(ids)[0].split(24, dim=1)
    for layer in range(LAYERS):
        reference.get_input_embeddings().learned.weight.data = rows.data[2 * layer : 2 * layer + 2]
        torch.testing.assert_close(layers[layer], reference(ids).last_hidden_state)
    eos = base.features(base.encode(ids), ids)
    assert [tuple(feature.shape) for feature in eos] == [(2, 32)] * LAYERS


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_reaches_every_row_and_nothing_else_moves(base, checkpointing):
    rows = attach(base)["rows"]
    if checkpointing:
        base.save_memory()
    modules = torch.nn.ModuleDict(base.trainable)
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    predict(base, PROMPTS).square().mean().backward()
    assert (rows.grad.norm(dim=1) > 0).all()
    assert [name for name, p in modules.named_parameters() if p.requires_grad] == [
        "text_encoder.layer_rows.rows"
    ]
    torch.optim.AdamW([rows], lr=1e-3).step()
    after = modules.state_dict()
    assert [n for n in before if not torch.equal(after[n], before[n])] == ["text_encoder.layer_rows.rows"]


def test_checkpointing_gives_the_same_gradient(base):
    other = copy.deepcopy(base)
    gradients = []
    for each, saving in ((base, False), (other, True)):
        rows = attach(each)["rows"]
        each.unet.train()
        if saving:
            each.save_memory()
        predict(each, PROMPTS).square().mean().backward()
        gradients.append(rows.grad)
    torch.testing.assert_close(*gradients)


def test_sd15_has_kohyas_16_layers_in_order_and_12288_numbers():
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    names = cross_attention_layers(unet)
    assert layer_keys(unet) == KOHYA and len(KOHYA) == 16
    assert names[0].startswith("down_blocks.0.attentions.0.") and names[6].startswith("mid_block.")
    assert names[7].startswith("up_blocks.1.attentions.0.") and names[-1].startswith(
        "up_blocks.3.attentions.2."
    )
    assert len(KOHYA) * unet.config.cross_attention_dim == 12_288


def saved(base, folder, seed: int = 3) -> None:
    parameters = attach(base)
    with torch.no_grad():
        parameters["rows"] += torch.randn(
            parameters["rows"].shape, generator=torch.Generator().manual_seed(seed)
        )
    first = dict(zip(["<new1>", "<new2>"], base.rows["rows"].detach(), strict=True))
    save_concept(folder, {}, first, parts={"layer_rows": pack(base, parameters)}, classes=["dog", "cat"])


def test_a_loaded_concept_predicts_and_samples_what_was_trained(base, tiny_base, tmp_path):
    pipeline = load_pipeline(tiny_base, "cpu", "fp32")
    fresh = copy.deepcopy(pipeline)
    trained = StableDiffusion(pipeline).freeze()
    trained.add_tokens(["<new1>", "<new2>"], ["dog", "cat"], "class")
    saved(trained, tmp_path / "concept")
    load_concept(fresh, tmp_path / "concept")
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "eta": 0.0}
    ours = [next(sample(each, PROMPTS[:1], [0], **settings)) for each in (pipeline, fresh)]
    assert ours[0].tobytes() == ours[1].tobytes()
    other = load_pipeline(tiny_base, "cpu", "fp32")
    states = other.text_encoder(other.tokenizer("a dog", return_tensors="pt").input_ids).last_hidden_state
    assert (
        states.shape[1] * LAYERS
        == fresh.text_encoder(
            fresh.tokenizer("a dog", return_tensors="pt").input_ids
        ).last_hidden_state.shape[1]
    )
    with pytest.raises(UserError, match="already"):
        load_concept(fresh, tmp_path / "concept")


def test_a_weight_cannot_scale_rows_of_layers(base, tiny_base, tmp_path):
    rows = pack(base, attach(base))
    token = dict.fromkeys(["<new1>", "<new2>"], torch.zeros(32))
    save_concept(tmp_path, {}, token, parts={"layer_rows": rows})
    pipeline = load_pipeline(tiny_base, "cpu")
    with pytest.raises(UserError, match="has token rows alone, which weight 0.5 cannot scale"):
        load_concept(pipeline, tmp_path, weight=0.5)
    assert "<new1>" not in pipeline.tokenizer.get_vocab()
    assert not hasattr(pipeline.text_encoder, "layer_rows")
    assert load_concept(pipeline, tmp_path).token_ids.keys() == token.keys()


def test_other_layers_and_widths_are_refused(base, tmp_path):
    parameters = attach(base)
    tensors = pack(base, parameters)
    name = next(iter(tensors))
    with pytest.raises(UserError, match="1 weights missing"):
        merge(base, {k: v for k, v in tensors.items() if k != name}, tmp_path)


def test_text_states_of_another_length_are_refused(base):
    attach(base)
    with pytest.raises(ValueError, match="4 layers need 4 x 24"):
        base.unet(torch.randn(1, 4, 8, 8), 5, torch.randn(1, 24, 32))


def test_a_motion_unet_is_hooked_again(base):
    attach(base)
    adapter = tiny_adapter(motion_max_seq_length=8, use_motion_mid_block=False)
    unet = UNetMotionModel.from_unet2d(base.unet, adapter)
    assert cross_attention_layers(unet) == cross_attention_layers(base.unet)
    hook_copy(base, unet)
    states = base.encode(base.tokenize(["a <new1>"]))[0]
    states = states.repeat_interleave(2, dim=0)  # a copy for each frame
    frames = unet(torch.randn(1, 4, 2, 8, 8), 5, states).sample
    assert frames.shape == (1, 4, 2, 8, 8)
