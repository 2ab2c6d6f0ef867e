"""The training command, after which every process saves what it has learned.

torchrun --nproc_per_node 2 --module tests.end_to_end.each_process FOLDER FLAGS… writes FOLDER/rank-0.pt and
rank-1.pt.
"""

import os
import sys
from pathlib import Path

import torch

import train_classdiffusion


def main(folder: Path, argv: list[str]) -> None:
    runs, set_up = [], train_classdiffusion.set_up

    def set_up_and_keep(config):
        runs.append(set_up(config))
        return runs[0]

    train_classdiffusion.set_up = set_up_and_keep
    train_classdiffusion.main(argv)
    pipeline = runs[0].base.pipeline
    learned = {name: weight for name, weight in pipeline.unet.named_parameters() if weight.requires_grad}
    learned["<new1>"] = pipeline.text_encoder.get_input_embeddings().rows[0]
    torch.save({k: v.detach() for k, v in learned.items()}, folder / f"rank-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
