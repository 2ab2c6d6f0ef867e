"""The losses against naive loops, and what SPL must and must not react to."""

import pytest
import torch
from diffusers import DDPMScheduler

from tests.tiny_models import tiny_pipeline
from utils.bases.text import check_contains, feature_at
from utils.learners.token_rows import ModifierTokens, install
from utils.losses.denoise import loss_denoise, loss_prior, target_of
from utils.losses.spl import cosine_distance, loss_spl


@pytest.fixture
def noise_pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 4, 6, 6, generator=generator) for _ in range(2))


def test_loss_denoise_equals_a_naive_loop(noise_pair):
    noise_pred, target = noise_pair
    mask = torch.zeros(2, 1, 6, 6)
    mask[0, :, 1:4, 2:5] = 1
    mask[1, :, :, 3:] = 1
    per_image = []
    for image in range(2):
        inside = [(y, x) for y in range(6) for x in range(6) if mask[image, 0, y, x]]
        errors = [
            (noise_pred[image, c, y, x] - target[image, c, y, x]) ** 2 for c in range(4) for y, x in inside
        ]
        per_image.append(float(sum(errors)) / len(inside))
    assert loss_denoise(noise_pred, target, mask).item() == pytest.approx(sum(per_image) / 2, rel=1e-6)


def test_loss_denoise_ignores_what_lies_outside_the_mask(noise_pair):
    noise_pred, target = noise_pair
    mask = torch.zeros(2, 1, 6, 6)
    mask[..., :3] = 1
    spoiled = noise_pred + 100 * (1 - mask)
    torch.testing.assert_close(loss_denoise(spoiled, target, mask), loss_denoise(noise_pred, target, mask))


def test_full_mask_is_four_times_the_mean_and_prior_is_the_mean(noise_pair):
    mean = (noise_pair[0] - noise_pair[1]).square().mean()
    torch.testing.assert_close(loss_denoise(*noise_pair, torch.ones(2, 1, 6, 6)), 4 * mean)
    torch.testing.assert_close(loss_prior(*noise_pair), mean)


def test_two_halves_of_a_batch_average_to_the_whole(noise_pair):
    mask = torch.ones(2, 1, 6, 6)
    mask[0, :, :4] = 0
    halves = [loss_denoise(noise_pair[0][i], noise_pair[1][i], mask[i]) for i in (slice(0, 1), slice(1, 2))]
    torch.testing.assert_close(sum(halves) / 2, loss_denoise(*noise_pair, mask))


def test_losses_are_float32_in_half_precision(noise_pair):
    half = [tensor.bfloat16() for tensor in noise_pair]
    assert loss_denoise(*half, torch.ones(2, 1, 6, 6)).dtype == torch.float32
    assert loss_prior(*half).dtype == torch.float32
    assert cosine_distance(half[0], half[1]).dtype == torch.float32


def test_a_mask_of_the_wrong_shape_is_refused(noise_pair):
    with pytest.raises(AssertionError, match="mask"):
        loss_denoise(*noise_pair, torch.ones(2, 6, 6))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_target_of(noise_pair, prediction_type):
    latents, noise = noise_pair
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    timesteps = torch.tensor([10, 900])
    target = target_of(scheduler, latents, noise, timesteps)
    alpha = scheduler.alphas_cumprod[timesteps].view(2, 1, 1, 1)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    torch.testing.assert_close(target, noise if prediction_type == "epsilon" else velocity)


def test_target_of_refuses_other_predictions(noise_pair):
    with pytest.raises(ValueError, match="'sample'"):
        target_of(DDPMScheduler(prediction_type="sample"), *noise_pair, torch.tensor([0, 1]))


def test_spl_is_one_minus_cosine_within_0_and_2():
    a, b = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(1))
    distance = cosine_distance(a, b)
    torch.testing.assert_close(distance, 1 - torch.cosine_similarity(a, b), rtol=1e-5, atol=1e-6)
    assert distance.min() >= 0 and distance.max() <= 2
    torch.testing.assert_close(loss_spl(a, b), distance.mean())
    assert loss_spl(a, a) == 0
    assert loss_spl(a, -a).item() == pytest.approx(2)


def test_spl_holds_the_class_side_constant():
    a, b = torch.randn(2, 3, 8).requires_grad_(True).unbind(0)
    b = b.detach().requires_grad_(True)
    loss_spl(a, b).backward()
    assert b.grad is None


def test_feature_at_takes_the_first_place_of_one_id_or_one_id_per_phrase():
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    input_ids = torch.tensor([[1, 5, 9, 9], [1, 9, 6, 9]])
    assert torch.equal(feature_at(hidden, input_ids, 9), torch.stack([hidden[0, 2], hidden[1, 1]]))
    per_phrase = feature_at(hidden, input_ids, torch.tensor([5, 6]))
    assert torch.equal(per_phrase, torch.stack([hidden[0, 1], hidden[1, 2]]))
    with pytest.raises(ValueError, match="lacks"):
        check_contains(input_ids, 5)
    check_contains(input_ids, torch.tensor([5, 6]))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A tiny text encoder and tokenizer with <new1> in place."""
    pipeline = tiny_pipeline(tmp_path_factory.mktemp("tokenizer"))
    install(pipeline.text_encoder, pipeline.tokenizer, ["<new1>"], ["ktn"])
    return pipeline.text_encoder, pipeline.tokenizer


def features(text, phrase: str, pool: str = "<|endoftext|>") -> torch.Tensor:
    text_encoder, tokenizer = text
    input_ids = tokenizer(phrase, return_tensors="pt").input_ids
    hidden = text_encoder(input_ids).last_hidden_state
    return feature_at(hidden, input_ids, tokenizer.convert_tokens_to_ids(pool))


def test_spl_of_the_class_phrase_with_itself_is_0(text):
    assert loss_spl(features(text, "a photo of a dog"), features(text, "a photo of a dog")) == 0


def test_spl_at_eos_sees_the_class_word_and_the_official_pooling_does_not(text):
    class_features = features(text, "a photo of a dog")
    dog, cat = (features(text, f"a photo of a <new1> {word}") for word in ("dog", "cat"))
    assert (loss_spl(dog, class_features) - loss_spl(cat, class_features)).abs() > 1e-4
    dog, cat = (features(text, f"a photo of a <new1> {word}", "<new1>") for word in ("dog", "cat"))
    torch.testing.assert_close(dog, cat)


def test_clip_s_own_pooling_is_not_eos_under_sd_s_config(text):
    text_encoder, tokenizer = text
    input_ids = tokenizer("a photo of a <new1> dog", return_tensors="pt").input_ids
    pooled = text_encoder(input_ids).pooler_output
    torch.testing.assert_close(pooled, features(text, "a photo of a <new1> dog", "<new1>"))
    assert not torch.allclose(pooled, features(text, "a photo of a <new1> dog"), atol=1e-3)


def test_spl_s_gradient_reaches_the_modifier_row_only(text):
    text_encoder, _ = text
    loss_spl(features(text, "a photo of a <new1> dog"), features(text, "a photo of a dog")).backward()
    with_gradient = [name for name, weight in text_encoder.named_parameters() if weight.grad is not None]
    modifier_tokens = text_encoder.get_input_embeddings()
    assert isinstance(modifier_tokens, ModifierTokens) and modifier_tokens.rows.grad.norm() > 0
    assert with_gradient == ["embeddings.token_embedding.learned.weight"]
