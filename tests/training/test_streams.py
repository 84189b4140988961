"""Parts of a micro-batch side by side: the gradient of one after the other, and the promises of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mpp
from mpp.encoder.create import create_backbone
from mpp.objective.base import Objective
from mpp.objective.classification import LinearProbe, SupervisedClassification
from mpp.settings import SettingError
from mpp.training.optimizer import make_optimizer
from mpp.training.settings import OptimizerSettings, TrainingSettings
from mpp.training.streams import Streams, number_of_streams
from tests.support.downstream import final_weights, journal, sha
from tests.support.forkserver import ForkServer, good


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def masked_patch(**arguments: Any) -> mpp.MaskedPatchPrediction:
    torch.manual_seed(0)
    return mpp.MaskedPatchPrediction(mpp.create_encoder("test_vit", image_size=32, patch_size=8, **arguments))


def classifier() -> SupervisedClassification:
    torch.manual_seed(0)
    return SupervisedClassification(create_backbone("test_vit", image_size=32), num_classes=5)


def batch(objective: Objective, images: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    samples, draws = torch.arange(images), objective.draws()
    given = {"pixels": pixels, "samples": samples, "labels": samples % 5}
    return given if draws is None else {**given, "draw": draws(samples)}


@pytest.mark.usefixtures("two_threads")
def test_gradients_lie_in_memory_as_those_of_backward_do():
    """Fused optimisers read raw memory: convolutions on permuted images have gradients of other strides."""

    def make() -> SupervisedClassification:
        torch.manual_seed(0)
        return SupervisedClassification(create_backbone("test_convnext", image_size=32), num_classes=5)

    one, two = make(), make()
    steps = [make_optimizer(each, OptimizerSettings(name="sgd", lr=0.1, weight_decay=0.0)) for each in (one, two)]
    streams, given = Streams(one, 2), batch(one, 16)
    for _ in range(2):
        streams.backward(given, 1.0, nullcontext)
        for rows in (slice(0, 8), slice(8, 16)):
            (two(**{name: value[rows] for name, value in given.items()}).loss / 2).backward()
        for mine, other in zip(one.parameters(), two.parameters(), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            assert mine.grad.stride() == mine.stride()
        for optimizer in steps:
            optimizer.step()
            optimizer.zero_grad()
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("make", [masked_patch, classifier])
@pytest.mark.parametrize("count", [2, 4])
def test_the_gradient_is_that_of_the_parts_one_after_the_other(make: Any, count: int):
    """Bit for bit, twice in a row (gradients add up), and with the same scores."""
    objective, reference = make(), make()
    given = batch(objective, 16)
    streams = Streams(objective, count)
    for _ in range(2):
        parts = streams.backward(given, 0.5, nullcontext)
    torch.set_num_threads(1)
    losses = []
    for _ in range(2):
        for part in range(count):
            rows = slice(part * 16 // count, (part + 1) * 16 // count)
            cut = {n: v[:, rows] if n == "draw" else v[rows] for n, v in given.items()}
            loss = reference(**cut).loss
            found = torch.autograd.grad(loss * (0.5 / count), list(reference.parameters()), allow_unused=True)
            losses.append(loss.detach())
            for parameter, gradient in zip(reference.parameters(), found, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    for one, other in zip(objective.parameters(), reference.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    assert torch.equal(torch.stack([part.prediction.loss.detach() for part in parts]), torch.stack(losses[-count:]))
    assert torch.equal(torch.cat([part.pixels for part in parts]), given["pixels"])


@pytest.mark.usefixtures("two_threads")
def test_the_threads_are_those_of_before():
    objective = masked_patch()
    Streams(objective, 2).backward(batch(objective, 8), 1.0, nullcontext)
    assert torch.get_num_threads() == 2


def chosen(objective: Objective, images: int = 16, *, processes: int = 1, **settings: Any) -> int:
    accelerator: Any = SimpleNamespace(num_processes=processes, device=torch.device("cpu"))
    return number_of_streams(TrainingSettings(**settings), objective, images, accelerator)


@pytest.mark.usefixtures("two_threads")
def test_there_is_one_stream_where_more_would_change_more_than_rounding():
    assert chosen(masked_patch()) == 2
    assert chosen(classifier()) == 2
    assert chosen(masked_patch(drop_path_rate=0.1)) == 1
    assert chosen(masked_patch(proj_drop_rate=0.1)) == 1
    torch.manual_seed(0)
    assert chosen(LinearProbe(create_backbone("test_vit", image_size=32), 5)) == 1
    resnet = SupervisedClassification(create_backbone("test_resnet", image_size=32), num_classes=5)
    assert chosen(resnet) == 1
    assert chosen(masked_patch(), compile=True) == 1
    assert chosen(masked_patch(), processes=2) == 1


@pytest.mark.usefixtures("two_threads")
def test_their_number_fits_the_micro_batch_and_can_be_chosen():
    found = {images: chosen(masked_patch(), images) for images in (1, 8, 15, 16, 17, 18)}
    assert found == {1: 1, 8: 1, 15: 1, 16: 2, 17: 1, 18: 2}
    torch.set_num_threads(6)
    assert chosen(masked_patch(), 36) == 3  # of 12 images and 2 threads each
    assert chosen(masked_patch(), 96) == 6
    assert chosen(masked_patch(), 96, streams=1) == 1
    assert chosen(masked_patch(), 96, streams=4) == 4
    with pytest.raises(SettingError, match="96 images cannot be divided by 5"):
        chosen(masked_patch(), 96, streams=5)
    with pytest.raises(SettingError, match="drop path"):
        chosen(masked_patch(drop_path_rate=0.1), streams=2)
    assert chosen(masked_patch(drop_path_rate=0.1), streams=1) == 1


def test_a_run_with_streams_keeps_both_promises(commands: ForkServer, tiny_recipe: Path, tmp_path: Path):
    """Killed and resumed it has the same bits; with one stream the same losses up to rounding."""
    two = ("training.threads=2", "training.batch_size=16", "encoder.arguments.drop_path_rate=0")
    straight, one, run = tmp_path / "straight", tmp_path / "one", tmp_path / "run"
    good(commands.run("mpp.pretrain", tiny_recipe, *two, f"output_dir={straight}"))
    good(commands.run("mpp.pretrain", tiny_recipe, *two, "training.streams=1", f"output_dir={one}"))
    command = commands.start("mpp.pretrain", tiny_recipe, *two)
    while not (run / "checkpoints" / "step-000000004").is_dir():
        assert command.alive, command.text
        time.sleep(0.002)
    command.kill()
    command.wait()
    assert "from step" in good(commands.run("mpp.pretrain", tiny_recipe, *two)).text
    assert journal(run) == journal(straight)
    assert sha(final_weights(run, 12)) == sha(final_weights(straight, 12))
    assert sha(final_weights(one, 12)) != sha(final_weights(straight, 12))
    losses = [[line["loss"] for line in journal(each) if "loss" in line] for each in (straight, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
