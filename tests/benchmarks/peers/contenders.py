"""Who is measured, and what each does with an image."""

from __future__ import annotations

from typing import NamedTuple


class Contender(NamedTuple):
    """A method of a library."""

    library: str
    """The key in `LIBRARIES`."""
    method: str
    """Its name in the library's file in `libraries/`."""
    title: str
    predicts: str
    """What it is trained to predict, in words."""
    visible: float = 1.0
    """The share of the patches that the encoder sees, mask tokens counted."""
    prefix: int = 1
    """Class tokens that the encoder sees."""
    comparable: bool = True
    """Whether its encoder sees as many tokens as that of masked patch prediction, without labels."""
    whole_run: bool = False
    """Whether it trains from JPEGs as well."""

    def tokens(self, patches: int) -> int:
        """Tokens that the encoder sees of an image."""
        return int(patches * self.visible) + self.prefix


class Library(NamedTuple):
    """What is installed, the newest versions, in an environment of its own."""

    title: str
    requirements: tuple[str, ...]
    module: str
    """Its file in `libraries/`."""


LIBRARIES = {
    "ours": Library("mpp", ("-e", "{root}"), "ours"),
    "timm": Library("timm", ("timm",), "timm"),
    "huggingface": Library("transformers", ("transformers[torch]", "torchvision", "datasets"), "huggingface"),
    "vit_pytorch": Library("vit-pytorch", ("vit-pytorch",), "vit_pytorch"),
    # From 1.16.1 on its wrappers do not fit its own ViT: the table shows how. This is the last one before.
    "vit_pytorch_1.16.0": Library("vit-pytorch 1.16.0", ("vit-pytorch==1.16.0", "torchvision"), "vit_pytorch"),
    "lightly": Library("lightly", ("lightly", "timm"), "lightly"),
    "stable_pretraining": Library("stable-pretraining", ("stable-pretraining",), "stable_pretraining"),
}

OURS = Contender("ours", "mpp", "mpp", "mean colours of half of the patches", whole_run=True)

CONTENDERS = (
    OURS,
    Contender("timm", "classification", "timm, classification", "1,000 classes", comparable=False, whole_run=True),
    Contender("huggingface", "simmim", "transformers, SimMIM", "pixels of 60 % of the patches", whole_run=True),
    Contender("huggingface", "mae", "transformers, MAE", "pixels; decoder 512 × 8", visible=0.25, comparable=False),
    Contender("vit_pytorch", "mpp", "vit-pytorch, MPP", "mean colours of 15 % of the patches"),
    Contender("vit_pytorch", "simmim", "vit-pytorch, SimMIM", "pixels of half of the patches", prefix=0),
    Contender("vit_pytorch", "mae", "vit-pytorch, MAE", "pixels; decoder 512 × 6", visible=0.25, prefix=0,
              comparable=False),
    Contender("vit_pytorch_1.16.0", "mpp", "vit-pytorch 1.16.0, MPP", "mean colours of 15 % of the patches"),
    Contender("vit_pytorch_1.16.0", "simmim", "vit-pytorch 1.16.0, SimMIM", "pixels of half of the patches", prefix=0,
              whole_run=True),
    Contender("lightly", "simmim", "lightly, SimMIM", "pixels of 75 % of the patches", whole_run=True),
    Contender("lightly", "mae", "lightly, MAE", "pixels; decoder 512 × 8", visible=0.25, comparable=False),
    Contender("stable_pretraining", "simmim", "stable-pretraining, SimMIM", "pixels of 60 % of the patches",
              whole_run=True),
    Contender("stable_pretraining", "mae", "stable-pretraining, MAE", "pixels; decoder 512 × 8", visible=0.25,
              comparable=False),
)  # fmt: skip
