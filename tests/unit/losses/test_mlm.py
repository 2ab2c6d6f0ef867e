"""Masking rules, the loss against a few lines, and where its gradient goes."""

import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.tiny_models import tiny_pipeline
from utils.bases.sd import StableDiffusion
from utils.losses.contextualizer import Contextualizer, Sizes, show_mask_row, text_digest
from utils.losses.mlm import NO_ANSWER, PROMPTS, MaskedLanguage, Masker, loss_mlm, stack
from utils.losses.predict import Prediction
from utils.losses.registry import LOSSES

BEAR = SimpleNamespace(modifier_token="<new1>", cls_token="teddy bear", subject="<new1> teddy bear")


@pytest.fixture
def base(tmp_path) -> StableDiffusion:
    base = StableDiffusion(tiny_pipeline(tmp_path)).freeze()
    base.add_tokens(["<new1>"], ["ktn"], "piece")
    return base


@pytest.fixture
def contextualizer(base) -> Contextualizer:
    torch.manual_seed(0)
    table = base.text_encoder.get_input_embeddings().table
    model = Contextualizer(Sizes(table.num_embeddings, 24, table.embedding_dim)).requires_grad_(False)
    show_mask_row(base.text_encoder, model.mask_row, base.tokenizer.bos_token_id)
    return model


def test_without_masks_a_prompt_is_what_the_tokenizer_makes_of_it(base):
    prompt = "a photo of a <new1> teddy bear in front of a Zoo"
    ids, answers, masked = Masker(base.tokenizer).mask(prompt, (), random.Random(0), probability=0)
    expected = base.tokenize([prompt])[0].tolist()
    assert ids == expected and not any(masked)
    end = expected.index(base.tokenizer.eos_token_id) + 1
    assert answers == expected[:end] + [NO_ANSWER] * (24 - end)


def test_all_is_masked_but_the_concept_every_word_of_its_class_and_the_ends(base):
    tokenizer = base.tokenizer
    prompt = "a <new1> teddy bear in front of a Bear on a barn"
    rng = random.Random(0)
    ids, answers, masked = Masker(tokenizer).mask(prompt, ["<new1>", "teddy", "bear"], rng, probability=1)
    shown = [token for token, hidden in zip(answers, masked, strict=True) if not hidden and token >= 0]
    names = ["<|startoftext|>", "<new1>", "teddy</w>", "bear</w>", "bear</w>", "<|endoftext|>"]
    assert tokenizer.convert_ids_to_tokens(shown) == names
    assert [token == tokenizer.bos_token_id for token in ids] == [True, *masked[1:]]
    hidden = [token for token, is_hidden in zip(answers, masked, strict=True) if is_hidden]
    words = [f"{word}</w>" for word in "a in front of a on a barn".split()]
    assert tokenizer.convert_ids_to_tokens(hidden) == words


def test_15_in_100_sub_tokens_are_masked(base):
    masker, rng = Masker(base.tokenizer), random.Random(0)
    count = sum(sum(masker.mask("a photo of a <new1> dog", ["<new1>", "dog"], rng)[2]) for _ in range(2000))
    assert count / (4 * 2000) == pytest.approx(0.15, abs=0.012)


def test_a_step_s_prompts_depend_on_seed_and_step_alone(base, contextualizer):
    def ids(seed: int, step: int) -> torch.Tensor:
        return MaskedLanguage([BEAR], base.tokenizer, contextualizer, seed).draw(step).ids

    first = ids(0, 3)
    assert first.shape == (PROMPTS, 24) and torch.equal(first, ids(0, 3))
    assert not torch.equal(first, ids(0, 4)) and not torch.equal(first, ids(1, 3))
    token = base.tokenizer.convert_tokens_to_ids("<new1>")
    assert ((first == token).sum(dim=1) == 1).all()


def test_concepts_take_turns(base, contextualizer):
    dog = SimpleNamespace(modifier_token="<new1>", cls_token="dog", subject="<new1> dog")
    drawn = MaskedLanguage([BEAR, dog], base.tokenizer, contextualizer, 0).draw(1)
    bear = base.tokenizer.convert_tokens_to_ids("teddy</w>")
    assert [(bear in row) for row in drawn.ids.tolist()] == [number % 2 == 0 for number in range(PROMPTS)]


def test_the_mask_row_is_seen_where_bos_does_not_stand_in_front(base, contextualizer):
    table = base.text_encoder.get_input_embeddings()
    bos = base.tokenizer.bos_token_id
    embedded = table(torch.tensor([[bos, 5, bos, 7]]))[0]
    assert torch.equal(embedded[2], contextualizer.mask_row)
    assert torch.equal(embedded[[0, 1, 3]], table.table.weight[[bos, 5, 7]])


def answered(base, prompts) -> Prediction:
    """A step's prediction of which only the masked prompts are there."""
    texts = {"loss_mlm": (prompts, base.encode(prompts.ids))}
    return Prediction(
        noise_pred=None, target=None, instances=0, phrase_features=[], class_features=[], texts=texts
    )


def test_the_loss_equals_a_few_lines(base, contextualizer):
    """Prompt by prompt, the embeddings put together by hand."""
    prompts = MaskedLanguage([BEAR], base.tokenizer, contextualizer, 0).draw(1)
    seen = answered(base, prompts)
    loss = LOSSES["loss_mlm"].of(seen)

    encoder, errors = base.text_encoder, []
    for answers, masked in zip(prompts.answers, prompts.masked, strict=True):
        ids = answers.where(answers != NO_ANSWER, torch.tensor(base.tokenizer.pad_token_id))
        rows = encoder.get_input_embeddings()(ids[None])
        rows = torch.where(masked[None, :, None], contextualizer.mask_row, rows)
        hidden = encoder.embeddings(inputs_embeds=rows)
        causal = torch.full((24, 24), -torch.inf).triu(1)[None, None]
        states = encoder.final_layer_norm(encoder.encoder(hidden, attention_mask=causal).last_hidden_state)
        logits = contextualizer(states, torch.ones(1, 24, dtype=torch.bool))
        errors += [-F.log_softmax(logits[p], dim=-1)[answers[p]] for p in masked.nonzero().flatten()]
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-5, atol=1e-5)


def test_its_gradient_reaches_the_concept_s_row_only(base, contextualizer):
    base.rows["rows"].requires_grad_(True)
    prompts = MaskedLanguage([BEAR], base.tokenizer, contextualizer, 0).draw(1)
    seen = answered(base, prompts)
    LOSSES["loss_mlm"].of(seen).backward()
    assert base.rows["rows"].grad.norm() > 0
    modules = (base.text_encoder, base.unet, base.vae, contextualizer)
    moved = [n for module in modules for n, p in module.named_parameters() if p.grad is not None]
    assert moved == ["embeddings.token_embedding.learned.weight"]


def test_nothing_masked_is_no_term_and_no_nan(base, contextualizer):
    assert loss_mlm(torch.empty(0, 7), torch.empty(0, dtype=torch.long)) == 0
    row = Masker(base.tokenizer).mask("a <new1> dog", (), random.Random(0), probability=0)
    prompts = stack([row], contextualizer)
    seen = answered(base, prompts)
    assert LOSSES["loss_mlm"].of(seen) == 0


def test_the_digest_ignores_modifier_tokens_and_storage_but_not_a_weight(base, tmp_path):
    stock = tiny_pipeline(tmp_path / "again").text_encoder
    assert text_digest(base.text_encoder) == text_digest(stock) == text_digest(stock.half())
    with torch.no_grad():
        stock.final_layer_norm.bias[0] = 1
    assert text_digest(base.text_encoder) != text_digest(stock)


def test_the_published_size():
    """METHODS: 61.7 M at Stable Diffusion 1.5's shape, of which 38 M are the output."""
    with torch.device("meta"):
        model = Contextualizer(Sizes(vocabulary=49_408, length=77, width=768))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(61.7e6, rel=0.005)
    assert sum(p.numel() for p in model.output.parameters()) == 49_409 * 769
