"""A pre-training run, put together from its rooms: what `mpp.pretrain` does once the recipe is read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from mpp import randomness
from mpp.data.images import Images
from mpp.data.loader import EvaluationCrops, TrainingCrops
from mpp.data.order import share
from mpp.data.source import ImageRows, Splits, open_splits
from mpp.encoder.build import build_encoder
from mpp.encoder.export import export_encoder
from mpp.encoder.vit import Encoder
from mpp.objective.baselines import label_baseline, masked_patch_baselines
from mpp.objective.masked_patch import MaskedPatchPrediction
from mpp.objective.settings import MaskedPatchSettings
from mpp.objective.supervised import SupervisedClassification
from mpp.recipe import PretrainRecipe, differences, write_recipe
from mpp.report.reconstruction import reconstructions
from mpp.training.checkpoint import Checkpoint, Checkpoints
from mpp.training.journal import Journal, read_metrics
from mpp.training.launch import FolderLock, move_aside, on_main, precision, start_processes
from mpp.training.loop import Progress, Run, train
from mpp.training.optimizer import learning_rate, make_optimizer
from mpp.training.signals import StopRequest, exit_code
from mpp.training.speed import flops_per_image, peak_flops
from mpp.training.validation import chosen_rows, on_device, validation

MAY_CHANGE = ("output_dir", "data.workers", "data.cache", "training.micro_batch_size", "training.compile",
              "journal.", "checkpoint.")  # fmt: skip
"""What may differ between a run and its resumption: nothing that decides which weights come out."""


def pretrain(recipe: PretrainRecipe) -> int:
    """Run a recipe from wherever its folder stands; the exit code is 0, or that of the signal that stopped it.

    Raises:
        ValueError: for what the user can mend.
        RuntimeError: if the run could not go on.
    """
    stop = StopRequest()  # before anything that takes time: it remembers who launched this process
    folder = Path(recipe.output_dir)
    accelerator = start_processes(recipe.training, folder=folder, trackers=recipe.journal.trackers)
    locks: list[FolderLock] = []  # held until the process ends
    checkpoint = on_main(accelerator, lambda: _claim(recipe, folder, locks))
    if checkpoint is not None and checkpoint.step == checkpoint.state["steps"]:
        if accelerator.is_main_process:
            print(f"{folder} is finished: {checkpoint.step} steps. Its encoder is {folder / 'encoder'}.\n"
                  "For another run choose another output_dir, or checkpoint.resume=false.")  # fmt: skip
        return 0

    splits = prepare_data(recipe, accelerator, checkpoint)
    part = share(recipe.training.batch_size, recipe.training.micro_batch_size,
                 rank=accelerator.process_index, processes=accelerator.num_processes)  # fmt: skip
    rows = len(splits.train)

    def steps_of(duration: Any) -> int:
        return duration.in_steps(batch_size=recipe.training.batch_size, rows=rows)

    steps = steps_of(recipe.training.duration)
    if steps == 0:
        raise ValueError("training.duration is 0 steps long: there is nothing to train")
    objective = make_objective(recipe, splits.train)
    encoder: Encoder = objective.encoder  # pyright: ignore[reportAssignmentType]
    objective.to(accelerator.device)
    crops = TrainingCrops(Images(splits.train, cache=recipe.data.cache), recipe.data, recipe.seed)
    held_out = EvaluationCrops(Images(splits.validation), recipe.data)
    held_out_rows = chosen_rows(held_out, recipe.validation.images, recipe.seed)
    baselines = checkpoint.state["baselines"] if checkpoint else on_main(
        accelerator, lambda: _baselines(recipe, objective, splits, held_out, held_out_rows)
    )  # fmt: skip
    encoder.use_fused_attention(uses_fused_attention(recipe, accelerator))
    flops = _probe(objective, crops, accelerator)
    if recipe.training.gradient_checkpointing:
        encoder.vit.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]

    optimizer = make_optimizer(objective, recipe.optimizer)
    on_main(accelerator, lambda: _begin(recipe, folder))
    step = checkpoint.step if checkpoint else 0
    journal = Journal(folder / "metrics.jsonl", accelerator, steps=steps, step=step)
    if recipe.journal.trackers:
        accelerator.init_trackers("mpp", config=_flat(recipe.model_dump(mode="json")))
    warmup = steps_of(recipe.optimizer.warmup)
    if warmup >= steps:
        journal.say(f"optimizer.warmup of {warmup} steps is as long as the run; it is shortened to {steps // 10}")
        warmup = steps // 10
    callbacks = [
        validation(accelerator, held_out, held_out_rows, batch_size=part.micro_batch_size,
                   baselines=baselines, every=steps_of(recipe.validation.every))
    ]  # fmt: skip
    if recipe.reconstructions.images and isinstance(objective, MaskedPatchPrediction):
        shown = held_out[held_out_rows[: recipe.reconstructions.images]]
        every = steps_of(recipe.reconstructions.every)
        callbacks.append(reconstructions(accelerator, shown, folder / "reconstructions", every=every))
    run = Run(
        objective=objective,
        crops=crops,
        share=part,
        steps=steps,
        seed=recipe.seed,
        optimizer=optimizer,
        learning_rate=learning_rate(
            recipe.optimizer, steps=steps, warmup=warmup, batch_size=recipe.training.batch_size
        ),
        accelerator=accelerator,
        checkpoints=Checkpoints(folder / "checkpoints", recipe.checkpoint.keep),
        journal=journal,
        stop=stop,
        callbacks=callbacks,
        log_every=steps_of(recipe.journal.every),
        save_every=steps_of(recipe.checkpoint.every),
        before_save=lambda: export_encoder(
            encoder, folder / "encoder", interpolation=recipe.data.interpolation, crop_pct=recipe.data.crop_pct
        ),
        state={
            "steps": steps,
            "recipe": recipe.model_dump(mode="json"),
            "data": _content(splits.train),
            "baselines": baselines,
        },
        workers=recipe.data.workers,
        compile=recipe.training.compile,
        clip_grad=recipe.training.clip_grad,
        max_skipped=recipe.training.max_skipped,
        max_bad_share=recipe.data.max_bad_share,
        flops_per_image=flops,
        peak_flops=peak_flops(accelerator.device, getattr(torch, precision(recipe.training))),
    )
    _greet(recipe, run, encoder, rows, checkpoint)
    stop.listen()
    try:
        progress = train(run, checkpoint)
    finally:
        journal.close()
    accelerator.end_training()
    return _farewell(run, progress, folder, baselines)


def _claim(recipe: PretrainRecipe, folder: Path, locks: list[FolderLock]) -> Checkpoint | None:
    """Lock the run's folder, and find where to go on from. Nothing in it is changed yet.

    Raises:
        ValueError: if the folder is in use, or holds a run of another recipe.
        CheckpointError: if it holds checkpoints, but none that is whole.
    """
    locks.append(FolderLock(folder))
    if not recipe.checkpoint.resume:
        return None
    checkpoint = Checkpoints(folder / "checkpoints", recipe.checkpoint.keep).newest(print)
    if checkpoint is not None:
        try:
            before = PretrainRecipe.model_validate(checkpoint.state["recipe"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{checkpoint.folder} was written by another version of this package, whose recipe cannot be compared; "
                "go on with that version, choose another output_dir, or start afresh with checkpoint.resume=false"
            ) from error
        changed = [d for d in differences(before, recipe) if not d[0].startswith(MAY_CHANGE)]
        if changed:
            listed = "\n".join(f"  {path}: {old!r} then, {new!r} now" for path, old, new in changed)
            raise ValueError(
                f"{folder} holds a run at step {checkpoint.step} of another recipe:\n{listed}\n"
                "give the same settings to go on with it, choose another output_dir, or start afresh with "
                "checkpoint.resume=false"
            )
    return checkpoint


def _begin(recipe: PretrainRecipe, folder: Path) -> None:
    """Make the folder this run's own, now that everything else was found to be good."""
    if not recipe.checkpoint.resume and (aside := move_aside(folder)):
        print(f"starting afresh: what was in {folder} lies in {aside} now")
    write_recipe(recipe, folder / "recipe.yaml")


def prepare_data(recipe: PretrainRecipe, accelerator: Accelerator, checkpoint: Checkpoint | None) -> Splits:
    """Open the data: first in one process, which may have to prepare it for all."""

    def open_() -> Splits:
        return open_splits(recipe.data, recipe.seed, labelled=recipe.objective.kind == "supervised")

    on_main(accelerator, lambda: open_() and None)
    splits = open_()
    if checkpoint is not None and (now := _content(splits.train)) != (then := checkpoint.state["data"]):
        raise ValueError(
            f"the images of {recipe.data.source} are not those that the run began with: "
            f"{then['rows']} rows then, {now['rows']} now"
            + ("; the rows themselves differ" if then["rows"] == now["rows"] else "")
        )
    return splits


def _content(rows: ImageRows) -> dict[str, Any]:
    """What identifies the training images wherever they lie: how many, and a few of them to the last byte."""
    digest = hashlib.sha256()
    for row in {0, len(rows) // 3, len(rows) // 2, len(rows) - 1}:
        try:
            digest.update(rows.encoded(row))
        except (ValueError, OSError):
            digest.update(b"unreadable")
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def make_objective(recipe: PretrainRecipe, rows: ImageRows) -> MaskedPatchPrediction | SupervisedClassification:
    """The module to train; its random weights are decided by the seed."""
    low, high = randomness.key(recipe.seed, "weights")
    torch.manual_seed(low | high << 32)
    encoder = build_encoder(recipe.encoder, recipe.data.image_size)
    settings = recipe.objective
    if isinstance(settings, MaskedPatchSettings):
        return MaskedPatchPrediction(encoder, settings.target, settings.corruption, recipe.seed, settings.head)
    assert rows.class_names is not None
    return SupervisedClassification(encoder, len(rows.class_names), settings.head, settings.label_smoothing)


def _baselines(
    recipe: PretrainRecipe, objective: nn.Module, splits: Splits, held_out: EvaluationCrops, held_out_rows: Any
) -> dict[str, float]:
    """What can be predicted without a network, measured on the rows that validation looks at."""
    if isinstance(objective, SupervisedClassification):
        labels = [torch.from_numpy(rows.labels) for rows in splits if rows.labels is not None]
        return label_baseline(labels[0], labels[1][held_out_rows], len(splits.train.class_names or ()))
    assert isinstance(objective, MaskedPatchPrediction)
    seen = EvaluationCrops(Images(splits.train), recipe.data)
    rows = chosen_rows(seen, recipe.validation.baseline_images, recipe.seed)

    def images(crops: EvaluationCrops, chosen: Any) -> Any:
        return ((pixels, samples) for pixels, samples, _ in on_device(crops, chosen, 256))

    return masked_patch_baselines(objective, images(seen, rows), images(held_out, held_out_rows))


def _probe(objective: nn.Module, crops: TrainingCrops, accelerator: Accelerator) -> float:
    """Operations of one training image, counted on one."""
    size = crops.settings.image_size
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=accelerator.device)
    return flops_per_image(objective, pixels, torch.zeros(1, dtype=torch.int64, device=accelerator.device))


def uses_fused_attention(recipe: PretrainRecipe, accelerator: Accelerator) -> bool:
    """Whether to train with the fused attention kernel, which is slower than plain products on processors."""
    choice = recipe.encoder.attention
    return accelerator.device.type == "cuda" if choice == "auto" else choice == "fused"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, which is all that trackers take."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def _greet(recipe: PretrainRecipe, run: Run, encoder: Encoder, rows: int, checkpoint: Checkpoint | None) -> None:
    """Say what is about to run, on what."""
    parameters = sum(parameter.numel() for parameter in encoder.vit.parameters()) / 1e6
    layout, accelerator = encoder.layout, run.accelerator
    processes = f"{accelerator.num_processes} × " if accelerator.num_processes > 1 else ""
    start = f"from step {checkpoint.step}" if checkpoint else "from the start"
    run.journal.say(
        f"{encoder.name}, {parameters:.1f} M parameters, {layout.image_size} px, patch {layout.patch_size}: "
        f"{encoder.num_patches} patches\n"
        f"{recipe.data.source}, {rows:,} images; {run.steps:,} steps of {run.share.batch_size}, {start}\n"
        f"{processes}{accelerator.device.type}, {precision(recipe.training)}; all of it goes to {recipe.output_dir}"
    )


def _farewell(run: Run, progress: Progress, folder: Path, baselines: dict[str, float]) -> int:
    """Say how it ended and how to go on; the exit code."""
    main = run.accelerator.is_main_process
    if progress.step < run.steps:
        number = run.stop.asked() or 15
        if main:
            print(f"stopped after step {progress.step} of {run.steps}, saved.")
            print("Give the same command again to go on from there.")
        return exit_code(number)
    if not main:
        return 0
    images = progress.step * run.share.batch_size
    last = next((m for m in reversed(read_metrics(folder / "metrics.jsonl")) if "validation/loss" in m), {})
    loss = last.get("validation/loss_mask", last.get("validation/loss", float("nan")))
    against = ", ".join(f"{BASELINES[name]} {value:.3f}" for name, value in baselines.items())
    subject = "loss on masked patches" if "validation/loss_mask" in last else "loss"
    print(
        f"\nfinished: {progress.step} steps, {images:,} images, {tqdm.format_interval(progress.seconds)}, "
        f"{images / progress.seconds:.0f} images/s\n"
        f"{subject}, held out: {loss:.3f}\n"
        f"to be compared with: {against}\n"
        f"encoder: {folder / 'encoder'}\n"
        f'next: timm.create_model("local-dir:{folder / "encoder"}", pretrained=True)'
        + (f"\nlook at: {folder / last['reconstructions']}" if "reconstructions" in last else "")
    )
    return 0


BASELINES = {"histogram": "histogram", "neighbours": "visible neighbours", "chance": "chance"}
