"""The features of all images of a split, or their classes: as an array, and as a table with a name for each row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from mpp.commands.train_run import uses_fused_attention
from mpp.data.loader import EvaluationCrops, batches
from mpp.data.settings import DataSettings
from mpp.data.splits import open_table
from mpp.data.table import ImageTable
from mpp.encoder.classifier import Classifier
from mpp.encoder.load import load_encoder
from mpp.encoder.local import expanded
from mpp.encoder.settings import EncoderSettings
from mpp.evaluation.embed import layer_of
from mpp.evaluation.features import EncoderReader
from mpp.files import replacing, write_text
from mpp.recipe import EmbedRecipe, PredictRecipe, write_recipe
from mpp.run_folder import FolderLock
from mpp.training.distributed import start_processes

Array = np.ndarray[Any, Any]


def embed(recipe: EmbedRecipe) -> int:
    """Write `features.npy`, float32 `(n, d)`, and `features.parquet`, in the order of the rows.

    Raises:
        ValueError: for what the user can correct.
    """
    folder, accelerator = _start(recipe)
    lock = FolderLock(folder)
    table, found = open_table(recipe.data)
    settings = recipe.encoder
    encoder = load_encoder(
        _source(settings), image_size=recipe.data.image_size, resize=settings.resize, mean=settings.mean,
        std=settings.std, allow_pickle=settings.allow_pickle,
    )  # fmt: skip
    encoder.use_fused_attention(uses_fused_attention(recipe.encoder.attention, accelerator))
    reader = EncoderReader(encoder.to(accelerator.device).eval())
    layer = layer_of(reader, recipe.features.block, recipe.features.pool)
    print(f"{found}\n{encoder.summary}; {layer}")
    crops = EvaluationCrops(table, recipe.data.model_copy(update={"image_size": encoder.image_size}))
    values, damaged = _read(
        lambda pixels: reader.read(pixels, [layer])[layer], crops, recipe.features.batch_size, recipe.data, accelerator
    )
    columns = {**_rows(table), "feature": _vectors(values)}
    _write(folder / "features.npy", values, folder / "features.parquet", columns)
    write_recipe(recipe, folder / "recipe.yaml")
    _report(folder, ("features.npy", "features.parquet"), values, damaged)
    del lock
    return 0


def predict(recipe: PredictRecipe) -> int:
    """Write `probabilities.npy`, float32 `(n, classes)`, `predictions.parquet` and `classes.txt`.

    Raises:
        ValueError: for what the user can correct.
    """
    folder, accelerator = _start(recipe)
    lock = FolderLock(folder)
    table, found = open_table(recipe.data)
    classifier = Classifier(_source(recipe.encoder)).to(accelerator.device).eval()
    if recipe.data.image_size not in (None, classifier.image_size):
        raise recipe.data.error(image_size=f"the classifier takes {classifier.image_size} px; leave image_size out")
    names = classifier.class_names
    print(f"{found}\n{recipe.encoder.source}: {len(names)} classes, {classifier.image_size} px")
    crops = EvaluationCrops(table, recipe.data.model_copy(update={"image_size": classifier.image_size}))
    logits, damaged = _read(classifier, crops, recipe.batch_size, recipe.data, accelerator)
    values = torch.from_numpy(logits).softmax(1).numpy()
    whole = ~np.isnan(values[:, 0])
    best = np.where(whole, np.nan_to_num(values).argmax(1), 0)
    predicted = [names[label] if good else None for label, good in zip(best, whole, strict=True)]
    columns = {"predicted": pa.array(predicted), "probability": pa.array(values[np.arange(len(best)), best])}
    columns["probabilities"] = _vectors(values)
    _write(folder / "probabilities.npy", values, folder / "predictions.parquet", {**_rows(table), **columns})
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in names))
    write_recipe(recipe, folder / "recipe.yaml")
    _report(folder, ("probabilities.npy", "predictions.parquet", "classes.txt"), values, damaged)
    if table.labels is not None and table.class_names is not None and set(table.class_names) <= set(names):
        truth = [table.class_names[label] for label in table.labels]
        right = np.mean([guess == label for guess, label in zip(predicted, truth, strict=True)])
        print(f"{right:.1%} of {len(truth):,} images are classified as their folder or label says")
    del lock
    return 0


def _start(recipe: EmbedRecipe | PredictRecipe) -> tuple[Path, Accelerator]:
    """The folder, and one process."""
    folder = Path(recipe.output_dir)
    accelerator = start_processes(recipe.compute, folder=folder)
    if accelerator.num_processes > 1:
        raise ValueError(f"mpp {recipe.command} runs in one process; start it without --processes")
    return folder, accelerator


def _source(settings: EncoderSettings) -> str:
    if settings.source is None:
        raise settings.error(source="missing: give encoder=RUN, a folder, or USER/NAME on the Hub")
    return expanded(settings.source)


def _read(
    network: Callable[[Tensor], Tensor] | nn.Module, crops: EvaluationCrops, batch_size: int, data: DataSettings,
    accelerator: Accelerator,
) -> tuple[Array, int]:  # fmt: skip
    """What the network gives for each row, NaN for images that cannot be decoded; and how many these are."""
    rows = np.arange(len(crops.images.rows))
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    found, damaged = [], set[int]()
    with tqdm(total=len(rows), desc="images", disable=None) as bar:
        for batch in batches(crops, chunks, workers=data.workers, pin=accelerator.device.type == "cuda"):
            with torch.no_grad(), accelerator.autocast():
                found.append(network(batch.pixels.to(accelerator.device)).float().cpu())
            damaged |= {row for row, _ in batch.damaged}
            bar.update(len(batch.pixels))
    values = torch.cat(found).numpy()
    values[sorted(damaged)] = np.nan  # a neighbour was decoded in its place
    return values, len(damaged)


def _rows(table: ImageTable) -> dict[str, pa.Array]:
    """The name of each row, and its label and class where there are any."""
    names = [location.path or str(location.row) for location in map(table.where, range(len(table)))]
    columns = {"name": pa.array(names)}
    if table.labels is not None and table.class_names is not None:
        columns["label"] = pa.array(table.labels)
        columns["class"] = pa.array([table.class_names[label] for label in table.labels])
    return columns


def _vectors(values: Array) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _write(array: Path, values: Array, table: Path, columns: dict[str, pa.Array]) -> None:
    with replacing(array) as draft, draft.open("wb") as file:
        np.save(file, values)
    with replacing(table) as draft:
        pq.write_table(pa.table(columns), draft)


def _report(folder: Path, files: tuple[str, ...], values: Array, damaged: int) -> None:
    if damaged:
        print(f"{damaged} images cannot be decoded: their rows are NaN")
    print(f"{len(values):,} rows of {values.shape[1]} values in {folder}: {', '.join(files)}")
