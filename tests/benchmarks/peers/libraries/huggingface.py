"""Hugging Face transformers: SimMIM and MAE from a configuration; whole runs with its Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.peers.libraries.step import DECAY, RATE, Steps, adamw, crops, images, steps
from tests.benchmarks.peers.sizes import Size

MASKED = 0.6
"""The share of its example of masked image modelling."""


def _model(method: str, size: Size) -> nn.Module:
    from transformers import ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining

    shape: dict[str, Any] = {
        "image_size": size.image_size,
        "patch_size": size.patch_size,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
    }
    if method == "mae":
        return ViTMAEForPreTraining(ViTMAEConfig(**shape))
    return ViTForMaskedImageModeling(ViTConfig(**shape, encoder_stride=size.patch_size))


def _mask(images: int, size: Size) -> Tensor:
    """Which patches are masked, drawn one by one: bool `(b, patches)`."""
    order = torch.rand(images, size.patches).argsort(1)
    return order < round(MASKED * size.patches)


def build(method: str, size: Size) -> Steps:
    model, pixels = _model(method, size), images(size)

    def loss() -> Tensor:
        masks = {"bool_masked_pos": _mask(size.batch, size)} if method == "simmim" else {}
        return model(pixel_values=pixels, **masks).loss

    return steps(model, loss, adamw(model, fused=True))  # the Trainer's own choice


def train(method: str, size: Size, folder: Path, output: Path, count: int, stamp: Callable[[], None]) -> None:
    from datasets import load_dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Stamps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            stamp()

    transform = crops(size, scale=(0.67, 1.0))

    def transformed(rows: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [transform(image.convert("RGB")) for image in rows["image"]]}

    def collated(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}
        return batch | ({"bool_masked_pos": _mask(len(rows), size)} if method == "simmim" else {})

    rows = load_dataset("imagefolder", data_dir=str(folder), split="train")
    rows.set_transform(transformed)
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=size.batch,
        max_steps=count,
        learning_rate=RATE,
        weight_decay=DECAY,
        dataloader_num_workers=2,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        report_to="none",
    )
    trainer = Trainer(_model(method, size), arguments, train_dataset=rows, data_collator=collated, callbacks=[Stamps()])
    trainer.train()
    trainer.save_model()
