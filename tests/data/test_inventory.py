"""Folders and paths are judged by names alone, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from mpp.data.inventory import IMAGES, check_source, take_inventory
from tests.support.runs import encoded, picture


def test_image_files_are_those_of_datasets():
    assert set(ImageFolder.EXTENSIONS) == IMAGES


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture()) if name.endswith(".png") else b"x")
    return folder


SAVED = ("saved/dataset_info.json", "saved/state.json", "saved/data-0.arrow")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "b/c.png", *SAVED], r"ambiguous: it holds 2 images and 1 saved data set \(saved\),"),
        (["a.png", "more.zip"], r"it holds 1 image and 1 archive or data file \(more\.zip\)"),
        (["a.png", *SAVED, "x.zip", "y.parquet"], r"1 image, 1 saved .* and 2 archives and data files \(x.zip, y.par"),
        (["x.zip", "y.parquet"], r"2 archives and data files \(x\.zip, y\.parquet\)"),
        (["dataset_dict.json", "train/state.json", "a.png"], r"1 image and 1 saved data set \(\.\)"),
        (["notes.txt", "b/notes.txt"], r"holds no images: found 2 files \(2 txt\)"),
    ],
)
def test_a_folder_of_several_things_or_none_is_refused(tmp_path: Path, names: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        check_source(str(files(tmp_path, *names)))


@pytest.mark.parametrize(
    "names",
    [["a.png", "notes.txt", "metadata.parquet"], ["x.zip"], ["x.parquet", "y.parquet"],
     [name.removeprefix("saved/") for name in SAVED]],
)  # fmt: skip
def test_a_folder_of_one_thing_is_taken(tmp_path: Path, names: list[str]):
    check_source(str(files(tmp_path, *names)))


def test_hidden_files_do_not_count(tmp_path: Path):
    found = take_inventory(files(tmp_path, "a.png", ".DS_Store", ".cache/b.png", "__MACOSX/a.png", "b.JPG", "c.txt"))
    assert sorted(path.name for path in found.images) == ["a.png", "b.JPG"]
    assert found.others == {"txt": 1}


def test_an_id_of_the_hub_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(files(tmp_path, "photos/cats/a.png"))
    check_source("someone/photos")
    check_source("mnist")
    with pytest.raises(ValueError, match=r"photos/cat does not exist; did you mean photos/cats\?"):
        check_source("photos/cat")
    with pytest.raises(ValueError, match=r"photo/cats/a\.png does not exist; did you mean photos/cats/a\.png\?"):
        check_source("photo/cats/a.png")


@pytest.mark.cold
@pytest.mark.parametrize(
    ("setting", "said"),
    [("data.source=photos/aa", "did you mean photos/a?"), ("data.source=notes.docx", "another kind"),
     ("data.source=empty", "empty folder"), ("encoder.source=runs/meancolor", "did you mean runs/mean_color?")],
)  # fmt: skip
def test_wrong_paths_are_refused_before_anything_heavy_is_imported(tmp_path: Path, setting: str, said: str):
    files(tmp_path, "photos/a/b.png", "notes.docx", "runs/mean_color/recipe.yaml")
    (tmp_path / "empty").mkdir()
    given = [
        "mean_color",
        f"output_dir={tmp_path / 'run'}",
        *([] if setting.startswith("data.source") else ["data.source=photos"]),
        setting,
    ]
    code = f"import sys; from mpp.__main__ import main; code = main(['pretrain', *{given}]); print(*sys.modules); "
    run = subprocess.run([sys.executable, "-c", f"{code}sys.exit(code)"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    assert said in " ".join(run.stderr.split())
    assert not {"torch", "timm", "datasets", "accelerate"} & set(run.stdout.split())
    assert not (tmp_path / "run").exists()
