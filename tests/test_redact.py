"""Names and tokens that must not leave the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpp.redact import public_name, reason_of


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("~/clients/acme/scans", "scans"),
        ("/data/scans.parquet", "scans.parquet"),
        ("./scans", "scans"),
        ("a/b/scans", "scans"),
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("embedded:b", "embedded:b"),
    ],
)
def test_a_public_name_has_no_folders(source: str, name: str):
    assert public_name(source) == name


def test_a_path_that_looks_like_a_hub_id_is_known_by_its_file_or_by_the_caller(tmp_path, monkeypatch):
    (tmp_path / "clients" / "scans").mkdir(parents=True)
    assert public_name("clients/scans") == "clients/scans"
    assert public_name("clients/scans", local=True) == "scans"
    monkeypatch.chdir(tmp_path)
    assert public_name("clients/scans") == "scans"


def test_a_reason_is_one_line_without_the_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_Se\\cret")
    for shown in ("hf_Se\\cret", repr("hf_Se\\cret")):
        reason = reason_of(ValueError(f"header {shown} is malformed\nand more"))
        assert reason.startswith("header ")
        assert reason.endswith(" is malformed")
        assert "cret" not in reason
    assert reason_of(KeyError()) == "KeyError"


def test_loading_an_encoder_does_not_import_datasets():
    code = "import sys, mpp.encoder.create, mpp.encoder.pretrained; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "datasets" not in run.stdout.split()
