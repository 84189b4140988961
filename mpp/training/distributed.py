"""The processes of a run: how many, on which device, in which precision."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType, broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mpp.data.loader import Batch
from mpp.objective.scores import Scores, means
from mpp.training.settings import ComputeSettings, JournalSettings

T = TypeVar("T")
LAUNCHED = "ACCELERATE_MIXED_PRECISION"
"""Set in the environment by `accelerate launch`, and by nothing else."""
UNTRACKED = JournalSettings()


def start_processes(settings: ComputeSettings, *, folder: Path, journal: JournalSettings = UNTRACKED) -> Accelerator:
    """Initialise Accelerate: device, process group, precision and trackers.

    A ValueError for unknown or missing trackers, or a launch in which each process sees itself alone.
    """
    known = [str(kind) for kind in LoggerType if kind != LoggerType.ALL]
    installed = [str(kind) for kind in get_available_trackers()]
    for name in journal.trackers:
        if name not in known:
            raise journal.error(trackers=f"{name} unknown; Accelerate has {', '.join(known)}")
        if name not in installed:
            raise journal.error(trackers=f"{name} not installed: pip install {name}")
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        # It finds mistakes, and costs 2 to 4 %.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    accelerator = Accelerator(
        mixed_precision="bf16" if precision(settings) == "bfloat16" else "no",
        log_with=list(journal.trackers) or None,
        project_dir=str(folder),
        # The others wait while one process prepares the data, which can take long.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=3))],
    )
    torch.set_num_threads(threads(settings))  # on GPUs too: closed forms and baselines are computed on the CPU
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"the launcher started {launched} processes, but each thinks that it is one of "
            f"{accelerator.num_processes}: they would overwrite each other's files. {_several(launched)}"
        )
    # Accelerate sets this address; a cluster exports another machine's name.
    alone = os.environ.get("MASTER_ADDR") == "127.0.0.1" and "WORLD_SIZE" not in os.environ
    if alone and LAUNCHED in os.environ and accelerator.device.type == "cpu":
        raise ValueError(  # `accelerate launch --cpu --num_processes 2` does so silently
            f"several processes were asked for, but the launcher started this one alone. {_several(2)}"
        )
    return accelerator


def end_processes(accelerator: Accelerator) -> None:
    """Destroy the process group, at the end of all work."""
    if accelerator.num_processes > 1:
        torch.distributed.destroy_process_group()


def _several(processes: int) -> str:
    return (
        f"To run {processes} processes on CPU:\n"
        f"  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {processes} --num_machines 1 "
        "--mixed_precision no --dynamo_backend no -m mpp.pretrain RECIPE"
    )


def precision(settings: ComputeSettings) -> str:
    """`float32` or `bfloat16`; `auto` takes bfloat16 if the device has instructions for it."""
    if settings.precision != "auto":
        return settings.precision
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    if torch.cuda.is_available() and not use_cpu:
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


def distribute(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """The module itself, or in DDP if there are several processes.

    Not `accelerator.prepare`, which would convert every logit to float32: the loss is computed in float32 inside
    `forward`, and nothing else needs it.
    """
    if accelerator.num_processes == 1:
        return module
    devices = [accelerator.device] if accelerator.device.type == "cuda" else None
    known, new = inspect.signature(DistributedDataParallel).parameters, "forward_sync_buffers"
    keep_own: dict[str, Any] = {new if new in known else "broadcast_buffers": False}
    return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True, **keep_own)


def adopt_statistics(accelerator: Accelerator, module: nn.Module) -> None:
    """Broadcast the main process's running statistics of batch norm; every process has to call this.

    Each process keeps the statistics of its own images, and those of the main process are saved. After this call, all
    processes evaluate the model that is saved. The mean over the processes would be smoother, but it would depend on
    the steps at which it was taken, and a resumed run would end with other weights than an uninterrupted one.
    """
    if accelerator.num_processes > 1:
        for buffer in saved_buffers(module):
            torch.distributed.broadcast(buffer, src=0)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device; on GPUs with the channels of a pixel side by side, as convolutions are
    fastest there.
    """
    cuda = device.type == "cuda"
    tensors = {name: value for name, value in batch._asdict().items() if isinstance(value, Tensor)}
    batch = batch._replace(**{name: value.to(device, non_blocking=cuda) for name, value in tensors.items()})
    return batch._replace(pixels=batch.pixels.contiguous(memory_format=torch.channels_last)) if cuda else batch


def summed(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Values summed over all processes."""
    return accelerator.reduce(values.to(accelerator.device), "sum") if accelerator.num_processes > 1 else values  # pyright: ignore


def mean_scores(accelerator: Accelerator, scores: Scores) -> dict[str, float]:
    """The means of scores over the images of all processes."""
    return means(dict(zip(scores, summed(accelerator, torch.stack(list(scores.values()))), strict=True)))


def saved_buffers(module: nn.Module) -> list[Tensor]:
    """The buffers in a module's state dict: running statistics, if it has any."""
    saved = module.state_dict(keep_vars=True)
    return [buffer for name, buffer in module.named_buffers() if name in saved]


def threads(settings: ComputeSettings) -> int:
    """Threads of this process on CPU.

    `accelerate launch` sets OMP_NUM_THREADS to 1 by default, which would leave all cores but one idle, and make its
    runs differ in rounding from those of `python -m`: a 1 from there is ignored.
    """
    wished = int(os.environ.get("OMP_NUM_THREADS", "0").split(",")[0])  # may be a list, one number a nesting level
    if settings.threads is not None:
        return settings.threads
    if wished > 1 or (wished == 1 and LAUNCHED not in os.environ):
        return wished
    cores = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Call `work` in the main process; return its result, or raise its error, in all, so that none waits forever."""
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [(True, work())]
        except SafetensorError as error:  # a full disk, for one
            outcome = [(False, RuntimeError(str(error)))]
        except (ValueError, RuntimeError, OSError) as error:
            outcome = [(False, error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    good, value = outcome[0]
    if not good:
        value.reported_elsewhere = not accelerator.is_main_process
        raise value
    return value
