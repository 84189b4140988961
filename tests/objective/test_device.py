"""What can be known of a GPU where there is none: PyTorch's fake tensors have a device, and no values.

Whatever mixes devices is refused by them, and so is whatever reads a value back to the host, which would have the
device wait: `.item()`, a boolean index, a size that depends on values.
"""

import copy
from typing import TypeVar

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

import mpp
from mpp.encoder.create import create_backbone
from mpp.objective.classification import SupervisedClassification

FAMILIES = {
    "distilled": ("deit_tiny_distilled_patch16_224", 32),
    "registers": ("vit_small_patch14_reg4_dinov2", 28),
    "rope": ("eva02_tiny_patch14_224", 28),
    "hybrid": ("vit_tiny_r_s16_p8_224", 64),
}
TARGETS = {
    "mean colour": mpp.MeanColor(),
    "downsized": mpp.DownsizedPatch(cells=2, bits=2),
    "overlapping": mpp.DownsizedPatch(cells=3, bits=2),
    "full patch": mpp.FullPatch(),
    "normalised": mpp.FullPatch(normalize=True),
}

Module = TypeVar("Module", bound=nn.Module)


def on_a_gpu(module: Module, mode: FakeTensorMode) -> Module:
    """A copy whose weights are on a GPU that is not there."""
    module = copy.deepcopy(module)
    with mode:
        for part in module.modules():
            for name, value in part._parameters.items():
                part._parameters[name] = None if value is None else nn.Parameter(fake(value))
            for name, value in part._buffers.items():
                part._buffers[name] = None if value is None else fake(value)
    return module


def fake(value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="cuda")


@pytest.fixture
def mode() -> FakeTensorMode:
    mode = FakeTensorMode()
    try:
        with mode:
            torch.empty(1, device="cuda")
    except (RuntimeError, AssertionError):
        pytest.skip("this PyTorch was built without CUDA")
    return mode


def test_such_tensors_refuse_other_devices_and_to_be_read(mode: FakeTensorMode):
    with mode:
        there, here = torch.zeros(3, device="cuda"), torch.zeros(3)
        with pytest.raises(RuntimeError, match="device"):
            _ = there + here
        with pytest.raises(DataDependentOutputException):
            float(there.sum())
        with pytest.raises(DynamicOutputShapeException):
            _ = there[there > 0]


def predict(mode: FakeTensorMode, objective: mpp.MaskedPatchPrediction, size: int, *, numbered: bool = True):
    objective = on_a_gpu(objective, mode)
    with mode:
        pixels = torch.zeros(4, 3, size, size, dtype=torch.uint8, device="cuda")
        return objective(pixels, torch.arange(4, device="cuda") if numbered else None)


@pytest.mark.parametrize("numbered", [True, False], ids=["samples", "torch's generator"])
@pytest.mark.parametrize("target", TARGETS)
def test_masked_patch_prediction_stays_on_its_device_and_never_waits(mode, target: str, numbered: bool):
    encoder = mpp.create_encoder("test_vit", image_size=32, patch_size=4)
    objective = mpp.MaskedPatchPrediction(encoder, target=TARGETS[target])
    assert {value.device.type for value in predict(mode, objective, 32, numbered=numbered)} == {"cuda"}


@pytest.mark.parametrize("family", FAMILIES)
def test_so_does_every_family_of_encoders(mode: FakeTensorMode, family: str):
    name, size = FAMILIES[family]
    objective = mpp.MaskedPatchPrediction(mpp.create_encoder(name, image_size=size))
    assert {value.device.type for value in predict(mode, objective, size)} == {"cuda"}


@pytest.mark.parametrize("name", ["test_vit", "resnet18"])
def test_classification_stays_on_its_device_and_never_waits(mode: FakeTensorMode, name: str):
    backbone = create_backbone(name, image_size=32)
    objective = on_a_gpu(SupervisedClassification(backbone, num_classes=7), mode)
    with mode:
        pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device="cuda")
        prediction = objective(pixels, None, torch.zeros(4, dtype=torch.int64, device="cuda"))
        assert prediction.loss.device.type == "cuda"
