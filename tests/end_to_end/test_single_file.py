"""A base as one file and the folder that it was written from: what the commands make of both is the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import inference
import train_classdiffusion
from scripts import export, merge_concepts
from tests.end_to_end.training import apart, learned
from tests.original_layout import write_hollow, write_original
from tests.tiny_models import tiny_pipeline, tiny_sdxl
from utils.common.errors import UserError

PIPELINES = {"sd1": tiny_pipeline, "sdxl": tiny_sdxl}


@pytest.mark.parametrize("family", PIPELINES)
def test_a_file_is_trained_drawn_exported_and_merged_like_its_folder(family, train, tmp_path, capsys):
    pipeline = PIPELINES[family](tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "folder")
    bases = {
        "folder": tmp_path / "folder",
        "file": write_original(pipeline, family, tmp_path / "a b.safetensors"),
    }
    concepts, said = {}, {}
    for kind, base in bases.items():
        capsys.readouterr()
        settings = {"pretrained_model_name_or_path": base, "max_train_steps": 1, "resolution": 16}
        concepts[kind] = train(tmp_path / "concepts" / kind, **settings)
        said[kind] = capsys.readouterr().out
        drawing = ["--prompt=a <new1> dog", "--num_images=1", "--num_inference_steps=2"]
        inference.main(
            [f"--concept={concepts[kind]}", *drawing, f"--output_dir={tmp_path / 'images' / kind}"]
        )
        export.main([str(concepts[kind]), str(tmp_path / "lora" / kind), "--format=lora", "--error=0"])
    assert " in one file, predicts the noise (by " in said["file"] and "in one file" not in said["folder"]
    manifests = {kind: json.loads((folder / "concept.json").read_text()) for kind, folder in concepts.items()}
    assert manifests["file"].pop("base") == str(bases["file"]) and manifests["folder"].pop("base")
    assert manifests["file"] == manifests["folder"]  # the digests of the bases' weights among it

    assert apart(learned(concepts["file"]), learned(concepts["folder"])) == 0
    file, folder = (np.asarray(Image.open(tmp_path / "images" / kind / "grid.png")) for kind in bases)
    assert np.array_equal(file, folder)
    file, folder = (load_file(tmp_path / "lora" / kind / f"{kind}_lora.safetensors") for kind in bases)
    assert apart(file, folder) == 0
    merge_concepts.main(
        [*map(str, concepts.values()), f"--base={bases['file']}", f"--output={tmp_path / 'both'}"]
    )
    assert "<new1> dog, <new2> dog" in capsys.readouterr().out


COMMANDS = {
    "train": lambda file, out: train_classdiffusion.main(
        [f"--pretrained_model_name_or_path={file}", "--instance_data_dir=data/dog", f"--output_dir={out}"]
        + ["--cls_token=dog"]
    ),
    "inference": lambda file, out: inference.main([f"--base={file}", f"--output_dir={out}"]),
    "export": lambda file, out: export.main([str(out.parent), str(out), f"--base={file}", "--format=lora"]),
    "merge": lambda file, out: merge_concepts.main(["a", "b", f"--base={file}", f"--output={out}"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_base_is_refused_before_anything_loads(command, tmp_path, monkeypatch):
    file, out = tmp_path / "style.safetensors", tmp_path / "out"
    write_hollow(file, {"lora_te_text_model.lora_down.weight": [4, 4]})
    monkeypatch.setattr("utils.bases.sd.load_parts", None)
    with pytest.raises(UserError, match=f"{file} is a LoRA, which changes a base model"):
        COMMANDS[command](file, out)
    assert not Path(out).exists()
