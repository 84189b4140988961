"""The embedded images: the same pixels everywhere, statistics of photographs, no labels from mean colour or pixels."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpp.data import dead_leaves, leaf_forms, synthetic
from mpp.data.decode import decode
from tests.support.forkserver import ForkServer, good

Array = np.ndarray[Any, Any]

# If these change, so must `synthetic.VERSION`: without that, caches keep the old pixels.
PIXELS = {
    "a": "78e3e8cd98da1443825a3f96d3f633fae5748badc8d5739a1f1b5a2f7136de2a",
    "b": "77d9a03f8d3926d3d4b2fd5e42b2b2fba5cc2f866935fbf71813c8e53eaee270",
    "c": "e1141c7c44e8d328311934b88c998e762413a83d93c69bfb59fe3018445e8807",
}


def scene(variant: str, number: int) -> tuple[Array, int]:
    images, labels = dead_leaves.scenes(variant, np.array([number]))
    return images[0], int(labels[0])


def draw(variant: str, count: int, start: int = 0) -> tuple[Array, Array]:
    parts = [
        dead_leaves.scenes(variant, np.arange(at, min(at + synthetic.CHUNK, start + count)))
        for at in range(start, start + count, synthetic.CHUNK)
    ]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


@pytest.fixture(scope="module", params=dead_leaves.VARIANTS)
def sample(request: pytest.FixtureRequest) -> tuple[str, Array, Array, Array, Array]:
    """A variant, 3,000 of its train images with labels and 1,000 of its test images with labels."""
    train, test = draw(request.param, 3000), draw(request.param, 1000, synthetic.TEST.start)
    return request.param, *train, *test


def statistics(images: Array) -> dict[str, float]:
    """Of uint8 `(n, 64, 64, 3)`: nats of the 3-bit mean colours of 4 × 4 patches at 32 × 32, and the spectrum's slope.

    The slope is that of log power of the luminance against log frequency, averaged over directions, 2 … 31 cycles.
    """
    small = images.reshape(-1, 32, 2, 32, 2, 3).astype(np.int64).sum((2, 4)) // 4
    bins = small.reshape(-1, 8, 4, 8, 4, 3).sum((2, 4)) * 8 // (256 * 16)
    shares = np.bincount((bins @ np.array([64, 8, 1])).ravel(), minlength=512) / bins[..., 0].size
    shares = shares[shares > 0]
    light = images @ np.array([0.299, 0.587, 0.114])
    window = np.hanning(64)[:, None] * np.hanning(64)
    power = (np.abs(np.fft.fft2((light - light.mean((1, 2), keepdims=True)) * window)) ** 2).mean(0)
    frequency = np.fft.fftfreq(64) * 64
    radius = np.rint(np.hypot(frequency[:, None], frequency))
    rings = np.arange(2, 32)
    means = [power[radius == ring].mean() for ring in rings]
    return {
        "entropy": float(-(shares * np.log(shares)).sum()),
        "slope": float(np.polyfit(np.log(rings), np.log(means), 1)[0]),
    }


@pytest.mark.parametrize("variant", dead_leaves.VARIANTS)
def test_the_same_pixels_on_every_machine(variant: str) -> None:
    train, test = draw(variant, 64), draw(variant, 16, synthetic.TEST.start)
    pixels = np.concatenate((train[0], test[0]))
    assert pixels.shape == (80, 64, 64, 3)
    assert pixels.dtype == np.uint8
    labels = np.concatenate((train[1], test[1])).astype(np.uint8)
    assert hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest() == PIXELS[variant]


@pytest.mark.parametrize("variant", dead_leaves.VARIANTS)
def test_an_image_depends_on_its_number_alone(variant: str) -> None:
    numbers = np.array([7, 1_000_000_003, 3, 2**40 + 5, 7])
    images, labels = dead_leaves.scenes(variant, numbers)
    for number, image, label in zip(numbers, images, labels, strict=True):
        alone, alone_label = scene(variant, int(number))
        np.testing.assert_array_equal(alone, image)
        assert alone_label == label
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 4


def test_variants_differ_in_shapes_and_pixels() -> None:
    for one, other in itertools.combinations(dead_leaves.VARIANTS, 2):
        assert not set(dead_leaves.class_names(one)) & set(dead_leaves.class_names(other))
        assert not np.array_equal(scene(one, 0)[0], scene(other, 0)[0])
    assert {len(dead_leaves.class_names(variant)) for variant in dead_leaves.VARIANTS} == {10}
    with pytest.raises(ValueError, match="no variant 'd'; it has 'a', 'b', 'c'"):
        dead_leaves.class_names("d")


def test_splits_share_no_image_and_hold_each_label_equally_often(
    sample: tuple[str, Array, Array, Array, Array],
) -> None:
    variant, train, train_labels, test, test_labels = sample
    assert not set(synthetic.TRAIN) & set(synthetic.TEST)
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    classes = len(dead_leaves.class_names(variant))
    assert np.bincount(train_labels).tolist() == [3000 // classes] * classes
    assert np.bincount(test_labels).tolist() == [1000 // classes] * classes
    assert len(np.unique(train_labels.reshape(-1, classes), axis=0)) > 250  # the order is drawn, block by block


@pytest.mark.parametrize("shape", [shape for v in "ab" for shape in leaf_forms.SHAPES[v]], ids=lambda s: s.name)
def test_shapes_state_their_area_and_reach(shape: leaf_forms.Shape) -> None:
    across = (np.arange(1600) + 0.5) / 500 - 1.6
    x, y = across[None], across[:, None]
    inside = shape.inside(x, y)
    assert inside.sum() / 500**2 == pytest.approx(shape.area, rel=0.005)
    assert np.sqrt(x * x + y * y)[inside].max() <= shape.reach < 1.1 * np.sqrt(x * x + y * y)[inside].max()


@pytest.mark.parametrize("variant", dead_leaves.VARIANTS)
def test_small_windows_paint_what_large_ones_do(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = draw(variant, 10)
    monkeypatch.setattr(dead_leaves, "WINDOWS", (dead_leaves.SIZE,))
    np.testing.assert_array_equal(draw(variant, 10)[0], images)


@pytest.mark.parametrize("variant", dead_leaves.VARIANTS)
def test_the_label_is_the_shape_or_pattern_on_top(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing covers the top leaf: of its area no more is missing than juts out of the image."""
    painted = []
    shade = dead_leaves._shade
    monkeypatch.setattr(dead_leaves, "_shade", lambda *args: (painted.append(args), shade(*args))[1])
    _, labels = dead_leaves.scenes(variant, np.arange(50))
    _, _, leaves, seen = painted[0]
    kind = leaves.pattern if variant == "c" else leaves.shape
    np.testing.assert_array_equal(kind[:, -1], labels)
    on_top = (seen == dead_leaves.LEAVES + 1).sum((1, 2))
    if variant == "c":  # which juts out more often
        assert on_top.min() / dead_leaves.SIZE**2 > 0.4
    else:
        visible = on_top / (np.pi * leaves.radius[:, -1] ** 2)
        assert visible.min() > 0.8
        assert np.median(visible) == pytest.approx(1.0, abs=0.02)
    assert np.mean(seen > 0) > 0.8  # hardly any ground is left


def test_mean_colour_does_not_give_the_label_away(sample: tuple[str, Array, Array, Array, Array]) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    variant, train, train_labels, test, test_labels = sample
    means = [images.mean((1, 2)) for images in (train, test)]
    both = [np.concatenate((images.mean((1, 2)), images.std((1, 2))), axis=1) for images in (train, test)]
    chance = 1 / len(dead_leaves.class_names(variant))
    for features in (means, both):
        for classifier in (LogisticRegression(max_iter=1000), KNeighborsClassifier(20)):
            fitted = make_pipeline(StandardScaler(), classifier).fit(features[0], train_labels)
            assert fitted.score(features[1], test_labels) < chance + 0.05


def test_pixels_hardly_give_the_label_away(sample: tuple[str, Array, Array, Array, Array]) -> None:
    """Nor do the nearest neighbours among the images at 32 pixels, which find what looks alike at the same place."""
    from sklearn.neighbors import KNeighborsClassifier

    variant, train, train_labels, test, test_labels = sample
    small = [images.reshape(-1, 32, 2, 32, 2, 3).mean((2, 4)).reshape(len(images), -1) for images in (train, test)]
    chance = 1 / len(dead_leaves.class_names(variant))
    fitted = KNeighborsClassifier(20).fit(small[0], train_labels)
    assert fitted.score(small[1], test_labels) < chance + 0.15


@pytest.mark.parametrize("pattern", leaf_forms.PATTERNS["c"], ids=lambda pattern: pattern.name)
def test_patterns_that_are_labels_have_the_same_mean_and_contrast(pattern: leaf_forms.Pattern) -> None:
    across = (np.arange(600) + 0.5) / 50 - 6  # twelve periods
    u, v = np.meshgrid(across, across)
    noise = dead_leaves._noise("c")[np.arange(600)[:, None] % dead_leaves.TILE, np.arange(600) % dead_leaves.TILE]
    values = pattern.normalized(u, v, noise)
    assert values.mean() == pytest.approx(0, abs=0.03)
    assert values.std() == pytest.approx(1, abs=0.03)


def test_statistics_are_those_of_photographs(sample: tuple[str, Array, Array, Array, Array]) -> None:
    if sample[0] == "c":
        pytest.skip("embedded:c is made to be easy, its textures are coarser")
    # CIFAR-10 has 4.22 nats and (at 32 pixels) a slope of −3.14, Imagenette at 64 pixels 4.21 nats and −2.71.
    measured = statistics(sample[1][:2000])
    assert 4.0 < measured["entropy"] < 4.4
    assert -3.3 < measured["slope"] < -2.6


def test_load_draws_once_for_all_processes(commands: ForkServer, tmp_path: Path) -> None:
    """Two processes at once and one later see the same rows, and no more than one of them draws."""
    load = ("tests.support.drawing", tmp_path, 200, 40)
    runs = [commands.start(*load), commands.start(*load)]
    for run in runs:
        run.wait()
    runs.append(commands.run(*load))
    said = "drawing the images of embedded:b (once, about 20 s) …"
    lines = [line for run in runs for line in good(run).text.splitlines()]
    assert lines.count(said) == 1
    [told] = set(lines) - {said}
    digest, _, *labels = told.split()
    train, test = draw("b", 200), draw("b", 40, synthetic.TEST.start)
    assert digest == hashlib.sha256(train[0].tobytes() + test[0].tobytes()).hexdigest()
    assert labels == [str(label) for label in train[1][:20]]


@pytest.mark.parametrize(("number", "words"), [(signal.SIGINT, "\nstopped\n"), (signal.SIGTERM, "")])
def test_a_signal_ends_the_drawing_in_all_its_processes(
    commands: ForkServer, tmp_path: Path, number: signal.Signals, words: str
) -> None:
    command = commands.start("tests.support.drawing", tmp_path)
    command.until(lambda: command.text.endswith("\n"))
    time.sleep(1)
    os.killpg(command.pid, number) if number == signal.SIGINT else command.kill(number)
    assert command.wait(60) == 128 + number
    assert command.text == f"drawing the images of embedded:b (once, about 20 s) …\n{words}"
    assert command.group_is_gone(), "processes are left behind"


def test_rows_are_uncompressed_files_of_the_scenes_that_any_reader_opens() -> None:
    from PIL import Image

    rows = list(synthetic._examples("a", [range(5, 8)], synthetic.VERSION))
    for number, row in zip(range(5, 8), rows, strict=True):
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (image.format, image.mode) == ("PPM", "RGB")
        pixels, label = scene("a", number)
        np.testing.assert_array_equal(np.asarray(image), pixels)
        np.testing.assert_array_equal(decode(row["image"]["bytes"]).permute(1, 2, 0).numpy(), pixels)
        assert row["label"] == label
