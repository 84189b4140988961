"""What the `data:` part of a recipe can say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from PIL import ImageColor
from pydantic import Field, ValidationInfo, field_validator, model_validator

from mpp.data.inventory import check_source, did_you_mean, kind_of
from mpp.settings import Settings

PATH_TABLES = ("csv", "parquet")
"""Kinds of files that may be a table of paths."""


class DataSettings(Settings):
    """Where images come from and how they become pixels."""

    source: str = "embedded"
    """`embedded`, `embedded:b` or `embedded:c` (drawn by this package); a folder of images; a zip or tar archive of
    one; a CSV or Parquet table with a column of paths to images, relative to `image_folder`; a folder of
    `Dataset.save_to_disk`; a Parquet or webdataset file or folder; or the id of a data set on the Hugging Face Hub."""

    image_folder: str | None = None
    """The folder that the paths of a CSV or Parquet table are relative to; null takes the table's own folder."""

    subset: str | None = None
    """The configuration of a Hub data set that has several."""

    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""

    split: str = "train"
    """The split to train on; slices such as `train[:10%]` work."""

    validation_split: str | None = None
    """The held-out split; null takes `validation`, else `test`, else a tenth of the training split, the same
    for every seed. Where final scores are measured (fine-tuning, evaluation) null takes `test` first."""

    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Take the images of these classes alone, by their numbers in the data set, for training and evaluation alike.
    Labels are renumbered from 0 in ascending order. Images of other classes are never read. null takes all."""

    reserved: float = Field(default=0.0, ge=0, lt=1)
    """Share of each class of the training split that nothing trains on, the same rows for every seed."""

    evaluate_on: Literal["held_out", "reserved"] = "held_out"
    """`reserved` evaluates on the reserved images in place of the held-out split: to choose settings, e.g. the learning
    rates of a study, without its test split. Training images are the same in both."""

    images: int | None = Field(default=None, ge=2)
    """Train on so many images of the split, a seeded choice (fewer are among more); null takes all."""

    validation_images: int | None = Field(default=None, ge=1)
    """Evaluate on at most so many images of the held-out split, a choice that is the same for every seed; null takes
    all."""

    image_column: str | None = None
    """The column that holds the images, or the paths to them; null takes the only such column."""

    label_column: str | None = None
    """The column that holds the labels; null takes the only class-label column, if there is one, and in a table of
    paths the column `label`, or else the only other column whose values repeat as those of classes do."""

    image_size: int = Field(default=224, ge=1)
    """Height and width, in pixels, of what the encoder sees."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a random crop covers, from and to (the 'inception crop')."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a random crop, from and to."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""

    crop_pct: float = Field(default=1.0, gt=0, le=1)
    """In evaluation: the share of the resized image's shorter side that the centre crop keeps."""

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How crops are resized (always antialiased)."""

    workers: int = Field(default=2, ge=0)
    """Loader processes beside each training process; 0 loads in the training process itself."""

    cache: bool = False
    """Decode every image once and keep the pixels in memory: for small data sets."""

    decode: Literal["full", "scaled"] = "full"
    """`scaled` decodes a JPEG at 1/2, 1/4 or 1/8 of its size where the crop still has as many pixels as it is resized
    to: faster for photographs of several megapixels, with slightly different pixels."""

    background: str | None = "white"
    """The colour behind transparent pixels: a name or `#rrggbb`. null ignores transparency and takes whatever colour
    the file has there; runs that are older than this setting keep that when they are resumed."""

    bits: int = Field(default=16, ge=8, le=16)
    """The bits that the values of 16-bit images use, e.g. 12 for values from 0 to 4,095. The highest 8 of these are
    kept; larger values are white."""

    max_pixels: int = Field(default=2**27, ge=1)
    """Larger images are not decoded, but counted as damaged: a small file can declare a huge image."""

    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """The run stops when more than this share of the images cannot be decoded."""

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, colour: str | None) -> str | None:
        if colour is not None:
            try:
                opaque = len(ImageColor.getrgb(colour)) == 3
            except ValueError:
                opaque = False
            if not opaque:
                raise ValueError(f"background {colour!r} is no opaque colour; give a name such as white, or '#rrggbb'")
        return colour

    @field_validator("classes")
    @classmethod
    def _in_ascending_order(cls, classes: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if classes is None:
            return None
        if not classes:
            raise ValueError("classes is empty; name one class or more by number, or leave it out to take all")
        if twice := sorted({number for number in classes if classes.count(number) > 1}):
            raise ValueError(f"classes names {', '.join(map(str, twice))} more than once")
        return tuple(sorted(classes))

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ordered(cls, limits: tuple[float, float], field: ValidationInfo) -> tuple[float, float]:
        low, high = limits
        bound, most = (" <= 1", 1.0) if field.field_name == "crop_scale" else ("", math.inf)
        if not 0 < low <= high <= most:
            raise ValueError(f"{field.field_name} must satisfy 0 < from <= to{bound}; found {low:g}, {high:g}")
        return limits

    @model_validator(mode="after")
    def _reserves_what_it_evaluates_on(self) -> DataSettings:
        if self.evaluate_on == "reserved" and not self.reserved:
            raise ValueError("evaluate_on is reserved, but no images are; give reserved a share above 0, such as 0.1")
        return self

    @model_validator(mode="after")
    def _caches_whole_images(self) -> DataSettings:
        if self.cache and self.decode == "scaled":
            raise ValueError(
                "decode scaled reads each crop by itself, and cache keeps whole images; choose one of them"
            )
        return self

    def check_paths(self) -> None:
        """Refuse a `source` that cannot be one, from the names of files alone.

        Raises:
            SettingError: with what was found.
        """
        with self.blamed("source"):
            check_source(self.source)
        if self.image_folder is not None:
            folder = Path(self.image_folder).expanduser()
            if kind_of(Path(self.source)) not in PATH_TABLES:
                message = f"image_folder is for a CSV or Parquet table of paths, and data.source is {self.source}"
                raise self.error(image_folder=f"{message}; leave image_folder out")
            if not folder.is_dir():
                raise self.error(image_folder=f"image_folder {folder} is no folder{did_you_mean(folder)}")


class NetworkSizeSettings(DataSettings):
    """Where images come from and how they become pixels, by default of the size that the network is made for."""

    image_size: int | None = Field(default=None, ge=1)  # pyright: ignore[reportIncompatibleVariableOverride]
    """Height and width, in pixels, of what the network sees; null takes the network's own: that of its source, or
    without a source `encoder.image_size`."""


class CentreCropSettings(NetworkSizeSettings):
    """Where images come from and how they become pixels: their centre crops."""

    without_effect: ClassVar[tuple[str, ...]] = ("crop_scale", "crop_ratio", "flip", "cache", "reserved", "evaluate_on")


class LabelSettings(Settings):
    """Which labels of the training split may be used, and which of those settings are chosen by."""

    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the labelled training images that is used: of every class alike, smaller shares inside larger ones."""

    dev: float = Field(default=0.1, ge=0, lt=1)
    """Share of those that is held out as dev split, on which settings are chosen, never on the test
    split. 0 holds out none."""

    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Decides both choices, apart from the run's own seed: runs to be compared share their images."""
