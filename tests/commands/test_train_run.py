"""What pre-training and fine-tuning share."""

from __future__ import annotations

from accelerate import Accelerator

from mpp.commands.train_run import on_each


def test_a_process_that_is_alone_opens_the_data_once():
    opened = []
    assert on_each(Accelerator(cpu=True), lambda: opened.append(1) or "data") == "data"
    assert opened == [1]
