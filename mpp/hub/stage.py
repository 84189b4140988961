"""A run as a folder for the Hub: only what is on the list below, and nothing local in any of it."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from safetensors.torch import load_file, save_file

from mpp.encoder.arguments import architecture_arguments
from mpp.encoder.export import ends_of, weights_digest
from mpp.files import replacing, write_text
from mpp.hub.card import Facts, write_card
from mpp.recipe import PretrainRecipe
from mpp.recipe.dump import plain
from mpp.recipe.yaml import in_block
from mpp.redact import public_name
from mpp.training.checkpoint import WEIGHTS, Checkpoint, Checkpoints
from mpp.training.curves import loss_curve, save, with_unit
from mpp.training.metrics_log import read_metrics

ALLOWED = (
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "recipe.yaml",
    "objective.safetensors",
    "metrics.jsonl",
    "loss.png",
    "reconstructions.png",
)
"""What is pushed, and nothing else."""
HEADER = "# Every setting of the run. Paths on the machine that it ran on are cut to their last part.\n"
NOBODY = ("root", "user", "admin", "ubuntu", "localhost")
"""Names that tell nothing about anybody."""
LINES = 500
"""Journal lines that are kept, evenly spread."""


@dataclass(frozen=True)
class Staged:
    """A folder that is ready to be pushed."""

    folder: Path
    step: int

    @property
    def files(self) -> list[Path]:
        """What is in it, in the order of the list."""
        return [self.folder / name for name in ALLOWED if (self.folder / name).is_file()]


def stage(run: Path, folder: Path, *, repo_id: str, licence: str | None) -> Staged:
    """Write everything that is to be pushed about a pre-training run into `folder`.

    Args:
        run: the run's folder.
        folder: empty, or of an earlier staging, whose files are replaced.
        repo_id: `USER/NAME`, for the card.
        licence: an identifier such as `apache-2.0`; None says nothing about it.

    Raises:
        ValueError: if `run` is no pre-training run with a whole checkpoint, or `folder` holds something else.
        RuntimeError: if something local would be in it.
    """
    if folder.resolve().is_relative_to(run.resolve()):
        raise ValueError(f"{folder} lies in the run itself; choose a folder outside of it")
    checkpoint = _checkpoint(run)
    recipe = PretrainRecipe.model_validate(checkpoint.state["recipe"])
    _check_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ALLOWED:
        (folder / name).unlink(missing_ok=True)
    weights = load_file(checkpoint.folder / WEIGHTS)
    _encoder(run, folder, weights)
    head = {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.")}
    with replacing(folder / "objective.safetensors") as path:
        save_file(head, path, metadata={"format": "pt"})
    write_text(folder / "recipe.yaml", _recipe(recipe, checkpoint.state, repo_id))
    metrics = [line for line in read_metrics(run / "metrics.jsonl") if line["step"] <= checkpoint.step]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in _summary(metrics)))
    pictures = [line["reconstructions"] for line in metrics if "reconstructions" in line]
    if pictures and (run / pictures[-1]).is_file():
        shutil.copyfile(run / pictures[-1], folder / "reconstructions.png")
    headline, title = _headline(checkpoint.state, metrics)
    axis = with_unit(title, checkpoint.state.get("unit", ""))
    save(loss_curve(metrics, checkpoint.state["baselines"], headline=headline, title=axis), folder / "loss.png")
    write_card(_facts(run, checkpoint, recipe, metrics, repo_id, licence, folder), folder / "README.md")
    staged = Staged(folder, checkpoint.step)
    _check_nothing_local(staged, run)
    return staged


def _headline(state: dict[str, Any], metrics: list[dict[str, Any]]) -> tuple[str, str]:
    """The score that is compared with the baselines, and its title; older runs do not name it."""
    masked = any("loss_mask" in line for line in metrics)
    return state.get("headline") or (("loss_mask", "loss on masked patches") if masked else ("loss", "loss"))


def _check_ours(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier staging.

    Raises:
        ValueError: naming what is in it.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose an empty folder")
    names = sorted(path.name for path in folder.iterdir())
    strange = [name for name in names if name not in ALLOWED]
    recipe = folder / "recipe.yaml"
    staged = recipe.is_file() and recipe.read_text(encoding="utf-8", errors="replace").startswith(HEADER)
    if strange or (names and not staged):
        raise ValueError(f"{folder} holds other things, e.g. {(strange or names)[0]}; choose an empty folder")


def _checkpoint(run: Path) -> Checkpoint:
    if not (run / "checkpoints").is_dir():
        raise ValueError(f"{run} is no run: it has no checkpoints; give the output_dir of a pre-training run")
    checkpoint = Checkpoints(run / "checkpoints", 2).newest(print)
    if checkpoint is None:
        raise ValueError(f"{run} has no finished checkpoint yet")
    if missing := [name for name in ("metrics.jsonl", "encoder/config.json") if not (run / name).is_file()]:
        raise ValueError(f"{run} is not whole: {missing[0]} is missing; give the run's command again, which writes it")
    if checkpoint.state["recipe"].get("command") != "pretrain":
        raise ValueError(f"{run} is a run of mpp.{checkpoint.state['recipe'].get('command')}; push a pre-training run")
    return checkpoint


def _encoder(run: Path, folder: Path, weights: dict[str, Any]) -> None:
    """The bare encoder of the checkpoint in timm's form, and what transformers wants to know besides."""
    config = json.loads((run / "encoder" / "config.json").read_text())
    config["pretrained_cfg"] |= ends_of(config["architecture"])  # which earlier versions left out
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    bare = {name.split(".", 2)[2]: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    with replacing(folder / "model.safetensors") as path:
        save_file(bare, path, metadata={"format": "pt"})
    preprocessor = {
        "image_processor_type": "TimmWrapperImageProcessor",
        "architecture": config["architecture"],
        "pretrained_cfg": config["pretrained_cfg"],
    }
    write_text(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2) + "\n")


def _recipe(recipe: PretrainRecipe, state: dict[str, Any], repo_id: str) -> str:
    """The resolved recipe; of paths on this machine only the last part is left."""
    tree = plain(recipe)
    tree["output_dir"] = f"runs/{repo_id.split('/')[-1]}"  # what it is called here is nobody else's business
    for name in ("data", "encoder", "objective"):
        if tree[name]["source"] is not None:
            tree[name]["source"] = _shown(tree[name]["source"], local=name in state.get("local", ()))
    return HEADER + in_block(tree)


def _summary(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers only, of every validation and of some of the other lines."""
    validations = [line for line in metrics if any(name.startswith(("validation/", "evaluation/")) for name in line)]
    spread = metrics[:: max(len(metrics) // LINES, 1)]
    chosen = sorted({line["step"]: line for line in (*spread, *validations)}.values(), key=lambda line: line["step"])
    return [{name: value for name, value in line.items() if isinstance(value, int | float)} for line in chosen]


def _facts(
    run: Path,
    checkpoint: Checkpoint,
    recipe: PretrainRecipe,
    metrics: list[dict[str, Any]],
    repo_id: str,
    licence: str | None,
    folder: Path,
) -> Facts:
    state = checkpoint.state
    images = checkpoint.step * recipe.training.batch_size
    held_out = next((line for line in reversed(metrics) if "validation/loss" in line), {})
    config = json.loads((folder / "config.json").read_text())
    evaluations, others = _evaluations(run, config, weights_digest(load_file(folder / "model.safetensors")))
    start = recipe.encoder.source
    headline, title = _headline(state, metrics)
    return Facts(
        repo_id=repo_id,
        licence=licence,
        config=config,
        recipe=plain(recipe),
        objective=recipe.objective,
        headline=headline,
        headline_title=title,
        data=_shown(recipe.data.source, local="data" in state.get("local", ())),
        rows=state["data"]["rows"],
        step=checkpoint.step,
        steps=state["steps"],
        images=images,
        flops=images * state.get("flops_per_image", 0.0),
        hours=state["progress"]["seconds"] / 3600,
        hardware=state.get("hardware", "not recorded"),
        held_out={name.removeprefix("validation/"): value for name, value in held_out.items()},
        baselines=state["baselines"],
        evaluations=evaluations,
        others=others,
        start=_shown(start, local="encoder" in state.get("local", ())) if start else None,
        pictures=[name for name in ("reconstructions.png", "loss.png") if (folder / name).is_file()],
    )


def _evaluations(run: Path, config: dict[str, Any], weights: str) -> tuple[list[dict[str, Any]], int]:
    """What was measured on the very encoder that is published, and how many results are of another.

    Raises:
        ValueError: naming a file that is no results of `mpp.evaluate`.
    """
    norm = config["pretrained_cfg"]
    published = [config["architecture"], _without_defaults(config["model_args"]), norm["mean"], norm["std"]]
    mine, others = [], 0
    for path in sorted(run.glob("evaluation/*/results.json")):
        try:
            results = json.loads(path.read_text())
            of = results["features_of"]
            is_mine = of["weights"] == weights and [
                of["name"], _without_defaults(of["arguments"]), of["mean"], of["std"]
            ] == published  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no results of mpp.evaluate; remove it, or evaluate again") from error
        mine += [results | {"data_name": _shown(results["data_name"], local=False)}] if is_mine else []
        others += not is_mine
    return mine, others


def _without_defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an architecture, without the place of the final norm where it is the usual one: before pooling.

    Earlier versions did not write it down where timm has it there by itself.
    """
    kept = architecture_arguments(arguments)
    return {key: value for key, value in kept.items() if key not in ("fc_norm", "use_fc_norm") or value}


def _shown(source: str, *, local: bool) -> str:
    """A data set or encoder as strangers may read it: no folders of this machine, and no names of it or of its user.

    An id on the Hub is public already.
    """
    name = public_name(source, local=local)
    if "/" in name:
        return name
    known = {socket.gethostname(), os.environ.get("HOSTNAME", ""), getpass.getuser()}
    words = [re.escape(word) for word in sorted(known) if len(word) > 3 and word not in NOBODY]
    return re.sub(rf"(?<![A-Za-z0-9])({'|'.join(words)})(?![A-Za-z0-9])", "…", name) if words else name


def _check_nothing_local(staged: Staged, run: Path) -> None:
    """Look for this machine's names, paths and secrets in every byte that would leave it.

    Raises:
        RuntimeError: naming the file, and the kind of thing that was found.
    """
    names = {"the home folder": str(Path.home()), "the run's folder": str(run.resolve())}
    secrets = {f"the environment variable {name}": value for name, value in os.environ.items()
               if re.search(r"TOKEN|SECRET|PASSWORD|KEY", name) and len(value) > 7}  # fmt: skip
    secrets["the token for the Hugging Face Hub"] = get_token() or ""
    for path in staged.files:
        content = path.read_bytes()
        for what, text in (names | secrets).items():
            if len(text) > 3 and text.encode() in content:
                raise RuntimeError(f"{path} would publish {what}; nothing was pushed")
