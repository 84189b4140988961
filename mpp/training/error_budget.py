"""Error budget: skip and log damaged images and non-finite steps; abort beyond the limits."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object

from mpp.data.damaged import TooManyDamagedError
from mpp.training.state import Progress, Run

FEWEST_COUNTED = 1000
"""The allowed share of damaged images is of at least so many images (or all there are)."""


class NonFiniteError(RuntimeError):
    """Too many steps in a row without a finite loss, or weights that are not finite."""


def note_damaged(run: Run, progress: Progress, damaged: list[tuple[int, str]]) -> dict[str, Any]:
    """Record the rows that could not be decoded; the new ones are printed and returned for the metrics log."""
    everyone = gather_object(damaged) if run.accelerator.num_processes > 1 else damaged
    new = {row: reason for row, reason in everyone if row not in progress.damaged}
    if not new:
        return {}
    progress.damaged |= new
    listed = []
    for row, reason in new.items():
        where = run.crops.images.rows.where(row)
        run.journal.say(f"{where} cannot be decoded, its neighbour replaces it: {reason}")
        listed.append({"row": where.row, "where": str(where), "reason": reason})
    return {"damaged": len(progress.damaged), "damaged_images": listed}


def check_limits(run: Run, progress: Progress, step: int) -> None:
    """Abort a run with too many errors up to `step`, the last whose outcome is known.

    Raises:
        NonFiniteError: if too many steps in a row had no finite loss.
        TooManyDamagedError: if too many images cannot be decoded.
    """
    if progress.skipped_in_a_row >= run.settings.max_skipped:
        raise NonFiniteError(
            f"{progress.skipped_in_a_row} steps in a row, up to step {step}, had a loss or gradient that is "
            f"not finite. {_kept(run)} "
            "Try a smaller optimizer.lr, a longer optimizer.warmup, or training.precision=float32, in another "
            "output_dir or with checkpoint.resume=false"
        )
    rows, share = len(run.crops.images), run.crops.settings.max_bad_share
    counted = max(min(step * run.batch_plan.batch_size, rows), min(rows, FEWEST_COUNTED))
    if len(progress.damaged) > max(share * counted, 1 if share else 0):  # a single one does not stop a small data set
        where = run.crops.images.rows.where
        examples = "\n".join(f"  {where(row)}: {reason}" for row, reason in list(progress.damaged.items())[:5])
        raise TooManyDamagedError(
            f"{len(progress.damaged)} of {counted} images cannot be decoded, more than the share of {share:g} that "
            f"data.max_bad_share allows; for example\n{examples}\n"
            "repair the files, or allow more in another output_dir or with checkpoint.resume=false"
        )


def check_weights(run: Run, progress: Progress) -> None:
    """Raise a NonFiniteError, before saving, for weights that a finite gradient has made non-finite."""
    finite = [torch.isfinite(parameter).all() for parameter in run.objective.parameters()]
    if not bool(torch.stack(finite).all()):
        raise NonFiniteError(
            f"the weights are not finite after step {progress.step}. {_kept(run)} "
            "Try a smaller optimizer.lr, in another output_dir or with checkpoint.resume=false"
        )


def _kept(run: Run) -> str:
    if run.checkpoints.is_empty():
        return "Nothing had been saved yet."
    return f"The latest valid checkpoint is in {run.checkpoints.folder}."
