"""A run as a folder for the Hub: an encoder with its objective, or a classifier; recipe, metrics, results, card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from mpp.encoder.arguments import architecture_arguments
from mpp.encoder.export import ends_of, weights_digest
from mpp.files import replacing, write_text
from mpp.hub.card import Facts, write_card
from mpp.hub.folder import RECONSTRUCTIONS, Staged, check_nothing_local, clear, remember, shown
from mpp.recipe import FinetuneRecipe, PretrainRecipe
from mpp.recipe.dump import plain
from mpp.recipe.yaml import in_block
from mpp.training.checkpoint import WEIGHTS, Checkpoint, Checkpoints
from mpp.training.curves import loss_curve, save, with_unit
from mpp.training.metrics_log import read_metrics

HEADER = "# Every setting of the run. Paths on the machine that it ran on are cut to their last part.\n"
LINES = 500
"""Journal lines that are kept, evenly spread."""


def stage(run: Path, folder: Path, *, repo_id: str, licence: str | None, reconstructions: bool | None = None) -> Staged:
    """Write everything that is to be pushed about a run into `folder`.

    Args:
        run: the folder of a pre-training, or of a finished fine-tuning.
        folder: empty, or of an earlier staging, whose files are replaced if nobody has changed them.
        repo_id: `USER/NAME`, for the card.
        licence: an identifier such as `apache-2.0`; None says nothing about it.
        reconstructions: whether the picture of held-out images is pushed; None leaves out images of this machine.

    Raises:
        ValueError: if `run` is no run with a whole checkpoint, or `folder` holds something else.
        RuntimeError: if something local would be in it.
    """
    if folder.resolve().is_relative_to(run.resolve()):
        raise ValueError(f"{folder} lies in the run itself; choose a folder outside of it")
    checkpoint = _checkpoint(run)
    metrics = [line for line in read_metrics(run / "metrics.jsonl") if line["step"] <= checkpoint.step]
    tuned = checkpoint.state["recipe"].get("command") == "finetune"
    results = _results(run) if tuned else {}
    clear(folder)
    staged = Staged(folder, checkpoint.step, "Classifier" if tuned else "Encoder")
    try:
        write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in _summary(metrics)))
        headline, title = _headline(checkpoint.state, metrics)
        axis = with_unit(title, checkpoint.state.get("unit", ""))
        levels, called = checkpoint.state["baselines"], "dev split" if tuned else "held out"
        save(loss_curve(metrics, levels, headline=headline, title=axis, held_out=called), folder / "loss.png")
        if tuned:
            facts = _classifier(run, checkpoint, results, repo_id, licence, folder)
        else:
            picture = _reconstructions(run, metrics)
            if reconstructions is None:
                reconstructions = "data" not in checkpoint.state.get("local", ())
            if picture is not None and reconstructions:
                shutil.copyfile(picture, folder / RECONSTRUCTIONS)
            facts = _pretrained(run, checkpoint, metrics, repo_id, licence, folder)
            staged = replace(staged, kept_back=picture is not None and not reconstructions)
        write_card(facts, folder / "README.md")
        staged = replace(staged, left_out=facts.others)
    finally:
        remember(staged)
    check_nothing_local(staged, run)
    return staged


def _pretrained(
    run: Path,
    checkpoint: Checkpoint,
    metrics: list[dict[str, Any]],
    repo_id: str,
    licence: str | None,
    folder: Path,
) -> Facts:
    """Write encoder, objective and recipe of a pre-training; what its card says."""
    recipe = PretrainRecipe.model_validate(checkpoint.state["recipe"])
    weights = load_file(checkpoint.folder / WEIGHTS)
    config = _network(json.loads((run / "encoder" / "config.json").read_text()), folder)
    bare = {name.split(".", 2)[2]: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    with replacing(folder / "model.safetensors") as path:
        save_file(bare, path, metadata={"format": "pt"})
    head = {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.")}
    with replacing(folder / "objective.safetensors") as path:
        save_file(head, path, metadata={"format": "pt"})
    write_text(folder / "recipe.yaml", _recipe(recipe, checkpoint.state, repo_id))
    state, images = checkpoint.state, checkpoint.step * recipe.training.batch_size
    evaluations, others = _evaluations(run, config, weights_digest(bare))
    headline, title = _headline(state, metrics)
    held_out = next((line for line in reversed(metrics) if "validation/loss" in line), {})
    return Facts(
        **_common(recipe, checkpoint, config, repo_id, licence, folder),
        headline=headline,
        headline_title=title,
        rows=state["data"]["rows"],
        step=checkpoint.step,
        images=images,
        flops=images * state.get("flops_per_image", 0.0),
        hours=state["progress"]["seconds"] / 3600,
        held_out={name.removeprefix("validation/"): value for name, value in held_out.items()},
        baselines=state["baselines"],
        evaluations=evaluations,
        others=others,
    )


def _reconstructions(run: Path, metrics: list[dict[str, Any]]) -> Path | None:
    """The newest picture of reconstructions."""
    pictures = [line["reconstructions"] for line in metrics if "reconstructions" in line]
    return run / pictures[-1] if pictures and (run / pictures[-1]).is_file() else None


def _results(run: Path) -> dict[str, Any]:
    """The results of a fine-tuning that is finished.

    Raises:
        ValueError: if it is not, or if its classifier is none that timm has.
    """
    if not (run / "results.json").is_file():
        raise ValueError(f"{run} is a fine-tuning that has not finished; give its command again, then push it")
    if not all((run / "classifier" / name).is_file() for name in ("config.json", "model.safetensors")):
        raise ValueError(f"{run} has no classifier/: only a linear head can be pushed (objective.head=linear)")
    return json.loads((run / "results.json").read_text())


def _classifier(
    run: Path, checkpoint: Checkpoint, results: dict[str, Any], repo_id: str, licence: str | None, folder: Path
) -> Facts:
    """Write classifier, results and recipe of a fine-tuning; what its card says."""
    recipe = FinetuneRecipe.model_validate(results["recipe"])  # as it was given, with its search
    config = _network(json.loads((run / "classifier" / "config.json").read_text()), folder)
    shutil.copyfile(run / "classifier" / "model.safetensors", folder / "model.safetensors")
    write_text(folder / "recipe.yaml", _recipe(recipe, checkpoint.state, repo_id))
    common = _common(recipe, checkpoint, config, repo_id, licence, folder)
    test = {name: value for name, value in results["test"].items() if isinstance(value, int | float)}
    common["recipe"]["optimizer"]["lr"] = results["chosen"]["lr"]
    if not recipe.encoder.pretrained:
        common["start"] = None  # of the source there is the architecture alone
    public = {name: value for name, value in results.items() if name != "recipe"}  # which is beside it
    public |= {
        "encoder": common["start"] or f"{config['architecture']} from scratch",
        "data": common["data"],
        "test": test,
    }
    write_text(folder / "results.json", json.dumps(public, indent=2) + "\n")
    return Facts(
        **common,
        rows=results["train_images"],
        step=results["steps"],
        images=results["images_seen"],
        flops=results["flops"],
        hours=results["seconds"] / 3600,
        results=public,
    )


def _common(
    recipe: PretrainRecipe | FinetuneRecipe,
    checkpoint: Checkpoint,
    config: dict[str, Any],
    repo_id: str,
    licence: str | None,
    folder: Path,
) -> dict[str, Any]:
    """What the cards of both kinds of run say."""
    state, start = checkpoint.state, recipe.encoder.source
    local = state.get("local", ())
    return {
        "repo_id": repo_id,
        "licence": licence,
        "config": config,
        "recipe": plain(recipe),
        "objective": recipe.objective,
        "data": shown(recipe.data.source, local="data" in local),
        "steps": state["steps"],
        "hardware": state.get("hardware", "not recorded"),
        "start": shown(start, local="encoder" in local) if start else None,
        "pictures": [name for name in (RECONSTRUCTIONS, "loss.png") if (folder / name).is_file()],
    }


def _headline(state: dict[str, Any], metrics: list[dict[str, Any]]) -> tuple[str, str]:
    """The score that is compared with the baselines, and its title; older runs do not name it."""
    masked = any("loss_mask" in line for line in metrics)
    return state.get("headline") or (("loss_mask", "loss on masked patches") if masked else ("loss", "loss"))


def _checkpoint(run: Path) -> Checkpoint:
    if not (run / "checkpoints").is_dir():
        raise ValueError(
            f"{run} is no run: it has no checkpoints; give the output_dir of a pre-training or a fine-tuning"
        )
    checkpoint = Checkpoints(run / "checkpoints", 2).newest(print)
    if checkpoint is None:
        raise ValueError(f"{run} has no finished checkpoint yet")
    if missing := [name for name in ("metrics.jsonl", "encoder/config.json") if not (run / name).is_file()]:
        raise ValueError(f"{run} is not whole: {missing[0]} is missing; give the run's command again, which writes it")
    return checkpoint


def _network(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write timm's description of the network, and what transformers wants to know besides; the description."""
    config["pretrained_cfg"] = ends_of(config["architecture"]) | config["pretrained_cfg"]  # earlier versions had none
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    preprocessor = {
        "image_processor_type": "TimmWrapperImageProcessor",
        "architecture": config["architecture"],
        "pretrained_cfg": config["pretrained_cfg"],
    }
    write_text(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2) + "\n")
    return config


def _recipe(recipe: PretrainRecipe | FinetuneRecipe, state: dict[str, Any], repo_id: str) -> str:
    """The resolved recipe; of paths on this machine only the last part is left."""
    tree = plain(recipe)
    tree["output_dir"] = f"runs/{repo_id.split('/')[-1]}"  # what it is called here is nobody else's business
    for name in ("data", "encoder", "objective"):
        if tree[name]["source"] is not None:
            tree[name]["source"] = shown(tree[name]["source"], local=name in state.get("local", ()))
    if tree["data"]["image_folder"] is not None:
        tree["data"]["image_folder"] = shown(tree["data"]["image_folder"], local=True)
    return HEADER + in_block(tree)


def _summary(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers only, of every validation and of some of the other lines."""
    validations = [line for line in metrics if any(name.startswith(("validation/", "evaluation/")) for name in line)]
    spread = metrics[:: max(len(metrics) // LINES, 1)]
    chosen = sorted({line["step"]: line for line in (*spread, *validations)}.values(), key=lambda line: line["step"])
    return [{name: value for name, value in line.items() if isinstance(value, int | float)} for line in chosen]


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
        mine += [results | {"data_name": shown(results["data_name"], local=False)}] if is_mine else []
        others += not is_mine
    return mine, others


def _without_defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an architecture, without the place of the final norm where it is the usual one: before pooling.

    Earlier versions did not write it down where timm has it there by itself.
    """
    kept = architecture_arguments(arguments)
    return {key: value for key, value in kept.items() if key not in ("fc_norm", "use_fc_norm") or value}
