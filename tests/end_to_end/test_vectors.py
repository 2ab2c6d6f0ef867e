"""Tokens of several vectors: trained, resumed, saved, exported, read back; in prompts one word."""

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

import inference
from scripts import export, merge_concepts
from tests.end_to_end.training import apart, learned, records
from utils.bases import load_pipeline
from utils.common.errors import UserError
from utils.concepts.load import load_concept
from utils.losses.mlm import Masker

PROMPT = "a photo of a <new1> dog on the beach"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture
def concept(train, place):
    """Trained on a dog with three vectors, once for all tests."""
    if not (place / "dog").exists():
        settings = {"num_vectors": 3, "initializer_token": "teddy bear", "learning_rate": 0.02}
        train(place / "dog", max_train_steps=4, checkpointing_steps=2, **settings)
        train(place / "again", max_train_steps=2, checkpointing_steps=2, **settings)
        train(place / "again", max_train_steps=4, resume_from_checkpoint="latest", **settings)
    return place / "dog"


def test_every_vector_starts_from_the_words_mean_and_learns(concept, tiny_base, place):
    rows = load_file(concept / "new1.safetensors")["<new1>"]
    pipeline = load_pipeline(tiny_base, "cpu")
    table = pipeline.text_encoder.get_input_embeddings().weight
    start = table[pipeline.tokenizer("teddy bear", add_special_tokens=False).input_ids].mean(dim=0)
    moved = (rows - start).abs().amax(dim=1)
    assert rows.shape == (3, 32) and (moved > 0.02).all() and (moved < 0.1).all()
    assert (rows[0] - rows[1]).abs().max() > 1e-4 and (rows[1] - rows[2]).abs().max() > 1e-4
    assert apart(learned(concept), learned(place / "again")) == 0
    assert all(line["loss_spl"] > 1e-4 for line in records(concept))


def test_prompts_say_it_in_one_word(concept, tiny_base):
    pipeline = load_pipeline(tiny_base, "cpu")
    tokenizer, before = pipeline.tokenizer, len(pipeline.tokenizer)
    assert load_concept(pipeline, concept).token_ids == {"<new1>": before}
    assert Masker(tokenizer).pieces("<new1>") == [before, before + 1, before + 2]
    stock = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    stock.load_textual_inversion(str(concept / "new1.safetensors"))
    ours, theirs = (each.encode_prompt([PROMPT], "cpu", 1, False)[0] for each in (pipeline, stock))
    assert torch.equal(ours, theirs)


def test_exports_hold_all_vectors(concept, tiny_base, place):
    rows = load_file(concept / "new1.safetensors")["<new1>"]
    export.main([str(concept), str(place / "lora"), "--base", str(tiny_base), "--error", "0"])
    assert torch.equal(load_file(place / "lora" / "dog1.safetensors")["<new1>"], rows)
    flags = ["--base", str(tiny_base), "--format"]
    export.main([str(concept), str(place / "sd"), *flags, "diffusers", "--dtype", "fp32"])
    whole = StableDiffusionPipeline.from_pretrained(place / "sd", safety_checker=None)
    pipeline = load_pipeline(tiny_base, "cpu")
    load_concept(pipeline, concept)
    drawn = []
    for each in (whole, pipeline):
        each.scheduler = DDIMScheduler.from_config(each.scheduler.config)
        generator = torch.Generator().manual_seed(0)
        drawn.append(each(PROMPT, num_inference_steps=2, generator=generator, output_type="pt").images)
    assert torch.allclose(*drawn, atol=1e-5)
    with pytest.raises(UserError, match="--format official knows tokens of one vector, <new1> has 3"):
        export.main([str(concept), str(place / "official"), *flags, "official"])


def test_kohyas_file_is_read_back(concept, train, tiny_base, place):
    settings = {"method": "textual_inversion", "instance_prompt": None, "num_vectors": 2}
    out = train(place / "inversion", **settings)
    export.main([str(out), str(place / "embedding"), "--format", "embedding"])
    rows = load_file(out / "new1.safetensors")["<new1>"]
    pipeline = load_pipeline(tiny_base, "cpu")
    token_id = load_concept(pipeline, place / "embedding" / "kohya" / "dog1.safetensors").token_ids["<dog1>"]
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert rows.shape == (2, 32) and torch.equal(table[token_id : token_id + 2], rows)


def test_what_knows_one_vector_says_so(concept, tiny_base, place, tmp_path):
    words = ["--concept", str(concept), "--base", str(tiny_base), "--prompt", PROMPT]
    with pytest.raises(UserError, match="--embedding_adjustment knows tokens of one vector, <new1> has 3"):
        inference.main([*words, "--embedding_adjustment=0.5", "--output_dir", str(tmp_path)])
    with pytest.raises(UserError, match="merging knows tokens of one vector, <new1> has 3"):
        merge_concepts.main([str(concept), str(concept), "--output", str(tmp_path / "merged")])
    long = " ".join(["dog"] * 20) + " <new1>"  # 20 words, 3 vectors, BOS and EOS: 25
    with pytest.raises(UserError, match="is cut at 24 tokens, before <new1>"):
        inference.main([*words[:-1], long, "--output_dir", str(tmp_path)])
