"""Which patches are corrupted, how, where in the network, and what the draw depends on."""

import math

import pytest
import torch

import mpp
from mpp import randomness
from mpp.objective.replacement import corrupt, replaced
from tests.support.reference import embeddings, inputs_of, random_pixels, scramble, swap_sources, without_positions

SIZE, PATCH, N, K = 32, 4, 64, 32
COUNT = 1024


def build(seed=0, target=None, encoder=None, **corruption):
    encoder = encoder or mpp.create_encoder("test_vit", image_size=SIZE, patch_size=PATCH)
    target = target or mpp.MeanColor(bits=1)
    objective = mpp.MaskedPatchPrediction(encoder, target=target, corruption=mpp.Corruption(**corruption), seed=seed)
    scramble(objective, encoder.vit)
    return objective, encoder.vit


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return build()


@pytest.fixture(scope="module")
def draws(small):
    """Positions, kinds and swap sources of a thousand samples with the paper's shares."""
    objective, vit = small
    found = []
    for start in range(0, COUNT, 128):
        pixels = random_pixels(128, SIZE, seed=start)
        prediction, clean, corrupted = embeddings(objective, vit, pixels, torch.arange(start, start + 128))
        found.append((prediction.positions, prediction.kinds, swap_sources(prediction, clean, corrupted)))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def within(count: int, trials: int, share: float, sigmas: float = 5) -> bool:
    return abs(count - trials * share) <= sigmas * math.sqrt(trials * share * (1 - share))


@pytest.mark.parametrize("grid", [1, 2, 3, 5, 7, 8])
def test_exactly_k_positions_ascending_and_at_least_one(grid):
    encoder = mpp.create_encoder("test_vit", image_size=4 * grid, patch_size=4)
    n = grid**2
    for fraction in (0.5, 0.15, 0.75, 0.3, 0.001, 0.999, 1.0):
        objective, _ = build(encoder=encoder, fraction=fraction, mask=1.0, swap=0.0, keep=0.0)
        prediction = objective(random_pixels(5, 4 * grid), samples=torch.arange(5))
        k = max(1, math.floor(fraction * n + 0.5))  # halves go up: 4.5 is 5, not the even 4
        assert prediction.positions.shape == prediction.kinds.shape == (5, k)
        assert prediction.positions.dtype == torch.int64
        assert not prediction.kinds.is_floating_point()
        assert (prediction.positions.diff(dim=1) > 0).all(), "ascending, none twice"
        assert prediction.positions.min() >= 0
        assert prediction.positions.max() < n


def test_kinds_have_the_shares_of_the_paper(draws):
    _, kinds, _ = draws
    assert set(kinds.unique().tolist()) == {0, 1, 2}
    for kind, share in enumerate((0.8, 0.1, 0.1)):
        assert within(int((kinds == kind).sum()), kinds.numel(), share)


@pytest.mark.parametrize("shares", [(0.2, 0.5, 0.3), (0.0, 0.75, 0.25)])
def test_other_shares_are_kept_too(shares):
    objective, _ = build(mask=shares[0], swap=shares[1], keep=shares[2])
    with torch.no_grad():
        kinds = objective(random_pixels(256, SIZE), samples=torch.arange(256)).kinds
    for kind, share in enumerate(shares):
        count = int((kinds == kind).sum())
        assert within(count, kinds.numel(), share) if share else count == 0


def test_kinds_are_drawn_independently_not_dealt_out_in_fixed_numbers(draws):
    _, kinds, _ = draws
    for kind, share in enumerate((0.8, 0.1, 0.1)):
        variance = float((kinds == kind).sum(1).double().var())
        expected = K * share * (1 - share)
        assert abs(variance / expected - 1) < 5 * math.sqrt(2 / COUNT)


def test_the_kind_does_not_depend_on_the_place(draws):
    positions, kinds, _ = draws
    for k in range(K):
        assert within(int((kinds[:, k] == 0).sum()), COUNT, 0.8)
    for i in range(N):
        here = kinds[positions == i]
        assert within(int((here == 0).sum()), len(here), 0.8)


def test_neighbouring_kinds_are_not_tied(draws):
    _, kinds, _ = draws
    masked = kinds == 0
    both = int((masked[:, 1:] & masked[:, :-1]).sum())
    # pairs overlap, which widens the spread of a pair count by at most a factor of two
    assert within(both, masked[:, 1:].numel(), 0.64, sigmas=10)


def test_every_position_is_drawn_equally_often(draws):
    positions, _, _ = draws
    counts = torch.bincount(positions.flatten(), minlength=N)
    assert all(within(int(count), COUNT, K / N) for count in counts)


def test_every_pair_of_positions_is_drawn_equally_often(draws):
    positions, _, _ = draws
    chosen = torch.zeros(COUNT, N).scatter_(1, positions, 1.0)
    together = (chosen.T @ chosen)[torch.triu(torch.ones(N, N), 1).bool()]
    expected = COUNT * K * (K - 1) / (N * (N - 1))
    sigma = math.sqrt(expected * (1 - expected / COUNT))
    assert ((together - expected).abs() < 5.5 * sigma).all()


def test_samples_in_a_row_are_corrupted_independently(draws):
    positions, _, _ = draws
    chosen = torch.zeros(COUNT, N).scatter_(1, positions, 1.0)
    variance = K * (K / N) * (1 - K / N) * (N - K) / (N - 1)
    for lag in (1, 2, 64):
        shared = (chosen[lag:] * chosen[:-lag]).sum(1)
        assert abs(float(shared.mean()) - K * K / N) < 5 * math.sqrt(variance / len(shared))
        assert shared.max() < K, "two samples have the same positions"


def test_a_swap_never_takes_its_own_position(draws):
    positions, kinds, sources = draws
    swapped = kinds == 1
    assert (sources[swapped] >= 0).all()
    assert (sources[swapped] != positions[swapped]).all()


def test_a_swap_draws_uniformly_among_all_other_positions(draws):
    positions, kinds, sources = draws
    swapped = kinds == 1
    offsets = (sources - positions)[swapped] % N
    counts = torch.bincount(offsets, minlength=N)[1:].double()
    expected = len(offsets) / (N - 1)
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    degrees = N - 2
    assert abs(chi_squared - degrees) < 5 * math.sqrt(2 * degrees)


def test_a_swap_takes_from_corrupted_and_visible_positions_alike(draws):
    positions, kinds, sources = draws
    corrupted = torch.zeros(COUNT, N, dtype=torch.bool).scatter_(1, positions, True)
    image, k = (kinds == 1).nonzero(as_tuple=True)
    among_corrupted = corrupted[image, sources[image, k]]
    assert within(int(among_corrupted.sum()), len(among_corrupted), (K - 1) / (N - 1))


def test_every_embedding_is_mask_another_s_or_its_own_bit_for_bit(small):
    objective, vit = small
    prediction, clean, corrupted = embeddings(objective, vit, random_pixels(64, SIZE), torch.arange(64))
    image = torch.arange(64)[:, None].expand_as(prediction.positions)
    at_positions = corrupted[image, prediction.positions]

    visible = torch.ones(64, N, dtype=torch.bool).scatter_(1, prediction.positions, False)
    assert torch.equal(corrupted[visible], clean[visible])
    kept = prediction.kinds == 2
    assert torch.equal(at_positions[kept], clean[image, prediction.positions][kept])
    masks = at_positions[prediction.kinds == 0]
    assert torch.equal(masks, masks[:1].expand_as(masks)), "one [mask] embedding for all"
    assert not (clean == masks[0]).all(-1).any()
    swap_sources(prediction, clean, corrupted)  # asserts that each is the clean embedding of one other position


def test_a_swap_takes_the_uncorrupted_embedding_even_from_a_corrupted_position():
    objective, vit = build(fraction=1.0, mask=0.5, swap=0.5, keep=0.0)
    prediction, clean, corrupted = embeddings(objective, vit, random_pixels(32, SIZE), torch.arange(32))
    assert prediction.positions.shape == (32, N)
    sources = swap_sources(prediction, clean, corrupted)
    taken_from = prediction.kinds.gather(1, sources.clamp(min=0))[prediction.kinds == 1]
    assert {0, 1} == set(taken_from.tolist()), "from masked and from swapped positions"


def test_the_mask_embedding_is_learnable_and_outside_the_encoder(small):
    objective, vit = small
    prediction, _, corrupted = embeddings(objective, vit, random_pixels(4, SIZE), torch.arange(4))
    image, k = (prediction.kinds == 0).nonzero(as_tuple=True)
    mask = corrupted[image[0], prediction.positions[image[0], k[0]]]
    inside = {id(parameter) for parameter in vit.parameters()}
    same = [p for p in objective.parameters() if p.numel() == mask.numel() and torch.equal(p.flatten(), mask)]
    assert len(same) == 1
    assert id(same[0]) not in inside
    objective.zero_grad()
    objective(random_pixels(4, SIZE), samples=torch.arange(4)).loss.backward()
    assert same[0].grad is not None
    assert same[0].grad.abs().max() > 0


def test_corruption_comes_before_the_position_embedding(small):
    objective, vit = small
    pixels, samples = random_pixels(4, SIZE), torch.arange(4)
    prediction, _, bare = embeddings(objective, vit, pixels, samples)
    with torch.no_grad(), inputs_of(vit.blocks[0]) as entered:
        again = objective(pixels, samples=samples)
    assert torch.equal(again.positions, prediction.positions)
    patch_positions = vit.pos_embed[:, -N:].detach()
    assert patch_positions.std() > 0
    assert torch.equal(entered[0][:, -N:], bare + patch_positions), "masked places keep their position embedding"


def test_only_the_places_drawn_are_replaced_and_prefix_tokens_never(small):
    objective, vit = small
    pixels = random_pixels(4, SIZE)
    with torch.no_grad(), without_positions(vit), inputs_of(vit.blocks[0]) as entered:
        objective(pixels, samples=torch.arange(4))
    assert torch.equal(entered[0][:, 0], vit.cls_token[:, 0].detach().expand(4, -1))


def test_pixels_are_normalised_by_one_affine_map_a_channel_and_not_changed(small):
    objective, vit = small
    pixels = torch.arange(256, dtype=torch.uint8).repeat(12).reshape(1, 3, 32, 32)
    before = pixels.clone()
    with torch.no_grad(), inputs_of(vit.patch_embed) as door:
        objective(pixels, samples=torch.arange(1))
    assert torch.equal(pixels, before)
    for channel in range(3):
        values = door[0][0, channel].flatten().double()
        table = torch.stack([values[pixels[0, channel].flatten() == v].unique() for v in range(256)]).flatten()
        straight = table[0] + (table[255] - table[0]) * torch.arange(256) / 255
        assert table[255] > table[0]
        assert (table - straight).abs().max() < 2e-6


def test_the_same_samples_are_corrupted_the_same_way_in_any_batch(small):
    objective, vit = small
    pixels = random_pixels(8, SIZE)
    samples = torch.tensor([3, 1_000_003, 0, 77, 2**31 + 5, 2**33 + 1, 12, 2**40])

    def corrupt(order):
        prediction, clean, corrupted = embeddings(objective, vit, pixels[order], samples[order])
        return prediction.positions, prediction.kinds, swap_sources(prediction, clean, corrupted)

    whole = corrupt(list(range(8)))
    for order in ([7, 2, 5, 0, 1, 6, 3, 4], [5], [4, 0], [6, 6, 6]):
        for expected, found in zip(whole, corrupt(order), strict=True):
            assert torch.equal(expected[order], found)


def test_corruption_does_not_depend_on_pixels_target_mode_or_torch_s_generator(small):
    objective, vit = small
    samples = torch.arange(100, 108)
    encoder = mpp.create_encoder("test_vit", image_size=SIZE, patch_size=PATCH)
    wider = mpp.create_encoder("vit_tiny_patch16_224", image_size=SIZE, patch_size=PATCH)
    expected, clean, corrupted = embeddings(objective, vit, random_pixels(8, SIZE), samples)
    sources = swap_sources(expected, clean, corrupted)
    others = [
        (objective, vit),
        build(encoder=encoder, target=mpp.FullPatch()),
        build(encoder=encoder, target=mpp.DownsizedPatch(bits=1)),
        build(encoder=wider),
    ]
    for number, (other, other_vit) in enumerate(others):
        torch.manual_seed(number)
        other.train(number % 2 == 0)
        found, clean, corrupted = embeddings(other, other_vit, random_pixels(8, SIZE, seed=9), samples)
        assert torch.equal(found.positions, expected.positions)
        assert torch.equal(found.kinds, expected.kinds)
        assert torch.equal(swap_sources(found, clean, corrupted), sources)


def test_seed_and_sample_both_count_and_are_not_added_up():
    encoder = mpp.create_encoder("test_vit", image_size=SIZE, patch_size=PATCH)
    samples = torch.tensor([0, 1, 2, 3, 2**32, 2**32 + 1, 2**33, 2**33 + 1, 2**40])
    seen = []
    for seed in (0, 1, 2, 2**20):
        objective, _ = build(encoder=encoder, seed=seed)
        with torch.no_grad():
            positions = objective(random_pixels(9, SIZE), samples=samples).positions
        seen += [tuple(row) for row in positions.tolist()]
    assert len(set(seen)) == len(seen) == 36


def test_without_samples_the_draw_is_torch_s_own(small):
    objective, _ = small
    pixels = random_pixels(4, SIZE)

    def draw():
        with torch.no_grad():
            prediction = objective(pixels)
        return prediction.positions, prediction.kinds, prediction.logits

    torch.manual_seed(5)
    first, second = draw(), draw()
    torch.manual_seed(5)
    repeated = draw()
    torch.manual_seed(6)
    other = draw()
    assert all(torch.equal(a, b) for a, b in zip(first, repeated, strict=True))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])
    assert len({tuple(row) for row in first[0].tolist()}) == 4, "every image has a draw of its own"


def test_without_samples_the_shares_hold_too(small):
    objective, _ = small
    torch.manual_seed(1)
    with torch.no_grad():
        prediction = objective(random_pixels(256, SIZE))
    assert prediction.positions.shape == (256, K)
    assert (prediction.positions.diff(dim=1) > 0).all()
    for kind, share in enumerate((0.8, 0.1, 0.1)):
        assert within(int((prediction.kinds == kind).sum()), 256 * K, share)


@pytest.mark.parametrize(
    "settings",
    [
        {"mask": 0.8, "swap": 0.1, "keep": 0.2},
        {"mask": 0.5, "swap": 0.1, "keep": 0.1},
        {"mask": 1.2, "swap": -0.1, "keep": -0.1},
        {"fraction": 1.5},
        {"fraction": -0.1},
        {"fraction": math.nan},
    ],
)
def test_impossible_shares_and_fractions_are_refused(settings):
    with pytest.raises(ValueError):  # noqa: PT011  the wording is free
        mpp.Corruption(**settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_float_pixels_are_refused_and_uint8_is_named(small, dtype):
    objective, _ = small
    with pytest.raises(ValueError, match="uint8") as refusal:
        objective(torch.rand(2, 3, SIZE, SIZE).to(dtype))
    assert str(dtype).removeprefix("torch.") in str(refusal.value)


@pytest.mark.parametrize(
    "shape",
    [(3, 32, 32), (2, 1, 32, 32), (2, 4, 32, 32), (2, 3, 32, 64), (2, 3, 16, 16), (2, 32, 32, 3)],
)
def test_wrongly_shaped_pixels_are_refused_with_found_and_expected(small, shape):
    objective, _ = small
    with pytest.raises(ValueError, match=str(SIZE)) as refusal:
        objective(torch.zeros(shape, dtype=torch.uint8))
    assert all(str(number) in str(refusal.value) for number in shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_draws_what_the_processor_draws():
    samples = torch.arange(1000) * 12345678901
    corruption, key = mpp.Corruption(), randomness.key(7, "corruption")
    here, there = (corruption.draw(key, samples.to(device), 196) for device in ("cpu", "cuda"))
    for left, right in zip(here, there, strict=True):
        assert torch.equal(left, right.cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_on_processors_the_faster_replacement_has_the_bits_of_autograds_own(dtype, transposed):
    torch.manual_seed(0)
    images, patches, width = 32, 16, 24
    # Few patches and many swaps: some rows are taken by several others, whose gradients are summed in an order.
    corruption = mpp.Corruption(fraction=0.75, mask=0.3, swap=0.6, keep=0.1)
    draw = corruption.draw(randomness.key(0, "test"), torch.arange(images), patches)
    first = torch.arange(images)[:, None] * patches
    sources = torch.where(draw.kinds == 1, draw.others, draw.positions) + first
    assert torch.bincount(sources[draw.kinds != 0]).max() > 2
    rows = (draw.positions + first).flatten(), sources.flatten(), (draw.kinds == 0).flatten()
    values = torch.randn(images, width, patches).transpose(1, 2) if transposed else torch.randn(images, patches, width)
    weights = torch.randn(images, patches, width).to(dtype)
    found = []
    for fast in (True, False):
        embeddings, token = values.to(dtype).requires_grad_(), torch.arange(width).to(dtype).requires_grad_()
        out = corrupt(embeddings, token, draw) if fast else replaced(embeddings, token, *rows)
        found.append((out, *torch.autograd.grad(out, (embeddings, token), weights)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
