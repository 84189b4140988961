"""A fine-tuning run: what `mpp.finetune` does once the recipe is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tqdm import tqdm

from mpp import randomness
from mpp.commands.best_weights import best_weights, keep_only, save_weights
from mpp.commands.data_summary import check_enough, print_data, warn_of_test
from mpp.commands.encoder_source import warn_of_encoder, with_own_size
from mpp.commands.preflight import check_training
from mpp.commands.resume import (
    as_begun,
    check_same_images,
    check_same_weights,
    is_finished,
    latest_checkpoint,
    refuse_changes,
    with_older_defaults,
)
from mpp.commands.score_verdict import standard_error
from mpp.commands.search import Candidate, combinations, is_known_to_diverge, note_divergence, with_candidate
from mpp.commands.train_run import TrainRun, on_each, replaced, uses_fused_attention
from mpp.data.inventory import counted
from mpp.data.label_subsets import dev_split, fraction_rows
from mpp.data.loader import CACHE_BYTES, EvaluationCrops
from mpp.data.sampler import Numbers
from mpp.data.splits import Splits, open_splits
from mpp.data.table import Subset
from mpp.encoder.export import export_classifier, save_encoder
from mpp.encoder.pretrained import weights_digest_of
from mpp.evaluation.predictions import FILE, Classified, compact, key_of, write_predictions
from mpp.files import write_text
from mpp.objective.base import Objective
from mpp.recipe import FinetuneRecipe
from mpp.run_folder import FolderLock, move_aside
from mpp.training.augmentation import augmentation
from mpp.training.checkpoint import Checkpoint, Checkpoints
from mpp.training.distributed import adopt_statistics, end_processes, on_main, start_processes
from mpp.training.error_budget import NonFiniteError
from mpp.training.metrics_log import read_metrics
from mpp.training.signals import StopRequest
from mpp.training.state import EarlyStopping, Progress
from mpp.training.validation import random_rows, validation

DEV_ACCURACY = "validation/accuracy"


def finetune(recipe: FinetuneRecipe, stop: StopRequest | None = None) -> int:
    """Run a recipe, or resume it; the exit code is 0, or that of the signal that stopped it.

    Args:
        recipe: of `mpp.finetune`.
        stop: where a process does several things, of all of them.

    Raises:
        ValueError: for what the user can correct.
        RuntimeError: if the run cannot continue.
    """
    stop = stop or StopRequest()  # before anything that takes time: it remembers who launched this process
    folder = Path(recipe.output_dir)
    accelerator = start_processes(recipe.training, folder=folder, journal=recipe.journal)
    locks: list[FolderLock] = []  # held until the process ends
    started_in = folder if recipe.checkpoint.resume else None
    recipe = on_main(accelerator, lambda: with_own_size(as_begun(recipe, folder), started_in))
    results = on_main(accelerator, lambda: _claim(recipe, folder, locks))
    if results is not None:
        if accelerator.is_main_process:
            print(f"{folder} is finished.\n{_sentence(results, folder)}\n"
                  "For another run choose another output_dir, or checkpoint.resume=false.")  # fmt: skip
        end_processes(accelerator)
        return 0
    check_training(recipe, accelerator)
    data = on_each(
        accelerator, lambda: open_splits(recipe.data, recipe.seed, labelled=True, held_out=("test", "validation"))
    )
    if not (folder / "recipe.yaml").exists():
        check_enough(data, recipe.data)
    print_data(data, recipe.data, accelerator)
    warn_of_test(data, accelerator)
    study = _FineTuning(recipe, data, accelerator, stop)
    recipe = study.fresh_start(folder)
    code = study.run(folder, recipe)
    end_processes(accelerator)
    return code


def _claim(recipe: FinetuneRecipe, folder: Path, locks: list[FolderLock]) -> dict[str, Any] | None:
    """Lock the folder; the results of a run of this very recipe that is finished.

    Raises:
        ValueError: if the folder is in use, or is finished with other settings.
    """
    locks.append(FolderLock(folder, recipe.command))
    path = folder / "results.json"
    if not recipe.checkpoint.resume or not path.exists():
        return None
    results: dict[str, Any] = json.loads(path.read_text())
    try:
        before = FinetuneRecipe.model_validate(with_older_defaults(results["recipe"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is of another version of this package; choose another output_dir") from error
    refuse_changes(before, recipe, f"{folder} holds another run, which is finished")
    check_same_weights(results.get("source_weights"), recipe, folder)
    return results


class _FineTuning:
    """The data of a recipe, and the runs that it takes."""

    def __init__(self, recipe: FinetuneRecipe, splits: Splits, accelerator: Accelerator, stop: StopRequest) -> None:
        self.recipe, self.splits, self.accelerator, self.stop = recipe, splits, accelerator, stop
        self.has_warned = False
        self.source_weights = on_main(accelerator, lambda: weights_digest_of(recipe.encoder))
        labels = splits.train.labels
        assert labels is not None
        self.classes = list(splits.train.class_names or ())
        if len(np.unique(labels)) < 2:
            raise ValueError(f"{splits.train.name} holds images of a single class: there is nothing to tell apart")
        test = splits.validation
        self.say(f"test split: {counted(len(test), 'image')} ({test.split}), read once, at the end")
        self.rows = fraction_rows(labels, recipe.labels.fraction, recipe.labels.seed)
        self.fitted: Numbers = self.rows
        self.dev: Numbers | None = None
        if recipe.labels.dev:
            fitted, dev = dev_split(labels[self.rows], recipe.labels.dev, recipe.labels.seed)
            self.fitted, self.dev = self.rows[fitted], self.rows[dev]
            chooses = recipe.search.is_asked_for or recipe.early_stopping.patience
            use = "to choose settings by" if chooses else "to validate on"
            self.say(f"dev split: {len(dev):,} of the {len(self.rows):,} labelled training images, {use} (labels.dev)")

    def fresh_start(self, folder: Path) -> FinetuneRecipe:
        """Move an older run aside where the recipe asks for it; then resume this one."""
        recipe = self.recipe
        if recipe.checkpoint.resume:
            return recipe

        def begin() -> None:
            if aside := move_aside(folder):
                print(f"starting afresh: what was in {folder} lies in {aside} now")

        self.objective(recipe)  # before anything is moved: can it be built at all?
        on_main(self.accelerator, begin)
        return recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"resume": True})})

    def run(self, folder: Path, recipe: FinetuneRecipe) -> int:
        """The search, if there is one; the run; the test."""
        candidates: list[Candidate] = []
        if recipe.search.is_asked_for:
            for candidate in combinations(recipe):
                code, scored = self.search(candidate, recipe, folder / "search" / str(candidate))
                if code is not None:
                    return code
                candidates.append(scored)
            good = [each for each in candidates if each.dev_accuracy is not None]
            if not good:
                raise RuntimeError(f"none of the {len(candidates)} runs of the search stayed finite: try smaller rates")
            best = max(good, key=lambda each: (each.dev_accuracy, -(each.dev_loss or 0.0)))
            self.say(f"\nchosen on the dev split: {best}, {best.dev_accuracy:.1%}; now on all of train")
            recipe = with_candidate(recipe, best)
        checkpoint = on_main(self.accelerator, lambda: latest_checkpoint(recipe, folder))
        run, code, progress = self.train(recipe, folder, checkpoint, dev=not candidates)
        if code is not None:
            return code
        self.test(run, progress, recipe, candidates)
        return 0

    def search(self, candidate: Candidate, recipe: FinetuneRecipe, folder: Path) -> tuple[int | None, Candidate]:
        """Train one combination, if that is not done yet: an exit code if stopped, and what the dev split says."""
        quiet = recipe.journal.model_copy(update={"trackers": ()})
        recipe = with_candidate(recipe, candidate, output_dir=str(folder), journal=quiet)
        on_main(self.accelerator, lambda: folder.mkdir(parents=True, exist_ok=True))
        checkpoint = on_main(self.accelerator, lambda: latest_checkpoint(recipe, folder))
        if on_main(self.accelerator, lambda: is_known_to_diverge(recipe, folder)):
            return None, candidate
        if checkpoint is None or not is_finished(checkpoint):
            self.say(f"\n{candidate}")
            try:
                _, code, _ = self.train(recipe, folder, checkpoint, dev=True)
            except NonFiniteError as error:
                self.say(str(error).split(".")[0])
                on_main(self.accelerator, lambda: note_divergence(recipe, folder))
                return None, candidate
            if code is not None:
                return code, candidate

        def score() -> Candidate:
            last = next(m for m in reversed(read_metrics(folder / "metrics.jsonl")) if DEV_ACCURACY in m)
            return candidate._replace(dev_accuracy=last[DEV_ACCURACY], dev_loss=last["validation/loss"])

        return None, on_main(self.accelerator, score)

    def train(
        self, recipe: FinetuneRecipe, folder: Path, checkpoint: Checkpoint | None, *, dev: bool
    ) -> tuple[TrainRun, int | None, Progress]:
        """One run: without the dev split and watched by it, or on everything."""
        rows = self.fitted if dev else self.rows
        images = Subset(self.splits.train, rows, f"{recipe.data.source}, training split")
        objective = self.objective(recipe)
        if not self.has_warned:
            warn_of_encoder(recipe.encoder, objective.encoder, self.accelerator)
            self.has_warned = True
        if checkpoint is not None:
            check_same_images(checkpoint, images, recipe.data.source)
        held_out = stopping = None
        held_out_rows: Numbers = np.arange(0)
        if dev and self.dev is not None:
            held_out = EvaluationCrops(
                Subset(self.splits.train, self.dev, f"{recipe.data.source}, dev split"),
                recipe.data,
                cache_bytes=CACHE_BYTES,
            )
            held_out_rows = random_rows(held_out, recipe.validation.images, recipe.seed)
            if recipe.early_stopping.patience:
                stopping = EarlyStopping(
                    DEV_ACCURACY,
                    recipe.early_stopping.patience,
                    keep=lambda step: save_weights(objective, best_weights(folder, step)),
                    settle=lambda step: keep_only(folder, step),
                )
        run = TrainRun(
            recipe=recipe,
            folder=folder,
            accelerator=self.accelerator,
            stop=self.stop,
            objective=objective,
            rows=images,
            held_out=held_out,
            held_out_rows=held_out_rows,
            validated_on="dev split",
            augmentation=augmentation(
                recipe.augmentation, objective.encoder, len(self.classes), self.accelerator.device
            ),
            early_stopping=stopping,
            data_title=f"{recipe.data.source}, {len(self.classes)} classes",
            source_weights=self.source_weights,
        )
        if checkpoint is not None and is_finished(checkpoint):  # killed between the last step and the test
            objective.load_state_dict(load_file(checkpoint.folder / "weights.safetensors"))
            return run, None, Progress.from_json(checkpoint.state["progress"])
        progress = run.train(checkpoint)
        return run, run.exit_code(progress), progress

    def objective(self, recipe: FinetuneRecipe) -> Objective:
        """The classifier to train; its random weights are decided by the seed."""
        low, high = randomness.key(recipe.seed, "weights")
        torch.manual_seed(low | high << 32)
        backbone = recipe.encoder.build(recipe.data.image_size, recipe.data)
        on_main(self.accelerator, lambda: check_same_weights(self.source_weights, recipe, Path(recipe.output_dir)))
        backbone.use_fused_attention(uses_fused_attention(recipe.encoder.attention, self.accelerator))
        objective = recipe.objective.build(backbone, num_classes=len(self.classes), seed=recipe.seed)
        return objective.to(self.accelerator.device)

    def test(self, run: TrainRun, progress: Progress, recipe: FinetuneRecipe, candidates: list[Candidate]) -> None:
        """Read the test split, once; write down results, encoder and classifier."""
        if run.early_stopping is not None:
            run.objective.load_state_dict(load_file(best_weights(run.folder, progress.best_step)))
        adopt_statistics(self.accelerator, run.objective)
        run.objective.eval()
        crops = EvaluationCrops(self.splits.validation, recipe.data)
        batch = recipe.training.micro_batch_size or 256
        classified = Classified()
        test = validation(
            self.accelerator,
            crops,
            np.arange(len(crops.images)),
            batch_size=batch,
            workers=recipe.data.workers,
            baselines={},
            every=0,
            each=classified.add,
        )
        seen = {name.removeprefix("validation/"): value for name, value in test.call(progress.step, run.objective)}
        predicted = classified.of_all(len(crops.images))
        images = progress.step * recipe.training.batch_size
        results = {
            "encoder": recipe.encoder.source
            if recipe.encoder.source and recipe.encoder.pretrained
            else f"{recipe.encoder.source or recipe.encoder.name} from scratch",
            "source_weights": self.source_weights,
            "data": recipe.data.source,
            "class_names": self.classes,
            "test": {**seen, "images": len(crops.images)},
            "best_on_dev": {"accuracy": progress.best, "step": progress.best_step} if run.early_stopping else None,
            "chosen": {"lr": recipe.optimizer.lr, "pool": recipe.encoder.pool},
            "search": [candidate._asdict() for candidate in candidates],
            "train_images": len(run.rows),
            "steps": progress.step,
            "ended_early": progress.ended,
            "images_seen": images,
            "flops": images * self._flops(run),
            "seconds": progress.seconds,
            "recipe": self.recipe.model_dump(mode="json"),
        }

        def write() -> None:
            encoder, crop = run.objective.encoder, recipe.data
            crops: dict[str, Any] = {"interpolation": crop.interpolation, "crop_pct": crop.crop_pct}
            save_encoder(encoder, run.folder / "encoder", **crops)
            linear = run.objective.linear()
            if linear is not None:
                weight, bias = linear
                export_classifier(encoder, weight, bias, self.classes, run.folder / "classifier", **crops)
            predictions = {key_of("finetune", recipe.labels.fraction): compact(predicted, len(self.classes))}
            write_predictions(run.folder / FILE, predictions, torch.as_tensor(self.splits.validation.labels))
            write_text(run.folder / "results.json", json.dumps(results, indent=2) + "\n")
            damaged = replaced(progress, seen.get("damaged_images", []))
            print(f"\n{damaged}{_sentence(results, run.folder)}")

        on_main(self.accelerator, write)

    def _flops(self, run: TrainRun) -> float:
        checkpoints = Checkpoints(run.folder / "checkpoints", run.recipe.checkpoint.keep)
        checkpoint = on_main(self.accelerator, checkpoints.newest)
        return checkpoint.state["flops_per_image"] if checkpoint else 0.0

    def say(self, text: str) -> None:
        """Print a line, in the main process."""
        if self.accelerator.is_main_process:
            print(text, flush=True)


def _sentence(results: dict[str, Any], folder: Path) -> str:
    """The results, for a person."""
    dev, test = results["best_on_dev"], results["test"]
    error = 100 * standard_error(test["accuracy"], test["images"])
    lines = [
        f"{counted(results['steps'], 'step')}, {counted(results['images_seen'], 'image')}, "
        f"{tqdm.format_interval(results['seconds'])}" + (", ended early" if results["ended_early"] else ""),
        f"accuracy on the test split: {test['accuracy']:.2%} of {counted(test['images'], 'image')} (standard error "
        f"{error:.{1 if error >= 1 else 2}f} points), loss {test['loss']:.3f}",
    ]
    if dev:
        lines.append(f"of the weights of step {dev['step']}, which are best on the dev split: {dev['accuracy']:.2%}")
    lines.append(f"results: {folder / 'results.json'}")
    if (folder / "classifier").is_dir():
        lines.append(f'classifier: timm.create_model("local-dir:{folder / "classifier"}", pretrained=True)')
        lines.append(f"next: mpp report {folder}; mpp predict encoder={folder} data.source=FOLDER")
    else:
        lines.append(f"next: mpp report {folder}")
    return "\n".join(lines)
