"""What masked patch prediction adds to timm's step, in milliseconds: `python -m tests.benchmarks.objective_stages`.

The recipe `mean_color`: width 128, depth 4, 32 px, patches of 4 px, batch 128, bfloat16 where it is the default. One
thread, CPU time, medians. The stages are measured alone, on tensors of the shapes and strides that they have in a step;
the bare step is timm's model, head, loss, backward pass and optimizer.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

import mpp
from mpp.commands.train_run import uses_fused_attention
from mpp.objective.corruption import MASK, SWAP, Draw
from mpp.objective.replacement import corrupt, replaced
from mpp.training.distributed import precision, start_processes
from mpp.training.optimizer import make_optimizer

BATCH, REPETITIONS, STEPS = 128, 200, 20


def timed(call: Callable[[], object], repetitions: int = REPETITIONS) -> float:
    """Milliseconds of CPU time, the median."""
    taken = []
    for _ in range(repetitions + 2):
        start = time.process_time()
        call()
        taken.append(1000 * (time.process_time() - start))
    return statistics.median(taken[2:])


def main() -> None:
    """Measure, and print a table."""
    recipe = mpp.load_recipe("mean_color")
    accelerator = start_processes(recipe.training, folder=Path())
    torch.set_num_threads(1)
    encoder = mpp.create_encoder(recipe.encoder.name, image_size=32, patch_size=4, **recipe.encoder.arguments)
    encoder.use_fused_attention(uses_fused_attention(recipe.encoder.attention, accelerator))
    objective = mpp.MaskedPatchPrediction(encoder)
    bare = objective.bare(BATCH).train()
    optimizer = make_optimizer(bare, recipe.optimizer)
    layout, samples = encoder.layout, torch.arange(BATCH)
    pixels = torch.randint(0, 256, (BATCH, 3, layout.image_size, layout.image_size), dtype=torch.uint8)
    drawn = Draw(*objective.draws()(samples).unbind())
    dtype = getattr(torch, precision(recipe.training))
    # As timm has them: a transposed view of the convolution's output.
    stored = torch.randn(BATCH, layout.width, layout.num_patches, dtype=dtype, requires_grad=True)
    embeddings = stored.transpose(1, 2)
    corrupted = corrupt(embeddings, objective.mask_token, drawn)
    rows = torch.arange(BATCH)[:, None] * layout.num_patches
    sources = torch.where(drawn.kinds == SWAP, drawn.others, drawn.positions) + rows
    given = (drawn.positions + rows).flatten(), sources.flatten(), (drawn.kinds == MASK).flatten()

    def by_autograd() -> torch.Tensor:
        token = objective.mask_token.to(embeddings.dtype)
        return torch.empty_like(embeddings).copy_(replaced(embeddings, token, *given))

    tokens = torch.randn(BATCH, layout.num_prefix_tokens + layout.num_patches, layout.width, requires_grad=True)
    chosen = encoder.patch_tokens(tokens, drawn.positions)
    count = drawn.positions.shape[1]
    first = tokens[:, 1 : 1 + count]
    logits = torch.randn(BATCH, count, objective.target.outputs(layout.patch_size), dtype=dtype, requires_grad=True)
    labels = objective.target.labels_at(pixels, drawn.positions, layout.patch_size)

    def gradient(output: torch.Tensor, *inputs: torch.Tensor) -> Callable[[], object]:
        weights = torch.randn_like(output)
        return lambda: torch.autograd.grad(output, inputs, weights, retain_graph=True)

    def loss() -> None:
        torch.autograd.grad(objective.target.loss(logits, labels), logits)

    def step() -> None:
        with accelerator.autocast():
            value = bare()
        value.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), recipe.training.clip_grad)
        optimizer.step()
        optimizer.zero_grad()

    gathered = timed(lambda: encoder.patch_tokens(tokens, drawn.positions)) + timed(gradient(chosen, tokens))
    sliced = timed(lambda: tokens[:, 1 : 1 + count].to(dtype)) + timed(gradient(first, tokens))
    stages = {
        "labels from the pixels": timed(
            lambda: objective.target.labels_at(pixels, drawn.positions, layout.patch_size)
        ),
        "pixels to normalised floats": timed(lambda: encoder.normalize(pixels)),
        "corruption, forward": timed(lambda: corrupt(embeddings, objective.mask_token, drawn)),
        "corruption, backward": timed(gradient(corrupted, stored, objective.mask_token)),
        "the K tokens, forward and backward, over a slice": gathered - sliced,
    }  # fmt: skip
    plain = {
        "labels by way of the patches": timed(lambda: objective.target.labels(objective.patches(pixels, drawn[0]))),
        "corruption by autograd's operators, in timm's layout, forward": timed(by_autograd),
        "the same, backward": timed(gradient(by_autograd(), stored, objective.mask_token)),
    }
    whole = timed(step, STEPS)
    for name, milliseconds in {**stages, "together": sum(stages.values())}.items():
        print(f"| {name} | {milliseconds:.2f} | {milliseconds / whole:.2%} |")
    for name, milliseconds in plain.items():
        print(f"| instead: {name} | {milliseconds:.2f} | {milliseconds / whole:.2%} |")
    print(f"| the loss, forward and backward, which the bare step has too | {timed(loss):.2f} | |")
    print(f"| the draws, in the loader | {timed(lambda: objective.draws()(samples)):.2f} | |")
    print(f"| the bare step | {whole:.1f} | |")


if __name__ == "__main__":
    main()
