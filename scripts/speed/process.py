"""One of several training processes, for `scripts.benchmark growth`: started by torchrun, not by hand.

The first process prints what the slowest of them took, as a line of JSON.
"""

import json
import sys
from tempfile import TemporaryDirectory

import torch

from scripts.speed.worker import Ours, peak_bytes, timed_step


def main() -> None:
    rounds, output, sys.stdout = int(sys.argv[1]), sys.stdout, sys.stderr
    with TemporaryDirectory() as folder:
        engine = Ours([*sys.argv[2:], f"--output_dir={folder}/run", f"--max_train_steps={10**6}"])
        engine.encode()
        for number in (1, 2):
            engine.step(number)
        seconds = [timed_step(engine, number)["seconds"] for number in range(3, 3 + rounds)]
        accelerator = engine.run.accelerator
        own = torch.tensor([*seconds, peak_bytes()], dtype=torch.float64, device=engine.device)
        slowest = accelerator.gather(own[None]).amax(dim=0).tolist()
        if accelerator.is_main_process:
            print(
                json.dumps({"seconds": slowest[:-1], "peak_bytes": int(slowest[-1])}), file=output, flush=True
            )
        del engine.at
        accelerator.end_training()


if __name__ == "__main__":
    main()
