"""The scores of one subject: against the models' own, batch by batch, gone on with after a kill."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import utils.evaluation.scoring
from tests.tiny_scorers import write_scorers
from utils.blip2t import BLIP2T
from utils.common.errors import UserError
from utils.common.files import read_records
from utils.common.images import list_images, open_image
from utils.evaluation.data_sets import Individual, Subject
from utils.evaluation.folder import Scores
from utils.evaluation.scoring import Scorer, check_metrics, check_texts, mean_scores, score_subject
from utils.evaluation.shots import class_shots, shots_of
from utils.scores.encoders import ClipEncoder, DinoEncoder
from utils.scores.table import SCORES

SEEDS = (0, 1, 2)
METRICS = [name for name in SCORES if SCORES[name].judge in ("clip", "dino", "blip")]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    return write_scorers(tmp_path_factory.mktemp("scorers"))


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (5, 4, 3), np.uint8)
    Image.fromarray(values).resize((24, 20)).save(path)


class Eyes:
    """Judges by the image's upper left pixel."""

    name = "eyes"

    def __call__(self, pictures, texts):
        dark = [picture.getpixel((0, 0))[0] < 128 for picture in pictures]
        words = ["worn" if "headphones" in text else "place" for text in texts]
        return [{word: d, "all": d} for word, d in zip(words, dark, strict=True)]


@pytest.fixture
def subject(tmp_path) -> Subject:
    for i in range(3):
        noise(tmp_path / "real" / f"{i}.png", 100 + i)
    individual = Individual("<new1>", "dog", tmp_path / "real", "a photo of a <new1> dog")
    subject = Subject("rex", (individual,), ("a {} on the beach", "a {} wearing headphones"))
    drawn = shots_of(subject, "classdiffusion", SEEDS) + class_shots(subject, "classdiffusion", [0, 1])[0]
    for number, shot in enumerate(drawn):
        noise(tmp_path / "results" / shot.image, number)
    return subject


def score(tmp_path: Path, subject: Subject, scorer: Scorer) -> Scores:
    results, method = tmp_path / "results", "classdiffusion"
    groups = class_shots(subject, method, [0, 1])
    of_class = [[results / shot.image for shot in group] for group in groups]
    folder = results / method / subject.name
    return score_subject(results, folder, subject, shots_of(subject, method, SEEDS), of_class, scorer)


def test_scores_are_those_of_the_encoders_and_a_loop(tmp_path, subject, models):
    scores = score(tmp_path, subject, Scorer(METRICS, models, device="cpu", word_judge=Eyes(), batch_size=4))
    folder = tmp_path / "results" / "classdiffusion" / "rex"
    records = read_records(folder / "records.jsonl")
    shots = shots_of(subject, "classdiffusion", SEEDS)
    assert [record["image"] for record in records] == [shot.image for shot in shots]
    assert records[4] | shots[4].describe() == records[4]

    pictures = [open_image(tmp_path / "results" / shot.image) for shot in shots]
    real = [open_image(path) for path in list_images(tmp_path / "real")[0]]
    of_class = [open_image(folder / "class" / f"00_{seed}.png") for seed in (0, 1)]
    clip, dino = ClipEncoder(models["clip"], "cpu"), DinoEncoder(models["dino"], "cpu")
    blip, texts = BLIP2T(models["blip"], "cpu"), [shot.text for shot in shots]
    image, text = clip.image_features(pictures), clip.text_features(texts)
    seen, own, cls = (dino.image_features(p) for p in (pictures, real, of_class))
    for i, record in enumerate(records):
        assert record["clip_t"] == pytest.approx(float(image[i] @ text[i]), abs=2e-6)
        like = np.mean([float(image[i] @ r) for r in clip.image_features(real)])
        assert record["clip_i"] == pytest.approx(like, abs=2e-6)
        assert record["dino_i"] == pytest.approx(np.mean([float(seen[i] @ r) for r in own]), abs=2e-6)
        assert record["blip_t"] == pytest.approx(
            blip.text_similarity(texts[i], pictures[i])[0].item(), abs=2e-6
        )
    assert np.ptp([record["clip_t"] for record in records]) > 0.01, "the images must differ"

    metric = scores.metric
    for name in ("clip_t", "clip_i", "dino_i", "blip_t"):
        assert metric[name] == pytest.approx(np.mean([record[name] for record in records]), abs=1e-9)
    assert metric["pres"] == pytest.approx(np.mean([float(c @ r) for c in cls for r in own]), abs=2e-6)
    pairs = [pair for start in (0, 3) for pair in combinations(range(start, start + 3), 2)]
    assert metric["div"] == pytest.approx(np.mean([1 - float(seen[a] @ seen[b]) for a, b in pairs]), abs=2e-6)
    dark = [picture.getpixel((0, 0))[0] < 128 for picture in pictures]
    assert [record["obeyed"]["all"] for record in records] == dark
    assert metric["obeyed_place"] == np.mean(dark[:3]) and metric["obeyed_worn"] == np.mean(dark[3:])
    assert scores.images == 6 and Scores.read(folder) == scores
    assert scores.models["blip_t"] == f"{models['blip']} (BLIP-1 ITC)"
    assert (scores.models["pres"], scores.models["obeyed_all"]) == (models["dino"], "eyes")


def test_a_killed_scoring_goes_on_with_the_images_it_had_not_reached(tmp_path, subject, models, monkeypatch):
    unbroken = score(tmp_path, subject, Scorer(METRICS, models, device="cpu", batch_size=2))
    folder = tmp_path / "results" / "classdiffusion" / "rex"
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    (folder / "scores.json").unlink()

    asked, scores = [], BLIP2T.scores

    def counted(self, prompts, images, *rest):
        asked.extend(prompts)
        return scores(self, prompts, images, *rest)

    monkeypatch.setattr(BLIP2T, "scores", counted)
    again = score(tmp_path, subject, Scorer(METRICS, models, device="cpu", batch_size=2))
    assert asked == ["a dog wearing headphones"] * 3
    assert (folder / "records.jsonl").read_text().splitlines(keepends=True)[:3] == lines[:3]
    assert again.metric == pytest.approx(unbroken.metric, abs=2e-6)


def test_images_are_opened_a_batch_at_a_time_and_real_ones_once(tmp_path, subject, models, monkeypatch):
    opened, sizes, open_one = [], [], utils.evaluation.scoring.open_image
    image_features = DinoEncoder.image_features

    def features(self, pictures, *rest):
        sizes.append(len(pictures))
        return image_features(self, pictures, *rest)

    monkeypatch.setattr(
        utils.evaluation.scoring, "open_image", lambda path: opened.append(path) or open_one(path)
    )
    monkeypatch.setattr(DinoEncoder, "image_features", features)
    scorer = Scorer(METRICS, models, device="cpu", batch_size=2)
    score(tmp_path, subject, scorer)
    assert max(sizes) == 2 and sum(sizes) == 6 + 3 + 2  # generated, real, of the class
    opened.clear()
    (tmp_path / "results" / "classdiffusion" / "rex" / "scores.json").unlink()
    score(tmp_path, subject, scorer)
    assert not [path for path in opened if path.parent == tmp_path / "real"]


def test_each_of_two_individuals_counts_the_same(tmp_path, models):
    for name, count in (("a", 1), ("b", 3)):
        for i in range(count):
            noise(tmp_path / name / f"{i}.png", 10 * count + i)
    two = tuple(Individual(f"<new{i}>", "dog", tmp_path / name, "") for i, name in ((1, "a"), (2, "b")))
    scorer = Scorer(["clip_i"], models, device="cpu")
    features = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.manual_seed(0)), dim=1)
    alone = [scorer.likeness("clip", features, Subject("x", (each,), ())) for each in two]
    together = scorer.likeness("clip", features, Subject("x", two, ()))
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)


def test_only_the_models_of_the_metrics_are_loaded(tmp_path, subject, models):
    scores = score(
        tmp_path, subject, Scorer(["clip_t"], models | {"dino": "none", "blip": "none"}, device="cpu")
    )
    assert list(scores.metric) == ["clip_t"] and scores.models == {"clip_t": models["clip"]}


def test_a_word_counts_where_the_prompt_states_it():
    records = [{"obeyed": {"place": True, "all": False}}, {"obeyed": {"worn": False, "all": False}}]
    assert mean_scores(records) == {"obeyed_place": 1, "obeyed_worn": 0, "obeyed_all": 0}


def test_models_and_texts_that_do_not_do_are_reported_before_they_load(models):
    check_metrics(METRICS, models, "itc")
    check_metrics(["clip_t"], models | {"dino": models["clip"], "blip": "none"}, "itc")
    for metrics, change, head, words in (
        (["div"], {"dino": models["clip"]}, "itc", "is a clip; give a ViTModel"),
        (["clip_i"], {"clip": models["dino"]}, "itc", "is a vit; give a CLIPModel"),
        (["blip_t"], {"blip": models["dino"]}, "itc", "is a ViTModel; give a Blip"),
        (["blip_t"], {}, "both", "unknown head"),
    ):
        with pytest.raises(UserError, match=words):
            check_metrics(metrics, models | change, head)
    check_texts(["clip_t"], models, ["a dog"])
    with pytest.raises(UserError, match="reads 24: shorten it"):
        check_texts(["clip_t"], models, ["a dog on the beach " * 10])
