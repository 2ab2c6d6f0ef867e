"""Stands for train_classdiffusion.py where a test is about the process: a step takes 10 ms, SIGINT saves."""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.getcwd())  # the repository, where the page starts a training

from utils.training.lock import RunLock  # noqa: E402

flags = dict(flag.lstrip("-").partition("=")[::2] for flag in sys.argv[1:])
output, steps = Path(flags["output_dir"]), int(flags["max_train_steps"])
if "fails" in flags["validation_prompt"]:
    print("training:  25%|██▌       | 2/8\nerror: no such luck\nremarks of a library at its end")
    sys.exit(2)
if "silent" in flags["validation_prompt"]:
    sys.exit(2)
asked: list[int] = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
with RunLock(output):
    done = max((int(path.name.partition("-")[2]) for path in output.glob("checkpoint-*")), default=0)
    for step in range(done + 1, steps + 1):
        with (output / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "loss_denoise": 1 / step, "loss_spl": 0.001}) + "\n")
        time.sleep(0.01)
        if asked:
            (output / f"checkpoint-{step}").mkdir()
            print(f"stopped by SIGINT after step {step}")
            sys.exit(130)
    (output / "training_config.json").write_text("{}")
    print("the concept is in", output)
