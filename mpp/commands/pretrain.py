"""A pre-training run: what `mpp.pretrain` does once the recipe is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from mpp import randomness
from mpp.commands.preflight import about, about_network, check_patches, check_training
from mpp.commands.train_run import (
    Job,
    check_same_images,
    claim,
    is_finished,
    on_each,
    run_job,
    stopped,
    uses_fused_attention,
)
from mpp.data.loader import CACHE_BYTES, EvaluationCrops
from mpp.data.sources import Splits, open_splits
from mpp.data.table import ImageTable
from mpp.encoder.create import build_backbone, build_encoder
from mpp.encoder.pretrained import weights_digest_of
from mpp.evaluation.callback import in_training
from mpp.hub.background import BackgroundPush, check_token
from mpp.objective.baselines import label_baseline, masked_patch_baselines
from mpp.objective.classification import SupervisedClassification
from mpp.objective.masked_patch import MaskedPatchPrediction
from mpp.objective.settings import MaskedPatchSettings
from mpp.recipe import PretrainRecipe
from mpp.run_folder import FolderLock
from mpp.training.distributed import end_processes, on_main, start_processes
from mpp.training.metrics_log import read_metrics
from mpp.training.reconstruction import reconstructions
from mpp.training.signals import StopRequest
from mpp.training.state import Callback, Progress, Run
from mpp.training.validation import chosen_rows, on_device


def pretrain(recipe: PretrainRecipe, stop: StopRequest | None = None) -> int:
    """Run a recipe from wherever its folder stands; the exit code is 0, or that of the signal that stopped it.

    Args:
        recipe: of `mpp.pretrain`.
        stop: where a process does several things, of all of them.

    Raises:
        ValueError: for what the user can mend.
        RuntimeError: if the run could not go on.
    """
    stop = stop or StopRequest()  # before anything that takes time: it remembers who launched this process
    folder = Path(recipe.output_dir)
    accelerator = start_processes(recipe.training, folder=folder, trackers=recipe.journal.trackers)
    locks: list[FolderLock] = []  # held until the process ends
    checkpoint = on_main(accelerator, lambda: claim(recipe, folder, locks))
    if checkpoint is not None and is_finished(checkpoint) and (folder / "encoder" / "model.safetensors").is_file():
        if accelerator.is_main_process:
            print(f"{folder} is finished: {checkpoint.step} steps. Its encoder is {folder / 'encoder'}.\n"
                  "For another run choose another output_dir, or checkpoint.resume=false.")  # fmt: skip
        end_processes(accelerator)
        return 0

    check_training(recipe, accelerator, patches=isinstance(recipe.objective, MaskedPatchSettings))
    on_main(accelerator, lambda: check_token(recipe.hub))
    splits = prepare_data(recipe, accelerator)
    if checkpoint is not None:
        check_same_images(checkpoint, splits.train, recipe.data.source)
    source_weights = on_main(accelerator, lambda: weights_digest_of(recipe.encoder))
    objective = make_objective(recipe, splits.train).to(accelerator.device)
    held_out = EvaluationCrops(splits.validation, recipe.data, cache_bytes=CACHE_BYTES)
    held_out_rows = chosen_rows(held_out, recipe.validation.images, recipe.seed)
    baselines = checkpoint.state["baselines"] if checkpoint else on_main(
        accelerator, lambda: _baselines(recipe, objective, splits, held_out, held_out_rows)
    )  # fmt: skip
    objective.encoder.use_fused_attention(uses_fused_attention(recipe.encoder.attention, accelerator))
    job = Job(
        recipe=recipe,
        folder=folder,
        objective=objective,
        rows=splits.train,
        held_out=held_out,
        held_out_rows=held_out_rows,
        baselines=baselines,
        source_weights=source_weights,
    )
    if recipe.reconstructions.images and isinstance(objective, MaskedPatchPrediction):
        shown = held_out[held_out_rows[: recipe.reconstructions.images]]
        every = job.steps(recipe.reconstructions.every)
        job.callbacks.append(reconstructions(accelerator, shown, folder / "reconstructions", every=every))
    if recipe.evaluation.evaluators:
        every = job.steps(recipe.evaluation.every)
        job.callbacks.append(in_training(recipe.evaluation, accelerator, splits.train, recipe.data, every=every))
    pusher = None
    if recipe.hub.push_to is not None and accelerator.is_main_process:
        pusher = BackgroundPush(recipe.hub, folder, job.steps(recipe.training.duration))
        job.callbacks.append(Callback(job.steps(recipe.hub.every), pusher))
    run, progress = run_job(job, accelerator, stop, checkpoint)
    code = stopped(run, progress)
    if code is None and accelerator.is_main_process:
        _farewell(run, progress, folder, baselines)
    if code is None and pusher is not None:
        pusher.finish()
    end_processes(accelerator)
    return code or 0


def prepare_data(recipe: PretrainRecipe, accelerator: Accelerator) -> Splits:
    """The images to train on and to hold out; with labels where something needs them."""
    labelled = recipe.objective.kind == "supervised" or bool(recipe.evaluation.evaluators)
    with about("data", "source"):
        return on_each(accelerator, lambda: open_splits(recipe.data, recipe.seed, labelled=labelled))


def make_objective(recipe: PretrainRecipe, rows: ImageTable) -> MaskedPatchPrediction | SupervisedClassification:
    """The module to train; its random weights are decided by the seed."""
    low, high = randomness.key(recipe.seed, "weights")
    torch.manual_seed(low | high << 32)
    settings, size = recipe.objective, recipe.data.image_size
    if isinstance(settings, MaskedPatchSettings):
        with about_network(recipe.encoder):
            encoder = build_encoder(recipe.encoder, size)
        check_patches(settings, encoder)
        return MaskedPatchPrediction(encoder, settings.target, settings.corruption, recipe.seed, settings.head)
    assert rows.class_names is not None
    with about_network(recipe.encoder):
        encoder = build_backbone(recipe.encoder, size)
    return SupervisedClassification(
        encoder, len(rows.class_names), settings.head, settings.label_smoothing, settings.head_init
    )


def _baselines(
    recipe: PretrainRecipe, objective: nn.Module, splits: Splits, held_out: EvaluationCrops, held_out_rows: Any
) -> dict[str, float]:
    """What can be predicted without a network, measured on the rows that validation looks at."""
    if isinstance(objective, SupervisedClassification):
        labels = [torch.from_numpy(rows.labels) for rows in splits if rows.labels is not None]
        return label_baseline(labels[0], labels[1][held_out_rows], len(splits.train.class_names or ()))
    assert isinstance(objective, MaskedPatchPrediction)
    seen = EvaluationCrops(splits.train, recipe.data)
    rows = chosen_rows(seen, recipe.validation.baseline_images, recipe.seed)

    def images(crops: EvaluationCrops, chosen: Any) -> Any:
        return ((pixels, samples) for pixels, samples, _ in on_device(crops, chosen, 256, recipe.data.workers))

    return masked_patch_baselines(objective, images(seen, rows), images(held_out, held_out_rows))


def _farewell(run: Run, progress: Progress, folder: Path, baselines: dict[str, float]) -> None:
    """Say how it ended and what to do next."""
    images = progress.step * run.batch_plan.batch_size
    last = next((m for m in reversed(read_metrics(folder / "metrics.jsonl")) if "validation/loss" in m), {})
    loss = last.get("validation/loss_mask", last.get("validation/loss"))
    said = "not finite" if loss is None else f"{loss:.3f}"
    against = ", ".join(f"{BASELINES[name]} {value:.3f}" for name, value in baselines.items())
    subject = "loss on masked patches" if "validation/loss_mask" in last else "loss"
    print(
        f"\nfinished: {progress.step} steps, {images:,} images, {tqdm.format_interval(progress.seconds)}, "
        f"{images / progress.seconds:.0f} images/s\n"
        f"{subject}, held out: {said}\n"
        f"to be compared with: {against}\n"
        f"encoder: {folder / 'encoder'}\n"
        f'next: timm.create_model("local-dir:{folder / "encoder"}", pretrained=True)'
        + (f"\nlook at: {folder / last['reconstructions']}" if "reconstructions" in last else "")
    )


BASELINES = {"histogram": "histogram", "neighbours": "visible neighbours", "chance": "chance"}
