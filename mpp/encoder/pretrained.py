"""Where weights come from: a run, an exported folder, or timm."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import file_exists, try_to_load_from_cache
from timm.models import is_model, load_model_config_from_hf

from mpp.encoder.inspect import check_name
from mpp.encoder.settings import DROPOUT, EncoderSettings
from mpp.encoder.weights_file import NEVER, PICKLES
from mpp.redact import reason_of

NOT_THE_MODEL_S = frozenset(
    ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes",
     "features_only", "out_indices", "scriptable", "exportable", "no_jit")
)  # fmt: skip
"""Arguments of timm's `create_model` that say where weights come from and what for, not what the network is."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What holds the weights of an exported folder; the second is a pickle."""
SAFE = ("model.safetensors", "open_clip_model.safetensors")
"""The names that timm tries before it reads a pickle."""


def open_source(source: str | Path, *, allow_pickle: bool = False) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """What timm opens, the architecture's name, its saved arguments, and its mean, std and input size."""
    folder = _folder(source, allow_pickle)
    if folder is not None:
        try:
            config = json.loads((folder / "config.json").read_text())
            name, norm = config["architecture"], config["pretrained_cfg"]
            return (
                f"local-dir:{folder}",
                name,
                architecture_arguments(_sized(config.get("model_args") or {}, norm)),
                {key: norm[key] for key in ("mean", "std", "input_size")},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'config.json'} is not timm's description of a model: {error!r}") from error
    if Path(source).exists():
        raise ValueError(
            f"{source} holds no encoder: expected config.json and model.safetensors in it or in its encoder/ folder"
        )
    if _is_hub_id(str(source)):
        return _hub(str(source), allow_pickle)
    name = str(source).removeprefix("timm:")
    if name in ("raw_pixels", "patch_colors"):
        raise ValueError(f"encoder source {name!r} is a control for mpp.evaluate; there is nothing in it to train")
    architecture = name.split(".")[0]
    if not str(source).startswith("timm:") and not is_model(architecture):
        raise ValueError(
            f"encoder source {str(source)!r} does not exist; give a run, an exported encoder folder, "
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
        safe = allow_pickle or (
            _is_safe(config.hf_hub_id, None) if config.hf_hub_id else not str(config.url).endswith(PICKLES)
        )
    except Exception as error:  # whatever the Hub and the network may raise
        raise ValueError(f"timm's weights {name} cannot be had from the Hub: {reason_of(error)}") from error
    if not safe:
        raise ValueError(f"timm's weights {name} are {NEVER}, or set encoder.allow_pickle=true")
    description = config.to_dict()
    return name, architecture, architecture_arguments(_sized({}, description)), description


def _sized(arguments: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """With the image size that timm itself builds an architecture of a fixed one for."""
    sized = config.get("fixed_input_size") and "img_size" not in arguments
    return {**arguments, "img_size": config["input_size"][-2:]} if sized else arguments


def expanded(source: str | Path) -> str:
    """With the home folder for a tilde."""
    return str(Path(source).expanduser()) if str(source).startswith("~") else str(source)


def _is_hub_id(source: str) -> bool:
    matches = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", source) is not None
    return matches and not Path(source.split("/")[0]).is_dir()  # runs/mine that is not there is a slip of the pen


def _hub(source: str, allow_pickle: bool) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """A model on the Hub in timm's form, `USER/NAME` or `USER/NAME@REVISION`."""
    try:
        repo, _, revision = source.partition("@")
        if not allow_pickle and not _is_safe(repo, revision or None):
            raise ValueError(  # else timm would fall back to a pickle
                "there is no such repository, or no model.safetensors in it; pickles are not read unless "
                "encoder.allow_pickle=true"
            )
        try:
            config, name, arguments = load_model_config_from_hf(source)
            norm = {key: config[key] for key in ("mean", "std", "input_size")}
        except KeyError as error:
            raise ValueError(f"its config.json is not timm's description of a model: {error} is missing") from error
        if not allow_pickle and (config.get("hf_hub_filename") or config.get("custom_load")):
            raise ValueError("its config.json points to weights in another file; set encoder.allow_pickle=true to read")
        arguments = architecture_arguments(_sized(arguments or {}, config))
    except Exception as error:  # whatever the Hub, the network and the file of another form may raise
        raise ValueError(
            f"encoder source {source!r} is no file here, and cannot be loaded as timm's model from the Hugging Face "
            f"Hub: {reason_of(error)}"
        ) from error
    return f"hf-hub:{source}", str(name), arguments, norm


def _is_safe(repo: str, revision: str | None) -> bool:
    """Whether a repository has weights that are no pickle; asked of what was loaded before, then of the Hub."""
    if any(isinstance(try_to_load_from_cache(repo, name, revision=revision), str) for name in SAFE):
        return True
    return any(file_exists(repo, name, revision=revision) for name in SAFE)


def weights_digest_of(settings: EncoderSettings) -> str | None:
    """A SHA-256 of the file of weights that an encoder begins with; None where these are random, or no file here.

    A run's weights change for as long as it trains: what began with some of them is not what began with others.
    """
    if settings.source is None or not settings.pretrained:
        return None
    path = Path(settings.source).expanduser()
    if not path.is_file():
        folder = _folder(path, settings.allow_pickle)
        found = [folder / name for name in WEIGHTS if (folder / name).is_file()] if folder else []
        if not found:
            return None
        path = found[0]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def architecture_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a saved model that say what it is: not how it was regularised, nor where its weights are.

    timm itself writes the number of classes among them, and an image size as a pair.

    Raises:
        ValueError: if its images are not square, or not of three channels.
    """
    kept = {name: value for name, value in arguments.items() if name not in NOT_THE_MODEL_S}
    if kept.pop("in_chans", 3) != 3:
        raise ValueError(f"its images have {arguments['in_chans']} channels; only three are supported")
    size = kept.get("img_size")
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise ValueError(f"its images are {' × '.join(map(str, size))} pixels; only square ones are supported")
        kept["img_size"] = size[0]
    return {name: 0.0 if name in DROPOUT else value for name, value in kept.items()}


def architecture_of(source: str | Path) -> tuple[str, dict[str, Any], Any, Any]:
    """The architecture's name, its arguments, mean and std of a source whose weights are not wanted.

    Raises:
        ValueError: if there is no such source.
    """
    name = str(source).removeprefix("timm:").split(".")[0]
    if str(source).startswith("timm:"):
        check_name(name)
        return name, {}, None, None
    _, name, arguments, config = open_source(source)
    return name, arguments, tuple(config["mean"]), tuple(config["std"])


def _folder(source: str | Path, allow_pickle: bool = False) -> Path | None:
    """The exported folder that a path stands for: itself, or the `encoder/` of a run; None if it is neither."""
    for folder in (Path(source), Path(source) / "encoder"):
        for name in WEIGHTS if allow_pickle else WEIGHTS[:1]:
            if (folder / "config.json").is_file() and (folder / name).is_file():
                return folder
    return None
