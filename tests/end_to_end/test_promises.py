"""Two promises of the house: a method and a learner, and a family of base models, are a row and a file.
file.

Everything new is defined in this file alone.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from scripts import evaluate
from tests.tiny_models import tiny_pipeline
from tests.tiny_scorers import write_scorers
from utils.bases import load_pipeline
from utils.bases.families import FAMILIES
from utils.bases.sd import StableDiffusion
from utils.bases.text import feature_at, tokenize
from utils.common.errors import UserError
from utils.concepts.load import load_concept
from utils.config.methods import METHODS, Method, Stage
from utils.learners.learner import Learner
from utils.learners.registry import LEARNERS
from utils.learners.token_rows import install
from utils.losses.spl import cosine_distance

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
    flags = [f"--concept={out}", f"--prompts_file={tmp_path / 'prompts.txt'}", "--metrics=clip_t,dino_i"]
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


class TwoEncoders(StableDiffusion):
    """A family of its own: the features of two text encoders, 32 and 16 wide, side by side."""

    def __init__(self, pipeline, source):
        super().__init__(pipeline, source)
        self.second = pipeline.second.requires_grad_(False)
        self.second_tokenizer = pipeline.second_tokenizer

    @classmethod
    def outline(cls, base, revision):
        return cls.load(base, torch.device("cpu"), revision, None)

    @classmethod
    def load(cls, base, device, revision, variant):
        wide = tiny_pipeline(Path(base, "words"), seed=1, width=48)
        first, second = (tiny_pipeline(Path(base, f"words-{w}"), seed=w, width=w) for w in (32, 16))
        parts = SimpleNamespace(**wide.components, device=device)
        parts.text_encoder, parts.tokenizer = first.text_encoder, first.tokenizer
        parts.second, parts.second_tokenizer = second.text_encoder, second.tokenizer
        return cls(parts, {"pretrained_model_name_or_path": base})

    @property
    def trainable(self):
        return super().trainable | {"second": self.second}

    def add_tokens(self, tokens, words, start):
        super().add_tokens(tokens, words, start)
        second = install(self.second, self.second_tokenizer, tokens, words, start)
        self.rows |= {"rows_2": second.rows.requires_grad_(False)}

    def tokenize(self, prompts):
        return torch.stack(
            [tokenize(each, prompts) for each in (self.tokenizer, self.second_tokenizer)], dim=1
        )  # (B, 2, L)

    def encode(self, ids):
        return tuple(
            encoder(ids[:, i]).last_hidden_state for i, encoder in enumerate((self.text_encoder, self.second))
        )

    def features(self, states, ids, modifiers=None):
        eos = self.tokenizer.eos_token_id
        return [feature_at(state, ids[:, i], eos) for i, state in enumerate(states)]

    def predict(self, noisy_latents, timesteps, states):
        return self.unet(noisy_latents, timesteps, torch.cat(states, dim=-1)).sample


@pytest.fixture
def two_encoders(tmp_path, monkeypatch) -> Path:
    """The folder of a base of the new family."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "TwoEncodersPipeline"}))
    monkeypatch.setitem(FAMILIES, "TwoEncodersPipeline", TwoEncoders)
    return folder


def test_a_new_family_of_base_models_trains(two_encoders, train, tmp_path):
    out = train(
        tmp_path / "out", pretrained_model_name_or_path=two_encoders, resolution=16, adam_weight_decay=0
    )
    assert [line["step"] for line in log(out)] == [1, 2]
    after, fresh = learned(out), TwoEncoders.load(str(two_encoders), torch.device("cpu"), None, None)
    assert after["<new1>"].shape == (32 + 16,)  # a row of each encoder
    starts = []
    for tokenizer, encoder in ((fresh.tokenizer, fresh.text_encoder), (fresh.second_tokenizer, fresh.second)):
        (word,) = tokenizer("ktn", add_special_tokens=False).input_ids
        starts.append(encoder.get_input_embeddings().weight[word].detach())
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
