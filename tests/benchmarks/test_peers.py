"""The machinery of `python -m tests.benchmarks.peers`; the libraries themselves are not installed here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import mpp
from tests.benchmarks.peers import photographs
from tests.benchmarks.peers.__main__ import chosen, shown
from tests.benchmarks.peers.contenders import CONTENDERS, LIBRARIES, OURS
from tests.benchmarks.peers.measure import MeasurementError, Run, Timing, Worker, in_turn, our_command, ratio
from tests.benchmarks.peers.sizes import SIZES
from tests.benchmarks.peers.tables import Sitting, page

SIMMIM = next(contender for contender in CONTENDERS if contender.method == "simmim")
BROKEN = next(contender for contender in CONTENDERS if contender.library == "vit_pytorch")


def sitting(timings: list[Timing], runs: list[Run]) -> Sitting:
    return Sitting(
        command="python -m tests.benchmarks.peers", machine="a machine", day="2026-01-01", commit="abc", threads=2,
        rounds=3, steps=1, versions={"mpp": {"torch": "2"}}, timings={"tiny": timings}, runs=runs, run_size="tiny",
        run_steps=4, photographs="drawn images",
    )  # fmt: skip


def timings(theirs: float) -> list[Timing]:
    ours = Timing(
        OURS,
        "bfloat16",
        {"bfloat16": [1.0, 2.0, 1.0], "float32": [2.0] * 3, "one stream": [1.0, 2.0, 1.0], "bare": [1.0, 2.0, 1.0]},
    )
    other = Timing(SIMMIM, "float32", {"float32": [theirs, 2 * theirs, theirs], "bfloat16": [1.0] * 3})
    return [ours, other, Timing(BROKEN, error="RuntimeError: a | b")]


def test_a_ratio_is_taken_within_each_round():
    ours, other, _ = timings(1.4)
    assert ratio(other, "float32", ours, "bfloat16") == pytest.approx(1.4)  # a slow second round changes nothing


@pytest.mark.parametrize(("theirs", "verdict"), [(1.4, "rounds): reached"), (1.2, "rounds): **not reached**")])
def test_the_page_compares_the_defaults_with_the_target(theirs: float, verdict: str):
    text = page(sitting(timings(theirs), []))
    assert verdict in text.partition("Target: at most")[0]
    assert "**32.0**" in text  # images/s in our default
    assert "+0.0%" in text  # over the encoder alone


def test_what_does_not_run_is_a_row_with_its_error():
    text = page(sitting(timings(1.4), [Run(SIMMIM, seconds=60, rate=30, memory=2**31), Run(BROKEN, error="no wheel")]))
    assert f"- {BROKEN.title} does not run: `RuntimeError: a | b`" in text
    assert f"- {BROKEN.title}: `no wheel`" in text
    assert f"| {SIMMIM.title} | 60 | 30.0 | 2.0 |" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if f"| {BROKEN.title}" in line}
    assert widths == {9, 5}  # every row has all cells of its table


def test_the_target_is_about_encoders_that_see_as_many_tokens_without_labels():
    patches = SIZES["tiny"].patches
    for contender in CONTENDERS:
        if contender.comparable:
            assert contender.tokens(patches) in (patches, patches + 1), contender.title
    assert {c.comparable for c in CONTENDERS if c.method in ("mae", "classification")} == {False}


def test_every_contender_has_its_file_and_its_environment():
    folder = Path(__file__).parent / "peers" / "libraries"
    for contender in CONTENDERS:
        assert (folder / f"{LIBRARIES[contender.library].module}.py").is_file()
    assert len({contender.title for contender in CONTENDERS}) == len(CONTENDERS)
    assert chosen({"lightly"})[0] == OURS


def test_a_whole_run_of_ours_is_a_recipe():
    _, name, *overrides = our_command(Path("images"), Path("run"), 32, 20)
    assert mpp.load_recipe(name, overrides, "pretrain").training.duration.steps == 20


def test_photographs_have_one_size_and_a_source_that_is_too_small_is_refused(tmp_path: Path):
    first = photographs.make(tmp_path / "drawn", count=2)
    assert [Image.open(path).size for path in sorted(first.rglob("*.jpg"))] == [(500, 375)] * 2
    second = photographs.make(tmp_path / "resized", first, count=2)
    assert len(list(second.rglob("*.jpg"))) == 2
    with pytest.raises(ValueError, match="holds 2 images, but 3 are needed"):
        photographs.make(tmp_path / "more", first, count=3)


def test_the_command_on_the_page_names_no_folder_of_this_machine():
    given = ["--cache", "/a/b", "--images=/c", "--rounds", "3"]
    assert shown(given) == ["--cache", "FOLDER", "--images", "FOLDER", "--rounds", "3"]


@pytest.mark.cold
def test_a_library_that_is_not_there_is_reported_and_the_others_are_measured(tmp_path: Path):
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers: dict[str, Worker] = {}

    def start(contender: object) -> Worker:
        if contender == BROKEN:
            raise MeasurementError("cannot be installed: no wheel")
        return Worker(Path(sys.executable), "absent", variables, tmp_path / "log.txt")

    found = in_turn([SIMMIM, BROKEN], start, workers, "tiny", rounds=1, count=1, report=lambda line: None)
    assert [timing.error for timing in found] == [
        "ModuleNotFoundError: No module named 'tests.benchmarks.peers.libraries.absent'",
        "cannot be installed: no wheel",
    ]


@pytest.mark.cold
def test_help_and_mistakes():
    command = [sys.executable, "-m", "tests.benchmarks.peers"]
    help_text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--rounds" in help_text
    wrong = subprocess.run([*command, "--only", "keras"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "keras unknown" in wrong.stderr) == (2, True)
