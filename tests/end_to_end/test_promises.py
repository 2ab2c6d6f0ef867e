"""The promises of the house: a method and a loss are rows, a learner and a family of base models a file and a
row.

Everything new is defined in this file alone.
"""

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

import inference
from scripts import evaluate
from tests.tiny_models import tiny_pipeline
from tests.tiny_scorers import write_scorers
from utils.bases import as_base, load_pipeline
from utils.bases.base import TextEncoder
from utils.bases.families import FAMILIES
from utils.bases.sd import StableDiffusion
from utils.bases.text import feature_at, tokenize
from utils.common.errors import UserError
from utils.common.images import open_image
from utils.concepts.load import load_concept
from utils.config.methods import METHODS, Method, Stage
from utils.learners.learner import Learner
from utils.learners.registry import LEARNERS
from utils.losses.registry import LOSSES, Loss
from utils.losses.spl import cosine_distance
from utils.sampling.images import sample

BIAS = "conv_out.bias"


@pytest.fixture
def output_bias(monkeypatch) -> None:
    """A learner, the bias of the last convolution, and a method of two stages that trains it second."""

    def attach(base):
        return {BIAS: base.unet.conv_out.bias.requires_grad_(True)}

    def merge(pipeline, tensors, path):
        return {"unet": {BIAS: tensors[BIAS].float()}}

    learner = Learner("output_bias", "output bias", attach, lambda base, parameters: dict(parameters), merge)
    stages = (Stage(("token_rows",), share=0.5), Stage(("output_bias",), share=0.5))
    monkeypatch.setitem(LEARNERS, "output_bias", learner)
    monkeypatch.setitem(METHODS, "bias_last", Method("bias_last", "Bias last", stages, "this test"))


def learned(folder: Path) -> dict[str, Tensor]:
    return {
        key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()
    }


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_new_method_with_a_new_learner_trains_in_its_stages(output_bias, train, tiny_base, tmp_path):
    out = train(tmp_path, method="bias_last", max_train_steps=4, learning_rate=1e-2)
    rates = [sorted(key for key in line if key.startswith("lr_")) for line in log(out)]
    assert rates == [["lr_token_rows"]] * 2 + [["lr_output_bias"]] * 2
    assert ["loss_spl" in line for line in log(out)] == [True, True, False, False]  # only where it can matter
    after, base = learned(out), load_pipeline(tiny_base, "cpu")
    halfway = learned(out / "checkpoint-2")
    assert torch.equal(halfway[BIAS], base.unet.conv_out.bias.detach())  # the second stage had not begun
    assert torch.equal(halfway["<new1>"], after["<new1>"])  # and the first had ended
    moved = (after[BIAS] - base.unet.conv_out.bias.detach()).abs()
    assert 5e-3 < moved.max().item() < 2.1e-2


def test_the_new_method_resumes_saves_and_loads(output_bias, train, tiny_base, tmp_path):
    flags = {"method": "bias_last", "max_train_steps": 4, "learning_rate": 1e-2}
    unbroken = train(tmp_path / "a", **flags)
    for cut in (1, 2, 3):  # before, at and after the boundary of the stages
        out = tmp_path / f"cut-{cut}"
        train(out, **flags, checkpointing_steps=1)
        resumed = train(tmp_path / f"on-{cut}", **flags, resume_from_checkpoint=out / f"checkpoint-{cut}")
        for name, value in learned(unbroken).items():
            assert torch.equal(learned(resumed)[name], value), (cut, name)

    pipeline = load_pipeline(tiny_base, "cpu")
    concept = load_concept(pipeline, unbroken)
    assert concept.merged == (BIAS,) and list(concept.token_ids) == ["<new1>"]
    assert torch.equal(pipeline.unet.conv_out.bias.detach(), learned(unbroken)[BIAS])


def test_the_new_method_is_evaluated(output_bias, train, tmp_path, monkeypatch):
    out = train(tmp_path / "dog", method="bias_last", max_train_steps=2, learning_rate=1e-2)
    (tmp_path / "prompts.txt").write_text("a {} on the beach\n")
    scorers = write_scorers(tmp_path / "scorers")
    flags = ["concept", str(out), f"--prompts_file={tmp_path / 'prompts.txt'}", "--metrics=clip_t,dino_i"]
    flags += ["--num_images=1", "--num_inference_steps=2", *(f"--{n}={m}" for n, m in scorers.items())]
    AcceleratorState._reset_state(reset_partial_state=True)  # it lives as long as the process
    evaluate.main([*flags, f"--output_dir={tmp_path / 'results'}"])
    table = json.loads((tmp_path / "results" / "table.json").read_text())
    assert [row["method"] for row in table["rows"]] == ["base", "bias_last"]
    for row in table["rows"]:
        assert row["images"] == 1 and -1 <= row["metric"]["clip_t"]["mean"] <= 1
    assert "Bias last" in (tmp_path / "results" / "report.html").read_text()  # the row's title


def test_a_learner_that_is_gone_is_named(output_bias, train, tiny_base, tmp_path, monkeypatch):
    out = train(tmp_path, method="bias_last", max_train_steps=2)
    monkeypatch.delitem(LEARNERS, "output_bias")
    with pytest.raises(UserError, match="holds weights of 'output_bias'; this version knows"):
        load_concept(load_pipeline(tiny_base, "cpu"), out)


class TwoEncodersPipeline(DiffusionPipeline):
    """A pipeline with a second text encoder and its tokenizer."""

    def __init__(self, vae, text_encoder, tokenizer, unet, scheduler, second, second_tokenizer):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            second=second,
            second_tokenizer=second_tokenizer,
        )


class TwoEncoders(StableDiffusion):
    """A family of its own: the features of two text encoders, 32 and 16 wide, side by side."""

    title = "pair of encoders"
    parts: ClassVar = StableDiffusion.parts | {
        "second": ("CLIPTextModel",),
        "second_tokenizer": ("CLIPTokenizer",),
    }

    @classmethod
    def outline(cls, base, revision=None):
        return cls.open(base, torch.device("cpu"), torch.float32).freeze()

    @classmethod
    def open(cls, base, device, dtype, revision=None, variant=None):
        wide = tiny_pipeline(Path(base, "words"), seed=1, width=48)
        first, second = (tiny_pipeline(Path(base, f"words-{w}"), seed=w, width=w) for w in (32, 16))
        parts = wide.components | {"text_encoder": first.text_encoder, "tokenizer": first.tokenizer}
        parts |= {"second": second.text_encoder, "second_tokenizer": second.tokenizer}
        pipeline = TwoEncodersPipeline(**{name: parts[name] for name in (*cls.parts, "scheduler")})
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline.to(device, dtype))

    @classmethod
    def tokenizers(cls, base, revision=None):
        return tuple(each.tokenizer for each in cls.outline(base).encoders)

    @property
    def modules(self):
        return super().modules | {"second": self.pipeline.second}

    @property
    def encoders(self):
        second = TextEncoder("second", self.pipeline.second, self.pipeline.second_tokenizer, "rows_2")
        return (*super().encoders, second)

    def tokenize(self, prompts):
        return torch.stack([tokenize(each.tokenizer, prompts) for each in self.encoders], dim=1)  # (B, 2, L)

    def encode(self, ids):
        states = [each.model(ids[:, i]).last_hidden_state for i, each in enumerate(self.encoders)]
        return torch.cat(states, dim=-1), ids  # (B, L, 48), and something else that is one for each prompt

    def features(self, states, ids, modifiers=None):
        eos = self.tokenizer.eos_token_id
        return [feature_at(part, ids[:, i], eos) for i, part in enumerate(states[0].split([32, 16], dim=-1))]

    def prompt_inputs(self, prompts, negative_prompt=None, guided=False, adjust=None):
        states = self.text_states(prompts)
        states = adjust(prompts, states) if adjust else states
        negative = self.text_states([negative_prompt or ""] * len(prompts)) if guided else None
        return {"prompt_embeds": states, "negative_prompt_embeds": negative}

    def painter(self):
        parts = {k: v for k, v in self.pipeline.components.items() if not k.startswith("second")}
        parts |= {"text_encoder": None, "safety_checker": None, "feature_extractor": None}
        painter = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        painter.set_progress_bar_config(disable=True)
        return painter

    def text_states(self, prompts):
        return self.encode(self.tokenize(list(prompts)))[0]


@pytest.fixture
def two_encoders(tmp_path, monkeypatch) -> Path:
    """The folder of a base of the new family."""
    folder = tmp_path / "base"
    wide = tiny_pipeline(folder / "words", seed=1, width=48)
    wide.scheduler.save_pretrained(folder / "scheduler")
    index = {name: ["a library", classes[0]] for name, classes in TwoEncoders.parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "TwoEncodersPipeline"}))
    monkeypatch.setitem(FAMILIES, "TwoEncodersPipeline", TwoEncoders)
    return folder


def test_a_new_family_of_base_models_trains(two_encoders, train, tmp_path):
    out = train(
        tmp_path / "out", pretrained_model_name_or_path=two_encoders, resolution=16, adam_weight_decay=0
    )
    assert [line["step"] for line in log(out)] == [1, 2]
    after, fresh = learned(out), TwoEncoders.outline(two_encoders)
    assert after["<new1>"].shape == (32 + 16,)  # a row of each encoder
    starts = []
    for encoder in fresh.encoders:
        (word,) = encoder.tokenizer("ktn", add_special_tokens=False).input_ids
        starts.append(encoder.model.get_input_embeddings().weight[word].detach())
    moved = (after["<new1>"] - torch.cat(starts)).abs()
    assert moved[:32].max().item() > 5e-4 and moved[32:].max().item() > 5e-4  # both have learned

    # The semantic preservation loss is the mean over the text features of both encoders.
    fresh.add_tokens(["<new1>"], ["ktn"], "piece")
    with torch.no_grad():
        ids = [fresh.tokenize([f"a photo of a {words}"]) for words in ("<new1> dog", "dog")]
        pairs = zip(*(fresh.features(fresh.encode(each), each) for each in ids), strict=True)
        distances = [cosine_distance(concept, plain).item() for concept, plain in pairs]
    assert len(distances) == 2
    assert log(out)[0]["loss_spl"] == pytest.approx(sum(distances) / 2, abs=1e-6)


@pytest.fixture
def pair_concept(two_encoders, train, tmp_path) -> Path:
    """A concept trained on the new family."""
    return train(
        tmp_path / "out", pretrained_model_name_or_path=two_encoders, resolution=16, learning_rate=1e-2
    )


def test_a_concept_of_the_new_family_loads_and_is_drawn(two_encoders, pair_concept, tmp_path):
    base = as_base(load_pipeline(two_encoders, "cpu"))
    assert isinstance(base, TwoEncoders)
    loaded = load_concept(base.pipeline, pair_concept)
    assert len(loaded.merged) == len(base.kv_projections())
    row = learned(pair_concept)["<new1>"]
    for encoder, part in zip(base.encoders, row.split([32, 16]), strict=True):
        (number,) = encoder.tokenizer("<new1>", add_special_tokens=False).input_ids
        assert torch.equal(encoder.model.get_input_embeddings().weight[number].detach(), part)

    flags = ["--num_images=1", "--num_inference_steps=2", "--prompt=a photo of a <new1> dog"]
    inference.main([*flags, f"--concept={pair_concept}", f"--output_dir={tmp_path / 'drawn'}"])
    (image,) = [path for path in (tmp_path / "drawn").glob("*.png") if path.name != "grid.png"]
    expected = next(sample(base, ["a photo of a <new1> dog"], [0], num_inference_steps=2))
    assert open_image(image).tobytes() == expected.tobytes()


def test_the_new_family_is_evaluated(two_encoders, pair_concept, tmp_path):
    (tmp_path / "prompts.txt").write_text("a {} on the beach\n")
    scorers = write_scorers(tmp_path / "scorers")
    flags = ["concept", str(pair_concept), f"--prompts_file={tmp_path / 'prompts.txt'}", "--metrics=clip_t"]
    flags += ["--num_images=1", "--num_inference_steps=2", *(f"--{n}={m}" for n, m in scorers.items())]
    AcceleratorState._reset_state(reset_partial_state=True)
    evaluate.main([*flags, f"--output_dir={tmp_path / 'results'}"])
    table = json.loads((tmp_path / "results" / "table.json").read_text())
    assert [row["method"] for row in table["rows"]] == ["base", "classdiffusion"]
    images = [sorted((tmp_path / "results" / m).rglob("*.png")) for m in ("base", "classdiffusion")]
    first, second = (open_image(each[0]) for each in images)
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            {"method": "xti", "instance_prompt": None},
            "trains layer_rows, which needs one text encoder, and a pair of encoders has 2",
        ),
        ({"method": "neti", "instance_prompt": None}, "trains mapper, which needs one text encoder"),
    ],
)
def test_what_needs_one_encoder_is_refused(two_encoders, train, tmp_path, flags, reason):
    with pytest.raises(UserError, match=reason):
        train(tmp_path / "out", pretrained_model_name_or_path=two_encoders, resolution=16, **flags)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_loss_is_a_function_and_a_row(train, tmp_path, monkeypatch):
    """Mean square of the prediction, with weight 0.5, in a run of the real command."""

    def term(prediction):
        return prediction.noise_pred.square().mean()

    monkeypatch.setitem(LOSSES, "loss_size", Loss("loss_size", lambda config: 0.5, term, title="this test"))
    for line in log(train(tmp_path)):
        assert line["loss_size"] > 0
        whole = line["loss_denoise"] + line["loss_spl"] + 0.5 * line["loss_size"]
        assert line["loss"] == pytest.approx(whole, rel=1e-5)
