"""The same samples and the same pixels, whoever reads them and however the files are written."""

import numpy as np
import pytest
import torch
from PIL import Image

import mpp
from mpp.data.crops import centre
from mpp.data.decode import as_ppm
from mpp.data.loader import EvaluationCrops, TrainingCrops, batches
from mpp.data.sampler import plan_batches
from mpp.data.settings import DataSettings
from mpp.data.splits import open_splits
from tests.support.forkserver import good
from tests.support.runs import (
    arguments,
    encoded,
    journal,
    losses,
    parquet_folder,
    pretrain,
    pretrain_all,
    scene,
    scenes,
    weights,
)


@pytest.mark.parametrize("changes", [("data.workers=2", "data.cache=false"), ("data.workers=0", "data.cache=true")])
def test_workers_and_cache_change_no_bit_of_a_run(tmp_path, finished, changes):
    first, settings, _ = finished
    keys = {change.split("=")[0] for change in changes} | {"output_dir"}
    settings = [setting for setting in settings if setting.split("=")[0] not in keys]
    run = tmp_path / "run"
    good(pretrain("mean_color.yaml", [*settings, *changes, f"output_dir={run}"]))
    assert losses(run) == losses(first)
    assert weights(run) == weights(first)


def quadrants(number: int) -> Image.Image:
    """48×32 of four flat colours, in JPEG blocks of 8: every decoder of a JPEG gives the same pixels."""
    colours = np.random.default_rng(number).integers(0, 256, (2, 2, 3), np.uint8)
    return Image.fromarray(colours.repeat(16, 0).repeat(24, 1))


def rotated_jpeg(upright: Image.Image, orientation: int, stored: Image.Transpose) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(upright.transpose(stored), "JPEG", quality=95, subsampling=0, exif=exif)


def odd_and_plain() -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    """The same pictures twice: as photographs and tools write them, and as upright RGB."""
    odd, plain = [], []

    def add(name: str, strange: bytes, upright: bytes):
        odd.append((name, strange))
        plain.append((name, upright))

    rgb = Image.fromarray(scene(0))
    palette = rgb.quantize(64)
    add("palette.png", encoded(palette), encoded(palette.convert("RGB")))

    grey = Image.fromarray(scene(1)[..., 0])
    as_rgb = Image.fromarray(np.repeat(scene(1)[..., :1], 3, axis=2))
    add("grey.png", encoded(grey), encoded(as_rgb))

    deep = Image.fromarray(scene(2)[..., 0].astype(np.uint16) * 257)
    assert deep.mode.startswith("I;16")
    add("deep.png", encoded(deep), encoded(Image.fromarray(np.repeat(scene(2)[..., :1], 3, axis=2))))

    cmyk = Image.fromarray(scene(3)).convert("CMYK")
    add("cmyk.tif", encoded(cmyk, "TIFF"), encoded(cmyk.convert("RGB"), "TIFF"))

    for number, orientation, stored in (
        (4, 6, Image.Transpose.ROTATE_90),
        (5, 8, Image.Transpose.ROTATE_270),
        (6, 3, Image.Transpose.ROTATE_180),
    ):
        upright = quadrants(number)
        straight = encoded(upright, "JPEG", quality=95, subsampling=0)
        add(f"turned-{orientation}.jpg", rotated_jpeg(upright, orientation, stored), straight)

    add("plain.png", encoded(rgb), encoded(rgb))
    return odd, plain


def test_every_way_of_writing_an_image_gives_the_same_upright_rgb(tmp_path):
    odd, plain = odd_and_plain()
    changed = [*plain[:-1], ("plain.png", encoded(Image.fromarray(scene(99))))]
    runs, jobs = {}, {}
    for name, train in (("odd", odd), ("plain", plain), ("changed", changed)):
        runs[name] = tmp_path / name
        source = parquet_folder(tmp_path / f"data-{name}", train)
        jobs[name] = ("mean_color.yaml", arguments(runs[name], source, "training.duration.epochs=4"))
    for result in pretrain_all(jobs).values():
        good(result)
    assert losses(runs["odd"]) == losses(runs["plain"])
    assert weights(runs["odd"]) == weights(runs["plain"])
    assert weights(runs["changed"]) != weights(runs["plain"]), "one other picture would show"


def test_data_without_a_validation_split_is_held_out_the_same_way_each_time(tmp_path):
    source = parquet_folder(tmp_path / "data", scenes(60))
    (source / "test.parquet").unlink()
    first, second = tmp_path / "first", tmp_path / "second"
    few = "training.duration.steps=3"
    jobs = {run.name: ("mean_color.yaml", arguments(run, source, few)) for run in (first, second)}
    for result in pretrain_all(jobs).values():
        good(result)
    validation = [[{k: v for k, v in row.items() if "val" in k} for row in journal(run)] for run in (first, second)]
    assert any(validation[0])
    assert losses(first) == losses(second)
    assert weights(first) == weights(second)


def test_another_seed_is_another_run(tmp_path, images, finished):
    settings = arguments(tmp_path / "run", images, "seed=1", "training.duration.steps=3")
    good(pretrain("mean_color.yaml", settings))
    first, second = losses(finished[0]), losses(tmp_path / "run")
    assert all(first[step] != second[step] for step in first.keys() & second.keys())


def test_every_process_and_worker_draws_the_samples_crops_and_corruptions_of_one(tiny_data):
    """20 samples a step, 12 steps: two and a half epochs of 96."""
    settings = DataSettings(source=str(tiny_data), image_size=16)
    rows = open_splits(settings, seed=0).train
    torch.manual_seed(0)
    encoder = mpp.create_encoder("test_vit", image_size=16, patch_size=4)
    objective = mpp.MaskedPatchPrediction(encoder, target=mpp.MeanColor(), corruption=mpp.Corruption(), seed=5)

    def steps(processes: int, micro: int, workers: int) -> list[dict[int, tuple]]:
        """For each step: sample number → what it comes to, over all processes."""
        found: list[dict[int, tuple]] = [{} for _ in range(12)]
        for rank in range(processes):
            part = plan_batches(20, micro, rank=rank, processes=processes)
            crops = TrainingCrops(rows, settings, seed=5)
            loaded = list(batches(crops, part.micro_batches(0, 12), workers=workers))
            assert len(loaded) == 12 * part.accumulation
            for number, batch in enumerate(loaded):
                with torch.no_grad():
                    prediction = objective(batch.pixels, samples=batch.samples)
                here = found[number // part.accumulation]
                columns = (batch.pixels, prediction.positions, prediction.kinds, prediction.labels)
                for i, sample in enumerate(batch.samples.tolist()):
                    assert sample not in here
                    here[sample] = tuple(column[i].numpy().tobytes() for column in columns)
        return found

    one = steps(1, 20, 0)
    assert [sorted(step) for step in one] == [list(range(20 * step, 20 * step + 20)) for step in range(12)]
    assert len({drawn for step in one for drawn in step.values()}) == 240, "no two samples alike"
    for processes, micro, workers in ((1, 4, 2), (2, 10, 0), (2, 5, 2)):
        assert steps(processes, micro, workers) == one, f"{processes} processes, {workers} workers"


def test_crops_of_a_batch_are_those_of_each_image_alone():
    """Images of one shape are resized together; the order, shapes between them and the cache change nothing."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 50), (40, 50), (64, 64), (40, 50), (32, 32), (64, 64), (64, 64), (33, 400)]
    images = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8, generator=generator).numpy() for h, w in shapes]

    class Table:
        name, split, labels, class_names = "t", "train", None, None

        def __len__(self) -> int:
            return len(images)

        def encoded(self, row: int) -> bytes:
            return as_ppm(images[row])

    for settings in (DataSettings(image_size=32), DataSettings(image_size=24, crop_pct=0.8, interpolation="bicubic")):
        alone = torch.stack([centre(torch.from_numpy(image).permute(2, 0, 1), settings) for image in images])
        for cache in (0, 5000, 10**6):
            crops = EvaluationCrops(Table(), settings, cache_bytes=cache)
            for rows in ([0, 1, 2, 3, 4, 5, 6, 7], [5, 2, 6, 0], [7, 3, 3, 1]):
                found = crops[np.array(rows)]
                assert torch.equal(found.pixels, alone[rows])
                assert found.samples.tolist() == rows
