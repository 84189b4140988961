"""Position embeddings at another image size: three ways, each held against a reference of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed

import mpp
from mpp.encoder.encoder import Encoder
from mpp.encoder.export import save_encoder
from mpp.encoder.pos_embed import resize_positions
from mpp.encoder.settings import EncoderSettings
from tests.support.reference import random_pixels

WAYS = ("bilinear", "bicubic", "timm")
SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 2}
FAMILIES = {  # timm's name, arguments, prefix tokens with a position of their own
    "class token": ("vit_tiny_patch16_224", SMALL, 1),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL, 2),
    "no class token": ("vit_tiny_patch16_224", SMALL | {"class_token": False, "global_pool": "avg"}, 0),
    "class token without position": ("deit3_small_patch16_224", SMALL, 0),
    "register": ("vit_tiny_patch16_224", SMALL | {"reg_tokens": 2}, 3),
    "eva": ("eva02_tiny_patch14_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}, 1),
}
PATCH, SIZE, GRID = 8, 48, 6
ROUNDING = 1e-5
"""Of normal values up to 4, at coordinates up to 24 in float32."""


def bilinear_by_hand(grid: np.ndarray, new: int) -> np.ndarray:
    """`(h, h, d)` → `(new, new, d)`, corner on corner: as `scipy.ndimage.zoom` in the paper's code."""
    old = grid.shape[0]
    at = np.arange(new) * (old - 1) / max(new - 1, 1)
    low = np.minimum(np.floor(at).astype(int), old - 2)
    share = at - low
    rows = grid[low] * (1 - share)[:, None, None] + grid[low + 1] * share[:, None, None]
    return rows[:, low] * (1 - share)[None, :, None] + rows[:, low + 1] * share[None, :, None]


def bicubic_by_hand(grid: np.ndarray, new: int) -> np.ndarray:
    """Keys' kernel with a = −0.75 at pixel centres, edges repeated: PyTorch's and so MAE's bicubic."""
    old, a = grid.shape[0], -0.75

    def kernel(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    at = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        index = np.floor(at).astype(int) + tap
        np.add.at(matrix, (np.arange(new), np.clip(index, 0, old - 1)), kernel(at - index))
    return np.einsum("ni,mj,ijd->nmd", matrix, matrix, grid)


def reference(positions: torch.Tensor, prefix: int, grid: int, new: int, how: str) -> torch.Tensor:
    first, patches = positions[:, :prefix], positions[:, prefix:]
    if how == "timm":
        return resample_abs_pos_embed(positions, [new, new], [grid, grid], num_prefix_tokens=prefix)
    by_hand = {"bilinear": bilinear_by_hand, "bicubic": bicubic_by_hand}[how]
    resized = by_hand(patches[0].double().numpy().reshape(grid, grid, -1), new).reshape(1, new * new, -1)
    return torch.cat([first, torch.from_numpy(resized).float()], dim=1)


def smooth(prefix: int, grid: int, width: int) -> torch.Tensor:
    """Embeddings as training leaves them: slow waves over the image, a few a side at most."""
    y, x = torch.meshgrid(*[torch.linspace(0, 1, grid)] * 2, indexing="ij")
    waves = [torch.cos(torch.pi * (k % 3 * x + k // 3 % 3 * y)) for k in range(width)]
    patches = torch.stack(waves, dim=-1).reshape(1, grid * grid, width)
    return torch.cat([torch.full((1, prefix, width), 9.0), patches], dim=1)


def source(kind: str, folder: Path) -> Encoder:
    """An exported encoder with positions that no interpolation can guess."""
    name, arguments, prefix = FAMILIES[kind]
    torch.manual_seed(0)
    encoder = mpp.create_encoder(name, image_size=SIZE, patch_size=PATCH, **arguments)
    assert encoder.vit.pos_embed.shape[1] == prefix + GRID**2
    with torch.no_grad():
        encoder.vit.pos_embed.normal_()
    save_encoder(encoder, folder)
    return encoder.eval()


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("grid", "new"), [(6, 9), (6, 4), (7, 12), (2, 3), (14, 24), (5, 1)])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_the_interpolation_is_the_one_written_out_by_hand(how: Any, grid: int, new: int, prefix: int):
    torch.manual_seed(grid)
    positions = torch.randn(1, prefix + grid**2, 5)
    resized = resize_positions(positions, grid, new, how)
    assert resized.shape == (1, prefix + new**2, 5)
    assert torch.equal(resized[:, :prefix], positions[:, :prefix])
    torch.testing.assert_close(resized, reference(positions, prefix, grid, new, how), rtol=0, atol=ROUNDING)


def test_bilinear_keeps_the_corners_and_bicubic_does_not():
    positions = torch.randn(1, 36, 3)
    corners = torch.tensor([0, 5, 30, 35])
    new = torch.tensor([0, 8, 72, 80])
    assert torch.allclose(resize_positions(positions, 6, 9, "bilinear")[:, new], positions[:, corners], atol=1e-6)
    assert not torch.allclose(resize_positions(positions, 6, 9, "bicubic")[:, new], positions[:, corners], atol=1e-2)


@pytest.mark.parametrize("kind", FAMILIES)
def test_loading_at_another_size_resizes_as_asked(tmp_path: Path, kind: str):
    small = source(kind, tmp_path)
    positions, prefix = small.vit.pos_embed.detach(), FAMILIES[kind][2]
    others = {name: value for name, value in small.vit.state_dict().items() if name != "pos_embed"}
    for how, new in [(how, new) for how in WAYS for new in (9, 4)]:
        encoder = mpp.load_encoder(tmp_path, image_size=new * PATCH, resize=how)
        assert isinstance(encoder, Encoder)
        assert encoder.layout.grid == new
        assert encoder.vit.pos_embed.requires_grad
        found = encoder.vit.pos_embed.detach()
        torch.testing.assert_close(found, reference(positions, prefix, GRID, new, how), rtol=0, atol=ROUNDING)
        assert torch.equal(found[:, :prefix], positions[:, :prefix])
        loaded = encoder.vit.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in others.items())


def test_the_three_ways_differ_and_bilinear_is_the_default(tmp_path: Path):
    source("class token", tmp_path)
    found = {how: mpp.load_encoder(tmp_path, image_size=32, resize=how).model.pos_embed.detach() for how in WAYS}
    for left, right in (WAYS[:2], WAYS[1:], WAYS[::2]):
        assert (found[left] - found[right]).abs().max() > 0.1
    assert torch.equal(mpp.load_encoder(tmp_path, image_size=32).vit.pos_embed, found["bilinear"])
    assert EncoderSettings().resize == "bilinear"
    for how in WAYS:
        built = EncoderSettings(source=str(tmp_path), resize=how).build(32, needs_patches=True)
        assert torch.equal(built.vit.pos_embed, found[how])
    with pytest.raises(ValueError, match="resize: found 'nearest'; allowed: bilinear, bicubic or timm"):
        EncoderSettings(resize="nearest")
    with pytest.raises(ValueError, match=r"arguments cannot hold resize: .*encoder\.resize"):
        EncoderSettings(arguments={"resize": "timm"}).build(32, needs_patches=True)


@pytest.mark.parametrize("kind", FAMILIES)
def test_at_its_own_size_nothing_changes(tmp_path: Path, kind: str):
    small = source(kind, tmp_path)
    pixels = random_pixels(2, SIZE)
    for how, size in zip(WAYS, (SIZE, None, SIZE), strict=True):
        encoder = mpp.load_encoder(tmp_path, image_size=size, resize=how).eval()
        assert torch.equal(encoder.model.pos_embed, small.vit.pos_embed)
        with torch.no_grad():
            assert torch.equal(encoder.pooled(encoder(pixels)), small.pooled(small(pixels)))


@pytest.mark.parametrize(
    ("how", "larger", "bound"),
    [("bilinear", 11, 1e-6), ("bilinear", 12, 0.09), ("bicubic", 12, 0.015), ("timm", 12, 0.06)],
)
def test_up_and_down_again_comes_back(tmp_path: Path, how: Any, larger: int, bound: float):
    """Exactly for bilinear at 11, where every old corner is a new one; else the loss of two interpolations."""
    encoder = source("distilled", tmp_path)
    original = smooth(2, GRID, 24)
    encoder.vit.pos_embed.data.copy_(original)
    save_encoder(encoder, tmp_path / "small")
    large = mpp.load_encoder(tmp_path / "small", image_size=larger * PATCH, resize=how)
    assert isinstance(large, Encoder)
    save_encoder(large, tmp_path / "large")
    back = mpp.load_encoder(tmp_path / "large", image_size=SIZE, resize=how).model.pos_embed.detach()
    assert torch.equal(back[:, :2], original[:, :2])
    error = (back - original)[:, 2:].norm() / original[:, 2:].norm()
    assert error < bound, error
    moved = original[:, 2:].unflatten(1, (GRID, GRID)).roll(1, dims=1).flatten(1, 2)
    assert (moved - original[:, 2:]).norm() / original[:, 2:].norm() > 5 * bound, "the bound would let a wrong row pass"


def test_features_at_the_new_size_come_from_the_resized_embedding(tmp_path: Path):
    small = source("class token", tmp_path)
    arguments = {**small.arguments, "img_size": 72}
    pixels = random_pixels(2, 72)
    for how in WAYS:
        encoder = mpp.load_encoder(tmp_path, image_size=72, resize=how).eval()
        own = timm.create_model(small.name, num_classes=0, **arguments).eval()
        state = small.vit.state_dict()
        state["pos_embed"] = encoder.vit.pos_embed.detach()
        own.load_state_dict(state)
        with torch.no_grad():
            assert torch.equal(encoder.pooled(encoder(pixels)), own(encoder.normalize(pixels)))


@pytest.mark.parametrize("kind", ["class token", "distilled", "no class token"])
def test_a_run_s_encoder_is_tuned_at_a_new_size_and_timm_reloads_it(tmp_path: Path, kind: str):
    run = tmp_path / "run"
    small = source(kind, run / "encoder")
    encoder = EncoderSettings(source=str(run), pool="avg" if kind == "class token" else None).build(
        72, needs_patches=True
    )
    expected = reference(small.vit.pos_embed.detach(), FAMILIES[kind][2], GRID, 9, "bilinear")
    torch.testing.assert_close(encoder.vit.pos_embed.detach(), expected, rtol=0, atol=ROUNDING)
    objective = mpp.MaskedPatchPrediction(encoder)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    objective(random_pixels(2, 72), torch.arange(2)).loss.backward()
    optimizer.step()
    encoder.eval()
    assert not torch.equal(encoder.vit.pos_embed, expected)
    save_encoder(encoder, tmp_path / "tuned")
    pixels = random_pixels(3, 72, 1)
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True).eval()
    here = mpp.load_encoder(tmp_path / "tuned").eval()
    with torch.no_grad():
        feature = encoder.pooled(encoder(pixels))
        assert torch.equal(in_timm(encoder.normalize(pixels)), feature)
        assert torch.equal(here.pooled(here(pixels)), feature)


@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", "beit_base_patch16_224", "vit_small_patch16_dinov3"])
def test_relative_and_rotary_positions_go_timm_s_way_whatever_is_asked(tmp_path: Path, name: str):
    torch.manual_seed(0)
    encoder = mpp.create_encoder(name, image_size=64, depth=1, embed_dim=32, num_heads=2)
    save_encoder(encoder, tmp_path)
    states = [mpp.load_encoder(tmp_path, image_size=96, resize=how).model.state_dict() for how in WAYS]
    for state in states[:2]:
        assert list(state) == list(states[2])
        assert all(torch.equal(value, states[2][key]) for key, value in state.items())
