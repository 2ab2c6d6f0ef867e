"""NeTI's mappers: a row for every timestep and layer, a bypass for the values, alone in being trained."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNetMotionModel

from tests.tiny_models import tiny_pipeline
from tests.tiny_motion import tiny_adapter
from utils.bases import as_base, load_pipeline
from utils.bases.sd import StableDiffusion
from utils.common.errors import UserError
from utils.common.seeds import items_have_seeds
from utils.concepts.load import load_concept
from utils.concepts.save import save_concept
from utils.learners.layer_rows import cross_attention_layers
from utils.learners.mapper import MARK, attach, hook_copy, merge, pack, read_ids, spell
from utils.learners.mapper_network import HIDDEN, Mapper, Mappers, kept_in_training
from utils.sampling.images import sample

LAYERS, LENGTH, WIDTH = 4, 24, 32  # of the tiny base
PROMPTS = ["a photo of a <new1>", "a <new2> on the beach in front of a <new1>", "a photo of a dog"]


@pytest.fixture
def base(tmp_path):
    base = StableDiffusion(tiny_pipeline(tmp_path / "words")).freeze()
    base.add_tokens(["<new1>", "<new2>"], ["dog", "cat"], "class")
    return base


def predict(base, prompts: list[str], timestep: int = 500) -> torch.Tensor:
    latents = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.full((len(prompts),), timestep)
    with items_have_seeds(range(len(prompts))):
        return base.predict(latents, timesteps, base.encode(base.tokenize(prompts)))


def test_numbers_are_those_of_the_published_mapper():
    mapper = Mapper(16, 768)
    assert sum(parameter.numel() for parameter in mapper.parameters()) == 563_616


def test_row_and_bypass_together_have_the_class_words_length():
    mappers = Mappers(torch.tensor([[3.0, 4.0] * 16]), [7], LAYERS)  # of length 20
    rows, bypasses = mappers.vectors(torch.tensor([5, 600]), torch.full((2, LAYERS), HIDDEN))
    assert rows.shape == bypasses.shape == (1, 2 * LAYERS, WIDTH)
    together = torch.cat([rows / 20, bypasses], dim=-1).norm(dim=-1)
    torch.testing.assert_close(together, torch.ones(1, 2 * LAYERS))
    assert (rows.norm(dim=-1) < 19).all()


def test_an_anchor_answers_most_to_its_own_timestep_and_layer():
    mapper = Mapper(LAYERS, WIDTH)
    encoded = mapper.encoded(torch.tensor([300]), torch.tensor([2]))
    torch.testing.assert_close(encoded.norm(), torch.tensor(1.0))
    answers = (encoded @ mapper.anchors.weight.T)[0]
    assert answers.argmax() == 3 * LAYERS + 2
    torch.testing.assert_close(answers[3 * LAYERS + 2], torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ids_survive_being_spelled_as_states(dtype):
    ids = torch.tensor([[0, 63, 64, 4095, 4096, 49_407, 49_408]])
    states = spell(ids, 8).to(dtype)
    assert torch.equal(read_ids(states), ids) and (states[..., 0] == MARK).all()


def test_a_prompt_without_a_token_stays_bit_for_bit(base):
    before = predict(base, PROMPTS[2:])
    attach(base)
    assert torch.equal(predict(base, PROMPTS[2:]), before)
    beside = predict(base, PROMPTS)  # in a batch with captions that wait
    torch.testing.assert_close(beside[2:], predict(base, [PROMPTS[2]] * 3)[2:])


def reference(base, frozen, prompt: str, timestep: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each layer's keys and values read, one by one, from the paper's text."""
    ids = base.tokenize([prompt])
    seen = []
    for layer in range(LAYERS):
        places = []
        for k, mapper in enumerate(base.text_encoder.mappers.each):
            where = torch.tensor([timestep]), torch.tensor([layer])
            row, bypass = mapper(*where, torch.tensor([HIDDEN]))
            start = base.rows["rows"][k]
            frozen.get_input_embeddings().learned.weight.data[k] = start.norm() * row[0]
            places.append((ids[0] == base.text_encoder.mappers.token_ids[k], bypass[0]))
        last = frozen(ids, output_hidden_states=True).hidden_states[-1][0]
        values = last.clone()
        for place, bypass in places:
            values[place] += 0.2 * last[place].norm(dim=-1, keepdim=True) * F.normalize(bypass, dim=0)
        norm = (
            frozen.text_model.final_layer_norm if hasattr(frozen, "text_model") else frozen.final_layer_norm
        )
        seen.append((norm(last), norm(values)))
    return seen


@torch.no_grad()
def test_keys_and_values_read_what_the_paper_says(base):
    frozen = copy.deepcopy(base.text_encoder)
    attach(base)
    read = {}
    for name in cross_attention_layers(base.unet):
        for part in ("to_k", "to_v"):
            projection = base.unet.get_submodule(f"{name}.{part}")
            projection.register_forward_hook(lambda m, args, out, key=(name, part): read.update({key: out}))
    predict(base, PROMPTS[:2], timestep=137)
    for b in range(2):
        layers = zip(cross_attention_layers(base.unet), reference(base, frozen, PROMPTS[b], 137), strict=True)
        for name, (keys, values) in layers:
            attention = base.unet.get_submodule(name)
            torch.testing.assert_close(read[name, "to_k"][b], keys @ attention.to_k.weight.T)
            torch.testing.assert_close(read[name, "to_v"][b], values @ attention.to_v.weight.T)
            assert not torch.allclose(keys, values)


def test_another_timestep_reads_another_row(base):
    attach(base)
    latents = torch.zeros(1, 4, 8, 8)
    states = base.encode(base.tokenize(PROMPTS[:1]))
    read = []
    projection = base.unet.get_submodule(cross_attention_layers(base.unet)[0]).to_k
    projection.register_forward_hook(lambda module, args, output: read.append(output.detach()))
    for timestep in (10, 10, 600):
        with torch.no_grad():
            base.predict(latents, torch.tensor([timestep]), states)
    assert torch.equal(read[0], read[1]) and not torch.allclose(read[0], read[2])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_reaches_every_parameter_and_nothing_else_moves(base, checkpointing):
    parameters = attach(base)
    if checkpointing:
        base.save_memory()
    modules = torch.nn.ModuleDict(base.trainable)
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    predict(base, PROMPTS).square().mean().backward()
    assert all(parameter.grad.any() for parameter in parameters.values())
    names = {name for name, parameter in modules.named_parameters() if parameter.requires_grad}
    assert names == {f"text_encoder.mappers.{name}" for name in parameters}
    torch.optim.AdamW(parameters.values(), lr=1e-3).step()
    after = modules.state_dict()
    assert {name for name in before if not torch.equal(after[name], before[name])} == names


def test_captions_without_a_token_give_a_gradient_of_zero(base):
    parameters = attach(base)
    expected = base.predict(torch.ones(1, 4, 8, 8), torch.tensor([5]), base.encode(base.tokenize([""])))
    assert expected.isfinite().all()
    expected.square().mean().backward()
    assert all(not parameter.grad.any() for parameter in parameters.values())


def test_nested_dropout_is_drawn_by_the_items_seed_alone(base):
    kept = kept_in_training(range(200), LAYERS)
    assert torch.equal(kept[7:9], kept_in_training([7, 8], LAYERS))  # whatever the batch
    assert 0.4 < (kept < HIDDEN).float().mean() < 0.6 and kept.min() < 10
    mapper = Mapper(LAYERS, WIDTH)
    with torch.no_grad():
        mapper.out.bias.zero_()
        _, bypass = mapper(torch.tensor([5, 5]), torch.tensor([0, 0]), torch.tensor([0, HIDDEN]))
    assert not bypass[0].any() and bypass[1].any()


def saved(base, folder) -> None:
    parameters = attach(base)
    with torch.no_grad():
        for number, parameter in enumerate(parameters.values()):
            rng = torch.Generator().manual_seed(number)
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    first = dict(zip(["<new1>", "<new2>"], base.rows["rows"].detach(), strict=True))
    save_concept(folder, {}, first, parts={"mapper": pack(base, parameters)}, classes=["dog", "cat"])


def test_a_loaded_concept_samples_what_was_trained(tiny_base, tmp_path):
    pipeline = load_pipeline(tiny_base, "cpu", "fp32")
    fresh, plain = copy.deepcopy(pipeline), copy.deepcopy(pipeline)
    trained = StableDiffusion(pipeline).freeze()
    trained.add_tokens(["<new1>", "<new2>"], ["dog", "cat"], "class")
    saved(trained, tmp_path / "concept")
    load_concept(fresh, tmp_path / "concept")
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "eta": 0.0}
    ours, theirs = (
        [image.tobytes() for image in sample(each, [PROMPTS[0], PROMPTS[2]], [0, 1], **settings)]
        for each in (pipeline, fresh)
    )
    base = [image.tobytes() for image in sample(plain, ["a photo of a dog"] * 2, [0, 1], **settings)]
    assert ours == theirs and ours[0] != base[0] and ours[1] == base[1]
    with pytest.raises(UserError, match="already"):
        load_concept(fresh, tmp_path / "concept")


def test_files_that_do_not_fit_are_refused(base, tiny_base, tmp_path):
    tensors, pipeline = pack(base, attach(base)), load_pipeline(tiny_base, "cpu", "fp32")
    for change, words in (
        ({"each.0.out.bias": None}, "1 weights missing"),
        ({"each.0.out.bias": torch.zeros(3)}, "each.0.out.bias has shape"),
        ({"each.1.out.bias": torch.full((2 * WIDTH,), torch.nan)}, "each.1.out.bias is not finite"),
        ({"lengths": torch.ones(3)}, "lengths has shape"),
    ):
        changed = {name: value for name, value in (tensors | change).items() if value is not None}
        with pytest.raises(UserError, match=words):
            merge(as_base(pipeline), changed, tmp_path)


def test_a_motion_unet_is_hooked_again(base):
    attach(base)
    adapter = tiny_adapter(motion_max_seq_length=8, use_motion_mid_block=False)
    unet = UNetMotionModel.from_unet2d(base.unet, adapter)
    hook_copy(base, unet)
    states = base.encode(base.tokenize(["a <new1>"]))[0].repeat_interleave(2, dim=0)  # one for each frame
    with torch.no_grad():
        frames = unet(torch.randn(1, 4, 2, 8, 8), 5, states).sample
    assert frames.shape == (1, 4, 2, 8, 8) and frames.isfinite().all()
