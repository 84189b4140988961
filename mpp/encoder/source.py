"""Where weights come from: a run, an exported folder, or timm."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import file_exists
from timm.models import is_model, load_model_config_from_hf

from mpp.encoder.architecture import check_name
from mpp.encoder.weights_file import NEVER, PICKLES

DROPOUT = ("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "patch_drop_rate")


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
                _without_dropout(config.get("model_args", {})),
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
    if not allow_pickle and not config.hf_hub_id and str(config.url).endswith(PICKLES):
        raise ValueError(f"timm's weights {name} are {NEVER}, or set encoder.allow_pickle=true")
    return name, architecture, {}, config.to_dict()


def _is_hub_id(source: str) -> bool:
    looks = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", source) is not None
    return looks and not Path(source.split("/")[0]).is_dir()  # runs/mine that is not there is a slip of the pen


def _hub(source: str, allow_pickle: bool) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """A model on the Hub in timm's form, `USER/NAME` or `USER/NAME@REVISION`."""
    try:
        name, _, revision = source.partition("@")
        if not allow_pickle and not file_exists(name, "model.safetensors", revision=revision or None):
            raise ValueError(  # else timm would fall back to a pickle
                "there is no such repository, or no model.safetensors in it; pickles are not read unless "
                "encoder.allow_pickle=true"
            )
        config, name, arguments = load_model_config_from_hf(source)
        norm = {key: config[key] for key in ("mean", "std", "input_size")}
    except Exception as error:  # whatever the Hub, the network and the file of another form may raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"encoder source {source!r} is no file here, and cannot be loaded as timm's model from the Hugging Face "
            f"Hub: {reason}"
        ) from error
    return f"hf-hub:{source}", str(name), _without_dropout(arguments or {}), norm


def _without_dropout(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a saved model; how it was regularised in training is not part of what it is."""
    return {name: 0.0 if name in DROPOUT else value for name, value in arguments.items()}


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
        for name in ("model.safetensors", *(["pytorch_model.bin"] if allow_pickle else [])):
            if (folder / "config.json").is_file() and (folder / name).is_file():
                return folder
    return None
