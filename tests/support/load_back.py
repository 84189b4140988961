"""Features of a model by every way that there is to load it, as tensors in one file.

Arguments: the file, then jobs `WAY:NAME:SOURCE`; each gives a tensor `NAME/WAY`. A job that fails gives none, and its
error is printed after its name. Waits, as for a network that is not there, last a hundredth of a second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import mpp
from mpp.encoder.encoder import Encoder
from tests.support.runs import checkpoints


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    wait = time.sleep
    time.sleep = lambda seconds: wait(min(seconds, 0.01))
    found: dict[str, Tensor] = {}
    for job in arguments[1:]:
        way, name, source = job.split(":", 2)
        try:
            with torch.no_grad():
                found[f"{name}/{way}"] = WAYS[way](source).contiguous().clone()
        except Exception as error:
            print(f"{name}/{way}: {type(error).__name__}: {error}", flush=True)
    save_file(found, arguments[0])
    return 0


def pixels(size: int) -> Tensor:
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normal(config: dict[str, Any]) -> Tensor:
    """The same pixels as a model of this description wants them."""
    mean, std = (torch.tensor(config["pretrained_cfg"][name])[:, None, None] for name in ("mean", "std"))
    return (pixels(config["pretrained_cfg"]["input_size"][-1]).float() / 255 - mean) / std


def of_checkpoint(run: str) -> Tensor:
    """What the newest checkpoint says, by timm alone: the measure of all others."""
    config = json.loads((Path(run) / "encoder" / "config.json").read_text())
    model: Any = timm.create_model(config["architecture"], num_classes=0, **config["model_args"])
    weights = load_file(checkpoints(Path(run))[-1] / "weights.safetensors")
    prefix = "encoder.vit." if any(name.startswith("encoder.vit.") for name in weights) else "encoder.model."
    model.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}, strict=True)
    return model.eval()(normal(config))


def of_timm(source: str) -> Tensor:
    model: Any = timm.create_model(source, pretrained=True).eval()
    return model(normal({"pretrained_cfg": model.pretrained_cfg}))


def of_transformers(source: str) -> Tensor:
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(source).eval()
    return model(pixel_values=normal({"pretrained_cfg": model.config.pretrained_cfg})).pooler_output


def of_processor(source: str) -> Tensor:
    """How far the image processor's pixels are from the ones that the encoder was trained on."""
    from transformers import AutoImageProcessor

    processor: Any = AutoImageProcessor.from_pretrained(source)
    encoder = mpp.load_encoder(source)
    images = pixels(encoder.image_size)
    given = processor([Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images], return_tensors="pt")
    return (given["pixel_values"] - encoder.normalize(images)).abs().max().reshape(1)


def of_mpp(source: str) -> Tensor:
    encoder = mpp.load_encoder(source).eval()
    return encoder.pooled(encoder(pixels(encoder.image_size)))


def of_objective(source: str) -> Tensor:
    encoder = mpp.load_objective(source).eval().encoder
    assert isinstance(encoder, Encoder)
    return encoder.pooled(encoder(pixels(encoder.image_size)))


def predictions(source: str) -> Tensor:
    """What the whole objective predicts of some masked patches; `USER/NAME REVISION` pins one."""
    name, *revision = source.split()
    objective = mpp.load_objective(name, **({"revision": revision[0]} if revision else {})).eval()
    assert isinstance(objective.encoder, Encoder)
    return objective.forward(pixels(objective.encoder.image_size), torch.arange(3)).logits


def logits_of_run(run: str) -> Tensor:
    """What the classifier of a fine-tuning says, by timm's network, filled by hand."""
    config = json.loads((Path(run) / "classifier" / "config.json").read_text())
    model: Any = timm.create_model(
        config["architecture"], num_classes=config["num_classes"], global_pool=config["global_pool"],
        **{name: value for name, value in config["model_args"].items() if name != "global_pool"},
    )  # fmt: skip
    model.load_state_dict(load_file(Path(run) / "classifier" / "model.safetensors"), strict=True)
    return model.eval()(normal(config))


def logits_of_transformers(source: str) -> Tensor:
    from transformers import AutoModelForImageClassification

    model: Any = AutoModelForImageClassification.from_pretrained(source).eval()
    print(f"names {list(model.config.id2label.values())}")
    return model(pixel_values=normal({"pretrained_cfg": model.config.pretrained_cfg})).logits


def logits_of_mpp(source: str) -> Tensor:
    """What `mpp predict` reads, on pixels as they were decoded."""
    from mpp.encoder.classifier import Classifier

    classifier = Classifier(source).eval()
    print(f"names {list(classifier.class_names)}")
    return classifier(pixels(classifier.image_size))


def probabilities_of_pipeline(source: str) -> Tensor:
    """Of the pipeline, in the order of the class names, which it is asked for by name."""
    from transformers import pipeline

    classify: Any = pipeline("image-classification", model=source, device="cpu")
    size = classify.model.config.pretrained_cfg["input_size"][-1]
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels(size)]
    names = list(classify.model.config.id2label.values())
    found = [{entry["label"]: entry["score"] for entry in scores} for scores in classify(images, top_k=len(names))]
    print(f"names {names}")
    return torch.tensor([[scores[name] for name in names] for scores in found])


def names_of_timm(source: str) -> Tensor:
    model: Any = timm.create_model(source, pretrained=True)
    print(f"names {model.pretrained_cfg['label_names']}")
    return torch.zeros(1)


WAYS: dict[str, Callable[[str], Tensor]] = {
    "checkpoint": of_checkpoint,
    "timm": of_timm,
    "transformers": of_transformers,
    "processor": of_processor,
    "mpp": of_mpp,
    "objective": of_objective,
    "predictions": predictions,
    "run": logits_of_run,
    "classifier": logits_of_transformers,
    "predict": logits_of_mpp,
    "pipeline": probabilities_of_pipeline,
    "names": names_of_timm,
}
