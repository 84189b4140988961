"""What a fine-tuning is made of: its head, its layer-wise rates, its mixed and erased batches."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm import optim

import mpp
from mpp.encoder.create import create_backbone
from mpp.objective.classification import SupervisedClassification
from mpp.training.augmentation import Augmentation, augmentation
from mpp.training.optimizer import make_optimizer
from mpp.training.settings import AugmentationSettings, OptimizerSettings
from tests.support.reference import random_pixels


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_zero_head_begins_with_uniform_predictions(head: str):
    torch.manual_seed(0)
    encoder = mpp.create_encoder(
        "vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    objective = SupervisedClassification(encoder, 7, head, head_init="zero")
    found = objective(random_pixels(3, 16), labels=torch.tensor([0, 3, 6]))
    assert torch.equal(found.logits, found.logits[:, :1].expand(3, 7))
    assert found.loss.item() == pytest.approx(np.log(7), abs=1e-6)
    assert mpp.load_recipe("recipes/finetune.yaml", command="finetune").objective.head_init == "zero"


LAYERED = [
    ("vit_tiny_patch16_224", 32, {"embed_dim": 32, "depth": 3, "num_heads": 2}),
    ("vit_small_patch14_reg4_dinov2", 28, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    ("deit_tiny_distilled_patch16_224", 32, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    ("eva02_tiny_patch14_224", 28, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    ("vit_relpos_small_patch16_224", 32, {"embed_dim": 32, "depth": 2, "num_heads": 2}),  # positions from a network
    ("resnet18", 32, {}),
]
EXEMPT_HERE = {"reg_token"}
"""Tokens that do not decay here, as the protocol has it, and that timm forgets."""


@pytest.mark.parametrize("decay", [0.65, 0.75])
@pytest.mark.parametrize(("name", "size", "arguments"), LAYERED, ids=[case[0] for case in LAYERED])
def test_layer_wise_rates_and_decay_are_timm_s(name: str, size: int, arguments: dict[str, Any], decay: float):
    backbone = create_backbone(name, image_size=size, **arguments)
    objective = SupervisedClassification(backbone, 3)
    settings = OptimizerSettings(lr=2.0, weight_decay=0.05, layer_decay=decay)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    ours: dict[str, tuple[float, float]] = {}
    for group in make_optimizer(objective, settings).param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in ours
            ours[names[id(parameter)]] = (group["lr_scale"], group["weight_decay"])

    model: Any = timm.create_model(name, num_classes=3, **backbone.arguments)
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = optim.param_groups_layer_decay(  # pyright: ignore[reportPrivateImportUsage]
        model, 0.05, no_weight_decay_list=spared, layer_decay=decay
    )
    theirs = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    heads = (model.pretrained_cfg["classifier"],) if isinstance(model.pretrained_cfg["classifier"], str) else ("head",)
    seen = set()
    for of_timm, parameter in model.named_parameters():
        if of_timm.startswith("head_dist."):
            continue  # the second head of a distilled model, which stands for the same weights
        head = next((head for head in heads if of_timm.startswith(f"{head}.")), None)
        name_here = f"head.{of_timm.removeprefix(f'{head}.')}" if head else f"encoder.{backbone.KEY}.{of_timm}"
        scale, weight_decay = theirs[id(parameter)]
        expected = (scale, 0.0 if of_timm in EXEMPT_HERE else weight_decay)
        assert ours[name_here] == pytest.approx(expected, rel=1e-12), of_timm
        seen.add(name_here)
    assert seen == set(ours)
    scales = {scale for scale, _ in ours.values()}
    assert max(scales) == 1.0
    layers = max(round(np.log(scale) / np.log(decay)) for scale in scales)
    assert layers == arguments.get("depth", 0) + 1 or name == "resnet18"


@pytest.fixture
def mixing() -> Any:
    encoder = mpp.create_encoder(
        "vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2
    )

    def batch(seed: int = 0, **settings: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixels and labels before and after."""
        augment = Augmentation(AugmentationSettings(**settings), encoder, 5, torch.device("cpu"))
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        pixels, labels = random_pixels(6, 16), torch.tensor([0, 1, 2, 3, 4, 0])
        return pixels.clone(), labels, *augment(pixels.clone(), labels.clone())

    return batch


def test_mixup_is_the_sum_of_a_batch_and_its_reverse(mixing: Any):
    pixels, labels, mixed, targets = mixing(mixup=0.8)
    assert mixed.dtype == torch.uint8
    assert mixed.shape == pixels.shape
    onehot = torch.nn.functional.one_hot(labels, 5).float()
    share = float(targets[0, 0])  # of image 0 with class 0 and image 5, of class 0 too
    assert share == pytest.approx(1.0)
    share = float(targets[1, 1])
    assert 0.01 < share < 0.99
    assert torch.allclose(targets, share * onehot + (1 - share) * onehot.flip(0), atol=1e-6)
    expected = share * pixels.double() + (1 - share) * pixels.flip(0).double()
    assert (mixed.double() - expected).abs().max() <= 0.501


def test_cutmix_takes_a_rectangle_from_the_reverse_and_its_share_of_the_label(mixing: Any):
    pixels, _, mixed, targets = mixing(seed=3, cutmix=1.0)
    assert mixed.dtype == torch.uint8
    own, other = (mixed == pixels).all(1), (mixed == pixels.flip(0)).all(1)
    assert (own | other).all(), "every pixel comes from one of two images, to the last bit"
    cut = ~own[0]
    rows, columns = cut.any(1).sum(), cut.any(0).sum()
    assert cut.sum() == rows * columns
    assert 0 < cut.sum() < 256
    assert float(targets[1, 1]) == pytest.approx(1 - float(cut.sum()) / 256, abs=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(6))


def test_erasing_fills_a_rectangle_and_leaves_the_rest_and_the_labels(mixing: Any):
    pixels, labels, erased, kept = mixing(erase=1.0)
    assert erased.dtype == torch.uint8
    assert torch.equal(kept, labels)
    changed = (erased != pixels).any(1).flatten(1).float().mean(1)
    assert ((changed > 0.01) & (changed < 0.4)).all()


def test_all_at_once_keeps_form_and_total(mixing: Any):
    for seed in range(5):
        pixels, _, mixed, targets = mixing(seed=seed, mixup=0.8, cutmix=1.0, erase=0.5)
        assert mixed.dtype == torch.uint8
        assert mixed.shape == pixels.shape
        assert targets.shape == (6, 5)
        assert torch.allclose(targets.sum(1), torch.ones(6))
        assert (targets >= 0).all()


def test_nothing_asked_for_is_nothing():
    encoder = mpp.create_encoder(
        "vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2
    )
    assert augmentation(AugmentationSettings(), encoder, 3, torch.device("cpu")) is None
