"""Write RESULTS/report.html again, from the files that scripts.evaluate left in the results folder.

python -m scripts.report results/toon
"""

from dataclasses import MISSING, dataclass
from pathlib import Path

from utils.common.errors import exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class ReportConfig:
    results: Path = option(MISSING, "the results folder of a finished run", positional=True)


def main(argv: list[str] | None = None) -> None:
    config = parse(ReportConfig, argv, __doc__)
    from utils.report.page import write_report  # matplotlib takes a second

    path = write_report(config.results)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    exit_on_user_error(main)
