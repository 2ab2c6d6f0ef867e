"""The concept that tests learn; `dataclasses.replace` makes others of it."""

from pathlib import Path

from utils.config.concepts import Concept

DOG = Concept(
    modifier_token="<new1>",
    initializer_token="ktn",
    cls_token="dog",
    subject="<new1> dog",
    instance_prompt="a photo of a <new1> dog",
    instance_data_dir=Path("data/dog"),
)
