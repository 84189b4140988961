"""The results of finished units: `unit.json` and `predictions.safetensors` in the unit's folder, and kept copies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mpp.evaluation.predictions import FILE, Predictions, read_predictions
from mpp.files import replacing, write_text
from mpp.recipe import GapRecipe
from mpp.study.unit_recipes import recipes_of
from mpp.study.units import Unit

OUTCOME = "unit.json"
"""The file of a finished unit's results, in its folder."""
Outcome = dict[str, Any]
"""What `unit.json` holds: the recipes that the unit ran, its images, its numbers, and its picture."""


class Outcomes:
    """The finished units of a study: in its folder, or in the folder `study.keep`."""

    def __init__(self, recipe: GapRecipe) -> None:
        self.recipe, self.folder = recipe, Path(recipe.output_dir)
        self.kept = Path(recipe.study.keep).expanduser() if recipe.study.keep is not None else None

    def home(self, unit: Unit) -> Path | None:
        """The folder that holds the results of a unit; None if it is not finished."""
        places = [self.folder / str(unit), *([self.kept / str(unit)] if self.kept is not None else [])]
        return next((place for place in places if (place / OUTCOME).is_file()), None)

    def read(self, unit: Unit) -> Outcome | None:
        """The results of a unit, if it is finished.

        Raises:
            ValueError: if it ran with other settings, naming those.
        """
        home = self.home(unit)
        if home is None:
            return None
        outcome: Outcome = json.loads((home / OUTCOME).read_text(encoding="utf-8"))
        try:
            changed = recipes_of(self.recipe, unit).changes(outcome["recipes"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{home / OUTCOME} was written by another version of this package, whose settings cannot be compared; "
                "choose another output_dir"
            ) from error
        if "images" in outcome:  # they tell whether the data are the same, wherever they lie
            changed = [each for each in changed if not each[0].endswith(".data.source")]
        if changed:
            listed = "\n".join(f"  {name}: {old!r} then, {new!r} now" for name, old, new in changed[:5])
            more = f"\n  and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise ValueError(
                f"{home} was run with other settings:\n{listed}{more}\n"
                f"give the same settings to resume the study, or choose another output_dir"
                + (" and study.keep" if self.kept is not None else "")
            )
        return outcome

    def predictions(self, unit: Unit) -> Predictions:
        """What a finished unit predicted of each test image; empty for a unit that has no predictions."""
        home = self.home(unit)
        return read_predictions(home / FILE) if home is not None else {}

    def write(self, unit: Unit, outcome: Outcome) -> None:
        """Write the results of a unit that is finished; it counts as done from here on."""
        write_text(self.folder / str(unit) / OUTCOME, json.dumps(outcome) + "\n")
        self.keep(unit)

    def keep(self, unit: Unit) -> None:
        """Copy the results of a finished unit to `study.keep`, if they are not there."""
        if self.kept is None or (self.kept / str(unit) / OUTCOME).is_file():
            return
        home, place = self.folder / str(unit), self.kept / str(unit)
        place.mkdir(parents=True, exist_ok=True)
        for name in (FILE, OUTCOME):  # the last one makes it count as done
            if (home / name).is_file():
                with replacing(place / name) as draft:
                    shutil.copyfile(home / name, draft)
