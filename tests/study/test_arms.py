"""Studies of other arms, networks and data sets, whole: to their results, or to the error of one unit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mpp.study.results import read, select
from tests.support.downstream import SIZE, good, refused, results
from tests.support.small_study import ALONE, Study, finished, images_of, rows, unit, value


def test_without_upstream_labels_one_data_set_is_enough_and_its_test_split_stays_out(
    study: Study, here: Callable[..., str], tinted_images: Path, tmp_path: Path
):
    common = f"source: {tinted_images}, image_size: {SIZE}, workers: 0"
    arms = ("study.arms=[random,mean_color]", "study.seeds=[0]", *ALONE, "finetuning.fractions=[]")
    mixed = here(f"upstream={{{common}, split: train+test, validation_split: 'train[:9]'}}",
                 f"downstream={{{common}}}", *arms)  # fmt: skip
    assert "45 of the 135 images to pre-train on (test+train) are among the 45 of test" in mixed.replace(
        "(train+test)", "(test+train)"
    )
    assert "tested on" in mixed

    printed = good(study(f"upstream={{{common}}}", f"downstream={{{common}}}", *arms))
    found = results(tmp_path / "gap")
    assert found["one_data_set"]
    assert "no verdict (1 seed)" in found["answer"][1]
    assert "(no verdict: fewer than 3 seeds" in printed.text
    assert images_of(tmp_path / "gap" / "mean_color/seed-0/pretrain").startswith("90 ")


def test_parts_of_one_data_set_that_share_no_image_may_be_compared(study: Study, tinted_images: Path, tmp_path: Path):
    common = f"source: {tinted_images}, image_size: {SIZE}, workers: 0"
    sections = (f"upstream={{{common}, split: 'train[:50%]', validation_split: 'train[:9]'}}",
                f"downstream={{{common}, split: 'train[50%:]'}}")  # fmt: skip
    good(study(*sections, "study.only=[random/seed-0]", "finetuning.fractions=[]"))
    assert list(finished(tmp_path / "gap")) == ["random/seed-0"]


def test_another_meaning_of_a_size_is_refused(study: Study, tmp_path: Path):
    sized = ["study.arms=[]", *ALONE, "study.seeds=[0]", "study.axis_arms=[random]"]
    good(study(*sized, "study.sizes={other: {arguments: {embed_dim: 48}}}"))
    found = results(tmp_path / "gap")
    assert [each["name"] for each in found["units"]] == ["size-other/random/seed-0"]
    assert {row.size for row in read(found["rows"])} == {"other"}
    other = study(*sized, "study.sizes={other: {arguments: {embed_dim: 64}}}")
    refused(other, "size-other/random/seed-0", "48 then, 64 now")


def test_a_convolutional_network_may_be_one_of_the_sizes(study: Study, tmp_path: Path):
    sizes = "study.sizes={resnet: {name: test_resnet, arms: [supervised]}}"
    good(study("study.arms=[]", *ALONE, "study.seeds=[0]", "study.axis_arms=[random]", sizes))
    name = "size-resnet/supervised/seed-0"
    assert [unit["name"] for unit in results(tmp_path / "gap")["units"]] == [name]
    config = json.loads((tmp_path / "gap" / name / "pretrain/encoder/config.json").read_text())
    assert config["architecture"] == "test_resnet"
    assert value(tmp_path / "gap", name, evaluator="finetune", metric="accuracy") >= 0


def test_the_rate_of_fine_tuning_is_searched_on_a_dev_split_and_its_cost_counted(study: Study, tmp_path: Path):
    good(study("study.only=[random/seed-0]", "finetuning.search.lr=[1e-5,1e-2]", "evaluation.few_shot=null"))
    name, folder = "random/seed-0", tmp_path / "gap"
    tuned = results(folder / name / "finetune-0.5")
    best = max(tuned["search"], key=lambda each: (each["dev_accuracy"], -each["dev_loss"]))
    assert value(folder, name, evaluator="finetune", metric="lr") == best["lr"]
    curve = select(rows(folder, name), evaluator="finetune", metric="dev_accuracy")
    assert curve[-1].value == best["dev_accuracy"]
    cost = {
        metric: value(folder, name, evaluator="search", metric=metric) for metric in ("images_seen", "flops", "runs")
    }
    assert cost == {"images_seen": 2 * 96, "flops": 2 * tuned["flops"], "runs": 2}
    [seconds] = [
        row.value for row in read(unit(folder, name)["rows"]) if (row.evaluator, row.metric) == ("search", "seconds")
    ]
    assert seconds > 0


def test_an_arm_of_the_user_s_own_runs_beside_presets_to_the_page(study: Study, tmp_path: Path):
    mine = "{title: my own arm, objective: {kind: masked_patch, head: mlp}, optimizer: {lr: 3.0e-3}}"
    arms = f"study.arms={{random: null, mine: {mine}}}"
    claim = "study.primary=[{higher: mine, lower: random, by: knn}]"
    printed = good(study(arms, claim, *ALONE, "evaluation.linear_probe=null"))
    folder = tmp_path / "gap"
    assert set(finished(folder)) == {f"{arm}/seed-{s}" for arm in ("random", "mine") for s in (0, 1)}
    ran = unit(folder, "mine/seed-0")["recipes"]["pretrain"]
    assert (ran["objective"]["head"], ran["optimizer"]["lr"]) == ("mlp", 3e-3)
    assert ran["optimizer"]["warmup"] == {"steps": 2, "epochs": None, "images": None}, "the study's own"
    found = results(folder)
    assert found["arms"]["mine"] == {"title": "my own arm", "role": "self-supervised"}
    assert "my own arm against random start" in printed.text
    assert "my own arm" in (folder / "report.html").read_text()
    again = study(arms.replace("3.0e-3", "1.0e-3"), claim, *ALONE, "evaluation.linear_probe=null")
    refused(again, "pretrain.optimizer.lr: 0.003 then, 0.001 now")


def test_a_unit_that_fails_is_reported_with_the_end_of_its_log_when_the_others_are_done(study: Study, tmp_path: Path):
    """A file lies where the results of frozen features are to go; from scratch nothing is frozen."""
    (tmp_path / "gap" / "random" / "seed-0").mkdir(parents=True)
    (tmp_path / "gap" / "random" / "seed-0" / "evaluation").write_text("in the way")
    command = study("study.arms=[random,scratch]", "study.seeds=[0]", *ALONE)
    assert command.code == 1, command.text
    assert "Traceback" not in command.text
    log = tmp_path / "gap" / "random" / "seed-0" / "log.txt"
    message = command.text[command.text.index("error: ") :]
    assert message.startswith(f"error: 1 unit failed:\nrandom/seed-0 ended with exit code 2; the end of {log}:\n")
    assert f"{tmp_path / 'gap/random/seed-0/evaluation'} cannot be written to" in message
    assert message.rstrip().endswith(log.read_text().rstrip().splitlines()[-1])
    assert list(finished(tmp_path / "gap")) == ["scratch/seed-0"]
    assert results(tmp_path / "gap")["unfinished"] == ["random/seed-0"]


def test_scratch_in_a_study_without_fine_tuning_has_nothing_to_do(study: Study, tmp_path: Path):
    good(study("study.only=[scratch/seed-0]", "finetuning.fractions=[]"))
    assert list(finished(tmp_path / "gap")) == ["scratch/seed-0"]
