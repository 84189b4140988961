"""The pieces, in the order of their value. Nothing heavy is imported here."""

from __future__ import annotations

from typing import NamedTuple


class Piece(NamedTuple):
    """A module's function that gives the cases, and what a reader of a list wants to know."""

    name: str
    module: str
    seconds: int
    """Estimated for one H100, all cases together."""
    what: str
    packages: bool = True
    """Whether it needs all dependencies of `mpp`, not PyTorch alone."""
    exact: bool = False
    """Whether it uses deterministic algorithms in its own process."""


PIECES = (
    Piece("machine", "kernels", 15, "rates of matrix products and copies; the rest of the machine", packages=False),
    Piece("synchronization", "runs", 30, "what makes the host wait for the GPU in a real training step"),
    Piece("resume", "runs", 150, "a killed and resumed run ends with the same bits, eager and compiled"),
    Piece(
        "attention",
        "kernels",
        45,
        "attention kernels, deterministic or not; which is the default",
        packages=False,
        exact=True,
    ),
    Piece("end_to_end", "runs", 120, "ViT-B/16 from JPEG files, compiled: images/s, share of peak, waits for data"),
    Piece("overhead", "steps", 315, "a step of the objective against a step of timm alone: Ti, S, B, eager, compiled"),
    Piece("cuda_tests", "runs", 240, "tests/test_cuda.py"),
    Piece("determinism", "steps", 55, "what deterministic mode costs, eager", exact=True),
    Piece("memory", "steps", 60, "peak memory of a step, with and without gradient checkpointing"),
    Piece("loader", "runs", 40, "images/s out of the loader alone, by its number of workers"),
    Piece("attention_steps", "steps", 50, "a whole step of ViT-B with each attention kernel", exact=True),
    Piece("batches", "steps", 90, "the overhead at smaller and larger batches, eager"),
    Piece("end_to_end_eager", "runs", 85, "ViT-B/16 and ViT-S/16 from JPEG files, eager"),
    Piece("compiled_determinism", "steps", 110, "what deterministic mode costs, compiled", exact=True),
    Piece("compiled_targets", "steps", 320, "the other targets and gradient checkpointing, compiled"),
)
NAMES = tuple(piece.name for piece in PIECES)
