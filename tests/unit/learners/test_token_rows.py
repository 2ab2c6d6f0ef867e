"""The learned rows: looked up in place of new ids, alone in being trained, and named without mistakes."""

import pytest
import torch

from tests.tiny_models import tiny_pipeline
from utils.common.errors import UserError
from utils.learners.token_rows import ModifierTokens, check_tokens, first_ids, install


@pytest.fixture
def pipeline(tmp_path):
    return tiny_pipeline(tmp_path)


def ids_of(pipeline, prompt: str) -> torch.Tensor:
    return pipeline.tokenizer(prompt, return_tensors="pt").input_ids


def test_tokens_follow_the_vocabulary_and_start_as_their_initialisers(pipeline):
    vocabulary, table = len(pipeline.tokenizer), pipeline.text_encoder.get_input_embeddings()
    initializers = pipeline.tokenizer.convert_tokens_to_ids(["ktn</w>", "pll</w>"])
    modifier_tokens = install(pipeline.text_encoder, pipeline.tokenizer, ["<new1>", "<new2>"], ["ktn", "pll"])
    assert pipeline.tokenizer.convert_tokens_to_ids(["<new1>", "<new2>"]) == [vocabulary, vocabulary + 1]
    assert pipeline.text_encoder.get_input_embeddings() is modifier_tokens
    assert modifier_tokens.table is table and table.num_embeddings == vocabulary
    assert torch.equal(modifier_tokens.rows, table.weight[initializers])
    assert ids_of(pipeline, "a <new2> dog")[0, 2] == vocabulary + 1


def test_class_words_start_from_the_mean_of_their_pieces(pipeline):
    """Textual inversion's start, exactly; the table's rows of "teddy" and "bear" are its pieces'."""
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().clone()
    dog, teddy, bear = pipeline.tokenizer.convert_tokens_to_ids(["dog</w>", "teddy</w>", "bear</w>"])
    words = ["teddy bear", "dog"]
    rows = install(pipeline.text_encoder, pipeline.tokenizer, ["<new1>", "<new2>"], words, "class").rows
    assert torch.equal(rows[0], (table[teddy] + table[bear]) / 2)
    assert torch.equal(rows[1], table[dog])


def test_what_a_first_word_names(pipeline):
    tokenizer = pipeline.tokenizer
    dog, teddy, bear = tokenizer.convert_tokens_to_ids(["dog</w>", "teddy</w>", "bear</w>"])
    letters = tokenizer.convert_tokens_to_ids(["s", "k", "s</w>"])
    assert first_ids(tokenizer, "dog", "class") == first_ids(tokenizer, "dog", "word") == [dog]
    assert first_ids(tokenizer, "teddy bear", "class") == [teddy, bear]
    assert first_ids(tokenizer, "sks", "class") == letters  # a class may be of pieces
    assert first_ids(tokenizer, "dog", "piece") == [dog] and first_ids(tokenizer, "s", "piece") == letters[:1]
    assert first_ids(tokenizer, "s", "word") == letters[2:]  # as prompts read it: the letter that ends a word
    for start in ("piece", "word"):  # of several pieces: all of them, whose mean is taken
        assert first_ids(tokenizer, "teddy bear", start) == [teddy, bear]
        assert first_ids(tokenizer, "sks", start) == letters
    with pytest.raises(UserError, match="'' is not in the vocabulary: try sks, a rare word"):
        first_ids(tokenizer, "", "word")
    with pytest.raises(UserError, match="is not in the vocabulary: try ktn, pll or ucd, or a common word"):
        first_ids(tokenizer, "<|endoftext|>", "piece")


def test_other_prompts_are_encoded_exactly_as_before(pipeline):
    before = pipeline.text_encoder(ids_of(pipeline, "a photo of a dog")).last_hidden_state
    install(pipeline.text_encoder, pipeline.tokenizer, ["<new1>"], ["ktn"])
    assert torch.equal(pipeline.text_encoder(ids_of(pipeline, "a photo of a dog")).last_hidden_state, before)


def test_equal_to_a_resized_table(pipeline, tmp_path):
    resized = tiny_pipeline(tmp_path).text_encoder
    rows = install(pipeline.text_encoder, pipeline.tokenizer, ["<new1>", "<new2>"], ["ktn", "pll"]).rows
    resized.resize_token_embeddings(len(pipeline.tokenizer), mean_resizing=False)
    resized.get_input_embeddings().weight.data[-2:] = rows.data
    input_ids = ids_of(pipeline, "a <new1> dog in front of a <new2> barn")
    expected = resized(input_ids).last_hidden_state
    torch.testing.assert_close(
        pipeline.text_encoder(input_ids).last_hidden_state, expected, rtol=0, atol=1e-6
    )


def test_an_adamw_step_moves_the_rows_and_nothing_else(pipeline):
    modifier_tokens = install(pipeline.text_encoder, pipeline.tokenizer, ["<new1>"], ["ktn"])
    before = {name: weight.clone() for name, weight in pipeline.text_encoder.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in pipeline.text_encoder.parameters() if p.requires_grad], lr=1e-2)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == 32
    pipeline.text_encoder(ids_of(pipeline, "a <new1> dog")).last_hidden_state.square().mean().backward()
    optimizer.step()
    moved = [
        n for n, weight in pipeline.text_encoder.state_dict().items() if not torch.equal(weight, before[n])
    ]
    assert moved == ["embeddings.token_embedding.learned.weight"]
    assert modifier_tokens.rows.grad.norm() > 0


def test_rows_of_absent_tokens_get_a_zero_gradient(pipeline):
    rows = install(pipeline.text_encoder, pipeline.tokenizer, ["<new1>", "<new2>"], ["ktn", "pll"]).rows
    pipeline.text_encoder(ids_of(pipeline, "a <new2> dog")).last_hidden_state.square().mean().backward()
    assert rows.grad[0].norm() == 0 and rows.grad[1].norm() > 0


def test_rows_stay_float32_in_front_of_a_half_precision_encoder(pipeline):
    text_encoder = pipeline.text_encoder.to(torch.bfloat16)
    rows = install(text_encoder, pipeline.tokenizer, ["<new1>"], ["ktn"]).rows
    hidden = text_encoder(ids_of(pipeline, "a <new1> dog")).last_hidden_state
    hidden.float().square().mean().backward()
    assert hidden.dtype == text_encoder.dtype == torch.bfloat16
    assert rows.dtype == rows.grad.dtype == torch.float32 and rows.grad.norm() > 0


def test_ids_beyond_the_rows_are_refused():
    modifier_tokens = ModifierTokens(torch.nn.Embedding(5, 4), torch.zeros(1, 4))
    with pytest.raises(IndexError):
        modifier_tokens(torch.tensor([[6]]))


@pytest.mark.parametrize(
    ("tokens", "initializers", "message"),
    [
        (["<new1>"], ["ktn", "pll"], "1 modifier tokens, 2 initializer tokens"),
        (["<new1>", "<NEW1>"], ["ktn", "pll"], "repeat"),
        (["<new 1>"], ["ktn"], "blank"),
        ([""], ["ktn"], "empty"),
        (["dog"], ["ktn"], "'dog' is already in the vocabulary"),
        (["Dog"], ["ktn"], "'Dog' is already in the vocabulary"),
        (["<|endoftext|>"], ["ktn"], "already in the vocabulary"),
        (["<new1>"], ["<|endoftext|>"], "is not in the vocabulary"),
        (["<new1>"], [" "], "is not in the vocabulary"),
    ],
)
def test_unusable_tokens_are_refused_and_nothing_changes(pipeline, tokens, initializers, message):
    vocabulary, table = len(pipeline.tokenizer), pipeline.text_encoder.get_input_embeddings()
    for refuse in (check_tokens, lambda *arguments: install(pipeline.text_encoder, *arguments)):
        with pytest.raises(UserError) as error:
            refuse(pipeline.tokenizer, tokens, initializers)
        assert message in str(error.value) and "\n" not in str(error.value)
    assert len(pipeline.tokenizer) == vocabulary
    assert pipeline.text_encoder.get_input_embeddings() is table


def test_a_second_installation_is_refused(pipeline):
    install(pipeline.text_encoder, pipeline.tokenizer, ["<new1>"], ["ktn"])
    with pytest.raises(UserError, match="already in the vocabulary"):
        install(pipeline.text_encoder, pipeline.tokenizer, ["<NEW1>"], ["ktn"])


def test_a_tokenizer_that_does_not_fit_the_text_encoder_is_refused(pipeline):
    pipeline.tokenizer.add_tokens(["<stray>"])
    with pytest.raises(UserError, match="unmodified base model"):
        install(pipeline.text_encoder, pipeline.tokenizer, ["<new1>"], ["ktn"])
