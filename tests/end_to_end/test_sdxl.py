"""Stable Diffusion XL: trained, resumed, loaded, drawn, exported, merged; against diffusers' own pieces."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

import inference
import train_classdiffusion
from scripts import export, merge_concepts
from tests.end_to_end.training import learned, records
from tests.tiny_models import tiny_sdxl
from utils.bases import as_base, load_pipeline, open_base
from utils.common.errors import UserError
from utils.common.images import open_image, to_pixels
from utils.concepts.load import load_concept
from utils.concepts.save import save_concept
from utils.sampling.images import sample

PROMPT = "a photo of a <new1> dog on the beach"
TERMS = ["loss_spl_te1", "loss_spl_te2", "loss_spl_pooled"]


@pytest.fixture(scope="session")
def xl(tmp_path_factory) -> Path:
    """The folder of a saved tiny SDXL for 16 px images."""
    folder = tmp_path_factory.mktemp("xl")
    tiny_sdxl(folder / "words").save_pretrained(folder / "sdxl")
    return folder / "sdxl"


def random_kv(base: Path, seed: int = 1) -> dict[str, torch.Tensor]:
    """The base's K/V moved by noise."""
    torch.manual_seed(seed)
    projections = open_base(base, "cpu", "fp32").kv_projections().items()
    return {f"{n}.weight": p.weight.detach() + 0.1 * torch.randn_like(p.weight) for n, p in projections}


@pytest.fixture(scope="session")
def concept(tmp_path_factory, xl) -> Path:
    """A concept without a training: K/V moved by noise, and rows of both text encoders."""
    folder, kv = tmp_path_factory.mktemp("concept") / "dog", random_kv(xl)
    rows = {"<new1>": 0.5 * torch.randn(32 + 24)}
    save_concept(folder, kv, rows, base=str(xl), classes=["dog"], widths=[32, 24])
    return folder


def stock(folder: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: StableDiffusionXLPipeline, prompt: str = PROMPT, seed: int = 0) -> torch.Tensor:
    """(H, W, 3) in 0 … 255, by a stock pipeline with the scheduler that `sample` takes."""
    image = pipeline(
        prompt,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images[0]
    return 255 * image


def test_the_loss_has_three_terms_that_are_logged(xl, train, tmp_path):
    out = train(tmp_path / "out", pretrained_model_name_or_path=xl, learning_rate=1e-2)
    first, second = records(out)
    for line in (first, second):
        assert line["loss_spl"] == pytest.approx(sum(line[term] for term in TERMS) / 3, rel=1e-5)
        assert line["loss"] == pytest.approx(line["loss_denoise"] + line["loss_spl"], rel=1e-5)
        assert all(line[term] > 0 for term in TERMS)
    assert learned(out)["<new1>"].shape == (32 + 24,)
    assert json.loads((out / "concept.json").read_text())["row_widths"] == [32, 24]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({"method": "kv_only"}, marks=pytest.mark.slow),
        pytest.param({"method": "custom_diffusion", "num_class_images": 2}, marks=pytest.mark.slow),
        {"method": "textual_inversion", "instance_prompt": None},
        {"method": "dreambooth", "initializer_token": "ktn", "num_class_images": 2},
        pytest.param({"method": "two_stage", "initializer_token": "ktn"}, marks=pytest.mark.slow),
        pytest.param(
            {"method": "svdiff", "initializer_token": "ktn", "num_class_images": 2}, marks=pytest.mark.slow
        ),
        {"method": "classdiffusion", "dop_weight": 1.0, "l2_weight": 0.1, "low_memory": True},
    ],
    ids=lambda flags: flags["method"],  # slow: what the others run on SDXL, and SD's tests of the method
)
def test_every_method_trains_resumes_and_loads(xl, train, tmp_path, flags, monkeypatch):
    if "num_class_images" in flags:
        monkeypatch.setattr("utils.sampling.images.sample", lambda *a, **k: sample(*a[:3], 2))
        flags = flags | {"class_data_dir": tmp_path / "class", "class_prompt": "dog"}
    flags = flags | {"pretrained_model_name_or_path": xl, "learning_rate": 1e-2}
    whole = train(tmp_path / "whole", **flags, checkpointing_steps=1)
    cut = train(
        tmp_path / "cut", **flags, checkpointing_steps=2, resume_from_checkpoint=whole / "checkpoint-1"
    )
    for name, value in learned(whole).items():
        assert torch.equal(value, learned(cut)[name]), name
    assert load_concept(load_pipeline(xl, "cpu"), whole).token_ids.keys() == {"<new1>"}


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ({"method": "xti", "instance_prompt": None}, "--method xti trains layer_rows, which"),
        ({"method": "neti", "instance_prompt": None}, "--method neti trains mapper, which"),
        ({"trains": "token_rows+text_encoder"}, "--method classdiffusion trains text_encoder, which"),
        ({"mlm_weight": 1e-4}, "--mlm_weight"),
    ],
)
def test_what_reads_one_text_encoder_is_refused(xl, train, tmp_path, flags, what):
    with pytest.raises(UserError, match=f"{what} needs one text encoder, and a Stable Diffusion XL has 2"):
        train(tmp_path / "out", pretrained_model_name_or_path=xl, **flags)
    assert not (tmp_path / "out" / "concept.json").exists()


def test_one_step_against_diffusers_own_pieces(xl, train, tmp_path, pictures, monkeypatch):
    """Noise, time ids, both text encoders, EOS pooling and the loss, written from stock parts."""
    seen = {}
    objective = train_classdiffusion.objective

    def watched(run, at, batch, draws, texts):
        seen.update(batch=batch, draws=draws, terms=objective(run, at, batch, draws, texts))
        return seen["terms"]

    monkeypatch.setattr(train_classdiffusion, "objective", watched)
    train(tmp_path / "out", pretrained_model_name_or_path=xl, max_train_steps=1)
    batch, draws, pipeline = seen["batch"], seen["draws"], stock(xl)
    eos = pipeline.tokenizer.eos_token_id
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        (ktn,) = tokenizer("ktn", add_special_tokens=False).input_ids
        tokenizer.add_tokens(["<new1>"])
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings().weight.data
        table[-1] = table[ktn]

    def encode(prompts):
        states, at_eos = [], []
        for tokenizer, encoder in (
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        ):
            given = {"padding": "max_length", "max_length": 24, "return_tensors": "pt"}
            ids = tokenizer(prompts, **given).input_ids
            output = encoder(ids, output_hidden_states=True)
            states.append(output.hidden_states[-2])
            place = (ids == eos).int().argmax(dim=1)
            at_eos.append(states[-1][torch.arange(len(ids)), place])
        last = pipeline.text_encoder_2(ids).last_hidden_state[torch.arange(len(ids)), place]
        pooled = pipeline.text_encoder_2.text_projection(last)
        return torch.cat(states, dim=-1), pooled, [*at_eos, pooled]

    with torch.no_grad():
        posterior = pipeline.vae.encode(batch.pixels).latent_dist
        latents = (posterior.mean + posterior.std * draws.posterior_noise) * 0.13025
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        noisy = scheduler.add_noise(latents, draws.noise, draws.timesteps)
        context, pooled, _ = encode(batch.captions)
        added = {"text_embeds": pooled, "time_ids": batch.sizes.float()}
        prediction = pipeline.unet(noisy, draws.timesteps, context, added_cond_kwargs=added).sample
        error = ((prediction - draws.noise) ** 2 * batch.mask).sum(dim=(1, 2, 3))
        denoise = (error / batch.mask.sum(dim=(1, 2, 3))).mean()
        pairs = zip(encode(["a photo of a <new1> dog"])[2], encode(["a photo of a dog"])[2], strict=True)
        distances = [1 - F.cosine_similarity(a.double(), b.double()).mean() for a, b in pairs]
    terms = seen["terms"]
    assert terms["loss_denoise"].item() == pytest.approx(denoise.item(), abs=1e-6)
    for term, distance in zip(TERMS, distances, strict=True):
        assert terms[term].item() == pytest.approx(distance.item(), abs=1e-6)


def test_samples_equal_the_stock_pipeline_with_the_merged_weights(xl, concept, tmp_path):
    """Through our code, and through stock diffusers from the exported folder; the token is before the end."""
    ours = load_pipeline(xl, "cpu", "fp32")
    load_concept(ours, concept)
    export.main([str(concept), str(tmp_path / "whole"), "--format=diffusers"])
    exported = stock(tmp_path / "whole")
    inputs = as_base(ours).prompt_inputs([PROMPT])
    embeds, _, pooled, _ = exported.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    torch.testing.assert_close(inputs["prompt_embeds"], embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs["pooled_prompt_embeds"], pooled, atol=1e-5, rtol=0)
    eos = exported.tokenizer.eos_token_id
    for name in ("text_encoder", "text_encoder_2"):
        config = json.loads((tmp_path / "whole" / name / "config.json").read_text())
        assert config["eos_token_id"] == eos
    image = next(sample(ours, [PROMPT], [0], num_inference_steps=4, guidance_scale=5.0, eta=0.0))
    ours_shown = (to_pixels(image).permute(1, 2, 0) + 1) * 127.5
    other = drawn(exported)
    assert (ours_shown - other.permute(1, 2, 0)).abs().max() <= 1.0  # rounding to 8 bits


def test_pooling_at_the_token_would_differ(xl, concept):
    """The trap: published configurations say eos_token_id 2, at which transformers pools at <new1>."""
    ours = load_pipeline(xl, "cpu", "fp32")
    load_concept(ours, concept)
    right = as_base(ours).prompt_inputs([PROMPT])["pooled_prompt_embeds"]
    for module in ours.text_encoder_2.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2
    wrong = as_base_without_repair(ours)
    assert (right - wrong).abs().max() > 1e-2


def as_base_without_repair(pipeline) -> torch.Tensor:
    """The pooled embedding that the stock pipeline makes with the published configuration."""
    return pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)[2]


def test_lora_and_embeddings_in_stock_diffusers(xl, concept, tmp_path):
    pytest.importorskip("peft")
    out = tmp_path / "lora"
    flags = ["--format=lora", "--error=0", "--dtype=fp32", "--alias=dog1"]
    export.main([str(concept), str(out), *flags])
    keys = sorted(load_file(out / "dog_lora.safetensors"))
    block = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_k"
    assert f"{block}.lora_down.weight" in keys and all(key.startswith("lora_unet_") for key in keys)
    halves = load_file(out / "dog1.safetensors")
    assert {key: tuple(value.shape) for key, value in halves.items()} == {
        "clip_l": (1, 32),
        "clip_g": (1, 24),
    }

    pipeline, merged = stock(xl), load_pipeline(xl, "cpu", "fp32")
    for name, number in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            halves[name],
            token="<new1>",
            text_encoder=getattr(pipeline, f"text_encoder{number}"),
            tokenizer=getattr(pipeline, f"tokenizer{number}"),
        )
        encoder = getattr(pipeline, f"text_encoder{number}")
        for module in encoder.modules():  # what an exported folder's configuration says
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = pipeline.tokenizer.eos_token_id
    pipeline.load_lora_weights(str(out), weight_name="dog_lora.safetensors")
    load_concept(merged, concept)
    assert (drawn(pipeline) - drawn(merged)).abs().max() < 2
    assert (drawn(stock(xl), "a photo of a dog") - drawn(merged)).abs().max() > 2

    back = load_pipeline(xl, "cpu", "fp32")
    load_concept(back, out)  # the LoRA and the embeddings beside it
    assert (drawn(back, "a photo of a <dog1> dog on the beach") - drawn(merged)).abs().max() < 2


def test_a_merge_keeps_both_concepts(xl, concept, tmp_path, capsys):
    second, kv = tmp_path / "cat", random_kv(xl, seed=2)
    save_concept(second, kv, {"<new2>": torch.randn(56)}, base=str(xl), classes=["cat"], widths=[32, 24])
    merge_concepts.main([str(concept), str(second), f"--output={tmp_path / 'both'}"])
    loaded = load_concept(load_pipeline(xl, "cpu", "fp32"), tmp_path / "both")
    assert list(loaded.token_ids) == ["<new1>", "<new2>"] and loaded.classes == ("dog", "cat")


def test_inference_draws_what_the_library_draws(xl, concept, tmp_path):
    flags = ["--num_images=1", "--num_inference_steps=2", f"--prompt={PROMPT}", "--eta=0"]
    inference.main([*flags, f"--concept={concept}", f"--output_dir={tmp_path / 'drawn'}"])
    (image,) = [path for path in (tmp_path / "drawn").glob("*.png") if path.name != "grid.png"]
    ours = load_pipeline(xl, "cpu", "fp32")
    load_concept(ours, concept)
    expected = next(sample(ours, [PROMPT], [0], 2, 5.0, 0.0))
    assert open_image(image).tobytes() == expected.tobytes()


@pytest.fixture(scope="session")
def mistakes(tmp_path_factory, xl, tiny_base, concept) -> dict[str, tuple[Path, Path]]:
    """What does not go together -> (concept, base)."""
    folder = tmp_path_factory.mktemp("mistakes")
    weights = random_kv(tiny_base)
    save_concept(folder / "sd", weights, {"<new1>": torch.ones(32)}, base=str(tiny_base), classes=["dog"])
    export.main([str(folder / "sd"), str(folder / "sd_lora"), "--alias=new1"])
    export.main([str(concept), str(folder / "lora"), "--alias=new1"])
    narrow = {
        name: value[:, :48].contiguous() if name.endswith("lora_down.weight") else value
        for name, value in load_file(folder / "lora" / "dog_lora.safetensors").items()
    }
    save_file(narrow, folder / "narrow.safetensors")
    save_file({"clip_l": torch.ones(1, 32)}, folder / "half.safetensors")
    adobe = {"unet": random_kv(xl), "modifier_token": {"<new1>": torch.ones(32)}}
    torch.save(adobe, folder / "delta.bin")
    return {
        "SD on SDXL": (folder / "sd", xl),
        "SDXL on SD": (concept, tiny_base),
        "SD LoRA on SDXL": (folder / "sd_lora", xl),
        "LoRA of another width": (folder / "narrow.safetensors", xl),
        "half an embedding": (folder / "half.safetensors", xl),
        "Adobe, one encoder": (folder / "delta.bin", xl),
    }


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("SD on SDXL", "does not fit the UNet: 14 weights missing.*load the base model it was trained on"),
        ("SDXL on SD", "does not fit the UNet: 6 weights missing.*load the base model it was trained on"),
        ("SD LoRA on SDXL", r"has shape \(64, 32\), the UNet's is \(64, 56\); load the base model"),
        ("LoRA of another width", r"has shape \(64, 48\), the UNet's is \(64, 56\); load the base model"),
        ("half an embedding", "has clip_l; an embedding for SDXL has clip_l and clip_g: give one of both"),
        ("Adobe, one encoder", r"<new1> has width 32, the text encoders' are 32 \+ 24; load the base model"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(mistakes, tmp_path, mistake, message):
    (path, base), out = mistakes[mistake], tmp_path / "drawn"
    with pytest.raises(UserError, match=message) as error:
        inference.main([f"--concept={path}", f"--base={base}", "--prompt=a dog", f"--output_dir={out}"])
    assert "\n" not in str(error.value) and not out.exists()


def test_an_export_that_cannot_hold_two_encoders_is_refused(xl, tiny_base, concept, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="rows of 2 text encoders"):
        export.main([str(concept), str(out), "--format=official"])
    with pytest.raises(UserError, match="load the base model it was trained on"):
        export.main([str(concept), str(out), "--format=lora", f"--base={tiny_base}"])
    assert not out.exists()


def test_adobes_file_for_sdxl_is_read(xl, tmp_path):
    torch.manual_seed(3)
    first, second, weights = torch.randn(32), torch.randn(24), random_kv(xl)
    rows = {"modifier_token": {"<new1>": first}, "modifier_token_2": {"<new1>": second}}
    torch.save({"unet": weights} | rows, tmp_path / "delta.bin")
    base = open_base(xl, "cpu", "fp32")
    load_concept(base, tmp_path / "delta.bin")
    for encoder, row in zip(base.encoders, (first, second), strict=True):
        assert torch.equal(encoder.model.get_input_embeddings().weight[-1].detach(), row)
    for name, weight in weights.items():
        assert torch.equal(base.unet.get_parameter(name).detach(), weight)


def test_a_dropped_caption_is_what_sampling_takes_for_no_prompt(xl):
    base, pipeline = open_base(xl, "cpu", "fp32"), stock(xl)
    states, pooled = base.encode(base.tokenize(["", PROMPT]))
    unconditional = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=True)
    assert torch.equal(states[:1], unconditional[1]) and torch.equal(pooled[:1], unconditional[3])
    assert not states[0].any() and states[1].any() and pooled[1].any()
    inputs = base.prompt_inputs([""], guided=True)  # a prompt that is given, if an empty one
    torch.testing.assert_close(inputs["prompt_embeds"], pipeline.encode_prompt("")[0], atol=1e-5, rtol=0)
    base.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert base.encode(base.tokenize([""]))[0].any()


def test_a_float32_autoencoder_behind_a_half_precision_unet(xl):
    """As a training in fp16 has them: this autoencoder overflows in fp16."""
    base = open_base(xl, "cpu", "fp32")
    whole = to_pixels(next(sample(base, ["a dog"], [0], 2)))
    assert base.frozen_in_half(torch.float16) == [base.unet]
    base.unet.to(torch.bfloat16)
    half = to_pixels(next(sample(base, ["a dog"], [0], 2)))
    assert 0 < (half - whole).abs().max() < 0.1


def test_latents_of_an_autoencoder_with_means(xl):
    """Stock diffusers decodes latents * std / factor + mean."""
    base, vae = open_base(xl, "cpu", "fp32"), open_base(xl, "cpu", "fp32").vae
    mean, noise = torch.randn(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    plain = base.latents_of(mean, noise, noise)
    base.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    latents = base.latents_of(mean, noise, noise)
    shift, scale = (torch.tensor(each).view(4, 1, 1) for each in ([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(latents * scale / vae.config.scaling_factor + shift, mean)
    torch.testing.assert_close(plain / vae.config.scaling_factor, mean)
