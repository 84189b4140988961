"""lightly: SimMIM on torchvision's ViT and MAE on timm's, from the parts that its examples take."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks.peers.libraries.step import CLIP, DECAY, RATE, Steps, adamw, endless, images, loader, steps
from tests.benchmarks.peers.sizes import Size

MASKED = 0.75
"""The share of its examples, of both."""


class SimMIM(nn.Module):
    """All tokens through the encoder; a linear layer predicts the pixels of the masked patches."""

    def __init__(self, size: Size) -> None:
        from torchvision.models import VisionTransformer

        super().__init__()
        vit = VisionTransformer(
            image_size=size.image_size,
            patch_size=size.patch_size,
            num_layers=size.depth,
            num_heads=size.heads,
            hidden_dim=size.width,
            mlp_dim=4 * size.width,
        )
        module = import_module("lightly.models.modules.masked_vision_transformer_torchvision")
        self.tools = import_module("lightly.models.utils")
        self.encoder = module.MaskedVisionTransformerTorchvision(vit=vit)
        self.predict = nn.Linear(size.width, 3 * size.patch_size**2)
        self.size = size

    def forward(self, pixels: Tensor) -> Tensor:
        shape = len(pixels), self.encoder.sequence_length
        _, masked = self.tools.random_token_mask(size=shape, mask_ratio=MASKED, device=pixels.device)
        tokens = self.tools.get_at_index(self.encoder.encode(images=pixels, idx_mask=masked), masked)
        patches = self.tools.patchify(pixels, self.size.patch_size)
        return F.l1_loss(self.predict(tokens), self.tools.get_at_index(patches, masked - 1))  # no class token there


class MAE(nn.Module):
    """The visible tokens through the encoder, all through a decoder of 8 blocks."""

    def __init__(self, size: Size) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        vit = VisionTransformer(
            img_size=size.image_size,
            patch_size=size.patch_size,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
        )
        modules = import_module("lightly.models.modules")
        self.tools = import_module("lightly.models.utils")
        self.encoder = modules.MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = modules.MAEDecoderTIMM(
            num_patches=size.patches,
            patch_size=size.patch_size,
            embed_dim=size.width,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
        )
        self.size = size

    def forward(self, pixels: Tensor) -> Tensor:
        shape = len(pixels), self.encoder.sequence_length
        kept, masked = self.tools.random_token_mask(size=shape, mask_ratio=MASKED, device=pixels.device)
        encoded = self.decoder.embed(self.encoder.encode(images=pixels, idx_keep=kept))
        tokens = self.tools.repeat_token(self.decoder.mask_token, shape)
        tokens = self.tools.set_at_index(tokens, kept, encoded.type_as(tokens))
        decoded = self.tools.get_at_index(self.decoder.decode(tokens), masked)
        patches = self.tools.patchify(pixels, self.size.patch_size)
        return F.mse_loss(self.decoder.predict(decoded), self.tools.get_at_index(patches, masked - 1))


def _model(method: str, size: Size) -> nn.Module:
    return SimMIM(size) if method == "simmim" else MAE(size)


def build(method: str, size: Size) -> Steps:
    model, pixels = _model(method, size), images(size)
    return steps(model, lambda: model(pixels), adamw(model))


def train(method: str, size: Size, folder: Path, output: Path, count: int, stamp: Callable[[], None]) -> None:
    transform: Any = import_module("lightly.transforms.mae_transform").MAETransform(input_size=size.image_size)
    rows = import_module("lightly.data").LightlyDataset(str(folder), transform=transform)
    model = _model(method, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    for number, batch in enumerate(endless(loader(rows, size)), start=1):
        model(batch[0][0]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        stamp()
        if number == count:
            break
    torch.save(model.state_dict(), output / "model.pt")
