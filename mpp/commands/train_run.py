"""A training run: what pre-training and fine-tuning share, from the objective and its images to the last step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mpp.commands.resume import identity_of
from mpp.commands.resumptions import note_resumption
from mpp.data.inventory import counted
from mpp.data.loader import EvaluationCrops, TrainingCrops
from mpp.data.sampler import Numbers, plan_batches
from mpp.data.table import ImageTable
from mpp.encoder.export import save_encoder
from mpp.objective.base import Objective
from mpp.recipe import FinetuneRecipe, PretrainRecipe, write_recipe
from mpp.run_folder import move_aside
from mpp.settings import Duration
from mpp.training.augmentation import Augmentation
from mpp.training.checkpoint import Checkpoint, Checkpoints
from mpp.training.curves import draw_loss
from mpp.training.distributed import on_main, precision, threads
from mpp.training.flops import flops_per_image, hardware, peak_flops
from mpp.training.metrics_log import Journal
from mpp.training.optimizer import Schedule, make_optimizer, plan_schedule
from mpp.training.signals import StopRequest, exit_code
from mpp.training.state import Callback, EarlyStopping, Progress, Run, RunRecord
from mpp.training.trainer import train
from mpp.training.validation import validation

SHORTER = "shorter_run"
"""Folder in a run that was extended: what came after the step that it was extended from."""
RUN_NAMES = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}
"""The argument of each tracker for the name of a run; TensorBoard takes it from the folder."""


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """What is trained, on what, where."""

    recipe: PretrainRecipe | FinetuneRecipe
    folder: Path
    accelerator: Accelerator
    stop: StopRequest
    objective: Objective
    rows: ImageTable
    """Training images."""
    held_out: EvaluationCrops | None
    """Validation images; None validates on nothing."""
    held_out_rows: Numbers
    """int64 `(n,)`, which of them."""
    validated_on: str = "held out"
    """What the validation images are called."""
    baselines: dict[str, float] = field(default_factory=dict)
    callbacks: list[Callback] = field(default_factory=list)
    """They are called after validation."""
    augmentation: Augmentation | None = None
    early_stopping: EarlyStopping | None = None
    crops: TrainingCrops | None = None
    """Of the training images, if they were needed before."""
    data_title: str = ""
    """The data in words; empty takes `data.source`."""
    source_weights: str | None = None
    """Digest of the weights that the encoder starts from."""

    def in_steps(self, duration: Duration) -> int:
        """A duration of the recipe in optimizer steps."""
        return duration.in_steps(batch_size=self.recipe.training.batch_size, rows=len(self.rows))

    @cached_property
    def schedule(self) -> Schedule:
        """Length and learning rates of the run."""
        return plan_schedule(self.recipe.optimizer, self.recipe.training, len(self.rows))

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.schedule.steps

    @property
    def checkpoints(self) -> Checkpoints:
        """Those of the run; the last one before a decay stays, so that the run can be extended from there."""
        return Checkpoints(self.folder / "checkpoints", self.recipe.checkpoint.keep, self.schedule.last_stable)

    def train(self, checkpoint: Checkpoint | None) -> Progress:
        """Train from a checkpoint, or from the start, to the end or until a signal stops it.

        Raises:
            ValueError: for what the user can correct.
            RuntimeError: if the run cannot continue.
        """
        recipe, accelerator = self.recipe, self.accelerator
        run = self._prepare(checkpoint)
        if recipe.journal.trackers:
            name = self.folder.resolve().name
            accelerator.init_trackers(
                "mpp",
                config=_flat(recipe.model_dump(mode="json")),
                init_kwargs={tracker: {argument: name} for tracker, argument in RUN_NAMES.items()},
            )
        self._print_summary(run, checkpoint)
        self.stop.listen()
        try:
            return train(run, checkpoint)
        finally:
            run.journal.close()
            if recipe.journal.trackers:
                for tracker in accelerator.trackers:  # not end_training, which would end the process group as well
                    tracker.finish()

    def exit_code(self, progress: Progress) -> int | None:
        """The exit code of a run that a signal stopped, with a message; None for a run that is complete."""
        if progress.step >= self.steps or progress.ended:
            return None
        if self.accelerator.is_main_process:
            print(f"stopped after step {progress.step} of {self.steps}, saved.")
            print("Give the same command again to resume.")
        return exit_code(self.stop.asked() or 15)

    def _prepare(self, checkpoint: Checkpoint | None) -> Run:
        """Check everything, then make the folder this run's own."""
        recipe, accelerator, objective, steps = self.recipe, self.accelerator, self.objective, self.steps
        batch = plan_batches(
            recipe.training.batch_size,
            recipe.training.micro_batch_size,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        if steps == 0:
            raise recipe.training.error(duration="it is 0 steps long: there is nothing to train")
        if self.augmentation is not None:
            self.augmentation.check(batch.micro_batch_size)
        flops = count_flops(objective, accelerator)
        if recipe.training.gradient_checkpointing:
            objective.encoder.use_gradient_checkpointing()
        if recipe.training.residual == "bfloat16":
            with recipe.training.blamed("residual"):
                objective.encoder.use_bfloat16_residual()
        optimizer = make_optimizer(objective, recipe.optimizer)
        on_main(accelerator, lambda: self._begin(checkpoint))
        journal = Journal(
            self.folder / "metrics.jsonl",
            accelerator,
            objective,
            steps=steps,
            step=checkpoint.step if checkpoint else 0,
            draw=lambda: draw_loss(self.folder, self.baselines, objective, self.validated_on),
            validated_on=self.validated_on,
        )
        now = precision(recipe.training)
        first_precision = checkpoint.state.get("precision", now) if checkpoint is not None else now
        if first_precision != now:
            journal.say(
                f"the run started in {first_precision} and resumes in {now}: training.precision=auto takes what a "
                "machine is good at"
            )
        here = threads(recipe.training)
        first_threads = checkpoint.state.get("threads", here) if checkpoint else here
        if first_threads != here:
            journal.say(
                f"the run started with {first_threads} threads and resumes with {here}: its weights will differ in\n"
                f"the last bits from those of one number of threads; set OMP_NUM_THREADS={first_threads} to keep them"
            )
        warmup = self.in_steps(recipe.optimizer.warmup)
        if warmup > self.schedule.warmup:
            shorter = self.schedule.warmup
            journal.say(f"optimizer.warmup of {warmup} steps is as long as the run; it is shortened to {shorter}")
        record = RunRecord(
            steps=steps,
            headline=(objective.headline, objective.headline_title),
            unit=objective.unit,
            recipe=recipe.model_dump(mode="json"),
            data=identity_of(self.rows),
            source_weights=self.source_weights,
            baselines=self.baselines,
            flops_per_image=flops,
            local=[
                name
                for name, source in (
                    ("data", recipe.data.source),
                    ("encoder", recipe.encoder.source),
                    ("objective", recipe.objective.source),
                )
                if source is not None and Path(source).exists()
            ],
            precision=first_precision,
            threads=first_threads,
            pool=objective.encoder.pool,
            hardware=hardware(accelerator.device, accelerator.num_processes),
        )
        return Run(
            settings=recipe.training,
            objective=objective,
            crops=self.crops or TrainingCrops(self.rows, recipe.data, recipe.seed, objective.draws()),
            batch_plan=batch,
            steps=steps,
            seed=recipe.seed,
            optimizer=optimizer,
            learning_rate=self.schedule.learning_rate,
            accelerator=accelerator,
            checkpoints=self.checkpoints,
            journal=journal,
            stop=self.stop,
            callbacks=self._validation(batch.micro_batch_size) + self.callbacks,
            log_every=self.in_steps(recipe.journal.every),
            save_every=self.in_steps(recipe.checkpoint.every),
            export=lambda: save_encoder(
                objective.encoder,
                self.folder / "encoder",
                interpolation=recipe.data.interpolation,
                crop_pct=recipe.data.crop_pct,
            ),
            record=record,
            augment=self.augmentation,
            early_stopping=self.early_stopping,
            peak_flops=peak_flops(accelerator.device, getattr(torch, now)),
        )

    def _validation(self, batch_size: int) -> list[Callback]:
        if self.held_out is None:
            return []
        every, accelerator = self.in_steps(self.recipe.validation.every), self.accelerator
        return [
            validation(
                accelerator,
                self.held_out,
                self.held_out_rows,
                batch_size=batch_size,
                workers=self.recipe.data.workers,
                baselines=self.baselines,
                every=every,
            ),
        ]

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        if not self.recipe.checkpoint.resume and (aside := move_aside(self.folder)):
            print(f"starting afresh: what was in {self.folder} lies in {aside} now")
        note_resumption(self.folder, checkpoint, self.steps)
        if checkpoint is not None:
            self._set_shorter_run_aside(checkpoint.step)
        write_recipe(self.recipe, self.folder / "recipe.yaml")

    def _set_shorter_run_aside(self, step: int) -> None:
        """Keep what came after the step that the run is extended from."""
        shorter = self.folder / SHORTER
        if self.checkpoints.set_aside(step, shorter / "checkpoints"):
            shutil.copytree(self.folder / "encoder", shorter / "encoder", dirs_exist_ok=True)
            for name in ("metrics.jsonl", "recipe.yaml"):
                shutil.copyfile(self.folder / name, shorter / name)
            print(f"extending from step {step}: the end of the shorter run is kept in {shorter}")

    def _print_summary(self, run: Run, checkpoint: Checkpoint | None) -> None:
        """Print what runs, on what."""
        processes = f"{self.accelerator.num_processes} × " if self.accelerator.num_processes > 1 else ""
        start = f"from step {checkpoint.step}" if checkpoint else "from the start"
        run.journal.say(
            f"{self.objective.encoder.summary}\n"
            f"{self.data_title or self.recipe.data.source}, {counted(len(self.rows), 'image')}; "
            f"{counted(run.steps, 'step')} of {run.batch_plan.batch_size}, {start}\n"
            f"{processes}{self.accelerator.device.type}, {precision(self.recipe.training)}; "
            f"all of it goes to {self.folder}"
        )
        if words := self.objective.words:
            width = max(map(len, words))
            run.journal.say("\n".join(f"  {word:{width}}  {meaning}" for word, meaning in words.items()))


def on_each(accelerator: Accelerator, open_: Callable[[], Any]) -> Any:
    """Open the data in every process: the main one first, since it may have to prepare the data for all."""
    if accelerator.num_processes > 1:
        on_main(accelerator, lambda: open_() and None)
    return open_()


def replaced(progress: Progress, held_out: list[Any]) -> str:
    """The totals of the damaged images, for training and held out, as a line; empty if there were none."""
    counts = {"training": len(progress.damaged), "held-out": len(held_out)}
    found = " and ".join(counted(count, f"{name} image") for name, count in counts.items() if count)
    return f"damaged: {found} could not be decoded: replaced by neighbours\n" if found else ""


def uses_fused_attention(choice: str, accelerator: Accelerator) -> bool:
    """Whether to use the fused attention kernel, which is slower than plain products on processors."""
    return accelerator.device.type == "cuda" if choice == "auto" else choice == "fused"


def count_flops(objective: Objective, accelerator: Accelerator) -> float:
    """Operations of one training image, counted on one."""
    size = objective.encoder.image_size
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
