"""What is said about the data at the start of a command, in the main process."""

from __future__ import annotations

import sys
import textwrap

from accelerate import Accelerator

from mpp.data.settings import DataSettings
from mpp.data.splits import Splits
from mpp.data.survey import ColourHistogram, Survey

NEARLY_CONSTANT = 0.05
"""Nats of the colours of images in which there is nothing to predict."""


def print_data(splits: Splits, settings: DataSettings, accelerator: Accelerator) -> None:
    """Print what was found and held out, and what the headers of some images say."""
    if accelerator.is_main_process:
        survey = Survey(splits.train, settings)
        print("\n".join([splits.summary, *map(_filled, survey.notes)]), flush=True)
        for warning in survey.warnings:
            warn(warning)


def warn_of_constant_colours(colours: ColourHistogram) -> None:
    """Warn if the images have one colour nearly everywhere."""
    if (entropy := colours.entropy) < NEARLY_CONSTANT:
        warn(
            f"nearly all pixels have the same colour ({entropy:.2f} nats): there is hardly anything to predict. 16-bit "
            "images that use fewer bits become black: set data.bits to the number that they use"
        )


def warn(text: str) -> None:
    """Print a warning, which --quiet does not hide."""
    print(_filled(f"warning: {text}"), file=sys.stderr, flush=True)


def _filled(text: str) -> str:
    return textwrap.fill(text, 79, break_long_words=False, break_on_hyphens=False)
