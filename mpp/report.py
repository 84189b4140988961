"""One self-contained page of a run: curves, reconstructions, results, speed and recipe, in a single HTML file.

RUN is the folder of a run of `mpp pretrain` or `mpp finetune`, finished or not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mpp.cli import guarded


def main(arguments: list[str] | None = None) -> int:
    """`mpp report RUN [--output FILE]`."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="mpp report", description=summary, epilog=rest)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the page goes (default: RUN/report.html)")
    options = parser.parse_args(arguments)
    return guarded(lambda: _report(options.run, options.output or options.run / "report.html"))


def _report(run: Path, path: Path) -> int:
    from mpp.commands.report import write_report  # late: torch takes seconds

    write_report(run, path)
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
