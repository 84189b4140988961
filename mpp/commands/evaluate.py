"""An evaluation of frozen features, put together from its rooms: what `mpp.evaluate` does once the recipe is read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mpp import randomness
from mpp.commands.data_summary import print_data
from mpp.commands.encoder_source import warn_of_encoder, with_own_size
from mpp.commands.preflight import check_network
from mpp.commands.score_table import score_table
from mpp.commands.score_verdict import filled, score_verdict
from mpp.commands.train_run import on_each, uses_fused_attention
from mpp.data.damaged import TooManyDamagedError
from mpp.data.inventory import counted
from mpp.data.label_subsets import dev_split, fraction_rows
from mpp.data.loader import EvaluationCrops
from mpp.data.splits import Splits, open_splits
from mpp.data.table import ImageTable
from mpp.encoder.encoder import Encoder
from mpp.encoder.pretrained import weights_digest_of
from mpp.encoder.settings import EncoderSettings
from mpp.evaluation.controls import Control
from mpp.evaluation.evaluators import EvaluatorSettings, Options, check_feasible, scores
from mpp.evaluation.features import EncoderReader, FeatureLayer, Features, Reader, cache_key, extract, keep, kept
from mpp.evaluation.logistic_regression import require_solver
from mpp.evaluation.predictions import FILE, Predictions, write_predictions
from mpp.evaluation.settings import CONTROLS
from mpp.files import write_text
from mpp.recipe import EvaluateRecipe, EvaluationPart, differences, write_recipe
from mpp.redact import public_name
from mpp.run_folder import FolderLock
from mpp.training.distributed import end_processes, on_main, precision, start_processes

DECIDES_NOTHING = ("output_dir", "encoder.source", "data.workers", "data.cache", "features.batch_size",
                   "controls")  # fmt: skip
"""Settings that may differ between results and the recipe that they are of; a source's weights are its folder's."""
CONTROL_PATIENCE = 2
"""Values of C in a row that are no better, after which the grid of a control's probe ends: of pixels they take long."""
DATA_ORDER = ("test", "validation")
"""What the split that final scores are measured on may be called."""


def evaluate(recipe: EvaluateRecipe) -> int:
    """Extract, score, print and write `results.json`; 0 if all went well.

    Raises:
        ValueError: for what the user can correct.
        RuntimeError: if it cannot continue.
    """
    folder = output_folder(recipe)
    accelerator = start_processes(recipe.compute, folder=folder)
    if recipe.linear_probe is not None:
        on_main(accelerator, require_solver)  # before any data is read
    locks: list[FolderLock] = []  # held until this returns
    on_main(accelerator, lambda: locks.append(FolderLock(folder, recipe.command)))
    recipe = on_main(accelerator, lambda: with_own_size(recipe))
    if recipe.encoder.source not in CONTROLS:
        check_network(recipe.encoder, recipe.data, patches=False)
    splits = on_each(accelerator, lambda: open_labelled(recipe))
    print_data(splits, recipe.data, accelerator)
    source_weights = on_main(accelerator, lambda: weights_digest_of(recipe.encoder))
    reader = make_reader(recipe, accelerator)
    if isinstance(reader, EncoderReader) and accelerator.is_main_process:
        print(reader.encoder.summary)
        warn_of_encoder(recipe.encoder, reader.encoder, accelerator)
    results = evaluate_reader(recipe, reader, splits, folder, accelerator, source_weights)
    if accelerator.is_main_process:
        print(f"\n{score_table(results)}\n\n{filled(score_verdict(results))}")
        print(f"\nall of it: {folder / 'results.json'}")
    end_processes(accelerator)
    return 0


def is_evaluated(recipe: EvaluateRecipe) -> bool:
    """Whether the folder of a recipe holds its results: of these weights, and settings but for what decides nothing."""
    path = output_folder(recipe) / "results.json"
    try:
        results = json.loads(path.read_text())
        before = EvaluateRecipe.model_validate(results["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if results.get("source_weights") != weights_digest_of(recipe.encoder):
        return False
    return all(path.startswith(DECIDES_NOTHING) for path, _, _ in differences(before, recipe))


def evaluate_reader(
    recipe: EvaluateRecipe,
    reader: Reader,
    splits: Splits,
    folder: Path,
    accelerator: Accelerator,
    source_weights: str | None = None,
) -> dict[str, Any]:
    """Extract the features of both splits, score them, and write results, predictions and `recipe.yaml` to `folder`."""

    def say(text: str) -> None:
        if accelerator.is_main_process:
            print(text, flush=True)

    layers = reader.layers(recipe.features)
    labels = splits.train.labels
    assert labels is not None
    rows = fraction_rows(labels, recipe.labels.fraction, recipe.labels.seed)
    dev = dev_split(labels[rows], recipe.labels.dev, recipe.labels.seed) if recipe.labels.dev else None
    say(
        f"{_called(recipe.encoder)} on {recipe.data.source}: {len(rows):,} labelled images of {splits.train.split}, "
        f"{len(splits.train.class_names or ())} classes"
        + (f",\n{len(dev[1]):,} of them as dev split (labels.dev)" if dev else "")
        + f"; {counted(len(splits.validation), 'test image')} ({splits.validation.split})"
    )
    evaluators = asked_for(recipe)
    check_feasible(evaluators, labels[rows], dev if len(layers) > 1 else None, recipe.by_depth)
    train = _features(recipe, reader, splits.train, rows, layers, folder, accelerator)
    everything = np.arange(len(splits.validation))
    test = _features(recipe, reader, splits.validation, everything, layers, folder, accelerator)
    controls = {
        control.name: (
            control,
            _features(recipe, control, splits.train, rows, [control.default], folder, accelerator),
            _features(recipe, control, splits.validation, everything, [control.default], folder, accelerator),
        )
        for control in _controls(recipe, reader)
    }

    def score(
        reader: Reader, train: Features | None, test: Features | None, patience: int | None = None, **chosen: Any
    ) -> tuple[dict[str, Any], Predictions]:
        assert train is not None
        assert test is not None
        options = Options(recipe.labels.seed, reader.centre_for_knn, patience, accelerator.device)
        return scores(train=train, test=test, default=reader.default, options=options, pieces=folder / "scores",
                      **chosen)  # fmt: skip

    def work() -> dict[str, Any]:
        assert train is not None
        assert test is not None
        for features, images in ((train, splits.train), (test, splits.validation)):
            _check_damaged(features, images, recipe.data.max_bad_share)
            if features.damaged:
                say(f"{images.name}: {features.damaged} images cannot be decoded, a neighbour replaces each")
        scored, predictions = score(reader, train, test, evaluators=evaluators, dev=dev, by_depth=recipe.by_depth)
        compared = {
            name: score(*each, CONTROL_PATIENCE, evaluators=evaluators, dev=None, by_depth=())
            for name, each in controls.items()
        }
        for name, (_, predicted) in compared.items():
            predictions |= {f"{name}/{key}": rows for key, rows in predicted.items()}
        results = {
            "encoder": _called(recipe.encoder),
            "data": recipe.data.source,
            "data_name": data_name(recipe),
            "features_of": reader.identity(),
            "source_weights": source_weights,
            "image_size": recipe.data.image_size,
            "made_for": reader.encoder.pretrained_size if isinstance(reader, EncoderReader) else None,
            "split": splits.validation.split,
            "protocol": {
                name: settings.model_dump(mode="json")
                for name in ("few_shot", "knn", "linear_probe")
                if (settings := getattr(recipe, name)) is not None
            },
            "damaged": {"train": train.damaged, "test": test.damaged},
            "train_images": len(train.labels),
            "test_images": len(test.labels),
            "classes": len(splits.train.class_names or ()),
            "recipe": recipe.model_dump(mode="json"),
            "scores": scored,
            "controls": {
                name: {evaluator: {"default": entry["default"]} for evaluator, entry in entries.items()}
                for name, (entries, _) in compared.items()
            },
        }
        write_predictions(folder / FILE, predictions, test.labels)
        write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
        write_recipe(recipe, folder / "recipe.yaml")
        shutil.rmtree(folder / "scores", ignore_errors=True)  # of a run that was interrupted
        return results

    return on_main(accelerator, work)


def _controls(recipe: EvaluateRecipe, reader: Reader) -> list[Control]:
    """The controls that are scored beside an encoder; patch colours have its patch size."""
    if not recipe.controls or isinstance(reader, Control):
        return []
    encoder = reader.encoder if isinstance(reader, EncoderReader) else None
    patch_size = encoder.patch_size if isinstance(encoder, Encoder) else None
    return [Control(name, _image_size(recipe), patch_size) for name in CONTROLS]


def _image_size(recipe: EvaluateRecipe) -> int:
    assert recipe.data.image_size is not None  # `with_own_size`
    return recipe.data.image_size


def _called(settings: EncoderSettings) -> str:
    """What a person would call the encoder; weights that nobody trained are not to pass for its source's."""
    if settings.source is None:
        return f"{settings.name}, random weights"
    return settings.source if settings.pretrained else f"{settings.source}, random weights"


def _check_damaged(features: Features, images: ImageTable, share: float) -> None:
    """Refuse scores of too many images that stand for others.

    Raises:
        TooManyDamagedError: with both numbers.
    """
    if features.damaged > max(share * len(features.labels), 1 if share else 0):  # one stops no small data set
        raise TooManyDamagedError(
            f"{images.name}: {features.damaged} of {len(features.labels)} images cannot be decoded, more than the "
            f"share of {share:g} that data.max_bad_share allows; repair the files, or allow more"
        )


def asked_for(recipe: EvaluateRecipe | EvaluationPart) -> list[EvaluatorSettings]:
    """The settings of each evaluator that a recipe does not leave out."""
    return [settings for settings in (recipe.few_shot, recipe.knn, recipe.linear_probe) if settings is not None]


def output_folder(recipe: EvaluateRecipe) -> Path:
    """Where the results go: into the run that the encoder comes from, by data set, unless the recipe says otherwise."""
    if recipe.output_dir is not None:
        return Path(recipe.output_dir)
    source = recipe.encoder.source or recipe.encoder.name
    data, labels = _as_name(data_name(recipe)), recipe.labels
    if labels.fraction < 1 or labels.seed:
        data += f"-{labels.fraction:g}-of-labels" + (f"-seed-{labels.seed}" if labels.seed else "")
    run = Path(source)
    if recipe.encoder.source is None or not recipe.encoder.pretrained:  # no run is measured, but random weights
        source = f"{run.name}-random" + (f"-seed-{recipe.seed}" if recipe.seed else "")
    elif run.is_dir():
        return (run.parent if (run / "config.json").is_file() and run.name == "encoder" else run) / "evaluation" / data
    return Path("runs/evaluation") / _as_name(source) / data


def data_name(recipe: EvaluateRecipe) -> str:
    """What the data set is called, without the folders that it lies in."""
    return public_name(recipe.data.source)


def _as_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)


def open_labelled(recipe: EvaluateRecipe) -> Splits:
    """The labelled splits to fit on and to test on."""
    return open_splits(recipe.data, recipe.seed, labelled=True, held_out=DATA_ORDER)


def make_reader(recipe: EvaluateRecipe, accelerator: Accelerator) -> Reader:
    """What is evaluated: an encoder, or a control."""
    settings = recipe.encoder
    if settings.source in CONTROLS:
        return Control(str(settings.source), _image_size(recipe), settings.patch_size)
    low, high = randomness.key(recipe.seed, "weights")
    torch.manual_seed(low | high << 32)
    encoder = settings.build(recipe.data.image_size, recipe.data)
    encoder.use_fused_attention(uses_fused_attention(settings.attention, accelerator))
    return EncoderReader(encoder.to(accelerator.device).eval())


def _features(
    recipe: EvaluateRecipe,
    reader: Reader,
    images: ImageTable,
    rows: Any,
    layers: list[FeatureLayer],
    folder: Path,
    accelerator: Accelerator,
) -> Features | None:
    """The features of some rows, in the main process: those that were kept, or read off now and kept.

    Kept ones are used if they are of the same weights, images and settings.
    """
    crops = EvaluationCrops(images, recipe.data)
    name = reader.name.replace("_", " ") if isinstance(reader, Control) else "features"
    attention = "fused" if uses_fused_attention(recipe.encoder.attention, accelerator) else "plain"
    arithmetic = [precision(recipe.compute), accelerator.device.type, f"{attention} attention"]
    key = on_main(accelerator, lambda: cache_key(reader, crops, rows, arithmetic))
    store = folder / "features"
    found: list[Features | None] = [None]

    def find() -> bool:
        found[0] = kept(store, key, layers)
        return found[0] is not None

    if on_main(accelerator, find):
        return found[0]
    features = extract(
        reader,
        crops,
        rows,
        layers,
        accelerator,
        batch_size=recipe.features.batch_size,
        workers=recipe.data.workers,
        title=f"{name} of {images.split}",
    )
    on_main(accelerator, lambda: features and keep(store, key, features))
    return features
