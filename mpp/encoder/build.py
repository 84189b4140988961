"""The network that a recipe asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpp.data.settings import DataSettings
from mpp.encoder.backbone import Backbone
from mpp.encoder.create import Plan, plan
from mpp.encoder.encoder import Encoder
from mpp.encoder.inspect import probe
from mpp.encoder.load import load_encoder
from mpp.encoder.pretrained import NOT_THE_MODEL_S, architecture_of, expanded
from mpp.encoder.settings import EncoderSettings
from mpp.settings import SettingError, Settings

SETTINGS_OF_THEIR_OWN = frozenset(
    ("name", "source", "image_size", "img_size", "patch_size", "pool", "global_pool", "mean", "std", "resize",
     "in_chans", "revision", "allow_pickle")
)  # fmt: skip


def planned(
    settings: EncoderSettings, image_size: int, data: DataSettings | None = None, *, needs_patches: bool = False
) -> Plan:
    """What a recipe without a source builds, found out by one probe and no weights.

    Args:
        settings: of the network.
        image_size: pixels a side.
        data: the settings to name in errors about the image size.
        needs_patches: refuse a network without patches.

    Raises:
        SettingError: if it cannot be built, or `arguments` hold what has a setting of its own.
    """
    with settings.blamed("name", **_size_of(data)):
        _check_arguments(settings)
        return plan(
            settings.name, image_size=image_size, patch_size=settings.patch_size, pool=settings.pool,
            needs_patches=needs_patches, **settings.arguments | _drop_path(settings),
        )  # fmt: skip


def build_backbone(settings: EncoderSettings, image_size: int, data: DataSettings | None = None) -> Backbone:
    """The network that a recipe asks for, for classification: an `Encoder` where it has patches, else without.

    Args:
        settings: of the network.
        image_size: pixels a side.
        data: the settings to name in errors about the image size.

    Raises:
        SettingError: if it cannot be built, or `arguments` hold what has a setting of its own.
    """
    if settings.source is None:
        return planned(settings, image_size, data).build(settings.mean, settings.std)
    with settings.blamed("source", **_size_of(data)):
        return _from_source(settings, settings.source, image_size)


def _size_of(data: DataSettings | None) -> dict[str, Settings]:
    return {} if data is None else {"image_size": data}


def _from_source(settings: EncoderSettings, source: str, image_size: int) -> Backbone:
    _check_arguments(settings)
    source = expanded(source)
    if not settings.pretrained:
        name, saved, mean, std = architecture_of(source)
        own_pool = saved.pop("global_pool", None)
        saved = {key: value for key, value in saved.items() if key != "img_size"} | _drop_path(settings)
        found = plan(name, image_size=image_size, pool=settings.pool or own_pool, **saved)
        return found.build(settings.mean or mean, settings.std or std)
    own: dict[str, Any] = {}
    if Path(source).is_file():
        own = {"name": settings.name, "patch_size": settings.patch_size, **settings.arguments}
    return load_encoder(
        source,
        image_size=image_size,
        pool=settings.pool,
        mean=settings.mean,
        std=settings.std,
        resize=settings.resize,
        allow_pickle=settings.allow_pickle,
        **own,
        **_drop_path(settings),
    )


def build_encoder(settings: EncoderSettings, image_size: int, data: DataSettings | None = None) -> Encoder:
    """The encoder of patches that a recipe asks for; see `build_backbone`.

    Raises:
        SettingError: if it has no patches either.
    """
    if settings.source is None:
        encoder = planned(settings, image_size, data, needs_patches=True).build(settings.mean, settings.std)
    else:
        encoder = build_backbone(settings, image_size, data)
    if not isinstance(encoder, Encoder):
        raise settings.error(source=probe(encoder.name).refusal or "it has no patches")
    return encoder


def _drop_path(settings: EncoderSettings) -> dict[str, Any]:
    return {} if settings.drop_path is None else {"drop_path_rate": settings.drop_path}


def _check_arguments(settings: EncoderSettings) -> None:
    if taken := (SETTINGS_OF_THEIR_OWN | NOT_THE_MODEL_S) & set(settings.arguments):
        message = (
            f"encoder.arguments cannot hold {', '.join(sorted(taken))}: images have 3 channels, the encoder has no "
            "classes, and the rest is set by data.image_size, encoder.name, encoder.source, encoder.patch_size, "
            "encoder.pool, encoder.resize, encoder.mean and encoder.std"
        )
        raise SettingError({"arguments": message})
