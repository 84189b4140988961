"""Prediction, loss and gradient, and that the objective leaves the encoder as it found it."""

import copy
import math
import pydoc
import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch

import mpp
from mpp.objective.scores import means
from tests.support.reference import (
    at,
    cross_entropy,
    embeddings,
    full_patch_labels,
    inputs_of,
    normalized_as_in_mae,
    outputs_of,
    random_pixels,
    scramble,
)

SIZE, PATCH, N, K = 32, 4, 64, 32
TARGETS = {
    "mean colour": mpp.MeanColor(bits=3),
    "downsized": mpp.DownsizedPatch(cells=4, bits=2),
    "full patch": mpp.FullPatch(),
    "normalised": mpp.FullPatch(normalize=True),
}


def build(target=TARGETS["mean colour"], encoder=None, seed=0, **corruption):
    torch.manual_seed(0)
    encoder = encoder or mpp.create_encoder("test_vit", image_size=SIZE, patch_size=PATCH)
    objective = mpp.MaskedPatchPrediction(encoder, target=target, corruption=mpp.Corruption(**corruption), seed=seed)
    scramble(objective, encoder.vit)
    return objective, encoder


@pytest.mark.parametrize("target", [TARGETS["mean colour"], TARGETS["downsized"]], ids=["mean colour", "downsized"])
def test_loss_is_the_mean_cross_entropy_over_corrupted_patches_and_cells(target):
    objective, _ = build(target)
    prediction = objective(random_pixels(8, SIZE), samples=torch.arange(8))
    assert prediction.loss.shape == ()
    assert prediction.loss.dtype == torch.float32
    expected = cross_entropy(prediction.logits, prediction.labels)
    assert float(prediction.loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["mean colour", "downsized"])
def test_scores_are_the_losses_by_kind_and_the_share_of_cells_that_are_right(name: str):
    objective, _ = build(TARGETS[name])
    pixels = random_pixels(8, SIZE)
    prediction = objective(pixels, samples=torch.arange(8))
    prediction.logits[0, :5].scatter_(-1, prediction.labels[0, :5, ..., None], 1e3)  # some that are right
    found = objective.summary(means(objective.scores(prediction, pixels)))
    assert found["loss"] == pytest.approx(cross_entropy(prediction.logits, prediction.labels), rel=1e-6)
    for kind, part in enumerate(("loss_mask", "loss_swap", "loss_keep")):
        chosen = prediction.kinds == kind
        expected = cross_entropy(prediction.logits[chosen], prediction.labels[chosen])
        assert found[part] == pytest.approx(expected, rel=1e-6), part
    right = prediction.logits.detach().numpy().argmax(-1) == prediction.labels.numpy()
    assert right.mean() >= 5 / 256
    assert found["accuracy"] == pytest.approx(right.mean(), rel=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_psnr_is_of_the_clipped_pixels(normalize: bool):
    objective, _ = build(mpp.FullPatch(normalize=normalize))
    pixels = random_pixels(8, SIZE)
    prediction = objective(pixels, samples=torch.arange(8))
    prediction = prediction._replace(logits=5 * prediction.logits)  # far outside the range
    truth = at(full_patch_labels(pixels.numpy(), PATCH), prediction.positions)
    guess = prediction.logits.detach().double().numpy()
    if normalize:  # shown with the true patch's mean and deviation, as MAE does
        guess = guess * np.sqrt(truth.var(-1, ddof=1, keepdims=True) + 1e-6) + truth.mean(-1, keepdims=True)
    assert guess.min() < -0.1
    assert guess.max() > 1.1
    expected = -10 * math.log10(float(np.mean((guess.clip(0, 1) - truth) ** 2)))
    assert objective.summary(means(objective.scores(prediction, pixels)))["psnr"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("kind", "activation"), [("mlp", "GELU"), ("pre_logits", "Tanh")])
def test_the_two_layers_of_a_head_have_an_activation_between_them(kind: str, activation: str):
    encoder = mpp.create_encoder("test_vit", image_size=SIZE, patch_size=PATCH)
    head: Any = mpp.MaskedPatchPrediction(encoder, head=kind).head
    assert [type(layer).__name__ for layer in head] == ["Linear", activation, "Linear"]
    assert [head[0].in_features, head[0].out_features, head[2].in_features, head[2].out_features] == [64, 64, 64, 512]


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_of_the_full_patch_is_the_mean_squared_error(normalize):
    objective, _ = build(mpp.FullPatch(normalize=normalize))
    pixels = random_pixels(8, SIZE)
    prediction = objective(pixels, samples=torch.arange(8))
    expected = full_patch_labels(pixels.numpy(), PATCH)
    expected = at(normalized_as_in_mae(expected) if normalize else expected, prediction.positions)
    squared = (prediction.logits.detach().double().numpy() - expected) ** 2
    assert prediction.logits.shape == expected.shape == (8, K, 3 * PATCH**2)
    assert float(prediction.loss.detach()) == pytest.approx(float(np.mean(squared)), rel=2e-6)


@pytest.mark.parametrize("name", TARGETS)
def test_loss_stays_float32_under_bfloat16(name):
    objective, _ = build(TARGETS[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = objective(random_pixels(4, SIZE), samples=torch.arange(4))
    assert prediction.loss.dtype == torch.float32
    logits, labels = prediction.logits.detach().float(), prediction.labels
    if labels.is_floating_point():
        assert labels.dtype == torch.float32
        expected = float(((logits.double() - labels.double()) ** 2).mean())
    else:
        expected = cross_entropy(logits, labels)
    assert float(prediction.loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.03)], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_a_module_of_another_type_gives_the_same_loss_up_to_its_precision(name, dtype, tolerance):
    objective, _ = build(TARGETS[name])
    pixels, samples = random_pixels(8, SIZE), torch.arange(8)
    expected = objective(pixels, samples=samples)
    other = copy.deepcopy(objective).to(dtype)
    found = other(pixels, samples=samples)
    assert torch.equal(found.positions, expected.positions)
    assert torch.equal(found.labels, expected.labels)
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=tolerance)
    found.loss.backward()
    gradients = [p.grad for p in other.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == dtype and g.isfinite().all() for g in gradients)


def test_corruption_and_labels_are_the_same_under_bfloat16():
    objective, _ = build()
    pixels, samples = random_pixels(4, SIZE), torch.arange(4)
    full = objective(pixels, samples=samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective(pixels, samples=samples)
    for field in ("positions", "kinds", "labels"):
        assert torch.equal(getattr(full, field), getattr(half, field))


def test_kept_patches_are_predicted_too():
    objective, _ = build(mask=0.0, swap=0.0, keep=1.0)
    prediction = objective(random_pixels(4, SIZE), samples=torch.arange(4))
    assert (prediction.kinds == 2).all()
    assert prediction.logits.shape == (4, K, 512)
    assert float(prediction.loss.detach()) == pytest.approx(
        cross_entropy(prediction.logits, prediction.labels), rel=1e-6
    )


def test_each_prediction_is_a_linear_map_of_its_own_final_token():
    objective, encoder = build()
    with torch.no_grad(), outputs_of(encoder.vit.norm) as final:
        prediction = objective(random_pixels(32, SIZE), samples=torch.arange(32))
    tokens = final[0][:, encoder.vit.num_prefix_tokens :].double()

    def misfit(shift):
        places = ((prediction.positions + shift) % N)[..., None].expand(-1, -1, tokens.shape[-1])
        rows = tokens.gather(1, places).reshape(-1, tokens.shape[-1]).numpy()
        rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        logits = prediction.logits.double().reshape(len(rows), -1).numpy()
        solution = np.linalg.lstsq(rows, logits, rcond=None)[0]
        return np.abs(rows @ solution - logits).max() / np.abs(logits).max()

    assert misfit(0) < 1e-5
    assert misfit(1) > 1e-2, "the fit would notice tokens of other places"


@pytest.mark.parametrize("name", TARGETS)
def test_only_corrupted_positions_get_a_gradient_through_the_head(name):
    objective, encoder = build(TARGETS[name])
    with outputs_of(encoder.vit.norm) as final:
        prediction = objective(random_pixels(4, SIZE), samples=torch.arange(4))
    final[0].retain_grad()
    prediction.loss.backward()
    has_gradient = final[0].grad.abs().amax(-1) > 0
    prefix = encoder.vit.num_prefix_tokens
    expected = torch.zeros_like(has_gradient).scatter_(1, prediction.positions + prefix, True)
    assert torch.equal(has_gradient, expected)


def test_the_class_token_learns_through_attention_alone():
    objective, encoder = build()
    objective(random_pixels(4, SIZE), samples=torch.arange(4)).loss.backward()
    assert encoder.vit.cls_token.grad.abs().max() > 0


def test_with_nothing_changed_the_encoder_is_timm_s_forward_features():
    objective, encoder = build(mask=0.0, swap=0.0, keep=1.0)
    with torch.no_grad():
        with inputs_of(encoder.vit.patch_embed) as door, outputs_of(encoder.vit.norm) as final:
            objective(random_pixels(4, SIZE), samples=torch.arange(4))
        assert torch.equal(final[0], encoder.vit.forward_features(door[0]))


def test_corruption_does_change_what_the_encoder_sees():
    objective, encoder = build()
    with torch.no_grad():
        with inputs_of(encoder.vit.patch_embed) as door, outputs_of(encoder.vit.norm) as final:
            objective(random_pixels(4, SIZE), samples=torch.arange(4))
        assert not torch.equal(final[0], encoder.vit.forward_features(door[0]))


def test_evaluation_mode_is_corrupted_alike():
    objective, _ = build()
    pixels, samples = random_pixels(4, SIZE), torch.arange(4)
    training = objective.train()(pixels, samples=samples).logits
    assert torch.equal(training, objective.eval()(pixels, samples=samples).logits)


def test_class_labels_are_accepted_and_change_nothing():
    objective, _ = build()
    pixels, samples = random_pixels(4, SIZE), torch.arange(4)
    plain = objective(pixels, samples=samples)
    labelled = objective(pixels, samples=samples, labels=torch.tensor([3, 1, 2, 0]))
    assert torch.equal(plain.loss, labelled.loss)
    assert torch.equal(plain.labels, labelled.labels)


def test_the_encoder_stays_clean_through_forward_backward_and_errors():
    torch.manual_seed(0)
    encoder = mpp.create_encoder("test_vit", image_size=SIZE, patch_size=PATCH)
    images = torch.randn(2, 3, SIZE, SIZE)
    expected = encoder.vit(images).detach()
    objective, _ = build(encoder=encoder)
    assert torch.equal(encoder.vit(images), expected)
    objective(random_pixels(2, SIZE), samples=torch.arange(2)).loss.backward()
    assert torch.equal(encoder.vit(images), expected)

    def explode(*_):
        raise RuntimeError("in the middle of the encoder")

    handle = encoder.vit.blocks[2].register_forward_pre_hook(explode)
    with pytest.raises(RuntimeError, match="in the middle"):
        objective(random_pixels(2, SIZE), samples=torch.arange(2))
    handle.remove()
    assert torch.equal(encoder.vit(images), expected)
    with pytest.raises(ValueError, match="uint8"):
        objective(torch.rand(2, 3, SIZE, SIZE))
    assert torch.equal(encoder.vit(images), expected)


def test_what_are_no_pixels_or_sample_numbers_is_refused_for_what_it_is():
    objective, _ = build()
    with pytest.raises(ValueError, match=r"torch tensor, found ndarray"):
        objective(np.zeros((1, 3, SIZE, SIZE), np.uint8))
    with pytest.raises(ValueError, match=r"sample numbers must be integers, found torch.float32"):
        objective(random_pixels(2, SIZE), samples=torch.arange(2.0))


def test_sample_numbers_may_be_any_integers_in_a_row():
    objective, _ = build()
    pixels = random_pixels(4, SIZE)
    wanted = objective(pixels, samples=torch.arange(4)).positions
    for samples in ([0, 1, 2, 3], range(4), np.arange(4, dtype=np.int32)):
        assert torch.equal(objective(pixels, samples=samples).positions, wanted)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"encoder": timm.create_model("test_vit")}, "create_encoder or mpp.load_encoder, found VisionTransformer"),
        ({"encoder": "test_vit"}, "create_encoder or mpp.load_encoder, found str"),
        ({"target": "mean_color"}, "target must be .* found 'mean_color'"),
        ({"corruption": 0.5}, "corruption must be .* found 0.5"),
    ],
)
def test_arguments_of_other_kinds_are_refused_for_what_they_are(arguments, said: str):
    encoder = mpp.create_encoder("test_vit", image_size=SIZE, patch_size=PATCH)
    with pytest.raises(ValueError, match=said):
        mpp.MaskedPatchPrediction(**{"encoder": encoder, **arguments})


def test_an_unknown_head_is_refused_with_the_known_ones():
    encoder = mpp.create_encoder("test_vit", image_size=SIZE, patch_size=PATCH)
    with pytest.raises(ValueError, match=r"head must be linear, mlp, pre_logits; found 'conv'"):
        mpp.MaskedPatchPrediction(encoder, head="conv")


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5,), (4, 1), (0,)], ids=str)
def test_samples_of_another_number_than_the_images_are_refused(shape):
    objective, _ = build()
    pixels, samples = random_pixels(4, SIZE), torch.arange(4)
    before = objective(pixels, samples=samples).logits
    with pytest.raises(ValueError, match="4 images"):
        objective(pixels, samples=torch.zeros(shape, dtype=torch.int64))
    assert torch.equal(objective(pixels, samples=samples).logits, before)


@pytest.mark.parametrize("samples", [None, torch.arange(0)], ids=["drawn", "given"])
def test_a_batch_without_images_is_refused(samples):
    objective, _ = build()
    with pytest.raises(ValueError, match=r"\(0, 3, 32, 32\)"):
        objective(random_pixels(4, SIZE)[:0], samples=samples)


def test_two_objectives_on_one_encoder_do_not_stack():
    first, encoder = build(mask=1.0, swap=0.0, keep=0.0)
    pixels, samples = random_pixels(4, SIZE), torch.arange(4)
    alone, clean, corrupted_alone = embeddings(first, encoder.vit, pixels, samples)
    second, _ = build(encoder=encoder, seed=1, mask=1.0, swap=0.0, keep=0.0)
    other, _, corrupted_other = embeddings(second, encoder.vit, pixels, samples)
    again, _, corrupted_again = embeddings(first, encoder.vit, pixels, samples)
    assert torch.equal(alone.logits, again.logits)
    assert torch.equal(corrupted_alone, corrupted_again)
    assert not torch.equal(alone.positions, other.positions)
    replaced = (corrupted_other != clean).any(-1)
    assert torch.equal(replaced, torch.zeros_like(replaced).scatter_(1, other.positions, True))


def test_graphs_of_two_objectives_may_be_open_at_once():
    first, encoder = build()
    second, _ = build(mpp.FullPatch(), encoder=encoder, seed=1)
    pixels, samples = random_pixels(4, SIZE), torch.arange(4)

    def gradient(*losses):
        encoder.vit.zero_grad()
        sum(losses).backward()
        return encoder.vit.patch_embed.proj.weight.grad.clone()

    together = gradient(first(pixels, samples=samples).loss, second(pixels, samples=samples).loss)
    one, two = gradient(first(pixels, samples=samples).loss), gradient(second(pixels, samples=samples).loss)
    assert (together - one - two).abs().max() < 1e-5 * together.abs().max()


def test_a_deep_copy_has_an_encoder_of_its_own():
    objective, encoder = build()
    pixels, samples = random_pixels(4, SIZE), torch.arange(4)
    expected = objective(pixels, samples=samples).logits
    twin = copy.deepcopy(objective)
    assert torch.equal(twin(pixels, samples=samples).logits, expected)
    twin_vit = next(module for module in twin.modules() if type(module) is type(encoder.vit))
    assert twin_vit is not encoder.vit
    with torch.no_grad():
        twin_vit.patch_embed.proj.weight.mul_(-3)
    assert torch.equal(objective(pixels, samples=samples).logits, expected)
    assert not torch.equal(twin(pixels, samples=samples).logits, expected)


def test_training_moves_the_encoder_and_the_loss_falls():
    objective, encoder = build()
    before = encoder.vit.patch_embed.proj.weight.detach().clone()
    pixels = torch.full((8, 3, SIZE, SIZE), 40, dtype=torch.uint8)
    pixels[4:] = 200
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    first = None
    for step in range(40):
        loss = objective(pixels, samples=torch.arange(8 * step, 8 * step + 8)).loss
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < first / 4
    assert not torch.equal(encoder.vit.patch_embed.proj.weight, before)


def test_a_prediction_is_shown_by_its_loss_and_shapes():
    objective, _ = build(mpp.MeanColor())
    prediction = objective(random_pixels(2, SIZE), samples=torch.arange(2))
    count = prediction.positions.shape[1]
    loss = f"{float(prediction.loss):.4f}"
    assert repr(prediction) == (
        f"Prediction(loss={loss}, logits=float32 (2, {count}, 512), labels=int64 (2, {count}), "
        f"positions=int64 (2, {count}), kinds=int64 (2, {count}))"
    )
    assert "corrupted patches" in pydoc.render_doc(type(prediction))


def test_cells_as_many_as_pixels_are_warned_of():
    encoder = mpp.create_encoder("test_vit", image_size=SIZE, patch_size=PATCH)
    with pytest.warns(UserWarning, match="nothing is downsized"):
        mpp.MaskedPatchPrediction(encoder, mpp.DownsizedPatch(cells=PATCH))
    with warnings.catch_warnings(action="error"):
        mpp.MaskedPatchPrediction(encoder, mpp.DownsizedPatch(cells=PATCH // 2))
