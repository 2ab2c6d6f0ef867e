"""Every command with a command line that works in the folder that `fill_place` makes."""

import shutil
from pathlib import Path

import torch
from PIL import Image

from tests.faults.commands import Command
from tests.results_folder import write_results
from tests.tiny_motion import write_adapter
from tests.tiny_scorers import write_scorers
from utils.common.files import write_json
from utils.common.images import save_png
from utils.concepts.save import save_concept


def fill_place(folder: Path, tiny_base: Path, images: Path) -> None:
    """One of everything that commands take, which anybody can read, and junk."""
    shutil.copytree(tiny_base, folder / "sd")
    shutil.copytree(tiny_base, folder / "words" / "sd")
    (folder / "drawn").mkdir()
    shutil.copytree(images, folder / "dog")
    write_adapter(folder / "adapter")
    write_scorers(folder / "scorers")
    write_results(folder / "results")
    save_png(Image.new("RGB", (16, 16)), folder / "drawn" / "0.png", {"prompt": "a <new1> dog"})
    for number in (1, 2):
        write_concept(folder / f"concept{number}", folder / "sd", f"<new{number}>", folder / "dog")
    (folder / "junk.bin").write_bytes(bytes(range(256)))
    (folder / "empty").mkdir()
    (folder / "unreadable").mkdir()
    (folder / "unreadable" / "0.png").write_bytes((folder / "dog" / "0.png").read_bytes())
    (folder / "unreadable.txt").write_text("a photo of a dog\n")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    folder.chmod(0o777)
    (folder / "unreadable").chmod(0)
    (folder / "unreadable.txt").chmod(0)


def write_concept(folder: Path, base: Path, token: str, images: Path) -> None:
    """A concept whose K/V are noise, of the tiny base, as training leaves it."""
    generator = torch.Generator().manual_seed(len(token))
    kv = {}
    for block in ("down_blocks.0", "up_blocks.1", "mid_block"):
        for attention in range(2 if block[0] == "u" else 1):
            layer = f"{block}.attentions.{attention}.transformer_blocks.0.attn2"
            width = 64 if block == "mid_block" else 32
            kv |= {f"{layer}.to_{p}.weight": torch.randn(width, 32, generator=generator) for p in "kv"}
    save_concept(folder, kv, {token: torch.ones(32)}, base=str(base), classes=["dog"])
    flags = {"instance_data_dir": str(images), "cls_token": "dog", "modifier_token": token}
    write_json(folder / "training_config.json", flags | {"pretrained_model_name_or_path": str(base)})


REPOSITORY = Path(__file__).parents[2]
TRAIN = "--pretrained_model_name_or_path=sd --instance_data_dir=dog --cls_token=dog --output_dir=out"
JUDGES = "--clip=scorers/clip --dino=scorers/dino --blip=scorers/blip"
COMMANDS = {
    "train": Command("train_classdiffusion", "TrainConfig", tuple(TRAIN.split())),
    "train, prior": Command(
        "train_classdiffusion",
        "TrainConfig",
        (*TRAIN.split(), "--with_prior_preservation", "--class_prompt=a dog"),
    ),
    "inference": Command("inference", "InferenceConfig", ("--concept=concept1",)),
    "inference, base": Command("inference", "InferenceConfig", ("--base=sd", "--prompt=a dog")),
    "videogen": Command(
        "videogen", "VideoConfig", ("--base=sd", "--concept=concept1", "--motion_adapter=adapter")
    ),
    "blip2t": Command(
        "blip2t", "ScoreConfig", ("--image=dog", "--prompt=a photo of a dog", "--model=scorers/blip")
    ),
    "evaluate, dataset": Command("scripts.evaluate", "Flags", ("toon", "--output_dir=out"), "dataset"),
    "evaluate, concept": Command(
        "scripts.evaluate",
        "Flags",
        ("concept1", "--num_inference_steps=2", "--output_dir=out", *JUDGES.split()),
        "concept",
    ),
    "evaluate, generated": Command(
        "scripts.evaluate",
        "Flags",
        ("drawn", "--real=dog", "--output_dir=out", *JUDGES.split()),
        "generated",
    ),
    "study": Command(
        "scripts.study", "Flags", (f"{REPOSITORY}/scripts/plans/toon_short.toml", "--output_dir=out")
    ),
    "report": Command("scripts.report", "ReportConfig", ("results",)),
    "export": Command("scripts.export", "ExportConfig", ("concept1", "out")),
    "merge_concepts": Command(
        "scripts.merge_concepts", "MergeConfig", ("concept1", "concept2", "--output=out")
    ),
    "doctor": Command("scripts.doctor", "DoctorConfig", ("--costs=none",)),
    "gpu_check": Command(
        "scripts.gpu_check",
        "GpuCheckConfig",
        ("--device=cpu", "--tiny", "--checks=sampling", "--inside", "--output_dir=out"),
    ),
    "benchmark, evaluate": Command("scripts.benchmark", "EvaluateFlags", ("--images=1",), "evaluate"),
    **{
        f"benchmark, {name}": Command("scripts.benchmark", config, ("--base=tiny", "--rounds=1", *more), name)
        for name, config, more in (
            ("train", "TrainFlags", ("--minutes=1e-9", "--work_dir=out")),
            ("growth", "GrowthFlags", ("--minutes=1e-9", "--work_dir=out", "--output_dir=out")),
            ("sample", "SampleFlags", ("--work_dir=out",)),
        )
    },
    **{
        name: Command("scripts.analyse", config, ("concept1", "--output_dir=out", *more), name)
        for name, config, more in (
            ("semantic_space", "SpaceFlags", ()),
            ("attention_maps", "AttentionFlags", ()),
            ("conditional_spread", "SpreadFlags", ("--num_images=0",)),
        )
    },
    "context prompts": Command("scripts.contextualizer", "PromptsFlags", (), "prompts"),
    "pretrain contextualizer": Command("scripts.contextualizer", "PretrainFlags", ("--base=sd",), "pretrain"),
}
TOON = {
    "benchmark_set": "--output_dir=out",
    "measure": f"--models={REPOSITORY}/data/toon",
    "motion_accuracy": "--base=sd --motion_adapter=adapter --concept=concept1 --dino=scorers/dino",
    "masked_scenes": "--output_dir=out --count=1",
    "rank_table": "concept1 --output_dir=out",
    "prompt_accuracy": "--base=sd --num_inference_steps=2",
    "tune": "--output_dir=out --work_dir=out",
    "part_accuracy": "--reader=scorers/dino --output_dir=out",
    "compare_flags": "--flags=--ema_decay=0.9 --output_dir=out",
}
COMMANDS |= {
    f"toon {name}": Command(f"scripts.toon.{name}", "Flags", tuple(flags.split()))
    for name, flags in TOON.items()
}
BUILD = {
    "examples": ("ExamplesFlags", "--output_dir=out --resolution=16"),
    "tokenizer": ("TokenizerFlags", "--output_dir=out"),
    "autoencoder": ("AutoencoderFlags", "--output_dir=out --work_dir=out"),
    "blip": ("BlipFlags", "--output_dir=out --work_dir=out"),
    "clip": ("ClipFlags", "--output_dir=words --work_dir=out"),
    "dino": ("DinoFlags", "--output_dir=out --work_dir=out"),
    "motion": ("MotionFlags", "--output_dir=out --work_dir=out --base=sd"),
    "part_reader": (
        "PartReaderFlags",
        f"--output_dir=out --work_dir=out --recogniser={REPOSITORY}/data/toon/recogniser",
    ),
    "recogniser": ("RecogniserFlags", "--output_dir=out --work_dir=out"),
    "unet": ("UnetFlags", "--output_dir=sd --work_dir=out --features_of=scorers/dino"),
}  # without `all`, which runs these
COMMANDS |= {
    f"toon build {name}": Command("scripts.toon.build", config, tuple(flags.split()), name)
    for name, (config, flags) in BUILD.items()
}
