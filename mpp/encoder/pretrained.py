"""The sources of weights: a run, an exported folder, the Hub, or timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import timm
from huggingface_hub import file_exists, try_to_load_from_cache
from timm.models import is_model, load_model_config_from_hf

from mpp.data.hub_access import hub_or_cache
from mpp.encoder.arguments import architecture_arguments
from mpp.encoder.backbone import Channels
from mpp.encoder.local import PICKLES, WEIGHTS, check_source, exported_folder, is_hub_id
from mpp.encoder.probe import check_name, has_patches, native_size
from mpp.encoder.weights_file import NEVER
from mpp.files import sha256
from mpp.redact import reason_of

if TYPE_CHECKING:
    from mpp.encoder.settings import EncoderSettings

SAFE = ("model.safetensors", "open_clip_model.safetensors")
"""The names that timm tries before it reads a pickle."""


class Source(NamedTuple):
    """A saved or published network: `timm.create_model` opens its origin; the input size is in pixels a side."""

    origin: str
    architecture: str
    arguments: dict[str, Any]
    input_size: int
    mean: Channels | None = None
    std: Channels | None = None


def open_source(source: str | Path, *, allow_pickle: bool = False) -> Source:
    """Find a source, without reading its weights. Raises ValueError if there is none, or none that may be read."""
    source = str(source)
    folder = exported_folder(source, allow_pickle)
    if folder is not None:
        try:
            config = json.loads((folder / "config.json").read_text())
            arguments = config.get("model_args") or {}
            return _described(f"local-dir:{folder}", config["architecture"], arguments, config["pretrained_cfg"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'config.json'} is not timm's description of a model: {error!r}") from error
    check_source(source)
    return _on_hub(source, allow_pickle) if is_hub_id(source) else _in_timm(source, allow_pickle)


def architecture_of(source: str | Path) -> Source:
    """A source whose weights are not needed. Raises ValueError if there is none."""
    if not str(source).startswith("timm:"):
        return open_source(source)
    name = str(source).removeprefix("timm:").split(".")[0]
    check_name(name)
    return Source("", name, {}, native_size(name))


def own_size(source: Source) -> int:
    """Pixels a side of the images that a source is made for."""
    arguments = {name: value for name, value in source.arguments.items() if name not in ("img_size", "global_pool")}
    if (size := source.arguments.get("img_size")) is not None:
        return size
    return native_size(source.architecture) if has_patches(source.architecture, arguments) else source.input_size


def _described(origin: str, architecture: str, arguments: dict[str, Any], config: dict[str, Any]) -> Source:
    """The source of timm's own description. A model of a fixed size has the size that timm itself builds it for."""
    if config.get("fixed_input_size") and "img_size" not in arguments:
        arguments = {**arguments, "img_size": config["input_size"][-2:]}
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Source(origin, architecture, architecture_arguments(arguments), config["input_size"][-1], mean, std)


def _in_timm(source: str, allow_pickle: bool) -> Source:
    """A name in timm with pretrained weights: `timm:NAME`."""
    name = source.removeprefix("timm:")
    if name in ("raw_pixels", "patch_colors"):
        raise ValueError(f"encoder source {name!r} is a control for mpp evaluate and mpp.features, and no network")
    architecture = name.split(".")[0]
    if not source.startswith("timm:") and not is_model(architecture):
        raise ValueError(
            f"encoder source {source!r} does not exist; give a run, an exported encoder folder, "
            "USER/NAME on the Hugging Face Hub, or timm:NAME for timm's pretrained weights"
        )
    check_name(architecture)
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise ValueError(f"timm has no pretrained weights {name}; for {architecture} there are: {tags}") from error
    if config is None or not config.has_weights:
        raise ValueError(f"timm has no pretrained weights for {name}")
    try:
        with hub_or_cache():
            safe = allow_pickle or (
                _is_safe(config.hf_hub_id, None) if config.hf_hub_id else not str(config.url).endswith(PICKLES)
            )
    except Exception as error:  # whatever the Hub and the network may raise
        raise ValueError(f"timm's weights {name} cannot be downloaded from the Hub: {reason_of(error)}") from error
    if not safe:
        raise ValueError(f"timm's weights {name} are {NEVER}, or set encoder.allow_pickle=true")
    return _described(name, architecture, {}, config.to_dict())


def _on_hub(source: str, allow_pickle: bool) -> Source:
    """A model on the Hub in timm's form, `USER/NAME` or `USER/NAME@REVISION`."""
    with hub_or_cache() as unreachable:
        return _of_repository(source, allow_pickle, unreachable)


def _of_repository(source: str, allow_pickle: bool, unreachable: str | None) -> Source:
    try:
        repo, _, revision = source.partition("@")
        if not allow_pickle and not _is_safe(repo, revision or None):
            raise ValueError(  # else timm would fall back to a pickle
                "there is no such repository, or no model.safetensors in it; pickles are not read unless "
                "encoder.allow_pickle=true"
            )
        try:
            config, name, arguments = load_model_config_from_hf(source)
            found = _described(f"hf-hub:{source}", str(name), arguments or {}, config)
        except KeyError as error:
            raise ValueError(f"its config.json is not timm's description of a model: {error} is missing") from error
        if not allow_pickle and (config.get("hf_hub_filename") or config.get("custom_load")):
            raise ValueError("its config.json points to weights in another file; set encoder.allow_pickle=true to read")
        return found
    except Exception as error:  # whatever the Hub, the network and the file of another form may raise
        if unreachable is not None:
            raise ValueError(
                f"encoder source {source!r} is no file here, and the Hugging Face Hub cannot be reached to look for "
                f"it: {unreachable}"
            ) from error
        raise ValueError(
            f"encoder source {source!r} is no file here, and cannot be loaded as timm's model from the Hugging Face "
            f"Hub: {reason_of(error)}"
        ) from error


def _is_safe(repo: str, revision: str | None) -> bool:
    """Whether a repository has weights that are no pickle: in the cache, or on the Hub."""
    if any(isinstance(try_to_load_from_cache(repo, name, revision=revision), str) for name in SAFE):
        return True
    return any(file_exists(repo, name, revision=revision) for name in SAFE)


def weights_digest_of(settings: EncoderSettings) -> str | None:
    """A SHA-256 of the file of initial weights; None if they are random or not in a local file.

    The weights of a run change while it trains: a run that starts from it is resumed with the same ones only.
    """
    if settings.source is None or not settings.pretrained:
        return None
    path = Path(settings.source).expanduser()
    if path.is_file():
        return sha256(path)
    folder = exported_folder(path, settings.allow_pickle)
    return sha256(next(folder / name for name in WEIGHTS if (folder / name).is_file())) if folder else None
