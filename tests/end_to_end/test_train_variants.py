"""Accumulation, checkpointing, half precision and processes change nothing but what they must."""

import os
import subprocess
import sys

import pytest
import torch

import utils.bases.sd
import utils.config.output_flags
import utils.config.train_config
import utils.data.class_images
import utils.measures.validation
from tests.end_to_end.training import KV_NAMES, REPOSITORY, apart, learned, records


def test_gradient_accumulation_is_a_larger_batch(train, tmp_path):
    # With Adam's usual epsilon, the rounding of gradients near 0 would turn into steps of the full rate.
    settings = dict(adam_epsilon=1e-3, learning_rate=1e-2, max_train_steps=3, scale_lr=True)
    batch = train(tmp_path / "batch", train_batch_size=2, **settings)
    accumulated = train(
        tmp_path / "accumulated", train_batch_size=1, gradient_accumulation_steps=2, **settings
    )
    assert apart(learned(batch), learned(accumulated)) < 1e-6
    for one, two in zip(records(batch), records(accumulated), strict=True):
        assert one == pytest.approx(two, rel=1e-5) and one["lr_cross_attention_kv"] == pytest.approx(
            2e-2, rel=1e-12
        )


def test_gradient_checkpointing_changes_nothing(train, base_weights, tmp_path):
    plain, saving = (
        train(tmp_path / "plain"),
        train(tmp_path / "saving", gradient_checkpointing=True),
    )
    assert apart(learned(plain), learned(saving)) < 1e-6
    assert apart(learned(saving), base_weights) > 1e-3


def test_bf16_keeps_what_learns_in_float32(train, kept, base_weights, tmp_path, quick_sampling):
    settings = dict(with_prior_preservation=True, class_prompt="a dog", num_class_images=2)
    shown = dict(validation_prompt="a <new1> dog", num_validation_images=1, learning_rate=1e-4)
    half = train(tmp_path / "bf16", mixed_precision="bf16", **settings, **shown)
    weights = learned(half)
    for name, value in weights.items():
        assert value.dtype == torch.float32
        moved = (value - base_weights[name]).abs()
        assert 5e-5 < moved.max().item() < 2.1e-4, name
        assert (value.bfloat16() != value).any(), name  # finer than bf16 could hold
    dtypes = {name: weight.dtype for name, weight in kept[0].unet.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == KV_NAMES
    assert {dtype for name, dtype in dtypes.items() if name not in KV_NAMES} == {torch.bfloat16}
    assert {weight.dtype for weight in kept[0].text_encoder.parameters()} == {torch.float32}
    folder = half / "class_images" / "0"
    full = train(tmp_path / "fp32", **settings, learning_rate=1e-4, class_data_dir=folder)
    for one, two in zip(records(half), records(full), strict=True):
        assert one == pytest.approx(two, rel=0.03)
    assert (half / "validation" / "step-00002" / "seed-0.png").is_file()


def test_two_processes_are_one_with_a_larger_batch(train, dog_flags, tmp_path, monkeypatch):
    settings = dict(adam_epsilon=1e-3, learning_rate=5e-3, max_train_steps=3, scale_lr=True, hflip=True)
    settings |= dict(with_prior_preservation=True, class_prompt="a dog", num_class_images=3)
    settings |= dict(class_data_dir=tmp_path / "class", sample_batch_size=1)
    flags = dog_flags(tmp_path / "two", train_batch_size=1, **settings)
    # What `accelerate launch` runs on several GPUs; on a CPU it starts one process, whatever it is asked.
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("--module", "tests.end_to_end.each_process", str(tmp_path), *flags),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        launch, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the concept is in") == 1

    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    two = learned(tmp_path / "two")
    assert apart(ranks[0], two) == 0 and apart(ranks[1], two) == 0
    assert len(list((tmp_path / "class").glob("class-*.png"))) == 3
    monkeypatch.setattr(utils.data.class_images, "draw", None)  # the processes have drawn them all
    one = train(tmp_path / "one", train_batch_size=2, **settings)
    assert apart(learned(one), two) < 5e-6
    for ours, theirs in zip(records(one), records(tmp_path / "two"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert ours["lr_cross_attention_kv"] == pytest.approx(2 * 1e-2, rel=1e-12)  # class images double it
