"""`mpp.gap`, whole: a small study in worker processes, whose numbers are its units' own, and nothing runs twice."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from mpp.study.results import read, select
from tests.support.downstream import TEST, good, refused, results, written
from tests.support.forkserver import Command, ForkServer
from tests.support.small_study import (
    ALONE,
    GAP,
    Study,
    children,
    finished,
    images_of,
    kill_all,
    rows,
    unit,
    until,
    value,
)

ARMS = ("random", "scratch", "mean_color", "supervised")
UNITS = [f"{arm}/seed-{seed}" for seed in (0, 1) for arm in ARMS]
CONTROLS = [f"{control}/seed-{seed}" for seed in (0, 1) for control in ("raw_pixels", "patch_colors")]


@pytest.fixture(scope="module")
def straight(commands: ForkServer, upstream: Path, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory):
    """(command, folder) of a study that nothing interrupted."""
    home = tmp_path_factory.mktemp("straight")
    recipe = written(home / "gap.yaml", GAP.replace("UPSTREAM", str(upstream)), tinted_images, home / "gap")
    return good(commands.run("mpp.gap", recipe)), home / "gap"


def test_every_unit_ran_once_and_the_table_is_theirs(straight: tuple[Command, Path]):
    printed, folder = straight
    assert sorted(finished(folder)) == sorted([*UNITS, *CONTROLS])
    found = results(folder)
    assert [each["name"] for each in found["units"]] == [*CONTROLS[:2], *UNITS[:4], *CONTROLS[2:], *UNITS[4:]]
    assert found["unfinished"] == []
    assert found["rows"] == [row for each in found["units"] for row in unit(folder, each["name"])["rows"]]
    assert "11 of 12 units left" in printed.text
    assert "0 of 12 units left" in printed.text
    assert sum(claim["primary"] for claim in found["claims"]) == 5
    text = "".join(printed.text.split())  # lines may end at the hyphen of a word
    for claim in found["claims"]:
        assert ("".join(f"{claim['text']}: {claim['verdict']}.".split()) in text) == claim["primary"]
    assert "".join("".join(found["answer"]).split()) in text
    assert len(found["answer"]) == 3


def test_the_predictions_of_a_unit_are_those_of_its_accuracies(straight: tuple[Command, Path]):
    """Everything on the page can be computed again from them."""
    _, folder = straight
    for name in (*UNITS, *CONTROLS):
        found = load_file(folder / name / "predictions.safetensors")
        labels = found.pop("labels")
        assert len(labels) == TEST
        measured = [row for row in rows(folder, name) if row.metric == "accuracy"]
        assert measured
        for row in measured:
            predicted = found.get(row.measure.key, found.get(row.measure.key.replace("chosen", "default")))
            assert row.value == pytest.approx((predicted == labels).mean(), abs=1e-12), (name, row)
        keys = {row.measure.key for row in measured}
        assert set(found) <= keys
        assert sum(path.stat().st_size for path in (folder / name).glob("predictions*")) < 4096


def test_the_table_holds_what_evaluation_and_fine_tuning_found(straight: tuple[Command, Path]):
    _, folder = straight
    for name in (*UNITS, *CONTROLS):
        if not name.startswith("scratch"):
            scores = results(folder / name / "evaluation")["scores"]
            for layer, which in (("chosen", "headline"), ("default", "default")):
                few, knn, probe = (scores[each][which] for each in ("few_shot", "knn", "linear_probe"))
                for shots in (1, 5):
                    expected = few["shots"][str(shots)]["mean"]
                    assert value(folder, name, evaluator="few_shot", setting=shots, layer=layer, metric="accuracy",
                                 block=few["block"], pool=few["pool"]) == expected  # fmt: skip
                assert value(folder, name, evaluator="knn", setting=5, layer=layer, metric="accuracy") == knn["k"]["5"]
                found = {
                    m: value(folder, name, evaluator="linear_probe", layer=layer, metric=m) for m in ("accuracy", "c")
                }
                assert found == {"accuracy": probe["accuracy"], "c": probe["c"]}
        if name in UNITS:
            own = results(folder / name / "finetune-0.5")
            for metric, expected in {"accuracy": own["test"]["accuracy"], "flops": own["flops"]}.items():
                assert value(folder, name, evaluator="finetune", setting=0.5, metric=metric) == expected


def test_the_few_shot_draws_of_every_seed_are_its_own(straight: tuple[Command, Path]):
    _, folder = straight
    for seed in (0, 1):
        found = results(folder / f"mean_color/seed-{seed}" / "evaluation")["recipe"]
        assert found["few_shot"]["seeds"] == [1000 * seed, 1000 * seed + 1]
    one, other = (
        results(folder / f"raw_pixels/seed-{seed}" / "evaluation")["scores"]["few_shot"]["default"]["shots"]["1"]
        for seed in (0, 1)
    )
    assert one["per_seed"] != other["per_seed"], "all labels are used: only the draws differ"


def test_the_arms_differ_in_their_start_alone(straight: tuple[Command, Path]):
    _, folder = straight
    for seed in (0, 1):
        names = {arm: f"{arm}/seed-{seed}" for arm in ARMS}
        trained = [bool(select(rows(folder, name), evaluator="pretrain")) for name in names.values()]
        assert trained == [False, False, True, True]
        assert not select(rows(folder, names["scratch"]), evaluator="evaluate")
        for arm in ("mean_color", "supervised"):
            before = {name: value(folder, names[arm], evaluator="pretrain", metric=name) for name in
                      ("images_seen", "rows", "flops_per_image", "flops")}  # fmt: skip
            assert (before["images_seen"], before["rows"]) == (12 * 16, 60)
            assert before["flops"] == 12 * 16 * before["flops_per_image"] > 0
            looks = select(rows(folder, names[arm]), evaluator="knn", setting=3, pool="avg", metric="upstream_accuracy")
            assert [row.samples for row in looks] == [64, 128, 192]
        tuned = {arm: value(folder, names[arm], evaluator="finetune", metric="images_seen") for arm in ARMS}
        assert tuned == {"random": 96, "scratch": 96 + 12 * 16, "mean_color": 96, "supervised": 96}
        images = {value(folder, names[arm], evaluator="finetune", metric="train_images") for arm in ARMS}
        assert images == {45}, "half of the labels, and none held out: nothing is chosen"
        assert len({images_of(folder / names[arm] / "finetune-0.5") for arm in ARMS}) == 1, "the same labels"
        before = [images_of(folder / names[arm] / "pretrain") for arm in ("mean_color", "supervised")]
        assert before[0].split()[0] == before[1].split()[0], "as many images; one of them does not look at labels"
    for name in CONTROLS:
        assert not select(rows(folder, name), evaluator="finetune")


CLAIM = "study.primary=[{higher: mean_color, lower: random, by: finetune}]"
SMALL = ("study.arms=[random,mean_color]", CLAIM, *ALONE)
NO_CLAIM = "study.primary=[]"


def test_units_that_run_at_once_end_as_those_that_run_in_turn(
    study: Study, straight: tuple[Command, Path], tmp_path: Path
):
    folder, names = tmp_path / "gap", ["random/seed-0", "mean_color/seed-0"]
    both = (*SMALL, "study.seeds=[0]", "study.parallel=2")
    command = study(*both, start=True)
    until(command, lambda: len(children(command)) == 2)
    until(command, lambda: (folder / "mean_color/seed-0/pretrain/checkpoints/step-000000004").is_dir())
    command.kill(signal.SIGTERM)
    assert command.wait() == 143, command.text
    assert "are left. Give the same command again to resume." in command.text
    assert "mean_color/seed-0" not in finished(folder)

    good(study(*both))
    for name in names:
        assert rows(folder, name) == rows(straight[1], name), name


def test_results_of_weights_that_are_no_more_are_not_taken_for_those_of_a_unit(
    straight: tuple[Command, Path], study: Study, tmp_path: Path
):
    home = tmp_path / "gap" / "mean_color" / "seed-0"
    shutil.copytree(straight[1] / "mean_color" / "seed-0", home)
    (home / "unit.json").unlink()
    other = straight[1] / "supervised" / "seed-0" / "pretrain" / "encoder" / "model.safetensors"
    shutil.copy(other, home / "pretrain" / "encoder" / "model.safetensors")
    before = results(home / "evaluation")
    failed = study("study.only=[mean_color/seed-0]")
    refused(failed, "finetune-0.5 started with other weights", "choose another output_dir")
    after = results(home / "evaluation")
    assert after["features_of"]["weights"] != before["features_of"]["weights"], "measured again"


def test_a_study_stopped_again_and_again_resumes_repeats_nothing_and_ends_alike(
    study: Study, straight: tuple[Command, Path], tmp_path: Path
):
    folder = tmp_path / "gap"
    names = [name for name in UNITS if name.startswith(("random", "mean_color"))]

    command = study(*SMALL, start=True)  # killed in the middle of a pre-training
    until(command, lambda: (folder / "mean_color/seed-0/pretrain/checkpoints/step-000000004").is_dir())
    kill_all(command)
    done = finished(folder)
    assert list(done) == ["random/seed-0"]
    assert not (folder / "results.json").exists()

    command = study(*SMALL, start=True)  # killed in the middle of a fine-tuning
    until(command, lambda: (folder / "mean_color/seed-0/finetune-0.5/checkpoints/step-000000004").is_dir())
    kill_all(command)
    assert "random/seed-0: done before" in command.text
    assert "from step 4" in (folder / "mean_color/seed-0/log.txt").read_text()
    assert finished(folder) == done

    command = study(*SMALL, start=True)
    until(command, lambda: (folder / "mean_color/seed-1/pretrain/checkpoints/step-000000004").is_dir())
    command.kill(signal.SIGTERM)
    assert command.wait() == 143, command.text
    assert "1 of 4 are left. Give the same command again to resume." in command.text
    done |= {name: stamp for name, stamp in finished(folder).items() if name not in done}
    assert set(done) == set(names[:3])
    assert results(folder)["unfinished"] == [names[3]]

    command = study(*SMALL, "study.minutes=1e-6")
    assert command.code == 75, command.text
    assert "1 of 4 are left" in command.text
    assert finished(folder) == done

    command = good(study(*SMALL))
    assert command.text.count("done before") == 3
    assert {name: finished(folder)[name] for name in done} == done
    assert set(finished(folder)) == set(names)
    for name in names:
        assert rows(folder, name) == rows(straight[1], name)
    assert (folder / "report.html").is_file()


def test_a_finished_study_is_only_written_up_again(straight: tuple[Command, Path], commands: ForkServer):
    _, folder = straight
    before, told = finished(folder), results(folder)
    said = good(commands.run("mpp.gap", folder.parent / "gap.yaml"))
    assert " …" not in said.text
    assert finished(folder) == before
    assert results(folder) == told


def test_what_decides_no_result_may_change_in_the_middle_of_a_study(
    straight: tuple[Command, Path], commands: ForkServer, tmp_path: Path
):
    """As in any run: an arm that is short of memory is no reason to lose the others."""
    shutil.copytree(straight[1], tmp_path / "study")
    changes = ["pretraining.training.micro_batch_size=4", "finetuning.training.micro_batch_size=4",
               "pretraining.checkpoint.every.steps=3", "evaluation.features.batch_size=16"]  # fmt: skip
    recipe, output = straight[1].parent / "gap.yaml", f"output_dir={tmp_path / 'study'}"
    assert " …" not in good(commands.run("mpp.gap", recipe, output, *changes)).text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("pretraining.optimizer.lr=1e-2", ("pretrain.optimizer.lr: 0.001 then, 0.01 now",)),
        ("finetuning.fractions=[1.0]", ("finetune 0.5",)),
        ("study.scale=0.5", ("training.duration: {'images': 288} then, {'images': 192} now",)),
        ("encoder.arguments.depth=3", ("encoder.arguments.depth: 1 then, 3 now",)),
        ("evaluation.knn.temperature=0.1", ("evaluate.knn.temperature",)),
    ],
)
def test_other_settings_in_the_folder_of_a_study_are_refused(
    straight: tuple[Command, Path], commands: ForkServer, change: str, words: tuple[str, ...]
):
    recipe = straight[1].parent / "gap.yaml"
    before = (straight[1] / "recipe.yaml").read_bytes()
    refused(commands.run("mpp.gap", recipe, change), str(straight[1]), *words)
    assert (straight[1] / "recipe.yaml").read_bytes() == before


def test_a_unit_of_an_earlier_version_is_not_run_again(straight: tuple[Command, Path], study: Study, tmp_path: Path):
    """A setting that was added since has its default there."""
    folder = tmp_path / "gap"
    shutil.copytree(straight[1], folder)
    for path in folder.rglob("unit.json"):
        outcome = json.loads(path.read_text())
        for recipe in (each for name, each in outcome["recipes"].items() if name != "start"):
            recipe["encoder"].pop("allow_pickle")
            recipe.pop("hub", None)
        path.write_text(json.dumps(outcome))
    before = finished(folder)
    assert " …" not in good(study()).text
    assert finished(folder) == before


def test_results_of_other_settings_in_an_unfinished_unit_are_measured_again(
    straight: tuple[Command, Path], study: Study, tmp_path: Path
):
    folder = tmp_path / "gap" / "raw_pixels" / "seed-0"
    shutil.copytree(straight[1] / "raw_pixels" / "seed-0", folder)
    (folder / "unit.json").unlink()
    good(study("study.only=[raw_pixels/seed-0]", "evaluation.knn.k=[7]"))
    assert {row.setting for row in select(rows(tmp_path / "gap", "raw_pixels/seed-0"), evaluator="knn")} == {7}


def test_more_seeds_and_an_axis_of_images_join_a_finished_study(
    study: Study, straight: tuple[Command, Path], tmp_path: Path
):
    folder = tmp_path / "gap"
    shutil.copytree(straight[1], folder)
    before = finished(folder)
    (folder / "primary.json").write_text('{"seeds": [0], "claims": []}')  # of a study of fewer arms
    said = good(study("study.arms=[random]", "study.seeds=[0,2]", *ALONE, NO_CLAIM))
    assert said.text.count("done before") == 1
    axis = (
        "study.arms=[]",
        "study.seeds=[0,2]",
        NO_CLAIM,
        "study.images=[30]",
        "study.axis_arms=[random,mean_color]",
        *ALONE,
    )
    good(study(*axis))
    added = ["random/seed-2", "images-30/mean_color/seed-0", "images-30/mean_color/seed-2"]
    assert set(finished(folder)) == set(before) | set(added), "without pre-training there are no images to vary"
    assert {name: finished(folder)[name] for name in before} == before
    assert {(row.arm, row.seed, row.images) for row in read(results(folder)["rows"])} == {
        ("mean_color", 0, 30),
        ("mean_color", 2, 30),
    }
    fewer, all_of_them = (
        [value(folder, name, evaluator="pretrain", metric=metric) for metric in ("rows", "images_seen")]
        for name in (added[1], "mean_color/seed-0")
    )
    assert (fewer[0], all_of_them[0]) == (30, 60)
    assert fewer[1] == all_of_them[1], "for as many steps"
    together = good(study("study.arms=[random]", "study.seeds=[0,1,2]", *ALONE, NO_CLAIM))
    assert " …" not in together.text
    assert {row.seed for row in read(results(folder)["rows"])} == {0, 1, 2}


def test_one_unit_can_be_run_alone(study: Study, straight: tuple[Command, Path], tmp_path: Path):
    good(study("study.only=[mean_color/seed-1]"))
    assert list(finished(tmp_path / "gap")) == ["mean_color/seed-1"]
    assert rows(tmp_path / "gap", "mean_color/seed-1") == rows(straight[1], "mean_color/seed-1")
    assert not (tmp_path / "gap" / "results.json").exists()
    said = good(study("study.only=[mean_color/seed-1]"))
    assert "mean_color/seed-1: done before" in said.text
    refused(study("study.only=[mean_color/seed-7]"), "mean_color/seed-7", "random/seed-0")
