"""Write RESULTS/report.html again, from the files that scripts.evaluate left in the results folder."""

import argparse
from pathlib import Path

from utils.errors import exit_on_user_error
from utils.report.page import write_report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="the results folder of a finished run")
    path = write_report(parser.parse_args(argv).results)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    exit_on_user_error(main)
