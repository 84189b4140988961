"""The floor plan: what a recipe of each command can say, room by room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from mpp.data.settings import CentreCropSettings, DataSettings, LabelSettings, NetworkSizeSettings
from mpp.encoder.arguments import DROPOUT
from mpp.encoder.settings import EncoderSettings
from mpp.evaluation.settings import (
    Evaluator,
    FeatureSettings,
    FewShotSettings,
    InTrainingSettings,
    LayerSettings,
    NeighbourSettings,
    ProbeSettings,
)
from mpp.hub.settings import HubSettings
from mpp.objective.settings import ClassificationSettings, FineTuningSettings, ObjectiveSettings
from mpp.settings import SettingError, Settings
from mpp.study.settings import StudySettings
from mpp.training.settings import (
    AugmentationSettings,
    CheckpointSettings,
    ComputeSettings,
    EarlyStoppingSettings,
    JournalSettings,
    OptimizerSettings,
    ReconstructionSettings,
    SearchSettings,
    TrainingSettings,
    ValidationSettings,
)

Folder = Annotated[str, Field(min_length=1), AfterValidator(lambda path: str(Path(path).expanduser()))]
Command = TypeVar("Command")
SIZE_OF_DATA = "image_size is for fine-tuning and evaluation; here {}.image_size is the size: leave this one out"


class RunRecipe(Settings, Generic[Command]):
    """The settings of every run."""

    command: Command
    """The command that this recipe is for."""

    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Of every random draw: weights, order, crops, corruption, augmentation; and of the rows that are held out."""

    output_dir: Folder
    """The run's folder: networks, results, checkpoints, metrics and this recipe, resolved."""

    data: DataSettings = DataSettings()
    encoder: EncoderSettings = EncoderSettings()


class TrainRecipe(RunRecipe[Command], Generic[Command]):
    """The settings of every run that trains."""

    objective: Any


class TrainingPart(Settings):
    """How a network is trained."""

    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    validation: ValidationSettings = ValidationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()


class PretrainingPart(TrainingPart):
    """How every arm of a study that pre-trains does so: the same images, order, crops and steps."""

    evaluation: InTrainingSettings = InTrainingSettings()


class FinetuningPart(TrainingPart):
    """How every arm of a study is fine-tuned downstream."""

    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.1,)
    """Shares of the downstream labels, each a run of its own; empty leaves fine-tuning out."""

    dev: float = Field(default=0.1, ge=0, lt=1)
    """Share of those on which `search` chooses settings, or by which `early_stopping` ends a run. Without either
    nothing is held out."""

    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """Stochastic depth in fine-tuning."""

    objective: FineTuningSettings = FineTuningSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    search: SearchSettings = SearchSettings()
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()


class EvaluationPart(Settings):
    """How the frozen features of every arm are measured downstream."""

    labels: LabelSettings = LabelSettings()
    features: FeatureSettings = FeatureSettings()

    few_shot: FewShotSettings | None = FewShotSettings()
    """null leaves it out."""

    knn: NeighbourSettings | None = NeighbourSettings()
    """null leaves it out."""

    linear_probe: ProbeSettings | None = ProbeSettings()
    """null leaves it out."""

    by_depth: tuple[Evaluator, ...] = ("few_shot", "knn", "linear_probe")
    """Evaluators that are run at every block and pool on the dev split, and choose the best of these by themselves;
    the others take the block and pool that the last of these chose."""

    @model_validator(mode="after")
    def _measures_something(self) -> Self:
        if self.few_shot is None and self.knn is None and self.linear_probe is None:
            raise ValueError("few_shot, knn and linear_probe are all null: there is nothing to measure")
        return self


class PretrainRecipe(PretrainingPart, TrainRecipe[Literal["pretrain"]]):
    """Pre-train a Vision Transformer: `python -m mpp.pretrain RECIPE`."""

    objective: ObjectiveSettings
    journal: JournalSettings = JournalSettings()
    reconstructions: ReconstructionSettings = ReconstructionSettings()
    hub: HubSettings = HubSettings()

    @model_validator(mode="after")
    def _fits_pretraining(self) -> PretrainRecipe:
        if self.optimizer.layer_decay is not None and not self.objective.has_layers:
            raise ValueError("optimizer.layer_decay is for classification, whose layers lead up to one head")
        if self.encoder.image_size is not None:
            raise SettingError({"encoder.image_size": SIZE_OF_DATA.format("data")})
        return self


class FinetuneRecipe(TrainingPart, TrainRecipe[Literal["finetune"]]):
    """Train a classifier from an encoder, or from scratch: `python -m mpp.finetune RECIPE encoder=runs/mine`."""

    data: NetworkSizeSettings = NetworkSizeSettings()  # pyright: ignore[reportIncompatibleVariableOverride]
    labels: LabelSettings = LabelSettings()
    objective: ClassificationSettings = FineTuningSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    search: SearchSettings = SearchSettings()
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()
    journal: JournalSettings = JournalSettings()

    @model_validator(mode="after")
    def _chooses_by_a_dev_split(self) -> FinetuneRecipe:
        patience, searches = self.early_stopping.patience, self.search.is_asked_for
        if searches and patience:
            raise ValueError(
                "early_stopping does not go with search, whose choice is trained on all of train: there is no dev "
                "split left to stop by; set early_stopping.patience=0, or search.lr=[] search.pool=[]"
            )
        if self.objective.source is not None:
            raise ValueError("objective.source is for pre-training; fine-tuning starts from encoder.source")
        if self.checkpoint.extend:
            raise ValueError("checkpoint.extend is for pre-training; a fine-tuning is tested once, at its end")
        if (searches or patience) and not self.labels.dev:
            raise ValueError("search and early_stopping choose by a dev split; give labels.dev a share above 0")
        return self


class EvaluateRecipe(EvaluationPart, RunRecipe[Literal["evaluate"]]):
    """Measure the accuracy of an encoder's frozen features: `python -m mpp.evaluate RECIPE encoder=runs/mine`."""

    output_dir: Folder | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Where features and results go; null takes `evaluation/` in the run that the encoder comes from, or
    `runs/evaluation/` and its name."""

    data: NetworkSizeSettings = NetworkSizeSettings()  # pyright: ignore[reportIncompatibleVariableOverride]

    controls: bool = True
    """Evaluate raw pixels and patch colours too, by the same evaluators: an encoder is worth what it is above them."""

    compute: ComputeSettings = ComputeSettings()


class EmbedRecipe(RunRecipe[Literal["embed"]]):
    """Write the features of all images of a split: `mpp embed encoder=runs/mine data.source=photos`."""

    output_dir: Folder = "runs/embed"
    """Where `features.npy` and `features.parquet` go."""

    data: CentreCropSettings = CentreCropSettings()  # pyright: ignore[reportIncompatibleVariableOverride]
    features: LayerSettings = LayerSettings()
    compute: ComputeSettings = ComputeSettings(precision="float32")


class PredictRecipe(RunRecipe[Literal["predict"]]):
    """Classify all images of a split: `mpp predict encoder=runs/finetune data.source=photos`."""

    output_dir: Folder = "runs/predict"
    """Where `probabilities.npy`, `predictions.parquet` and `classes.txt` go."""

    batch_size: int = Field(default=256, ge=1)
    """Images that go through the network at once."""

    data: CentreCropSettings = CentreCropSettings()  # pyright: ignore[reportIncompatibleVariableOverride]
    compute: ComputeSettings = ComputeSettings(precision="float32")


class GapRecipe(Settings):
    """How far masked patch prediction is from supervised pre-training: `python -m mpp.gap RECIPE`."""

    command: Literal["gap"]
    """The command that this recipe is for."""

    output_dir: Folder
    """The study's folder: a folder for each arm and seed, results.json and report.html."""

    study: StudySettings = StudySettings()

    upstream: DataSettings = DataSettings()
    """The images to pre-train on."""

    downstream: DataSettings = DataSettings()
    """The images and labels that representations are evaluated on. They may be the upstream data set, with a test split
    of its own, if no arm pre-trains with labels."""

    encoder: EncoderSettings = EncoderSettings()
    pretraining: PretrainingPart = PretrainingPart()
    evaluation: EvaluationPart = EvaluationPart()
    finetuning: FinetuningPart = FinetuningPart()

    @model_validator(mode="after")
    def _compares(self) -> GapRecipe:
        if complaints := dict(self._complaints()):
            raise SettingError(complaints)
        return self

    def _complaints(self) -> Iterator[tuple[str, str]]:
        """Every setting that does not go with the others, by its dotted path."""
        study, tuned, up, down = self.study, self.finetuning, self.upstream, self.downstream
        if self.encoder.source is not None:
            yield "encoder.source", "every arm starts from random weights; use encoder.name and encoder.arguments"
        if self.encoder.image_size is not None:
            yield "encoder.image_size", SIZE_OF_DATA.format("upstream")
        for name, part in (("pretraining", self.pretraining), ("finetuning", tuned)):
            if not part.checkpoint.resume:
                message = "resume is false, but a study always resumes; delete a unit's folder to run it again"
                yield f"{name}.checkpoint.resume", message
            if part.training.duration.unit == "epochs":
                yield f"{name}.training.duration", "use steps or images: arms are compared by those"
        sizes = {f"study.sizes.{name}.arguments": other.arguments for name, other in study.sizes.items()}
        for path, arguments in {"encoder.arguments": self.encoder.arguments, **sizes}.items():
            if found := ", ".join(sorted(DROPOUT & set(arguments))):
                message = f"arguments has {found}, which fine-tuning from a run does not keep: arms would differ in "
                yield path, f"{message}more than their start; set encoder.drop_path and finetuning.drop_path instead"
        if self.evaluation.labels.seed:
            yield "evaluation.labels.seed", "leave it out: study.seeds decide which labels are used"
        if (shots := self.evaluation.few_shot) is not None and max(shots.seeds) >= 1000:
            yield "evaluation.few_shot.seeds", "use numbers below 1000: seed s of a study draws with 1000·s + these"
        if self.pretraining.optimizer.layer_decay is not None:
            yield "pretraining.optimizer.layer_decay", "layer_decay is for classification, and one for all arms"
        for name in dict.fromkeys((*study.arms, *study.axis_arms)):
            try:
                study.arm(name).optimizer_of(self.pretraining.optimizer)
            except ValueError as error:
                yield "study.arms", f"{name}: {error}"
        if (tuned.search.is_asked_for or tuned.early_stopping.patience) and not tuned.dev:
            setting = "search" if tuned.search.is_asked_for else "early_stopping"
            yield f"finetuning.{setting}", f"{setting} chooses by a dev split; give finetuning.dev a share above 0"
        if tuned.search.is_asked_for and tuned.early_stopping.patience:
            message = "early_stopping does not go with search; choose rates by study.pilot"
            yield "finetuning.early_stopping", message
        if (pilot := study.pilot) is not None:
            if tuned.search.is_asked_for:
                yield "study.pilot", "the pilot does not go with finetuning.search: both choose; leave one of them out"
            if study.both_ways:
                yield "study.pilot", "the pilot chooses for one direction; leave study.both_ways out"
            own = [name for name in study.names if "lr" in study.arm(name).optimizer] if pilot.lr else []
            if own:
                message = f"pilot.lr is the same grid for all arms, and {', '.join(own)} has an optimizer.lr of its own"
                yield "study.pilot", f"{message}; leave that out"
            if not tuned.fractions and not pilot.lr:
                message = (
                    "finetuning.fractions is empty, so the pilot has nothing to choose: give it lr, or leave it out"
                )
                yield "study.pilot", message
            if down.reserved:
                yield "downstream.reserved", "leave it out: study.pilot.reserved decides it"
        micro_batch_size = tuned.training.micro_batch_size or tuned.training.batch_size
        if (tuned.augmentation.mixup or tuned.augmentation.cutmix) and micro_batch_size % 2:
            yield "finetuning.augmentation", "mixup and CutMix pair the images of a micro-batch; let it be even"
        if not (study.arms or study.controls or (study.axis_arms and study.has_axes)):
            yield "study.arms", "arms is empty, and nothing else is asked for: there is nothing to run"
        same = _same_images(up, down)
        both = f"upstream and downstream are both {up.source}, {up.split}"
        if same and study.with_labels:
            message = f"{both}: evaluation would use the labels that these arms pre-train with: "
            message += f"{', '.join(study.with_labels)}; leave them out of study.arms, or choose two data sets, "
            message += "or classes of one that the other does not have (upstream.classes, downstream.classes)"
            yield "downstream.source", message
        if same and study.both_ways:
            yield "study.both_ways", f"{both}: there is no other direction; leave both_ways out"
        if up.image_size != down.image_size:
            yield "downstream.image_size", f"upstream images have {up.image_size} px, and both must have the same size"
        for name in ("precision", "threads", "deterministic"):
            one, other = getattr(self.pretraining.training, name), getattr(tuned.training, name)
            if one != other:
                yield f"finetuning.training.{name}", f"it is {one} in pretraining, and both must be the same"


def _same_images(one: DataSettings, other: DataSettings) -> bool:
    """Whether two sections name the same split of the same data, or a part of it and the whole."""
    named = [{part.split("[")[0].strip() for part in data.split.split("+")} for data in (one, other)]
    whole = "[" not in one.split or "[" not in other.split
    return same_data(one, other) and (one.split == other.split or (whole and bool(named[0] & named[1])))


def same_data(one: DataSettings, other: DataSettings) -> bool:
    """Whether two sections name the same data set, whichever of its splits.

    Two halves of a data set that have no class in common are two data sets.
    """
    alike = len({(*_canonical(data.source), data.subset) for data in (one, other)}) == 1
    return alike and not _no_class_in_common(one, other)


def _no_class_in_common(one: DataSettings, other: DataSettings) -> bool:
    """Whether both choose classes, by the same column, and none of them is chosen by both."""
    if one.classes is None or other.classes is None or one.label_column != other.label_column:
        return False
    return not {*one.classes} & {*other.classes}


def _canonical(source: str) -> tuple[str, str]:
    """What a source is, however it is written."""
    if source.split(":")[0] == "embedded":
        return "embedded", source.partition(":")[2] or "a"
    path = Path(source).expanduser()
    return ("path", str(path.resolve())) if path.exists() else ("id", source)


COMMANDS: dict[str, type[Settings]] = {
    "pretrain": PretrainRecipe,
    "finetune": FinetuneRecipe,
    "evaluate": EvaluateRecipe,
    "embed": EmbedRecipe,
    "predict": PredictRecipe,
    "gap": GapRecipe,
}
"""The schema that each `command:` names; the command itself is `python -m mpp.NAME`."""
