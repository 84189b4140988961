"""Images as a person has them in Python or on disk, as uint8 pixels: paths, PIL images, a folder, a table, an array."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mpp.data.crops import centre
from mpp.data.decode import decoder, from_pil
from mpp.data.inventory import IMAGES
from mpp.data.settings import DataSettings

Images = str | Path | Tensor | np.ndarray[Any, Any] | datasets.Dataset | Iterable[Any]


class CentreCrops(Dataset[Tensor]):
    """The evaluation crop of each image: uint8 `(3, image_size, image_size)`.

    Args:
        images: a folder, which is searched deeply and taken in the order of its sorted paths; a path; a list of paths,
            PIL images, or arrays `(h, w, 3)`, `(h, w)` or tensors `(3, h, w)` of uint8 pixels; a `datasets.Dataset`
            with an image column; one array `(n, h, w, 3)` or `(n, 3, h, w)`, or tensor, of uint8 pixels.
        settings: size and crop.

    Attributes:
        names: the path of each image, or its number.

    Raises:
        ValueError: if there are no images, or things of another kind.
    """

    def __init__(self, images: Images, settings: DataSettings) -> None:
        self.settings = settings
        self._read, self.names = _reader(images, settings)
        if not self.names:
            raise ValueError("there are no images")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Tensor:
        try:
            return centre(self._read(number), self.settings)
        except (ValueError, OSError) as error:
            raise ValueError(f"image {self.names[number]}: {error}") from error


def image_files(folder: str | Path) -> list[Path]:
    """All image files in a folder and below it, in the order of their paths: the rows that `features` gives.

    Raises:
        ValueError: if there are none.
    """
    found = [path for path in Path(folder).expanduser().rglob("*") if path.suffix.lower() in IMAGES]
    if not found:
        raise ValueError(f"{folder} holds no image files")
    return sorted(found)


def _reader(images: Images, settings: DataSettings) -> tuple[Callable[[int], Tensor], Sequence[str]]:
    """How to read the image of a number, and the names of all."""
    if isinstance(images, str | Path):
        path = Path(images).expanduser()
        if not path.exists():
            raise ValueError(f"{images} does not exist")
        images = image_files(path) if path.is_dir() else [path]
    if isinstance(images, datasets.Dataset):
        return _of_table(images, settings)
    if isinstance(images, np.ndarray | Tensor):
        pixels = _channels_first(images, 4)
        return (lambda number: pixels[number]), range_names(len(pixels))
    if isinstance(images, Image.Image):
        raise ValueError("found a single PIL image; give a list of them")
    items = list(images)
    names = [str(item) if isinstance(item, str | Path) else str(number) for number, item in enumerate(items)]
    return (lambda number: _pixels(items[number], settings)), names


def range_names(count: int) -> list[str]:
    """The numbers from 0, as names."""
    return [str(number) for number in range(count)]


def _of_table(table: datasets.Dataset, settings: DataSettings) -> tuple[Callable[[int], Tensor], Sequence[str]]:
    columns = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        raise ValueError(f"the table needs one image column; found {', '.join(columns) or 'none'}")
    encoded = table.select_columns(columns).cast_column(columns[0], datasets.Image(decode=False))

    def read(number: int) -> Tensor:
        value = encoded[number][columns[0]]
        if value is None:
            raise ValueError("it is missing")
        return decoder(settings)(value["bytes"] or Path(value["path"]).read_bytes())

    return read, range_names(len(table))


def _pixels(image: Any, settings: DataSettings) -> Tensor:
    """uint8 `(3, h, w)` of one image."""
    if isinstance(image, str | Path):
        return decoder(settings)(Path(image).expanduser().read_bytes())
    if isinstance(image, Image.Image):
        return from_pil(image, background=settings.background, bits=settings.bits)
    if isinstance(image, np.ndarray | Tensor):
        if image.ndim == 2:
            image = torch.as_tensor(image)[None].expand(3, -1, -1)
        return _channels_first(image, 3)
    raise ValueError(f"found a {type(image).__name__}; give a path, a PIL image, or an array of uint8 pixels")


def _channels_first(pixels: np.ndarray[Any, Any] | Tensor, dimensions: int) -> Tensor:
    """uint8 `(…, 3, h, w)` from that or from `(…, h, w, 3)`.

    Raises:
        ValueError: for another type, number of dimensions or number of channels.
    """
    found = torch.as_tensor(np.ascontiguousarray(pixels) if isinstance(pixels, np.ndarray) else pixels)
    if found.dtype != torch.uint8:
        raise ValueError(f"pixels must be uint8, from 0 to 255; found {found.dtype}".replace("torch.", ""))
    if found.ndim != dimensions or 3 not in (found.shape[-1], found.shape[-3]):
        wanted = "(n, h, w, 3) or (n, 3, h, w)" if dimensions == 4 else "(h, w, 3) or (3, h, w)"
        raise ValueError(f"pixels must be {wanted}; found {tuple(found.shape)}")
    return found if found.shape[-3] == 3 else found.movedim(-1, -3)
