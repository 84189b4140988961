"""`python -m tests.benchmarks.gpu` rehearsed on the CPU, so that on a GPU only CUDA itself is new."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.gpu import __main__ as script
from tests.benchmarks.gpu import dependencies, kernels, piece, processes
from tests.benchmarks.gpu.bench import Bench, Case, NeedsGpuError
from tests.benchmarks.gpu.observed import Observer
from tests.benchmarks.gpu.plan import NAMES
from tests.benchmarks.gpu.record import Record
from tests.support.forkserver import Command

ROOT = Path(__file__).parent.parent


def rehearse(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", str(out), "--rehearse"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one call was interrupted and a second one finished."""
    out = tmp_path_factory.mktemp("rehearsed") / "out"
    first = rehearse(out)
    while "eager" not in records(out).get("resume", {"results": {}})["results"]:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    assert first.communicate(timeout=60)[0].splitlines()[-1].startswith("stopped; ")
    assert first.returncode == 128 + signal.SIGTERM
    kept = records(out)
    assert not kept["resume"]["complete"]
    assert script.main([str(out), "--rehearse", "--report"]) == script.LEFT
    second = rehearse(out)
    said = second.communicate(timeout=400)[0]
    assert second.returncode == script.FINISHED, said
    now = records(out)
    assert "machine …" not in said, "what is finished is not begun again"
    for name, record in kept.items():
        for case, result in record["results"].items():
            assert now[name]["results"][case] == result, "what was measured before the interrupt is kept"
    return out


def test_every_piece_is_complete(rehearsed: Path):
    found = records(rehearsed)
    assert found.keys() == set(NAMES)
    for name, record in found.items():
        assert record["complete"], name
        assert not record["failures"], name
        assert record["rehearsal"], name
        assert record["versions"]["torch"] == metadata.version("torch")
        assert "tests.benchmarks.gpu" in record["command"]
        assert record["seconds"] > 0
    not_run = {name: record["not_run"] for name, record in found.items() if record["not_run"]}
    assert not_run.keys() == {"cuda_tests"}
    assert set(not_run["cuda_tests"].values()) == {"needs a GPU"}


def test_a_second_call_does_nothing_new(rehearsed: Path):
    before = {path: path.read_bytes() for path in rehearsed.glob("*.json")}
    assert script.main([str(rehearsed), "--rehearse"]) == script.FINISHED
    assert {path: path.read_bytes() for path in rehearsed.glob("*.json")} == before


def test_rehearsals_and_measurements_do_not_share_a_folder(rehearsed: Path, capsys: pytest.CaptureFixture[str]):
    assert script.main([str(rehearsed)]) == script.WRONG
    assert "choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["overhead", "batches", "compiled_targets"])
def test_overheads_are_those_of_their_medians(rehearsed: Path, name: str):
    for result in records(rehearsed)[name]["results"].values():
        ratio = result["objective"]["ms"] / result["bare"]["ms"]
        assert ratio > 0
        assert result["overhead"] == pytest.approx(ratio - 1)
        assert result["images_a_second"] == pytest.approx(1000 * result["batch"] / result["objective"]["ms"])
        assert result["objective"]["ms_least"] <= result["objective"]["ms"] <= result["objective"]["ms_most"]
        assert result["share_of_peak"] > 0


def test_a_killed_run_ends_with_the_same_bits(rehearsed: Path):
    results = records(rehearsed)["resume"]["results"]
    assert results.keys() == {"eager", "compiled"}
    for result in results.values():
        assert result["ok"]
        assert result["killed_by"] == -signal.SIGKILL
        assert 0 < result["resumed_from"] < result["steps"]
        hashes = result["sha256"]
        assert hashes["uninterrupted"] == hashes["resumed"]
        assert {len(value) for value in hashes["resumed"].values()} == {64}


def test_what_the_host_waits_for_is_found_in_the_package(rehearsed: Path):
    [result] = records(rehearsed)["synchronization"]["results"].values()
    assert result["steps"] == 10
    assert result["total_a_step"] == pytest.approx(sum(result["host_waits_a_step"].values()))
    assert all(": mpp/" in line for line in result["host_waits_a_step"])
    assert result["profile"]["longest_ms_a_step"]


def test_on_a_gpu_warnings_name_the_line_that_waits(monkeypatch: pytest.MonkeyPatch):
    modes: list[str] = []
    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", modes.append)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # the real one would spoil later forks
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    observer = Observer(1, 2)
    monkeypatch.setattr(observer, "_start_profile", lambda: None)
    observer.stepped()
    warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
    warnings.warn("a prototype feature, which does not yet detect all synchronizing operations", stacklevel=1)
    observer.stepped()
    assert modes == ["warn", "default"]
    assert list(observer.found.values()) == [1]


def test_a_run_is_measured_from_its_files(rehearsed: Path):
    for name in ("end_to_end", "end_to_end_eager"):
        for result in records(rehearsed)[name]["results"].values():
            assert result["images_a_second"] > 0
            assert result["share_of_peak"] > 0
            assert 0 < result["waited_for_data"] < 1
            assert result["image_files"]["images"] == len(list((rehearsed / "work" / "images").glob("*.jpg")))
    for result in records(rehearsed)["loader"]["results"].values():
        assert result["images_a_second"] == pytest.approx(result["workers"] * result["images_a_second_a_worker"])


def test_attention_says_what_ran_and_what_refused(rehearsed: Path):
    for result in records(rehearsed)["attention"]["results"].values():
        assert result["default"] in result["same_bits_as_default"]
        assert result["ms"].keys() | result["refused"].keys() == {*kernels.BACKENDS, "default", "unfused"}
        assert not result["ms"].keys() & result["refused"].keys()
        assert max(result["largest_difference"].values()) < 1e-5


def test_the_report_has_every_piece_and_no_failure(rehearsed: Path):
    report = (rehearsed / "report.md").read_text()
    assert all(f"## {name}: " in report for name in NAMES)
    assert "failed" not in report
    assert "Left:" not in report


def test_a_case_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails() -> dict[str, Any]:
        raise ValueError("no such thing")

    def needs_gpu() -> dict[str, Any]:
        raise NeedsGpuError("needs a GPU")

    cases = [Case("bad", 1, fails), Case("absent", 1, needs_gpu), Case("good", 1, lambda: {"value": 3})]
    monkeypatch.setattr(kernels, "machine", lambda bench: cases)
    over = Bench(out=tmp_path, work=tmp_path, rehearse=True, retry=False, deadline=time.time() - 1)
    piece.main(["machine", over.as_json()])
    assert Record.read(tmp_path, "machine", rehearsal=True).left == ["bad", "absent", "good"]
    bench = Bench(out=tmp_path, work=tmp_path, rehearse=True, retry=False, deadline=time.time() + 60)
    piece.main(["machine", bench.as_json()])
    record = Record.read(tmp_path, "machine", rehearsal=True)
    assert record.complete
    assert record.failed == ["bad"]
    assert "ValueError: no such thing" in record.failures["bad"]
    assert record.results["good"]["value"] == 3
    assert record.not_run == {"absent": "needs a GPU"}
    assert script.main([str(tmp_path), "--rehearse", "--report", "--piece", "machine"]) == script.FAILED
    assert "**bad failed**: `ValueError: no such thing`" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("poisoned", [False, True])
def test_a_process_starts_anew_where_cuda_did_not_survive_the_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: bool
):
    code = "import os, sys\ndef main(arguments):\n    print(*arguments, os.environ['MARK'], __name__)\n    return 7\n"
    (tmp_path / "said.py").write_text(code + "if __name__ == '__main__':\n    sys.exit(main(sys.argv[1:]))\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(processes, "_cuda_has_started", lambda: poisoned)
    process = processes.start("said", ["one", 2], tmp_path / "log.txt", MARK="three", PYTHONPATH=str(tmp_path))
    assert process.wait(60) == 7
    assert process.text == f"one 2 three {'__main__' if poisoned else 'said'}\n"


def test_a_process_that_takes_too_long_is_killed_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = "import os, time\ndef main(arguments):\n    print(os.fork(), flush=True)\n    time.sleep(60)\n"
    (tmp_path / "sleeps.py").write_text(f"{code}if __name__ == '__main__':\n    main([])\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # where another test has spoiled forks, it is a new interpreter
    process = processes.start("sleeps", [], tmp_path / "log.txt", leads=True)
    while len(process.text.splitlines()) < 2:
        assert process.poll() is None, process.text
        time.sleep(0.01)
    assert process.wait(0) is None
    child = max(int(line) for line in process.text.splitlines())
    end = time.monotonic() + 30
    while Command(child, process.log).alive:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_missing_packages_come_with_the_commands_that_bring_them(monkeypatch: pytest.MonkeyPatch):
    assert dependencies.missing() == []
    real = metadata.version

    def version(name: str) -> str:
        if name in ("pydantic", "timm"):
            raise metadata.PackageNotFoundError(name)
        return "1.33.0" if name == "huggingface_hub" else "2.11.0+cu130" if name == "torch" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    lacking = dependencies.missing()
    assert {missing.name: missing.found for missing in lacking} == {
        "huggingface_hub": "1.33.0", "pydantic": None, "timm": None,
    }  # fmt: skip
    [_, _, plain, alone, _, install] = dependencies.advice(lacking).splitlines()
    assert "-d FOLDER 'huggingface_hub>=2.2' 'pydantic>=2.11'" in plain
    assert "--no-deps -d FOLDER 'timm>=" in alone, "its dependencies would bring torch"
    assert f"--python-version {sys.version_info.major}.{sys.version_info.minor} " in plain
    assert "pip install --no-index --find-links FOLDER 'huggingface_hub>=2.2' 'pydantic>=2.11' 'timm>=" in install


def test_without_a_gpu_only_a_rehearsal_runs(tmp_path: Path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.benchmarks.gpu", str(tmp_path), "--piece", "machine"]
    refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == script.WRONG
    assert "no CUDA device: --rehearse" in refused.stderr
