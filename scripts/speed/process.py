"""One of several training processes, for `scripts.benchmark growth`: started by torchrun, not by hand.

The first process writes what the slowest of them took to a JSON file, for the processes share one output, to
which libraries print too.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from scripts.speed.worker import Ours, peak_bytes, timed_step
from utils.common.files import write_json


def main() -> None:
    rounds, file, sys.stdout = int(sys.argv[1]), Path(sys.argv[2]), sys.stderr
    with TemporaryDirectory() as folder:
        engine = Ours([*sys.argv[3:], f"--output_dir={folder}/run", f"--max_train_steps={10**6}"])
        engine.encode()
        for number in (1, 2):
            engine.step(number)
        seconds = [timed_step(engine, number)["seconds"] for number in range(3, 3 + rounds)]
        accelerator = engine.run.accelerator
        own = torch.tensor([*seconds, peak_bytes()], dtype=torch.float64, device=engine.device)
        slowest = accelerator.gather(own[None]).amax(dim=0).tolist()
        if accelerator.is_main_process:
            write_json(file, {"seconds": slowest[:-1], "peak_bytes": int(slowest[-1])})
        del engine.at
        accelerator.end_training()


if __name__ == "__main__":
    main()
