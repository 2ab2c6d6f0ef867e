"""videogen.py as a user runs it, on a tiny pipeline, a tiny motion adapter and concepts saved for it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
from PIL import Image, ImageSequence

import videogen
from tests.tiny_models import tiny_pipeline
from tests.tiny_motion import write_adapter
from utils.common.errors import UserError
from utils.concepts.save import save_concept
from utils.learners.layer_rows import layer_keys

REPOSITORY = Path(__file__).parents[2]
RUNNING = "a <new1> dog running in the snow"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"))


def trained(folder: Path, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """K/V and two token rows, as if they had been trained."""
    unet = tiny_pipeline(folder / "words").unet
    torch.manual_seed(seed)
    kv = {
        name: (weight + torch.randn_like(weight)).detach()
        for name, weight in unet.named_parameters()
        if re.search(r"attn2\.to_[kv]\.weight", name)
    }
    return kv, {"<new1>": torch.randn(32), "<new2>": torch.randn(32)}


@pytest.fixture(scope="module")
def concepts(tiny_base, tmp_path_factory) -> Path:
    """A folder of two concepts: "dog", and "pair" with two tokens."""
    folder = tmp_path_factory.mktemp("concepts")
    kv, rows = trained(folder, seed=1)
    save_concept(folder / "dog", kv, {"<new1>": rows["<new1>"]}, base=str(tiny_base), classes=["dog"])
    save_concept(folder / "pair", kv, rows, base=str(tiny_base), classes=["teddy bear", "barn"])
    return folder


@pytest.fixture
def film(adapter, concepts, tmp_path):
    """film(output name, *arguments): videogen.py's main with 2 steps and 4 frames; returns its folder."""

    def run(name: str, *arguments: object, concept: str | None = "dog") -> Path:
        given = ["--num_inference_steps=2", "--num_frames=4", "--device=cpu", f"--motion_adapter={adapter}"]
        given += [f"--concept={concepts / concept}"] if concept else []
        videogen.main([*given, f"--output_dir={tmp_path / name}", *map(str, arguments)])
        return tmp_path / name

    return run


def frames_of(path: Path) -> np.ndarray:
    """(F, H, W, 3) int."""
    with Image.open(path) as image:
        return np.stack([np.asarray(f.convert("RGB"), dtype=int) for f in ImageSequence.Iterator(image)])


def hand_made(base: Path, adapter: Path, kv, rows, prompt: str, seed: int) -> np.ndarray:
    """The clip that stock diffusers draws of a model whose weights are put in one by one."""
    pipeline = tiny_pipeline(base.parent / "words")
    for name, value in kv.items():
        pipeline.unet.get_parameter(name).data = value
    pipeline.tokenizer.add_tokens(list(rows))
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
    for token, row in rows.items():
        table = pipeline.text_encoder.get_input_embeddings().weight
        table.data[pipeline.tokenizer.convert_tokens_to_ids(token)] = row
    video = AnimateDiffPipeline(
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        unet=pipeline.unet,
        motion_adapter=MotionAdapter.from_pretrained(adapter),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="linear",
            timestep_spacing="linspace",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    )
    clip = video(
        prompt,
        num_frames=4,
        num_inference_steps=2,
        guidance_scale=7.5,
        negative_prompt="bad quality, worse quality",
        generator=torch.Generator().manual_seed(seed),
    ).frames[0]
    return np.stack([np.asarray(frame, dtype=int) for frame in clip])


def test_command_films_the_concept_by_default(adapter, concepts, tiny_base, tmp_path):
    out = tmp_path / "out"
    given = [f"--concept={concepts / 'dog'}", f"--motion_adapter={adapter}", f"--output_dir={out}"]
    settings = ["--num_inference_steps=2", "--num_frames=5", "--fps=10", "--num_videos=2", "--seed=3"]
    done = subprocess.run(
        [sys.executable, "videogen.py", *given, *settings, "--device=cpu", "--format=webp"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == (
        f"base {tiny_base} (not one of toon, sd15, sd21, sdxl: the settings of sd15) with {adapter} on cpu, "
        "torch.float32, linear betas"
    )
    assert re.fullmatch(
        rf"2 clips in {out}, [\d.]+ s each; a .png next to each shows its frames", lines[-1]
    ), lines
    said = done.stderr.strip().split("\r")  # the progress over clips, and not a word besides
    assert "2/2" in said[-1] and all("clip" in line for line in said), done.stderr
    stems = [f"a-new1-dog-running-in-the-snow_{seed}" for seed in (3, 4)]
    assert {path.name for path in out.iterdir()} == {
        f"{s}.{x}" for s in stems for x in ("gif", "webp", "png")
    }
    with Image.open(out / f"{stems[1]}.gif") as image:
        assert image.n_frames == 5 and image.size == (16, 16) and image.info["duration"] == 100
        said = json.loads(image.info["comment"])
    assert said == {
        "prompt": RUNNING,
        "seed": "4",
        "fps": "10",
        "size": "16x16",
        "num_frames": "5",
        "negative_prompt": "bad quality, worse quality",
        "num_inference_steps": "2",
        "guidance_scale": "7.5",
        "eta": "0.0",
        "scheduler": "ddim",
        "free_noise": "False",
        "window_stride": "4",
        "free_init": "False",
        "base": str(tiny_base),
        "motion_adapter": str(adapter),
        "dtype": "torch.float32",
        "concept": str(concepts / "dog"),
        "beta_schedule": "linear",
    }
    with Image.open(out / f"{stems[1]}.png") as sheet:
        assert sheet.text == said
    assert np.abs(frames_of(out / f"{stems[0]}.webp") - frames_of(out / f"{stems[1]}.webp")).max() > 1


def test_frames_are_those_of_a_hand_merged_unet(film, tiny_base, adapter, concepts, tmp_path):
    kv, rows = trained(tmp_path, seed=1)
    row = {"<new1>": rows["<new1>"]}
    frames = frames_of(film("ours", "--seed=2", "--format=webp") / "a-new1-dog-running-in-the-snow_2.webp")
    assert np.array_equal(frames, hand_made(tiny_base, adapter, kv, row, RUNNING, 2))
    for name, part in (("row alone", {}), ("one layer's", dict([next(iter(kv.items()))]))):
        unpersonalised = hand_made(tiny_base, adapter, part, row, RUNNING, 2)
        assert np.abs(frames - unpersonalised).max() > 5, name


def test_two_concepts_of_one_checkpoint_share_a_clip(film, tiny_base, adapter, tmp_path):
    prompt = "a <new1> teddy bear in front of a <new2> barn"
    out = film("pair", "--format=webp", concept="pair")
    frames = frames_of(out / "a-new1-teddy-bear-in-front-of-a-new2-barn_0.webp")
    kv, rows = trained(tmp_path, seed=1)
    assert np.array_equal(frames, hand_made(tiny_base, adapter, kv, rows, prompt, 0))
    swapped = {"<new1>": rows["<new2>"], "<new2>": rows["<new1>"]}
    assert np.abs(frames - hand_made(tiny_base, adapter, kv, swapped, prompt, 0)).max() > 1


def test_rows_of_each_layer_reach_the_clip(film, tiny_base, adapter, concepts, tmp_path):
    """XTI: with the same row in every layer a clip is stock diffusers'; with another row in one it is not."""
    _, rows = trained(tmp_path, seed=1)
    row, layers = rows["<new1>"], layer_keys(tiny_pipeline(tmp_path / "words").unet)
    about = {"base": str(tiny_base), "classes": ["dog"], "subject": "{token}", "method": "xti"}
    frames = {}
    for name, changed in (("equal", {}), ("own", {layers[-1]: rows["<new2>"][None]})):
        own = dict.fromkeys(layers, row[None]) | changed
        save_concept(concepts / name, {}, {"<new1>": row}, parts={"layer_rows": own}, **about)
        out = film(name, "--seed=2", "--format=webp", concept=name)  # the prompt is the command's own
        frames[name] = frames_of(out / "a-new1-running-in-the-snow_2.webp")
    stock = hand_made(tiny_base, adapter, {}, {"<new1>": row}, "a <new1> running in the snow", 2)
    assert np.array_equal(frames["equal"], stock)
    assert np.abs(frames["own"] - stock).max() > 5


def test_a_clip_is_the_same_again_and_alone(film):
    both = film("both", "--prompt=a dog", "--prompt=a <new1> dog", "--num_videos=2")
    again = film("again", "--prompt=a <new1> dog", "--seed=1")
    assert len(list(both.iterdir())) == 8
    assert np.array_equal(frames_of(both / "a-new1-dog_1.gif"), frames_of(again / "a-new1-dog_1.gif"))


def test_free_noise_and_free_init_reach_the_clip(film):
    short = film("short", "--free_init", "--prompt=a dog", "--format=webp")
    plain = film("plain", "--prompt=a dog", "--format=webp")
    assert np.abs(frames_of(short / "a-dog_0.webp") - frames_of(plain / "a-dog_0.webp")).max() > 1
    long = film("long", "--free_noise", "--num_frames=21", "--prompt=a dog")
    with Image.open(long / "a-dog_0.gif") as image:
        assert image.n_frames == 21 and json.loads(image.info["comment"])["free_noise"] == "True"


def test_the_quickstarts_concept_is_the_default(film, concepts, monkeypatch, tmp_path):
    monkeypatch.setattr(videogen, "CONCEPT", concepts / "dog")
    assert (film("default", concept=None) / "a-new1-dog-running-in-the-snow_0.gif").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "no concept: {tmp}/none does not exist; run bash scripts/quickstart.sh, or give --concept"),
        ("--concept={tmp}/missing", "{tmp}/missing does not exist"),
        ("--concept={dog} --num_frames=17", "num_frames is 17, the motion adapter knows 16"),
        ("--concept={dog} --num_frames=1", "num_frames is 1"),
        ("--concept={dog} --free_noise", "within one window of 16"),
        ("--concept={dog} --motion_adapter={tmp}/wide", "has block channels [64, 64]"),
        ("--concept={dog} --motion_adapter={tmp}", "has no config.json"),
        (
            "--concept={dog} --beta_schedule=cosine",
            "--beta_schedule cosine is unknown: choose from linear, scaled_linear",
        ),
        ("--concept={dog} --prompt=<new2>", "<new2>, known are: <new1>"),
        ("--concept={dog} --concept={dog}", "two concepts use <new1>"),
        ("--concept={dog} --num_videos=0", "--num_videos 0: give a number of at least 1"),
        ("--concept={dog} --num_inference_steps=2000", "has 1000 timesteps: give at most that"),
        ("--concept={dog} --guidance_scale=inf", "--guidance_scale inf: give a finite number"),
        ("--concept={dog} --fps=0", "fps is 0"),
        ("--concept={dog} --format=avi", "--format avi is unknown: choose from gif, webp, mp4"),
        ("--concept={dog} --scheduler=pndm --eta=1", "ignores eta"),
        ("--concept={dog} --guidance_scale=1 --negative_prompt=cat", "only above 1"),
        ("--concept={dog} --output_dir={tmp}/file", "is a file"),
        ("--concept={dog} --base={tmp}", "has no model_index.json"),
        ("--concept={dog} --device=tpu9", "unknown device"),
    ],
)
def test_mistakes_are_reported_before_models_load(arguments, words, concepts, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.sampling.drawing.load_pipeline", None)
    monkeypatch.setattr(videogen, "CONCEPT", tmp_path / "none")
    write_adapter(tmp_path / "wide", block_out_channels=(64, 64))
    (tmp_path / "file").write_text("")
    paths = {"tmp": tmp_path, "dog": concepts / "dog"}
    given = [f"--motion_adapter={adapter}", f"--output_dir={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=re.escape(words.format(**paths))) as mistake:
        videogen.main([*given, *arguments.format(**paths).split()])
    assert "\n" not in str(mistake.value)
    assert {path.name for path in tmp_path.iterdir()} == {"wide", "file"}
