"""A training run put together from its rooms: what pre-training and fine-tuning share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from mpp.commands.preflight import about
from mpp.data.loader import EvaluationCrops, TrainingCrops
from mpp.data.sampler import Numbers, plan_batches
from mpp.data.table import ImageTable
from mpp.encoder.backbone import Backbone
from mpp.encoder.export import export_encoder
from mpp.encoder.pretrained import weights_digest_of
from mpp.recipe import differences, write_recipe
from mpp.run_folder import FolderLock, move_aside
from mpp.settings import Duration, SettingError, Settings
from mpp.training.augmentation import Augmentation
from mpp.training.checkpoint import Checkpoint, CheckpointError, Checkpoints
from mpp.training.distributed import adopt_statistics, on_main, precision
from mpp.training.flops import flops_per_image, hardware, peak_flops
from mpp.training.metrics_log import Journal
from mpp.training.optimizer import learning_rate, make_optimizer
from mpp.training.signals import StopRequest, exit_code
from mpp.training.state import Callback, EarlyStopping, Progress, Run
from mpp.training.trainer import train
from mpp.training.validation import validation

MAY_CHANGE = ("output_dir", "data.workers", "data.cache", "training.micro_batch_size", "training.compile",
              "journal.", "checkpoint.", "hub.")  # fmt: skip
"""What may differ between a run and its resumption: nothing that decides which weights come out."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, where."""

    recipe: Any
    """Of a command that trains: with seed, data, optimizer, training, validation, checkpoint and journal."""
    folder: Path
    objective: nn.Module
    """With its network as `encoder`."""
    rows: ImageTable
    """To train on."""
    held_out: EvaluationCrops | None
    """To look at during training."""
    held_out_rows: Numbers | None
    baselines: dict[str, float] = field(default_factory=dict)
    callbacks: list[Callback] = field(default_factory=list)
    """Besides the look at the held-out images."""
    augmentation: Augmentation | None = None
    early_stopping: EarlyStopping | None = None
    about: str = ""
    """What the data is, for a person."""
    source_weights: str | None = None
    """What `weights_digest_of` said of the encoder before it was built."""

    @property
    def encoder(self) -> Backbone:
        """The network inside the objective."""
        encoder = self.objective.encoder
        assert isinstance(encoder, Backbone)
        return encoder

    def steps(self, duration: Duration) -> int:
        """A duration of the recipe in optimiser steps."""
        return duration.in_steps(batch_size=self.recipe.training.batch_size, rows=len(self.rows))


def claim(recipe: Any, folder: Path, locks: list[FolderLock]) -> Checkpoint | None:
    """Lock a run's folder, and find where to go on from. Nothing in it is changed yet.

    Raises:
        ValueError: if the folder is in use, or holds a run of another recipe.
        CheckpointError: if it holds checkpoints, but none that is whole.
    """
    locks.append(FolderLock(folder))
    return stands(recipe, folder) if recipe.checkpoint.resume else None


def stands(recipe: Any, folder: Path) -> Checkpoint | None:
    """The newest good checkpoint of a folder, which has to be of this recipe and to have begun with its weights.

    Raises:
        ValueError: if the folder holds a run of another recipe, or one that began with other weights.
        CheckpointError: if it holds checkpoints, but none that is whole.
    """
    checkpoint = Checkpoints(folder / "checkpoints", recipe.checkpoint.keep).newest(print)
    if checkpoint is None:
        if (folder / "encoder" / "model.safetensors").is_file():
            raise CheckpointError(
                f"{folder} holds the encoder of a run, but {folder / 'checkpoints'} has no checkpoint to go on from: "
                "restore one, start afresh with checkpoint.resume=false, or choose another output_dir"
            )
        return None
    schema: type[Settings] = type(recipe)
    try:
        before = schema.model_validate(checkpoint.state["recipe"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{checkpoint.folder} was written by another version of this package, or by another command, whose recipe "
            "cannot be compared; go on with that one, choose another output_dir, or start afresh with "
            "checkpoint.resume=false"
        ) from error
    refuse_changes(before, recipe, f"{folder} holds a run at step {checkpoint.step} of another recipe")
    check_same_weights(checkpoint.state.get("source_weights"), recipe, folder)
    return checkpoint


def refuse_changes(before: Settings, now: Settings, what: str) -> None:
    """Compare a run's recipe with the one that is to go on with it.

    Raises:
        ValueError: with `what` was found, and every difference that decides which weights come out.
    """
    changed = [d for d in differences(before, now) if not d[0].startswith(MAY_CHANGE)]
    if _source_beside(before) is not None and _source_beside(before) == _source_beside(now):  # both were moved
        changed = [d for d in changed if d[0] != "encoder.source"]
    if changed:
        listed = "\n".join(f"  {path}: {old!r} then, {new!r} now" for path, old, new in changed)
        raise ValueError(
            f"{what}:\n{listed}\n"
            "give the same settings to go on with it, choose another output_dir, or start afresh with "
            "checkpoint.resume=false"
        )


def _source_beside(recipe: Any) -> str | None:
    """Where the encoder comes from as seen from the run's folder, if that is a path."""
    source = recipe.encoder.source
    return os.path.relpath(source, recipe.output_dir) if source is not None and "/" in source else None


def is_finished(checkpoint: Checkpoint | None) -> bool:
    """Whether nothing is left to train."""
    if checkpoint is None:
        return False
    return checkpoint.step == checkpoint.state["steps"] or checkpoint.state["progress"].get("ended", False)


def check_same_images(checkpoint: Checkpoint, rows: ImageTable, source: str) -> None:
    """Refuse to go on with other images than a run began with.

    Raises:
        ValueError: with what is different.
    """
    then, now = checkpoint.state["data"], _content(rows)
    if now != then:
        raise ValueError(
            f"the images of {source} are not those that the run began with: "
            f"{then['rows']} rows then, {now['rows']} now"
            + ("; the rows themselves differ" if then["rows"] == now["rows"] else "")
        )


def check_same_weights(then: str | None, recipe: Any, folder: Path) -> None:
    """Refuse to go on from, or to take for done, what began with other weights than its source has now.

    Args:
        then: what `weights_digest_of` said when it began; None where that is not known.
        recipe: of a command that trains.
        folder: of the run.

    Raises:
        ValueError: if they differ.
    """
    now = weights_digest_of(recipe.encoder)
    if None not in (then, now) and then != now:
        raise ValueError(
            f"{folder} began with other weights than those that {recipe.encoder.source} holds now: give the old ones "
            "back, choose another output_dir, or start afresh with checkpoint.resume=false. A run's weights change "
            "for as long as it trains: copy its encoder folder to begin with those of now"
        )


def run_job(
    job: Job, accelerator: Accelerator, stop: StopRequest, checkpoint: Checkpoint | None
) -> tuple[Run, Progress]:
    """Train from a checkpoint, or from the start, until the end or until asked to stop.

    Raises:
        ValueError: for what the user can mend.
        RuntimeError: if the run could not go on.
    """
    recipe, folder, encoder, objective = job.recipe, job.folder, job.encoder, job.objective
    plan = plan_batches(recipe.training.batch_size, recipe.training.micro_batch_size,
                 rank=accelerator.process_index, processes=accelerator.num_processes)  # fmt: skip
    steps = job.steps(recipe.training.duration)
    if steps == 0:
        raise SettingError({"training.duration": "it is 0 steps long: there is nothing to train"})
    if job.augmentation is not None:
        job.augmentation.check(plan.micro_batch_size)
    crops = TrainingCrops(job.rows, recipe.data, recipe.seed)
    flops = count_flops(objective, accelerator)
    if recipe.training.gradient_checkpointing:
        encoder.use_gradient_checkpointing()
    with about("optimizer", "name"):
        optimizer = make_optimizer(objective, recipe.optimizer)
    on_main(accelerator, lambda: _begin(recipe, folder))
    journal = Journal(folder / "metrics.jsonl", accelerator, steps=steps, step=checkpoint.step if checkpoint else 0)
    if recipe.journal.trackers:
        accelerator.init_trackers("mpp", config=_flat(recipe.model_dump(mode="json")))
    now = precision(recipe.training)
    began_in = checkpoint.state.get("precision", now) if checkpoint is not None else now
    if began_in != now:
        journal.say(
            f"the run began in {began_in} and goes on in {now}: training.precision=auto takes what a machine is good at"
        )
    warmup = job.steps(recipe.optimizer.warmup)
    if warmup >= steps:
        journal.say(f"optimizer.warmup of {warmup} steps is as long as the run; it is shortened to {steps // 10}")
        warmup = steps // 10
    callbacks = list(job.callbacks)
    if job.held_out is not None and job.held_out_rows is not None:
        every = job.steps(recipe.validation.every)
        callbacks = [
            Callback(every, lambda step, module: adopt_statistics(accelerator, module) or ()),
            validation(accelerator, job.held_out, job.held_out_rows, batch_size=plan.micro_batch_size,
                       workers=recipe.data.workers, baselines=job.baselines, every=every),
            *callbacks,
        ]  # fmt: skip
    run = Run(
        objective=objective,
        crops=crops,
        batch_plan=plan,
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
        log_every=job.steps(recipe.journal.every),
        save_every=job.steps(recipe.checkpoint.every),
        export=lambda: export_encoder(
            encoder, folder / "encoder", interpolation=recipe.data.interpolation, crop_pct=recipe.data.crop_pct
        ),
        state={
            "steps": steps,
            "recipe": recipe.model_dump(mode="json"),
            "data": _content(job.rows),
            "source_weights": job.source_weights,
            "baselines": job.baselines,
            "flops_per_image": flops,
            "local": [  # these settings name places on this machine: what is published cuts them
                name
                for name, source in (("data", recipe.data.source), ("encoder", recipe.encoder.source))
                if source is not None and Path(source).exists()
            ],
            "precision": began_in,
            "hardware": hardware(accelerator.device, accelerator.num_processes),
        },
        augment=job.augmentation,
        early_stopping=job.early_stopping,
        workers=recipe.data.workers,
        compile=recipe.training.compile,
        clip_grad=recipe.training.clip_grad,
        max_skipped=recipe.training.max_skipped,
        max_bad_share=recipe.data.max_bad_share,
        flops_per_image=flops,
        peak_flops=peak_flops(accelerator.device, getattr(torch, precision(recipe.training))),
    )
    _greet(job, run, checkpoint)
    stop.listen()
    try:
        progress = train(run, checkpoint)
    finally:
        journal.close()
    if recipe.journal.trackers:
        for tracker in accelerator.trackers:  # not end_training, which would end the processes' group as well
            tracker.finish()
    return run, progress


def stopped(run: Run, progress: Progress) -> int | None:
    """The exit code of a run that was asked to stop, which is said; None for one that came to its end."""
    if progress.step >= run.steps or progress.ended:
        return None
    number = run.stop.asked() or 15
    if run.accelerator.is_main_process:
        print(f"stopped after step {progress.step} of {run.steps}, saved.")
        print("Give the same command again to go on from there.")
    return exit_code(number)


def on_each(accelerator: Accelerator, open_: Callable[[], Any]) -> Any:
    """Open the data in every process: the main one first, since it may have to prepare the data for all."""
    if accelerator.num_processes > 1:
        on_main(accelerator, lambda: open_() and None)
    return open_()


def uses_fused_attention(choice: str, accelerator: Accelerator) -> bool:
    """Whether to use the fused attention kernel, which is slower than plain products on processors."""
    return accelerator.device.type == "cuda" if choice == "auto" else choice == "fused"


def _begin(recipe: Any, folder: Path) -> None:
    """Make the folder this run's own, now that everything else was found to be good."""
    if not recipe.checkpoint.resume and (aside := move_aside(folder)):
        print(f"starting afresh: what was in {folder} lies in {aside} now")
    write_recipe(recipe, folder / "recipe.yaml")


def _content(rows: ImageTable) -> dict[str, Any]:
    """What identifies the training images wherever they lie: how many, a few of them to the last byte, all labels."""
    digest = hashlib.sha256()
    if rows.labels is not None:
        digest.update(rows.labels.tobytes())
    for row in sorted({0, len(rows) // 3, len(rows) // 2, len(rows) - 1}):
        try:
            digest.update(rows.encoded(row))
        except (ValueError, OSError):
            digest.update(b"unreadable")
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def count_flops(objective: nn.Module, accelerator: Accelerator) -> float:
    """Operations of one training image, counted on one."""
    encoder = objective.encoder
    assert isinstance(encoder, Backbone)
    size = encoder.image_size
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=accelerator.device)
    objective.eval()  # batch norm in training would count this image in, and may refuse a single one
    flops = flops_per_image(objective, pixels, torch.zeros(1, dtype=torch.int64, device=accelerator.device))
    objective.train()
    return flops


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, which is all that trackers take."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def _greet(job: Job, run: Run, checkpoint: Checkpoint | None) -> None:
    """Say what is about to run, on what."""
    accelerator = run.accelerator
    processes = f"{accelerator.num_processes} × " if accelerator.num_processes > 1 else ""
    start = f"from step {checkpoint.step}" if checkpoint else "from the start"
    run.journal.say(
        f"{job.encoder.summary}\n"
        f"{job.about or job.recipe.data.source}, {len(job.rows):,} images; {run.steps:,} steps of "
        f"{run.batch_plan.batch_size}, {start}\n"
        f"{processes}{accelerator.device.type}, {precision(job.recipe.training)}; all of it goes to {job.folder}"
    )
