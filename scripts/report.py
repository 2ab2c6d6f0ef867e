"""Write RESULTS/report.html again, from the files that scripts/evaluate.py left in the results folder."""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import exit_on_user_error  # noqa: E402
from utils.report import write_report  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="the results folder of a finished run")
    path = write_report(parser.parse_args(argv).results)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    exit_on_user_error(main)
