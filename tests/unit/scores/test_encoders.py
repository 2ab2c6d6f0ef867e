"""The encoders on tiny random models: the models' own features, and mistakes before anything loads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from tests.tiny_models import write_tokenizer
from utils.common.errors import UserError
from utils.scores.encoders import ClipEncoder, DinoEncoder, check_clip, check_clip_prompts, check_dino

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PROMPTS = ["a photo of a dog", "a dog wearing headphones on the beach", "barn"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = TOWER | {"vocab_size": len(write_tokenizer(folder)), "max_position_embeddings": 24}
    vision = TOWER | {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text | {"eos_token_id": 2}, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def save_vit(folder: Path, size: int) -> Path:
    torch.manual_seed(1)
    config = ViTConfig(**TOWER, image_size=size, patch_size=size // 4)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    square = {"height": size, "width": size}
    ViTImageProcessorPil(size=square, image_mean=[0.3] * 3, image_std=[0.4] * 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("dino"), 16)


@pytest.fixture(scope="module")
def noise() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)) for _ in range(5)]


@torch.no_grad()
def test_clip_features_are_the_models_own(clip_folder, noise):
    encoder = ClipEncoder(clip_folder, "cpu")
    model = CLIPModel.from_pretrained(clip_folder)
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(PROMPTS, padding="max_length", return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(noise, return_tensors="pt").pixel_values
    out = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    torch.testing.assert_close(encoder.image_features(noise), out.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.text_features(PROMPTS), out.text_embeds, rtol=0, atol=1e-6)
    assert encoder.model_id == str(clip_folder)


@torch.no_grad()
def test_dino_features_are_the_cls_token_with_the_models_own_preparation(dino_folder, noise):
    features = DinoEncoder(dino_folder, "cpu").image_features(noise)
    squashed = [np.asarray(picture.resize((16, 16), Image.BILINEAR)) / 255 for picture in noise]
    pixels = torch.tensor((np.stack(squashed) - 0.3) / 0.4, dtype=torch.float32).permute(0, 3, 1, 2)
    hidden = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False)(pixels).last_hidden_state
    assert hidden.shape == (5, 17, 16)
    torch.testing.assert_close(features, F.normalize(hidden[:, 0], dim=1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_dino_for_224_pixels_gets_the_published_preparation_whatever_its_processor_says(tmp_path):
    encoder = DinoEncoder(save_vit(tmp_path, 224), "cpu")
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (300, 400, 3), np.uint8)).convert("L")
    # Shortest side 256, so 341 wide; the middle 224; ImageNet's mean and deviation.
    resized = picture.convert("RGB").resize((341, 256), Image.BICUBIC)
    middle = np.asarray(resized.crop((58, 16, 58 + 224, 16 + 224))) / 255
    normal = (middle - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    pixels = torch.tensor(normal, dtype=torch.float32).permute(2, 0, 1)[None]
    expected = F.normalize(encoder.model(pixels).last_hidden_state[:, 0], dim=1)
    torch.testing.assert_close(encoder.image_features([picture]), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_dinov2_is_its_own_normalised_cls_token_after_its_own_preparation(tmp_path, noise):
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(2)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no image processor"):
        check_dino(tmp_path)
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(tmp_path)
    check_dino(tmp_path)
    state = model(**processor(noise, return_tensors="pt")).last_hidden_state
    features = DinoEncoder(tmp_path, "cpu").image_features(noise)
    torch.testing.assert_close(features, F.normalize(state[:, 0], dim=1), rtol=0, atol=1e-6)


def test_features_are_unit_vectors_whatever_the_batch_size(clip_folder, dino_folder, noise):
    clip, dino = ClipEncoder(clip_folder, "cpu"), DinoEncoder(dino_folder, "cpu")
    for encode, items in (
        (clip.image_features, noise),
        (clip.text_features, PROMPTS),
        (dino.image_features, noise),
    ):
        together = encode(items)
        torch.testing.assert_close(together, encode(items, batch_size=2), rtol=0, atol=1e-6)
        torch.testing.assert_close(together, encode(iter(items), batch_size=1), rtol=0, atol=1e-6)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(len(items)))
        assert together.dtype == torch.float32
        assert not torch.allclose(together[0], together[1], atol=1e-3), "features that tell nothing apart"
        assert encode([]).shape == (0, together.shape[1])


def test_a_prompt_longer_than_clip_reads_is_refused_not_cut(clip_folder, monkeypatch):
    encoder = ClipEncoder(clip_folder, "cpu")
    fits = "dog " * 22  # and two for the ends
    assert encoder.text_features([fits]).shape == (1, 8)
    with pytest.raises(UserError, match=r"'dog dog.* has 25 tokens; .* reads 24: shorten it"):
        encoder.text_features(["a dog", fits + "dog"])
    monkeypatch.setattr(CLIPModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    check_clip_prompts(clip_folder, PROMPTS + [fits])
    with pytest.raises(UserError, match="reads 24: shorten it"):
        check_clip_prompts(clip_folder, PROMPTS + [fits + "dog"])


def test_a_model_with_missing_weights_is_refused_rather_than_drawn_at_random(tmp_path):
    folder = save_vit(tmp_path, 16)
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 tensors of a ViTModel, e.g. layernorm.weight"):
        DinoEncoder(folder, "cpu")


def test_loading_is_quiet(clip_folder, dino_folder, capfd):
    ClipEncoder(clip_folder, "cpu"), DinoEncoder(dino_folder, "cpu")
    assert capfd.readouterr() == ("", "")


def test_models_that_are_no_clip_or_dino_are_reported_before_they_load(clip_folder, dino_folder, monkeypatch):
    for loader in (CLIPModel, ViTModel):
        monkeypatch.setattr(loader, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    mistakes = [
        (ClipEncoder, dino_folder, "is a vit; give a CLIPModel"),
        (DinoEncoder, clip_folder, "is a clip; give a ViTModel"),
        (ClipEncoder, clip_folder / "nothing", "is not a folder, though .* is one"),
        (DinoEncoder, "dino", "neither an existing folder nor a Hub id"),
    ]
    for encoder, model, words in mistakes:
        with pytest.raises(UserError, match=words):
            encoder(model)
    for encoder, folder in ((ClipEncoder, clip_folder), (DinoEncoder, dino_folder)):
        with pytest.raises(UserError, match="unknown device 'tpu9'"):
            encoder(folder, "tpu9")


@pytest.mark.parametrize(
    ("check", "config", "words"),
    [
        (check_clip, None, "has no config.json"),
        (check_clip, "{", "is not JSON"),
        (check_clip, {}, "is a None; give a CLIPModel"),
        (check_clip, {"model_type": "clip"}, "has no image processor"),
        (check_dino, {"model_type": "vit", "image_size": 64}, "has no image processor"),
    ],
)
def test_a_folder_that_lacks_a_part_is_reported(tmp_path, check, config, words):
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        check(tmp_path)


def test_a_clip_without_tokenizer_is_reported_and_a_dino_for_224_pixels_needs_no_processor(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match="has no tokenizer"):
        check_clip(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": 224}')
    check_dino(tmp_path)


def test_a_hub_id_is_judged_by_its_config_alone(tmp_path, monkeypatch):
    config, asked = tmp_path / "config.json", []

    def download(repository, file, revision):
        asked.append((repository, file))
        if repository == "owner/gone":
            raise OSError
        return str(config)

    monkeypatch.setattr("utils.bases.pretrained.hf_hub_download", download)
    monkeypatch.setattr("utils.bases.pretrained.hub_answers", lambda: True)
    config.write_text('{"model_type": "clip"}')
    check_clip("owner/name")
    with pytest.raises(UserError, match="DINO model owner/name is a clip"):
        check_dino("owner/name")
    with pytest.raises(UserError, match="a model that the Hub gives out"):
        check_dino("owner/gone")
    assert asked == [(name, "config.json") for name in ("owner/name", "owner/name", "owner/gone")]
