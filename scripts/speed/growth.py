"""How the time and the memory of a step grow: batch, concepts, resolution, processes, one at a time.

All points have this repository's step with a pool of views, encoded before the clock starts. The middle
point, batch 2 with one concept at the base's resolution in one process, is in every series.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from scripts.speed.bases import random_base, random_concepts, training_arguments
from scripts.speed.variants import Variant, Worker, work_folder
from utils.bases.registry import REPOSITORY
from utils.common.files import read_json

if TYPE_CHECKING:
    from scripts.benchmark import GrowthFlags

BATCHES, CONCEPTS, PROCESSES = (1, 2, 4, 8), (1, 2, 3, 4), (1, 2)
SIDES = {"sd15": (256, 384, 512, 768), "toon": (32, 64, 128), "tiny": (16, 32)}
OURS = Variant("ours", "ours", ("--latent_pool=1",))


def points(base: str, side: int) -> list[dict[str, Any]]:
    """{"axis", "batch_size", "concepts", "side", "processes"} of every point."""
    middle = {"batch_size": 2, "concepts": 1, "side": side, "processes": 1}
    series = {"batch_size": BATCHES, "side": SIDES[base], "processes": PROCESSES, "concepts": CONCEPTS}
    return [middle | {"axis": axis, axis: value} for axis, values in series.items() for value in values]


def growth(config: "GrowthFlags") -> list[dict[str, Any]]:
    """Measures every point until the time is up, then writes growth_BASE.md and growth_BASE.svg."""
    base = random_base(config.base, work_folder(config.work_dir, config.base))
    until = time.monotonic() + 60 * config.minutes if config.minutes else float("inf")
    records: list[dict[str, Any]] = []
    try:
        for point in points(config.base, config.side):
            if time.monotonic() >= until:
                print("the time was up; this is what was measured")
                break
            same = [r for r in records if all(r[name] == point[name] for name in point.keys() - {"axis"})]
            records.append((same[0] if same else measure(base, point, config.rounds)) | point)
            print(row(records[-1]), flush=True)
    except KeyboardInterrupt:
        print("stopped; this is what was measured")
    write(config.output_dir, config.base, records)
    return records


def measure(base: Path, point: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds of each step, and peak memory of a process."""
    with TemporaryDirectory() as folder:
        images = random_concepts(Path(folder), point["side"], point["concepts"])
        arguments = training_arguments(base, images, point["concepts"])
        arguments += [f"--train_batch_size={point['batch_size']}", f"--resolution={point['side']}"]
        if point["processes"] > 1:
            return measure_processes([*arguments, *OURS.flags], point["processes"], rounds)
        worker = Worker.start(OURS, [*arguments, f"--max_train_steps={10**6}"])
        try:
            worker.ask("encode")
            worker.ask("step")
            for _ in range(rounds):
                worker.step()
            seconds = [step["seconds"] for step in worker.steps]
            return {"seconds": seconds, "peak_bytes": worker.ask("memory")["peak_bytes"]}
        finally:
            worker.stop()


def measure_processes(arguments: list[str], processes: int, rounds: int) -> dict[str, Any]:
    """The same in several processes, by scripts/speed/process.py under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "slowest.json"
        program = ["-m", "scripts.speed.process", str(rounds), str(file), *arguments]
        command = [sys.executable, *launcher, *program]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        return read_json(file)


def row(record: dict[str, Any]) -> str:
    """A line of the table."""
    seconds = record["seconds"]
    spread = f"{statistics.median(seconds):.3f} | {min(seconds):.3f}–{max(seconds):.3f}"
    parts = [record[name] for name in ("axis", "batch_size", "concepts", "side", "processes")]
    cells = " | ".join(map(str, parts))
    return f"| {cells} | {spread} | {record['peak_bytes'] / 2**30:.2f} |"


def write(folder: Path, base: str, records: list[dict[str, Any]]) -> None:
    """The table in Markdown, and a plot with a panel for each axis."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    head = f"| grows | batch | concepts | px | processes | s/step | range | GiB a process |\n{'|---' * 8}|\n"
    (folder / f"growth_{base}.md").write_text(f"{head}{chr(10).join(map(row, records))}\n")
    axes = list(dict.fromkeys(record["axis"] for record in records))
    figure, panels = pyplot.subplots(2, max(1, len(axes)), figsize=(3 * max(1, len(axes)), 5), squeeze=False)
    for column, axis in enumerate(axes):
        own = [record for record in records if record["axis"] == axis]
        places = [record[axis] for record in own]
        panels[0, column].plot(places, [statistics.median(record["seconds"]) for record in own], "o-")
        panels[1, column].plot(places, [record["peak_bytes"] / 2**30 for record in own], "o-")
        panels[1, column].set_xlabel(axis.replace("_", " "))
        for panel in panels[:, column]:
            panel.set_xticks(places)
            panel.set_ylim(0, 1.1 * panel.dataLim.ymax)
    panels[0, 0].set_ylabel("s/step")
    panels[1, 0].set_ylabel("GiB a process")
    figure.suptitle(f"A training step at {base}'s size")
    figure.tight_layout()
    figure.savefig(folder / f"growth_{base}.svg")
    pyplot.close(figure)
