"""The `encoder:` section of a recipe, which builds the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from mpp.data.settings import DataSettings
from mpp.encoder.arguments import NOT_ARCHITECTURE
from mpp.encoder.local import check_source, expanded
from mpp.settings import SettingError, Settings

if TYPE_CHECKING:
    from mpp.encoder.backbone import Architecture, Backbone

Positive = Annotated[float, Field(gt=0)]
OTHER_SETTINGS = frozenset(
    ("name", "source", "image_size", "img_size", "patch_size", "pool", "global_pool", "mean", "std", "resize",
     "in_chans", "revision", "allow_pickle")
)  # fmt: skip
"""What `arguments` cannot hold, because a setting has it."""


class EncoderSettings(Settings):
    """The network that is trained: any suitable timm Vision Transformer; for classification any timm model."""

    shorthand: ClassVar[str | None] = "source"

    name: str = "vit_tiny_patch16_224"
    """The timm model, e.g. `vit_base_patch16_224`. Supervised classification trains networks without patches too,
    e.g. `resnet50`; their batch norm, if any, normalises by the images of one micro-batch in one process."""

    source: str | None = None
    """Start from these weights: a run, an exported encoder folder, `USER/NAME` or `USER/NAME@REVISION` on the Hugging
    Face Hub, or a timm name with pretrained weights (`timm:vit_base_patch16_224.mae`). `name`, `image_size`,
    `patch_size` and `arguments` describe the network without a source: with one they are the source's own. Or a file
    of weights alone (`mae.safetensors`), which `name`, `patch_size`, `arguments`, `mean` and `std` describe. null
    starts from random weights."""

    allow_pickle: bool = False
    """Read `source` where its weights are pickled too (`.pth`, `.bin`). Only tensors are taken from them, but no
    reader of pickles is proof against all malice."""

    pretrained: bool = True
    """false takes the architecture of `source` alone, and random weights."""

    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """Rate of stochastic depth in training, rising to this at the last block; null leaves it to timm and
    `arguments`."""

    resize: Literal["bilinear", "bicubic", "timm"] = "bilinear"
    """How the learnt absolute position embeddings of a `source` are brought to another image size: `bilinear` in two
    dimensions with the corners aligned, as in the ViT paper's code; `bicubic` as in MAE's; `timm` is bicubic and
    antialiased. Relative and rotary positions are always resized by timm."""

    image_size: int | None = Field(default=None, ge=1)
    """Of a network without a source in fine-tuning and evaluation: pixels a side of the images that it is made for,
    where `data.image_size` is null. null keeps the timm model's own. In pre-training `data.image_size` says it."""

    patch_size: int | None = Field(default=None, ge=1)
    """Side of a patch in pixels; null keeps the model's own. A network without patches takes null only."""

    pool: Literal["token", "avg"] | None = None
    """How tokens become one feature: the class token or the mean of the patches. null takes what the objective trains:
    in masked patch prediction the mean of the patches, which is also what the run exports (distilled models keep their
    own pooling). Elsewhere null takes the source's own pooling, or without a source the class token where the model
    has one. A network without patches takes `avg`, or null for timm's own pooling."""

    arguments: dict[str, Any] = {}
    """Further arguments of the timm model, e.g. `{depth: 6, embed_dim: 128, num_heads: 4}`."""

    mean: tuple[float, float, float] | None = None
    """Channel means that pixels in [0, 1] are normalised with; null takes the source's, or 0.5 without one."""

    std: tuple[Positive, Positive, Positive] | None = None
    """Channel standard deviations, likewise."""

    attention: Literal["auto", "fused", "plain"] = "auto"
    """Attention while training: PyTorch's fused kernel, or plain matrix products, which are faster on
    processors; `auto` is fused on GPUs only. The exported model is the same."""

    def architecture(
        self, image_size: int, data: DataSettings | None = None, *, needs_patches: bool = False
    ) -> Architecture:
        """The architecture without a source, checked by one probe and no weights.

        Args:
            image_size: pixels a side.
            data: the settings to name in errors about the image size.
            needs_patches: refuse a network without patches.

        Raises:
            SettingError: if it cannot be built, or `arguments` hold what has a setting of its own.
        """
        from mpp.encoder.create import architecture

        with self.blamed("name", **_size_of(data)):
            return architecture(self.name, image_size=image_size, needs_patches=needs_patches, **self._timm_arguments())

    def build(
        self, image_size: int | None, data: DataSettings | None = None, *, needs_patches: bool = False
    ) -> Backbone:
        """The network, an `Encoder` where it has patches; without an image size it has its own.

        Arguments and errors are those of `architecture`.
        """
        from mpp.encoder.create import create_backbone
        from mpp.encoder.encoder import Encoder
        from mpp.encoder.probe import probe

        if self.source is None:
            with self.blamed("name", **_size_of(data)):
                return create_backbone(
                    self.name, image_size=image_size or self.image_size, mean=self.mean, std=self.std,
                    needs_patches=needs_patches, **self._timm_arguments(),
                )  # fmt: skip
        with self.blamed("source", **_size_of(data)):
            backbone = self._from_source(self.source, image_size)
        if needs_patches and not isinstance(backbone, Encoder):
            raise self.error(source=probe(backbone.name).refusal or "it has no patches")
        return backbone

    def own_size(self) -> int:
        """Pixels a side of the images that the network is made for, without building it where that can be read.

        Raises:
            SettingError: if there is no such network.
        """
        from mpp.encoder.pretrained import architecture_of, open_source, own_size
        from mpp.encoder.probe import check_name, native_size

        if self.source is None:
            with self.blamed("name"):
                check_name(self.name)
                return self.image_size or native_size(self.name)
        source = expanded(self.source)
        if Path(source).is_file():  # only its weights say it
            return self.build(None).image_size
        with self.blamed("source"):
            found = open_source(source, allow_pickle=self.allow_pickle) if self.pretrained else architecture_of(source)
            return own_size(found)

    def check_paths(self) -> None:
        """Refuse a `source` that is not there, from the names of files alone.

        Raises:
            SettingError: with what was found.
        """
        if self.source is not None:
            with self.blamed("source"):
                check_source(self.source, allow_pickle=self.allow_pickle)

    def _from_source(self, source: str, image_size: int | None) -> Backbone:
        from mpp.encoder.create import create_backbone
        from mpp.encoder.load import load_encoder
        from mpp.encoder.pretrained import architecture_of, own_size

        arguments, source = self._timm_arguments(), expanded(source)
        if not self.pretrained:
            found = architecture_of(source)
            saved = {name: value for name, value in found.arguments.items() if name not in ("img_size", "global_pool")}
            return create_backbone(
                found.architecture, image_size=image_size or own_size(found),
                pool=self.pool or found.arguments.get("global_pool"),
                mean=self.mean or found.mean, std=self.std or found.std, **saved | self._drop_path(),
            )  # fmt: skip
        if Path(source).is_file():
            arguments |= {"name": self.name}
        else:  # its architecture is its own
            arguments = {"pool": self.pool, **self._drop_path()}
        return load_encoder(
            source, image_size=image_size, mean=self.mean, std=self.std, resize=self.resize,
            allow_pickle=self.allow_pickle, **arguments,
        )  # fmt: skip

    def _timm_arguments(self) -> dict[str, Any]:
        """What describes the network without a source, checked."""
        if taken := (OTHER_SETTINGS | NOT_ARCHITECTURE) & set(self.arguments):
            message = (
                f"encoder.arguments cannot hold {', '.join(sorted(taken))}: images have 3 channels, the encoder has no "
                "classes, and the rest is set by data.image_size, encoder.name, encoder.source, encoder.patch_size, "
                "encoder.pool, encoder.resize, encoder.mean and encoder.std"
            )
            raise SettingError({"arguments": message})
        return {"patch_size": self.patch_size, "pool": self.pool, **self.arguments, **self._drop_path()}

    def _drop_path(self) -> dict[str, Any]:
        return {} if self.drop_path is None else {"drop_path_rate": self.drop_path}


def _size_of(data: DataSettings | None) -> dict[str, Settings]:
    return {} if data is None else {"image_size": data}
