"""Networks with weights: from a run, an exported folder, the Hub, timm, or a file of weights alone."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from safetensors import SafetensorError

from mpp.data.hub_access import hub_or_cache
from mpp.encoder.arguments import NOT_ARCHITECTURE
from mpp.encoder.backbone import Backbone
from mpp.encoder.create import architecture, create_backbone
from mpp.encoder.encoder import network
from mpp.encoder.export import save_encoder
from mpp.encoder.local import expanded
from mpp.encoder.pos_embed import Resize, learnt_positions, resize_positions
from mpp.encoder.pretrained import open_source, own_size
from mpp.encoder.probe import check_name, probe
from mpp.encoder.weights_file import fill, read_weights, size_of
from mpp.settings import SettingError


def load_encoder(
    source: str | Path,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    pool: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    resize: Resize = "bilinear",
    name: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    **arguments: Any,
) -> Backbone:
    """A network with weights: an `Encoder` where it has patches, a plain `Backbone` (e.g. a ResNet) where not.

    Args:
        source: a run (its newest export is read), an exported encoder folder, `USER/NAME` or `USER/NAME@REVISION` on
            the Hugging Face Hub, `timm:NAME` with the pretrained weights of that name, or a file of weights alone.
        image_size: pixels a side; None takes the source's own.
        patch_size: must be the source's own, or None.
        pool: None takes the source's own.
        mean: of pixels in [0, 1]; None takes the source's own.
        std: as `mean`.
        resize: how learnt absolute position embeddings are brought to another image size: `bilinear` with aligned
            corners (the ViT paper's code), `bicubic` (MAE's), or `timm` (bicubic and antialiased). Relative and
            rotary positions are always resized by timm.
        name: the timm model that a file of weights is of, e.g. `vit_base_patch16_224` of an MAE checkpoint.
        revision: branch, tag or commit on the Hub.
        allow_pickle: read weights that are pickled too; only tensors are taken from them.
        **arguments: further arguments of the timm model; weights and classes are no arguments of it.

    Raises:
        ValueError: if there is no such source, or it does not suit.
    """
    source = expanded(source)
    _check_arguments(str(source), arguments)
    if Path(source).is_file():
        common: dict[str, Any] = {"patch_size": patch_size, "pool": pool, "mean": mean, "std": std, **arguments}
        own = _from_file(Path(source), name, image_size, allow_pickle, common)
        if image_size in (None, own.image_size):
            return own
        with TemporaryDirectory() as folder:  # with its description beside it, it is as any other source
            save_encoder(own, Path(folder))
            return load_encoder(folder, image_size=image_size, pool=pool, resize=resize)
    if revision is not None:
        source = f"{source}@{revision}"
    found = open_source(source, allow_pickle=allow_pickle)
    if name not in (None, found.architecture):
        raise ValueError(f"name is for files of weights; {source} is a {found.architecture}, found name={name!r}")
    name, own, arguments = found.architecture, own_size(found), found.arguments | arguments
    arguments.pop("img_size", None)
    own_pool = arguments.pop("global_pool", None)
    sized = architecture(name, image_size=image_size or own, **arguments)
    if patch_size is not None and patch_size != (sized.layout.patch_size if sized.layout else None):
        its = f"whose patches have {sized.layout.patch_size} pixels a side" if sized.layout else "which have no patches"
        message = f"patch_size {patch_size} does not fit the weights of {source}, {its}; leave patch_size out"
        raise SettingError({"patch_size": message})
    if "img_size" in sized.arguments:
        arguments["img_size"] = sized.image_size
    if own_pool is not None:
        arguments["global_pool"] = own_pool
    pool = None if pool == own_pool else pool
    if pool is not None or own_pool == "":  # which gives tokens, and no feature
        arguments |= probe(name, arguments, sized.image_size).pooling(pool, arguments)
    read = partial(_with_weights, source, found.origin)
    model, layout = read(arguments), sized.layout
    resized = learnt_positions(model)
    if resized is not None and resize != "timm" and layout is not None and sized.image_size != own:
        # timm has resized them already; read once more at their own size, whatever form the file has them in.
        positions = learnt_positions(read(arguments | {"img_size": own}))
        assert positions is not None
        resized.copy_(resize_positions(positions, own // layout.patch_size, layout.grid, resize))
    backbone = network(model, sized._replace(arguments=arguments), mean or found.mean, std or found.std)
    backbone.pretrained_size = own
    return backbone


def _check_arguments(source: str, arguments: dict[str, Any]) -> None:
    """Refuse arguments of weights and of classes, which timm's model would not see.

    Raises:
        ValueError: with their names.
    """
    if arguments.get("pretrained") is False:
        name = source.removeprefix("timm:").split(".")[0]
        raise ValueError(
            f"load_encoder loads weights; for random ones use mpp.create_encoder({name!r}), without pretrained=False"
        )
    if taken := sorted(NOT_ARCHITECTURE & set(arguments)):
        raise ValueError(f"load_encoder has no {', '.join(taken)}: it loads all weights, and no classifier")
    if "img_size" in arguments:
        raise ValueError(f"give image_size={arguments['img_size']} instead of timm's own img_size")


def _from_file(
    path: Path, name: str | None, image_size: int | None, allow_pickle: bool, settings: dict[str, Any]
) -> Backbone:
    """The named network with the weights of a file, at the image size of its learnt absolute positions if any."""
    if name is None:
        raise ValueError(f"{path} is a file of weights, which does not say of what: give the name of the timm model")
    weights = read_weights(path, allow_pickle=allow_pickle)
    check_name(name)
    if (own := probe(name)).layout is not None:
        patch_size = settings["patch_size"] or own.layout.patch_size
        image_size = size_of(weights, own.layout.num_prefix_tokens, patch_size) or image_size
    backbone = create_backbone(name, image_size=image_size, **settings)
    fill(backbone.model, weights, path, name)
    return backbone


def _with_weights(source: str | Path, origin: str, arguments: dict[str, Any]) -> Any:
    """timm's model with the weights of a source. Raises ValueError if they cannot be read, or do not fit."""
    try:
        with nullcontext() if origin.startswith("local-dir:") else hub_or_cache():
            return timm.create_model(origin, pretrained=True, num_classes=0, **arguments)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights of {source} cannot be loaded: {str(error).splitlines()[0]}") from error
