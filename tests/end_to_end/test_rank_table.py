"""The rank table on toon: what a truncated LoRA keeps, beside the exact concept."""

import json
from pathlib import Path

import torch

from scripts.toon.rank_table import HEAD, main
from utils.bases import load_pipeline
from utils.concepts.save import save_concept
from utils.config.train_config import TrainConfig

REPOSITORY = Path(__file__).parents[2]


def test_table_of_a_concept_of_rank_four(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    unet, rng = load_pipeline("data/toon/sd", "cpu", "fp32").unet, torch.Generator().manual_seed(0)
    kv = {}
    for name, value in unet.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            change = torch.linalg.qr(torch.randn(len(value), 4, generator=rng))[0]
            change = change @ torch.linalg.qr(torch.randn(value.shape[1], 4, generator=rng))[0].T
            kv[name] = value.detach() + 0.1 * change  # four equal singular values
    out = tmp_path / "dog"
    save_concept(out, kv, {"<new1>": torch.zeros(128)}, base="toon", classes=["dog"])
    TrainConfig(instance_data_dir="data/dog", cls_token="dog").save(out / "training_config.json")

    flags = ["--rank=1", "--rank=4", "--num_inference_steps=1", f"--output_dir={tmp_path / 'table'}"]
    main([str(out), str(out), *flags])
    lines = (tmp_path / "table" / "ranks.md").read_text().splitlines()
    assert lines[:2] == HEAD.splitlines() and len(lines) == 5
    numbers = json.loads((tmp_path / "table" / "ranks.json").read_text())
    # Of keys and values for captions, as recorded; of such weights themselves it would be .75 ** .5.
    assert abs(numbers["1"]["errors"][0] - 0.6477) < 1e-3 and numbers["4"]["errors"][0] < 0.01
    assert numbers["1"]["mb"] < numbers["4"]["mb"] < numbers["exact"]["mb"]
    assert len(set(numbers["4"]["errors"])) == 1 and len(numbers["4"]["errors"]) == 2
    prompts = len(numbers["exact"]["words"])
    apart = [abs(a - b) for a, b in zip(numbers["4"]["dino_i"], numbers["exact"]["dino_i"], strict=True)]
    assert prompts == len(apart) > 20 and max(apart) < 0.01
