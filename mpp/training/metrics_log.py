"""The log of a run: `metrics.jsonl`, the terminal, and any of Accelerate's trackers."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from mpp.files import naming, write_text
from mpp.objective.base import Objective


class Journal:
    """Writes a line of JSON for each logged step, and prints a line, above a progress bar on a terminal.

    The main process writes, to the trackers as well. Lines after `step`, the first of this process, are cut: those
    steps are run again. The objective formats the printed line. `draw` is called, by the main process, after each line
    of a validation and after the last. `validated_on` is what the validation images are called.
    """

    def __init__(
        self,
        path: Path,
        accelerator: Accelerator,
        objective: Objective,
        *,
        steps: int,
        step: int,
        draw: Callable[[], None] = lambda: None,
        validated_on: str = "held out",
    ) -> None:
        self.path, self.accelerator, self.steps = path, accelerator, steps
        self._draw, self._validated_on = draw, validated_on
        self._line, self._headline = objective.line, objective.headline
        self._writes = accelerator.is_main_process
        self._last: dict[str, Any] = {}
        if self._writes and path.exists():
            lines = _lines_until(path, step)
            write_text(path, "".join(f"{line}\n" for line in lines))
            self._last = json.loads(lines[-1]) if lines else {}
        self._bar: tqdm | None = None  # even a disabled one starts a thread, and loader processes are forked
        if self._writes and sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)

    def advance(self, loss: float) -> None:
        """Advance the progress bar by a step."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self._bar.update()

    def write(self, step: int, batch_size: int, values: dict[str, Any]) -> None:
        """Log the values of a step, if there are any."""
        if not self._writes or not values:
            return
        entry = {"step": step, "samples": step * batch_size, **{k: _short(v) for k, v in values.items()}}
        if self._last.get("step") == step:  # the pending validation of a stopped run
            entry = self._last | entry
            lines = [*_lines_until(self.path, step - 1), json.dumps(entry)]
            write_text(self.path, "".join(f"{line}\n" for line in lines))
        else:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        self._last = entry
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self.accelerator.trackers:
            self.accelerator.log(numbers, step=step)
        if sentence := self._sentence(step, numbers):
            self.say(sentence)
        if step == self.steps or any(name.startswith("validation/") for name in values):
            self._draw()

    def say(self, text: str) -> None:
        """Print a line above the progress bar, in the main process."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        elif self._writes:
            print(text, flush=True)

    def close(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def _sentence(self, step: int, values: Mapping[str, float]) -> str:
        """The step in one line of at most 80 columns; validation in a second, scores of features below.

        A step that was validated but not logged has its number before these; one with nothing to show is empty.
        """
        parts = [f"step {step:>{len(str(self.steps))}}/{self.steps}"]
        shown = {**self._line, "images_per_second": "{:.0f} img/s"}
        parts += [form.format(values[name]) for name, form in shown.items() if name in values]
        if "seconds_left" in values:
            parts.append(f"{tqdm.format_interval(values['seconds_left'])} left")
        lines, start = ["  ".join(parts)] if len(parts) > 1 else [], "  " if len(parts) > 1 else f"{parts[0]}  "
        held_out = {n.removeprefix("validation/"): v for n, v in values.items() if n.startswith("validation/")}
        if held_out:
            shown = {name: form for name, form in self._line.items() if name != "loss" or self._headline == "loss"}
            found = [form.format(held_out[name]) for name, form in shown.items() if name in held_out]
            lines.append(_filled(found, f"{start}{self._validated_on}: "))
            start = "  "
        scores = {n.removeprefix("evaluation/"): v for n, v in values.items() if n.startswith("evaluation/")}
        if scores:
            lines.append(_filled([f"{name} {value:.1%}" for name, value in scores.items()], f"{start}features: "))
        return "\n".join(lines)


def _filled(items: Iterable[str], start: str) -> str:
    """Items after `start`, in lines of 80 columns that break between them."""
    whole = "  ".join(item.replace(" ", "\xa0") for item in items)
    filled = textwrap.fill(whole, 80, initial_indent=start, subsequent_indent=min(len(start), 12) * " ")
    return filled.replace("\xa0", " ")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without a last one that a kill truncated."""
    return [json.loads(line) for line in _lines_until(path, None)]


def _lines_until(path: Path, step: int | None) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise ValueError(f"{path} is no journal of this package: it has a line without a step; move it away")
        if step is None or entry["step"] <= step:
            kept.append(line)
    return kept


def _short(value: Any) -> Any:
    """Floats to nine significant digits, every bit of a float32; None for non-finite ones, which JSON does not have."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.9g}") if math.isfinite(value) else None
