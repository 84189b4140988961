"""A pre-training run: what `mpp.pretrain` does once the recipe is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from mpp import randomness
from mpp.commands.data_summary import check_enough, print_data, warn_of_constant_colours
from mpp.commands.encoder_source import warn_of_encoder
from mpp.commands.preflight import check_training
from mpp.commands.resume import as_begun, check_same_images, claim, is_finished
from mpp.commands.train_run import TrainRun, on_each, replaced, uses_fused_attention
from mpp.data.inventory import counted
from mpp.data.loader import CACHE_BYTES, EvaluationCrops, TrainingCrops
from mpp.data.sampler import Numbers
from mpp.data.splits import Splits, open_splits
from mpp.data.survey import ColourHistogram
from mpp.data.table import ImageTable
from mpp.encoder.encoder import Encoder
from mpp.encoder.pretrained import weights_digest_of
from mpp.evaluation.callback import in_training
from mpp.hub.background import BackgroundPush, check_push
from mpp.hub.load import take_parts
from mpp.objective.base import Objective, Sample
from mpp.progress import DELAY, quiet
from mpp.recipe import PretrainRecipe
from mpp.run_folder import FolderLock
from mpp.training.checkpoint import Checkpoint
from mpp.training.distributed import end_processes, on_main, start_processes
from mpp.training.metrics_log import read_metrics
from mpp.training.reconstruction import reconstructions
from mpp.training.signals import StopRequest
from mpp.training.state import Callback, Progress
from mpp.training.validation import on_device, random_rows


def pretrain(recipe: PretrainRecipe, stop: StopRequest | None = None) -> int:
    """Run a recipe, or resume it; the exit code is 0, or that of the signal that stopped it.

    Args:
        recipe: of `mpp.pretrain`.
        stop: where a process does several things, of all of them.

    Raises:
        ValueError: for what the user can correct.
        RuntimeError: if the run cannot continue.
    """
    stop = stop or StopRequest()  # before anything that takes time: it remembers who launched this process
    folder = Path(recipe.output_dir)
    accelerator = start_processes(recipe.training, folder=folder, journal=recipe.journal)
    recipe = with_source_of_objective(on_main(accelerator, lambda: as_begun(recipe, folder)))
    locks: list[FolderLock] = []  # held until the process ends
    checkpoint = on_main(accelerator, lambda: claim(recipe, folder, locks))
    if checkpoint is not None and is_finished(checkpoint) and (folder / "encoder" / "model.safetensors").is_file():
        if accelerator.is_main_process:
            print(f"{folder} is finished: {checkpoint.step} steps. Its encoder is {folder / 'encoder'}.\n"
                  "For another run choose another output_dir, or checkpoint.resume=false.")  # fmt: skip
        end_processes(accelerator)
        return 0

    check_training(recipe, accelerator)
    on_main(accelerator, lambda: check_push(recipe.hub))
    splits = prepare_data(recipe, accelerator)
    if checkpoint is None:
        check_enough(splits, recipe.data)
    print_data(splits, recipe.data, accelerator)
    if checkpoint is not None:
        check_same_images(checkpoint, splits.train, recipe.data.source)
    source_weights = on_main(accelerator, lambda: weights_digest_of(recipe.encoder))
    objective = make_objective(recipe, splits.train)
    if checkpoint is None:
        start_from_source(recipe, objective, accelerator)
    if recipe.encoder.pool is None and _may_pool_patches(checkpoint):
        recipe.objective.pool_trained_tokens(objective.encoder)
    objective.to(accelerator.device)
    held_out = EvaluationCrops(splits.validation, recipe.data, cache_bytes=CACHE_BYTES)
    held_out_rows = random_rows(held_out, recipe.validation.images, recipe.seed)
    crops = TrainingCrops(splits.train, recipe.data, recipe.seed, objective.draws())
    baselines = checkpoint.state["baselines"] if checkpoint else on_main(
        accelerator, lambda: _baselines(recipe, objective, crops, held_out, held_out_rows)
    )  # fmt: skip
    objective.encoder.use_fused_attention(uses_fused_attention(recipe.encoder.attention, accelerator))
    run = TrainRun(
        recipe=recipe,
        folder=folder,
        accelerator=accelerator,
        stop=stop,
        objective=objective,
        rows=splits.train,
        crops=crops,
        held_out=held_out,
        held_out_rows=held_out_rows,
        baselines=baselines,
        source_weights=source_weights,
    )
    if recipe.reconstructions.images:
        every, shown = run.in_steps(recipe.reconstructions.every), held_out_rows[: recipe.reconstructions.images]
        run.callbacks.append(reconstructions(accelerator, held_out, shown, folder / "reconstructions", every=every))
    if recipe.evaluation.evaluators:
        every = run.in_steps(recipe.evaluation.every)
        run.callbacks.append(in_training(recipe.evaluation, accelerator, splits.train, recipe.data, every=every))
    pusher = None
    if recipe.hub.push_to is not None:
        pusher = BackgroundPush(recipe.hub, folder, run.steps) if accelerator.is_main_process else None
        run.callbacks.append(Callback(run.in_steps(recipe.hub.every), pusher or (lambda step, objective: ())))
    progress = run.train(checkpoint)
    code = run.exit_code(progress)
    if code is None and accelerator.is_main_process:
        _print_result(run, progress)
    if code is None and pusher is not None:
        pusher.finish()
    end_processes(accelerator)
    return code or 0


def prepare_data(recipe: PretrainRecipe, accelerator: Accelerator) -> Splits:
    """The images to train on and to hold out; with labels where something needs them."""
    labelled = recipe.objective.needs_labels or bool(recipe.evaluation.evaluators)
    return on_each(accelerator, lambda: open_splits(recipe.data, recipe.seed, labelled=labelled))


def make_objective(recipe: PretrainRecipe, rows: ImageTable) -> Objective:
    """The module to train; its random weights are decided by the seed."""
    low, high = randomness.key(recipe.seed, "weights")
    torch.manual_seed(low | high << 32)
    settings = recipe.objective
    encoder = recipe.encoder.build(recipe.data.image_size, recipe.data, needs_patches=settings.needs_patches)
    if isinstance(encoder, Encoder):
        settings.check(encoder.layout)
    num_classes = None if rows.class_names is None else len(rows.class_names)
    return settings.build(encoder, num_classes=num_classes, seed=recipe.seed)


def with_source_of_objective(recipe: PretrainRecipe) -> PretrainRecipe:
    """The recipe with the encoder of `objective.source`.

    Raises:
        SettingError: if the encoder is to come from elsewhere.
    """
    source = recipe.objective.source
    if source is None or recipe.encoder.source == source:
        return recipe
    if recipe.encoder.source is not None:
        message = f"found {source}, and encoder.source {recipe.encoder.source}; leave one of them out"
        raise recipe.objective.error(source=message)
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"source": source})})


def start_from_source(recipe: PretrainRecipe, objective: Objective, accelerator: Accelerator) -> None:
    """Take the rest of `objective.source`, and print what was taken and what is new."""
    source, encoder = recipe.objective.source, recipe.encoder
    taken, new = [], sorted({n.partition(".")[0] for n in objective.state_dict() if not n.startswith("encoder.")})
    if source is not None:
        with recipe.objective.blamed("source"):
            taken, new = on_each(accelerator, lambda: take_parts(objective, source))
    warn_of_encoder(encoder, objective.encoder, accelerator)
    if encoder.source is not None and encoder.pretrained and accelerator.is_main_process:
        print(f"from {encoder.source}: {', '.join(['encoder', *taken])}" + (f"; new: {', '.join(new)}" if new else ""))


def _may_pool_patches(checkpoint: Checkpoint | None) -> bool:
    """Whether the run, so far, exports the mean of the patches: a run of an earlier version keeps its own pooling."""
    return checkpoint is None or checkpoint.state.get("pool") == "avg"


def _baselines(
    recipe: PretrainRecipe,
    objective: Objective,
    training: TrainingCrops,
    held_out: EvaluationCrops,
    held_out_rows: Numbers,
) -> dict[str, float]:
    """What can be predicted without a network, measured on the validation rows."""
    decoded = training.images if recipe.data.cache else None
    seen = EvaluationCrops(training.images.rows, recipe.data, images=decoded)
    rows = random_rows(seen, recipe.validation.baseline_images, recipe.seed)
    parts = (training.images.rows.labels, held_out.images.rows.labels)
    labels = [None if part is None else torch.from_numpy(part) for part in parts]

    colours = ColourHistogram()

    def images(crops: EvaluationCrops, chosen: Numbers) -> Iterator[tuple[Tensor, Tensor]]:
        loaded = on_device(crops, chosen, 256, recipe.data.workers, torch.device("cpu"))
        bar = tqdm(desc="baselines", total=len(chosen), unit="image", delay=DELAY, disable=quiet(), leave=False)
        with bar:
            for batch in loaded:
                colours.add(batch.pixels)
                yield batch.pixels, batch.samples
                bar.update(len(batch.pixels))

    baselines = objective.baselines(
        Sample(images(seen, rows), labels[0]),
        Sample(images(held_out, held_out_rows), None if labels[1] is None else labels[1][held_out_rows]),
    )
    if colours.total:
        warn_of_constant_colours(colours)
    return baselines


def _print_result(run: TrainRun, progress: Progress) -> None:
    """Print the result, and what to do with it."""
    folder, images = run.folder, progress.step * run.recipe.training.batch_size
    last = next((m for m in reversed(read_metrics(folder / "metrics.jsonl")) if "validation/loss" in m), {})
    loss = last.get(f"validation/{run.objective.headline}", last.get("validation/loss"))
    shown = "not finite" if loss is None else f"{loss:.3f} {run.objective.unit}".rstrip()
    against = ", ".join(f"{BASELINES.get(name, name)} {value:.3f}" for name, value in run.baselines.items())
    print(
        f"\nfinished: {counted(progress.step, 'step')}, {counted(images, 'image')}, "
        f"{tqdm.format_interval(progress.seconds)}, {images / progress.seconds:.0f} images/s\n"
        f"{run.objective.headline_title}, held out: {shown}\n"
        f"to be compared with: {against}\n"
        f"{replaced(progress, last.get('validation/damaged_images', []))}"
        f"encoder: {folder / 'encoder'}\n"
        f'next: timm.create_model("local-dir:{folder / "encoder"}", pretrained=True)\n'
        f"or: mpp report {folder}; mpp embed encoder={folder} data.source=FOLDER"
        + (f"\nlook at: {folder / last['reconstructions']}" if "reconstructions" in last else "")
    )


BASELINES = {"histogram": "label frequencies", "neighbours": "visible neighbours", "chance": "chance"}
