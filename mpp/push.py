"""Push an encoder or a classifier to the Hugging Face Hub, in a form that timm and transformers load as it is.

RUN is the folder of a pre-training, finished or not, whose newest whole checkpoint is pushed; or of a finished
fine-tuning, whose classifier is pushed. The token comes from 'hf auth login' or HF_TOKEN alone. A push that failed can
be given again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from mpp.cli import guarded

LEFT_OUT = """\
{count} of {run} not shown on the card:
of an earlier checkpoint, or at another size or pool. To measure what is pushed:
mpp evaluate few_shot encoder={run} data.source=LABELLED"""


def main(arguments: list[str] | None = None) -> int:
    """`python -m mpp.push RUN USER/NAME [options]`."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="mpp push", description=summary, epilog=rest)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("repo_id", metavar="USER/NAME")
    parser.add_argument("--dry-run", action="store_true", help="write the folder, show what is in it, push nothing")
    parser.add_argument(
        "--folder",
        type=Path,
        help="stage the files here, in an empty folder or an earlier one",
    )
    parser.add_argument(
        "--reconstructions",
        action=argparse.BooleanOptionalAction,
        help="push reconstructions.png, which shows held-out images of your data; left out unless you say so where "
        "data.source is a local file or folder",
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--branch", help="push to this branch instead of main")
    parser.add_argument("--tag", help="tag the commit")
    parser.add_argument("--license", help="identifier of the licence you give it, e.g. apache-2.0")
    parser.add_argument("--message", help="of the commit")
    options = parser.parse_args(arguments)
    return guarded(lambda: _push(options))


def _push(options: argparse.Namespace) -> int:
    from mpp.commands.encoder_source import warn_if_unfinished
    from mpp.data.inventory import counted
    from mpp.hub.folder import RECONSTRUCTIONS, WRITTEN
    from mpp.hub.push import Target, check_target, push
    from mpp.hub.stage import stage  # late: torch takes seconds

    target = Target(options.repo_id, options.private, options.branch, options.tag)
    check_target(target, options.license)
    warn_if_unfinished(options.run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "staged"
        staged = stage(options.run, folder, repo_id=options.repo_id, licence=options.license,
                       reconstructions=options.reconstructions)  # fmt: skip
        for path in staged.files:
            print(f"{path.stat().st_size:>12,}  {path.name}")
        if staged.kept_back:
            print("reconstructions.png is left out: it shows images of your data; --reconstructions pushes it")
        elif (folder / RECONSTRUCTIONS).is_file():
            print("reconstructions.png shows held-out images of the data; --no-reconstructions leaves it out")
        if staged.left_out:
            print(LEFT_OUT.format(count=counted(staged.left_out, "evaluation"), run=options.run))
        if options.folder:
            print(f"{WRITTEN} lists these files for the next push into {options.folder}; it is not pushed")
        if options.dry_run:
            where = f"it lies in {folder}" if options.folder else "give --folder to keep it"
            print(f"nothing was pushed; {where}")
            if options.folder:
                print(f'to load it: timm.create_model("local-dir:{folder}", pretrained=True)')
            return 0
        print(f"pushed to {push(staged, target, options.message or f'{staged.kind} of step {staged.step}')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
