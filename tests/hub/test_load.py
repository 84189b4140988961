"""The ways back from the Hub: revisions, mistakes, pickles, and as the start of something new."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save

from tests.support.downstream import ENCODER, EVALUATE, FINETUNE, PRETRAIN, good, refused, results, written
from tests.support.forkserver import Command, ForkServer
from tests.support.model_hub import ModelHub
from tests.support.pushing import (
    NAME,
    ONE_STEP,
    Push,
    arrived,
    load_back,
    measured,
)

# Coming back


@pytest.fixture(scope="module")
def two_states(run: Path, unfinished: Path, hub: ModelHub, push: Push) -> str:
    """A repository with the end of the run on main and its middle on a branch and under a tag."""
    hub.forget()
    arrived(push(run, "user/two"))
    arrived(push(unfinished, "user/two", "--branch", "middle", "--tag", "v0.5"))
    return "user/two"


def test_a_revision_can_be_pinned(
    two_states: str, run: Path, unfinished: Path, hub: ModelHub, online: ForkServer, tmp_path: Path
):
    oid = hub.repos[two_states].branches["middle"]
    jobs = [f"mpp:{i}:{two_states}@{revision}" for i, revision in enumerate(("middle", "v0.5", oid, "main"))]
    jobs += [f"predictions:pinned:{two_states} middle", f"predictions:here:{unfinished}"]
    found, said = load_back(online, tmp_path, f"checkpoint:end:{run}", f"checkpoint:middle:{unfinished}", *jobs)
    assert not torch.equal(found["end/checkpoint"], found["middle/checkpoint"])
    for i in range(3):
        assert torch.equal(found[f"{i}/mpp"], found["middle/checkpoint"]), said
    assert torch.equal(found["3/mpp"], found["end/checkpoint"])
    assert torch.equal(found["pinned/predictions"], found["here/predictions"])


def test_an_objective_s_revision_can_be_pinned_as_an_encoder_s_can(
    two_states: str, unfinished: Path, online: ForkServer, tmp_path: Path
):
    found, said = load_back(online, tmp_path, f"objective:a:{two_states}@middle", f"checkpoint:b:{unfinished}")
    assert "a/objective" in found, said
    assert torch.equal(found["a/objective"], found["b/checkpoint"])


def test_what_is_not_there_is_one_clear_error(two_states: str, hub: ModelHub, online: ForkServer, tmp_path: Path):
    hub.create("user/secret", private=True)
    hub.create("user/empty")
    sources = {
        "unknown": "user/nowhere", "revision": f"{two_states}@nowhere", "private": "user/secret", "empty": "user/empty",
    }  # fmt: skip
    jobs = [f"{way}:{name}:{source}" for name, source in sources.items() for way in ("mpp", "objective")]
    found, said = load_back(online, tmp_path, *jobs, HF_TOKEN="")
    assert found == {}
    for name, source in sources.items():
        for way in ("mpp", "objective"):
            (line,) = re.findall(rf"^{name}/{way}: (.*)$", said, re.M)
            assert line.startswith("ValueError: "), line
            assert source.split("@")[0] in line


def test_no_network_is_one_clear_error(hub: ModelHub, online: ForkServer, tmp_path: Path):
    with hub.unplugged():
        found, said = load_back(online, tmp_path, "mpp:a:user/never-seen", "objective:a:user/never-seen")
    assert found == {}
    assert len(re.findall(r"^a/(?:mpp|objective): ValueError: .*user/never-seen", said, re.M)) == 2, said


class Mischief:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "unpickled")


def pickled(thing: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def test_a_pickle_from_the_hub_is_never_run(
    published: dict[str, bytes], hub: ModelHub, online: ForkServer, tmp_path: Path
):
    traces = [tmp_path / "zip", tmp_path / "plain"]
    evil = {"zip": pickled({"cls_token": Mischief(traces[0])}), "plain": pickle.dumps(Mischief(traces[1]))}
    for name, content in evil.items():
        hub.create(f"user/evil-{name}", {"config.json": published["config.json"], "pytorch_model.bin": content})
    found, said = load_back(online, tmp_path, *[f"mpp:{name}:user/evil-{name}" for name in evil])
    assert found == {}
    assert len(re.findall(r"/mpp: ValueError: ", said)) == 2, said
    assert not any(trace.exists() for trace in traces)


def test_a_harmless_pickle_from_the_hub_is_refused_too(
    published: dict[str, bytes], run: Path, hub: ModelHub, online: ForkServer, tmp_path: Path
):
    weights = load_file(run / "encoder" / "model.safetensors")
    hub.create("user/old-form", {"config.json": published["config.json"], "pytorch_model.bin": pickled(weights)})
    found, said = load_back(online, tmp_path, "mpp:a:user/old-form")
    assert found == {}, "a pickle was read, and nobody had asked for one"
    assert re.search(r"ValueError: .*user/old-form", said)


@pytest.mark.parametrize("trick", [{"hf_hub_filename": "other.bin"}, {"custom_load": "hf"}])
def test_a_config_that_points_to_another_file_beside_the_safe_one_is_refused(
    published: dict[str, bytes], run: Path, hub: ModelHub, online: ForkServer, tmp_path: Path, trick: dict[str, str]
):
    config = json.loads(published["config.json"])
    config["pretrained_cfg"] |= trick
    other = {name: torch.zeros_like(value) for name, value in load_file(run / "encoder" / "model.safetensors").items()}
    files = {**published, "config.json": json.dumps(config).encode(), "other.bin": pickled(other)}
    hub.create(f"user/{next(iter(trick))}", files)
    found, said = load_back(online, tmp_path, f"mpp:a:user/{next(iter(trick))}")
    assert found == {}
    assert re.search(r"ValueError: .*points to weights in another file", said), said


def test_code_from_the_hub_is_never_fetched(
    published: dict[str, bytes], hub: ModelHub, online: ForkServer, tmp_path: Path
):
    config = json.loads(published["config.json"]) | {"auto_map": {"AutoModel": "modeling.Evil"}}
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).write_text('ran')\nclass Evil: pass\n"
    files = {**published, "config.json": json.dumps(config).encode(), "modeling.py": code.encode()}
    hub.create("user/code", files)
    found, said = load_back(online, tmp_path, "mpp:a:user/code", "objective:a:user/code")
    assert set(found) == {"a/mpp", "a/objective"}, said
    assert not (tmp_path / "ran").exists()
    assert not [call for call in hub.asked if call.endswith("modeling.py")]


def test_a_config_from_the_hub_cannot_point_elsewhere(
    published: dict[str, bytes], hub: ModelHub, online: ForkServer, tmp_path: Path
):
    """Its arguments are an architecture's; a path or an address among them is not followed."""
    (tmp_path / "mine.safetensors").write_bytes(save({"cls_token": torch.ones(1, 1, 32)}))
    for name, more in {
        "path": {"checkpoint_path": str(tmp_path / "mine.safetensors")},
        "overlay": {"pretrained_cfg_overlay": {"hf_hub_id": "user/evil-zip", "source": "hf-hub"}},
    }.items():
        config = json.loads(published["config.json"])
        config["model_args"] |= more
        hub.create(f"user/points-{name}", {**published, "config.json": json.dumps(config).encode()})
    found, said = load_back(online, tmp_path, "mpp:a:user/points-path", "mpp:b:user/points-overlay", f"mpp:c:{NAME}")
    for name in "ab":
        assert f"{name}/mpp" not in found or torch.equal(found[f"{name}/mpp"], found["c/mpp"]), said


# As a start


def tiny(online: ForkServer, module: str, text: str, data: Path, folder: Path, *changes: str) -> Command:
    recipe = written(folder / f"{module}.yaml", text.replace(ENCODER, "{}"), data, folder / module)
    return online.run(module, recipe, *changes, cwd=folder)


def test_pre_training_starts_from_the_hub(
    two_states: str, unfinished: Path, online: ForkServer, tinted_images: Path, tmp_path: Path
):
    still = ("optimizer.lr=1.0e-30", "optimizer.weight_decay=0", ONE_STEP)
    good(tiny(online, "mpp.pretrain", PRETRAIN, tinted_images, tmp_path, f"encoder={two_states}@middle", *still))
    started = load_file(tmp_path / "mpp.pretrain" / "encoder" / "model.safetensors")
    before = load_file(unfinished / "checkpoints" / "step-000000004" / "weights.safetensors")
    for name, tensor in started.items():
        torch.testing.assert_close(tensor, before["encoder.vit." + name], rtol=0, atol=1e-12)
    recipe = yaml.safe_load((tmp_path / "mpp.pretrain" / "recipe.yaml").read_text())
    assert recipe["encoder"]["source"] == f"{two_states}@middle"


def test_evaluation_and_fine_tuning_start_from_the_hub(
    two_states: str, run: Path, online: ForkServer, tinted_images: Path, tmp_path: Path
):
    good(tiny(online, "mpp.evaluate", EVALUATE, tinted_images, tmp_path, f"encoder={two_states}"))
    (found,) = tmp_path.glob("runs/evaluation/**/results.json")
    assert results(found.parent)["scores"] == measured(run)["scores"]
    assert results(found.parent)["encoder"] == two_states
    steps = "training.duration.steps=1"
    good(tiny(online, "mpp.finetune", FINETUNE, tinted_images, tmp_path, f"encoder={two_states}", steps))


def test_a_start_that_is_not_there_is_refused_in_one_message(online: ForkServer, tinted_images: Path, tmp_path: Path):
    for module, text in (("mpp.pretrain", PRETRAIN), ("mpp.evaluate", EVALUATE), ("mpp.finetune", FINETUNE)):
        refused(tiny(online, module, text, tinted_images, tmp_path, "encoder=user/nowhere"), "user/nowhere")
