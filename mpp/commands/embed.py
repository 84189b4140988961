"""The features of all images of a split, or their classes: as an array, and as a table with a name for each row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from mpp.commands.data_summary import SHOWN, classes_found, has_class_folders
from mpp.commands.encoder_source import warn_of_encoder
from mpp.commands.score_verdict import filled, standard_error
from mpp.commands.train_run import uses_fused_attention
from mpp.data.inventory import counted
from mpp.data.loader import EvaluationCrops, batches
from mpp.data.settings import DataSettings
from mpp.data.splits import open_table
from mpp.data.table import ImageTable
from mpp.encoder.classifier import Classifier
from mpp.evaluation.embed import layer_of
from mpp.evaluation.features import EncoderReader
from mpp.files import replacing, write_text
from mpp.recipe import EmbedRecipe, PredictRecipe, write_recipe
from mpp.run_folder import FolderLock
from mpp.training.distributed import start_processes

COUNTED = 20
"""Predicted classes whose images are counted in the output."""
Array = np.ndarray[Any, Any]


class Embedding(NamedTuple):
    """What a command reads of each image, and how."""

    network: Callable[[Tensor], Tensor]
    """uint8 `(b, 3, h, w)` on the device → `(b, d)`."""
    image_size: int
    summary: str


def embed(recipe: EmbedRecipe) -> int:
    """Write `features.npy`, float32 `(n, d)`, and `features.parquet`, in the order of the rows.

    Raises:
        ValueError: for what the user can correct.
    """

    def open_encoder(accelerator: Accelerator) -> Embedding:
        encoder = recipe.encoder.build(recipe.data.image_size)
        encoder.use_fused_attention(uses_fused_attention(recipe.encoder.attention, accelerator))
        reader = EncoderReader(encoder.to(accelerator.device).eval())
        warn_of_encoder(recipe.encoder, encoder, accelerator)
        layer = layer_of(reader, recipe.features.block, recipe.features.pool)
        return Embedding(
            lambda pixels: reader.read(pixels, [layer])[layer], encoder.image_size, f"{encoder.summary}; {layer}"
        )

    def write(folder: Path, table: ImageTable, values: Array) -> tuple[str, ...]:
        columns = {**_names(table, recipe.data), **_labels(table), "feature": _vectors(values)}
        _write(folder / "features.npy", values, folder / "features.parquet", columns)
        return "features.npy", "features.parquet"

    return _embed(recipe, recipe.features.batch_size, open_encoder, write)


def predict(recipe: PredictRecipe) -> int:
    """Write `probabilities.npy`, float32 `(n, classes)`, `predictions.parquet` and `classes.txt`.

    Raises:
        ValueError: for what the user can correct.
    """
    names: list[str] = []

    def open_classifier(accelerator: Accelerator) -> Embedding:
        classifier = Classifier(str(recipe.encoder.source)).to(accelerator.device).eval()
        size = classifier.image_size
        if recipe.data.image_size not in (None, size):
            raise recipe.data.error(image_size=f"the classifier takes {size} px; leave image_size out")
        names.extend(classifier.class_names)
        return Embedding(classifier, size, f"{recipe.encoder.source}: {len(names)} classes, {size} px")

    def write(folder: Path, table: ImageTable, logits: Array) -> tuple[str, ...]:
        values = torch.from_numpy(logits).softmax(1).numpy()
        readable = ~np.isnan(values[:, 0])
        best = np.nan_to_num(values).argmax(1)
        predicted = [names[label] if good else None for label, good in zip(best, readable, strict=True)]
        known, sentence = _known_labels(table, recipe.data, names, predicted)
        columns = {
            **_names(table, recipe.data),
            **known,
            "predicted": pa.array(predicted),
            "probability": pa.array(values.max(1)),
            "probabilities": _vectors(values),
        }
        _write(folder / "probabilities.npy", values, folder / "predictions.parquet", columns)
        write_text(folder / "classes.txt", "".join(f"{name}\n" for name in names))
        counts = Counter(name for name in predicted if name is not None).most_common()
        shown = ", ".join(f"{name} {count:,}" for name, count in counts[:COUNTED])
        print(
            filled([f"predicted: {shown}" + f", and {len(counts) - COUNTED:,} more classes" * (len(counts) > COUNTED)])
        )
        if sentence:
            print(filled([sentence]))
        return "probabilities.npy", "predictions.parquet", "classes.txt"

    return _embed(recipe, recipe.batch_size, open_classifier, write)


def _embed(
    recipe: EmbedRecipe | PredictRecipe,
    batch_size: int,
    open_: Callable[[Accelerator], Embedding],
    write: Callable[[Path, ImageTable, Array], tuple[str, ...]],
) -> int:
    """Read all rows of the split through a network, and write what it gives."""
    folder = Path(recipe.output_dir)
    if recipe.encoder.source is None:
        raise recipe.encoder.error(source="missing: give encoder=RUN, a folder, or USER/NAME on the Hub")
    accelerator = start_processes(recipe.compute, folder=folder)
    if accelerator.num_processes > 1:
        raise ValueError(f"mpp {recipe.command} runs in one process; start it without --processes")
    lock = FolderLock(folder, recipe.command)  # held until this returns
    table = open_table(recipe.data)
    embedding = open_(accelerator)
    found = [f"{note}; columns label and class" for note in classes_found(table, recipe.data)]
    if recipe.command == "predict":
        found = []  # it compares them with the classifier's at the end
    print("\n".join([f"{len(table):,} images of {table.name}", *found, embedding.summary]))
    crops = EvaluationCrops(table, recipe.data.model_copy(update={"image_size": embedding.image_size}))
    values, damaged = _read(embedding.network, crops, batch_size, recipe.data, accelerator)
    files = write(folder, table, values)
    write_recipe(recipe, folder / "recipe.yaml")
    if damaged:
        print(f"{counted(damaged, 'image')} cannot be decoded: NaN in its place")
    print(f"{len(values):,} rows of {values.shape[1]} values in {folder}: {', '.join(files)}")
    del lock
    return 0


def _read(
    network: Callable[[Tensor], Tensor], crops: EvaluationCrops, batch_size: int, data: DataSettings,
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


def _names(table: ImageTable, data: DataSettings) -> dict[str, pa.Array]:
    """The name of each row: its path below the data source, or the number of a row without a path."""
    folder = folder_of(data)
    locations = map(table.where, range(len(table)))
    return {"name": pa.array([_below(folder, each.path) if each.path else str(each.row) for each in locations])}


def folder_of(data: DataSettings) -> Path:
    """The folder that names are relative to: the source, or of a table `data.image_folder` or its own."""
    source = Path(data.source).expanduser()
    folder = Path(data.image_folder).expanduser() if data.image_folder else source
    return Path(os.path.abspath(folder if folder.is_dir() else source.parent))  # noqa: PTH100  as `datasets` does


def _below(folder: Path, path: str) -> str:
    """A path below the folder, or in its archive; one that lies elsewhere is unchanged."""
    path = os.path.normpath(path.removeprefix("zip://").split("::")[0])
    return PurePath(path).relative_to(folder).as_posix() if PurePath(path).is_relative_to(folder) else path


def _labels(table: ImageTable) -> dict[str, pa.Array]:
    """The label and class of each row, where there are any."""
    if table.labels is None or table.class_names is None:
        return {}
    return {"label": pa.array(table.labels), "class": pa.array([table.class_names[label] for label in table.labels])}


def _known_labels(
    table: ImageTable, data: DataSettings, names: list[str], predicted: list[str | None]
) -> tuple[dict[str, pa.Array], str]:
    """Label, in the classifier's numbers, and class of each row, with a sentence on the accuracy.

    Classes that the classifier does not have are no ground truth, and left out: folders are named after anything.
    """
    if table.labels is None or table.class_names is None:
        return {}, ""
    is_guessed = has_class_folders(table, data)
    if unknown := [name for name in table.class_names if name not in names]:
        shown = ", ".join(unknown[:SHOWN]) + ", …" * (len(unknown) > SHOWN)
        what = "folders" if is_guessed else "labels"
        return {}, f"no accuracy: the {what} {shown} are no classes of the classifier ({', '.join(names[:SHOWN])}" + (
            ", …)" if len(names) > SHOWN else ")"
        )
    truth = [table.class_names[label] for label in table.labels]
    right = float(np.mean([guess == label for guess, label in zip(predicted, truth, strict=True)]))
    error = 100 * standard_error(right, len(truth))
    says = "the name of their folder says, taken for their class" if is_guessed else "their label says"
    sentence = (
        f"{right:.1%} of {counted(len(truth), 'image')} are classified as {says}; standard error {error:.1f} points"
    )
    numbers = pa.array([names.index(name) for name in truth], pa.int64())
    return {"label": numbers, "class": pa.array(truth)}, sentence


def _vectors(values: Array) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _write(array: Path, values: Array, table: Path, columns: dict[str, pa.Array]) -> None:
    if array.exists():
        print(f"{array} is replaced: it was there before")
    with replacing(array) as draft, draft.open("wb") as file:
        np.save(file, values)
    with replacing(table) as draft:
        pq.write_table(pa.table(columns), draft)
