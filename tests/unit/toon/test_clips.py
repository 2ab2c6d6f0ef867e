"""The toon world in motion: what its clips hold, the adapter trained on them, the measures that judge it."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNetMotionModel
from PIL import Image

from scripts.toon.judge import motion_judge, motion_measures
from scripts.toon.judge.motion_judge import prompts_of, rendered
from scripts.toon.judge.motion_measures import centroids, change, displacement, smoothness, succession
from scripts.toon.models.motion import build, share_modules
from scripts.toon.world.clips import CYCLES, FOLLOWED, FRAMES, RETURNING, TRAVEL, Clip, draw_clip, sample_clip
from scripts.toon.world.render import render
from scripts.toon.world.world import is_held_out
from tests.concepts import DOG
from tests.tiny_models import tiny_pipeline
from tests.tiny_motion import write_adapter
from utils.bases import load_pipeline
from utils.concepts.save import save_concept


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [sample_clip(random.Random(f"test/{i}")) for i in range(300)]


def test_a_clip_is_a_function_of_its_seed(clips):
    assert sample_clip(random.Random("test/7")) == clips[7] != clips[8]


def test_a_clip_keeps_its_subject_and_never_holds_a_held_out_triple(clips):
    for clip in clips:
        assert len(clip.frames) == len(clip.camera) == FRAMES
        assert not is_held_out(clip.scene)
        still = {"x": 0, "phase": 0, "faces_left": False}
        assert len({replace(frame, **still) for frame in clip.frames}) == 1, "only these three may change"
        assert all(0.2 < frame.x < 0.8 and 0 <= frame.phase < 1 for frame in clip.frames)


def test_how_a_runner_runs_is_settled_by_the_place(clips):
    runners = [clip for clip in clips if clip.scene.pose == "running"]
    assert 0.35 < len(runners) / len(clips) < 0.55
    kinds = {"across": 0, "back": 0, "drifting": 0, "on the spot": 0}
    for clip in runners:
        x = np.array([frame.x for frame in clip.frames])
        left = [frame.faces_left for frame in clip.frames]
        if clip.scene.neighbour not in ("nothing", "barn"):
            name = "on the spot"
            assert np.ptp(x) == 0 and not any(left) and not any(clip.camera)
        elif clip.scene.place in FOLLOWED:
            name = "drifting"
            assert np.ptp(x) == 0 and not any(left) and list(clip.camera) == sorted(clip.camera)
            assert (clip.camera[0], clip.camera[-1]) == (0, 1)
        elif clip.scene.place in RETURNING:
            name = "back"
            assert left == [False] * 8 + [True] * 8 and np.allclose(x, x[::-1])
            assert (np.diff(x)[:7] > 0).all() and x[7] - x[0] > 0.9 * TRAVEL
        else:
            name = "across"
            assert not any(left) and (np.diff(x) > 0).all() and np.ptp(x) == pytest.approx(TRAVEL)
        kinds[name] += 1
    assert min(kinds.values()) >= 5, kinds


def test_who_does_not_run_stays_in_its_place(clips):
    assert {clip.scene.pose for clip in clips} == {"running", "jumping", "waving", "standing", "sitting"}
    for clip in clips:
        if clip.scene.pose != "running":
            assert len({(frame.x, frame.faces_left) for frame in clip.frames}) == 1 and not any(clip.camera)


def test_movements_begin_alike_and_a_clip_can_be_looped(clips):
    expected = [CYCLES * i / FRAMES % 1 for i in range(FRAMES)]
    assert all([frame.phase for frame in clip.frames] == expected for clip in clips)
    assert expected[:9] == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0]


def test_frames_are_the_renderers_and_a_drifting_background_passes_a_subject_at_rest(clips):
    resting = next(clip for clip in clips if not any(clip.camera))
    assert draw_clip(resting, 32)[5].tobytes() == render(resting.frames[5], 32).tobytes()
    runner = next(c for c in clips if any(c.camera) and c.scene.neighbour == "nothing")
    followed = Clip(tuple(replace(f, place="plain") for f in runner.frames), runner.camera)
    drawn = draw_clip(followed, 64)
    assert {frame.size for frame in drawn} == {(64, 64)}
    assert displacement(drawn)["across"] < 0.03
    street = Clip(tuple(replace(f, place="street", seed=3) for f in followed.frames), followed.camera)
    first, last = [np.asarray(draw_clip(street, 64)[i], dtype=int)[:20] for i in (0, -1)]
    assert np.abs(first[:, 16:] - last[:, :-16]).mean() < np.abs(first - last).mean() / 3


def test_a_new_adapter_changes_nothing_and_trains_inside_the_unet(tmp_path):
    image = tiny_pipeline(tmp_path).unet
    adapter = build(image)
    unet = UNetMotionModel.from_unet2d(image, adapter).requires_grad_(False)
    share_modules(unet, adapter.requires_grad_(True))
    latents, text = torch.randn(2, 4, FRAMES, 8, 8), torch.randn(2, 24, 32)
    timesteps = torch.tensor([10, 900])
    out = unet(latents, timesteps, text.repeat_interleave(FRAMES, dim=0)).sample
    with torch.no_grad():
        for i in range(2):
            frames = latents[i].transpose(0, 1)
            expected = image(frames, timesteps[i], text[i].expand(FRAMES, -1, -1)).sample
            assert torch.allclose(out[i].transpose(0, 1), expected, atol=1e-5)
    out.square().mean().backward()
    assert not any(p.grad is not None for n, p in unet.named_parameters() if "motion_modules" not in n)
    trained = [
        name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
    ]
    assert (
        sum("proj_out.weight" in name for name in trained) == 7
    )  # 2 down, 1 middle, 2 x 2 up: all there are
    assert adapter.config.motion_max_seq_length == FRAMES


def square(x: int, y: int) -> Image.Image:
    """A dark square of 16 px on a light wall above a grey floor, 64 px."""
    picture = Image.new("RGB", (64, 64), (230, 220, 240))
    picture.paste((180, 170, 190), (0, 50, 64, 64))
    picture.paste((20, 30, 40), (x, y, x + 16, y + 16))
    return picture


def test_displacement_is_the_way_of_the_subject():
    clip = [square(10 + 2 * i, 40 - i) for i in range(9)]
    assert centroids(clip)[0] == pytest.approx([18 / 64, 48 / 64], abs=0.02)
    measured = displacement(clip)
    assert measured["across"] == pytest.approx(16 / 64, abs=0.02)
    assert measured["forward"] == pytest.approx(14 / 64, abs=0.02), "from frames 0, 1 to frames 7, 8"
    assert measured["up"] == pytest.approx(8 / 64, abs=0.02)
    assert displacement(clip[::-1])["forward"] == pytest.approx(-14 / 64, abs=0.02)
    assert displacement([square(10, 40)] * 5) == {"across": 0, "forward": 0, "up": 0, "change": 0}
    assert change([square(10, 40), Image.new("RGB", (64, 64))]) > 0.5


def test_shuffling_is_seen_in_likeness_and_change():
    clip = [square(2 * i, 30) for i in range(16)]
    angles = torch.arange(32) * 0.1  # two clips, each frame a little further round than the one before
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert succession(features) == pytest.approx(np.cos(0.1), abs=1e-6)
    measured = smoothness([clip, clip], features)
    assert measured["likeness, true order"] == pytest.approx(np.cos(0.1), abs=1e-6)
    assert measured["likeness, shuffled"] < 0.9
    assert measured["change, shuffled"] > 2 * measured["change, true order"] > 0
    assert motion_measures.mean_of([{"a": 1.0}, {"a": 3.0}]) == {"a": 2.0}


def test_rendered_runners_go_further_than_jumpers_and_sitters():
    spans = {
        pose: [displacement(clip) for clip in rendered(pose, 4)] for pose in ("running", "jumping", "sitting")
    }
    assert min(row["forward"] for row in spans["running"]) > 0.15
    assert min(row["up"] for row in spans["jumping"]) > 0.05
    assert all(value == 0 for row in spans["sitting"] for value in row.values())


def test_prompts_state_pose_place_and_what_is_worn():
    prompts = dict(prompts_of("dog", "<new1> dog"))
    assert len(prompts) == 16
    assert prompts["a <new1> dog running wearing headphones on the beach"] == {
        "class": "dog",
        "pose": "running",
        "worn": "headphones",
        "place": "beach",
    }


def test_judging_fills_every_number_and_draws_the_sheets(tiny_base, pictures, monkeypatch, tmp_path):
    """On a tiny model that draws noise: 2 clips of one prompt, 8 of the measured pose."""

    class Pixels:
        model_id = "pixels"

        def image_features(self, pictures):
            small = [torch.tensor(np.asarray(p.convert("RGB").resize((4, 4)))).float() for p in pictures]
            return torch.nn.functional.normalize(torch.stack(small).flatten(1), dim=1)

    monkeypatch.setattr(motion_judge, "POSES", ("running",))
    monkeypatch.setattr(motion_judge, "SITUATIONS", ({"place": "beach"},))
    monkeypatch.setattr(motion_judge, "MEASURED", ("running",))
    monkeypatch.setitem(motion_judge.SETTINGS, "num_inference_steps", 1)
    pipeline = load_pipeline(tiny_base, "cpu")
    parameters = pipeline.unet.named_parameters()
    kv = {n: w + 0.1 for n, w in parameters if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    save_concept(tmp_path / "dog", kv, {"<new1>": torch.ones(32)}, base=str(tiny_base), classes=["dog"])
    concept = replace(DOG, instance_data_dir=pictures("dog"))
    adapter = write_adapter(tmp_path / "adapter")
    results = motion_judge.judge(
        pipeline, concept, tmp_path / "dog", str(adapter), Pixels(), 2, tmp_path / "sheets"
    )
    assert results["clips"] == 2 and results["dino"] == "pixels"
    assert all(0 < value <= 1 for value in results["identity"].values()) and len(results["identity"]) == 3
    assert results["smoothness"]["change, true order"] > 0
    assert results["displacement, rendered"]["running"]["forward"] > 0.1
    rendered_ones = results["smoothness, rendered"]
    assert rendered_ones["likeness, true order"] > rendered_ones["likeness, shuffled"]
    assert set(results["prompt accuracy"]["frames"]) == {"class", "pose", "place", "all"}
    with Image.open(tmp_path / "sheets" / "clips.png") as sheet:
        assert sheet.size == (8 * 256 + 7 * 8, 26 + 256 + 8)
    with Image.open(tmp_path / "sheets" / "running.png") as sheet:
        assert sheet.height == 8 * (26 + 256 + 8)


def test_obeyed_counts_what_each_prompt_states(monkeypatch):
    class Reader:
        def read(self, pictures):
            seen = {"class": "dog", "pose": "jumping", "place": "grass", "worn": "hat"}
            return [seen for _ in pictures]

    monkeypatch.setattr(motion_judge, "Recogniser", Reader)
    said = [
        {"class": "dog", "pose": "jumping", "place": "grass"},
        {"class": "dog", "pose": "sitting", "place": "beach"},
        {"class": "dog", "pose": "jumping", "worn": "headphones"},
        {"class": "dog", "pose": "jumping"},
    ]
    shares = motion_judge.obeyed([None] * 4, said)
    assert shares == {"class": 1, "pose": 0.75, "place": 0.5, "worn": 0, "all": 0.5}
