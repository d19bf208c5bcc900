"""What a run computes on, in one line, and what it could compute on but does not."""

import os
import platform
import shutil
from pathlib import Path

import pytorch_lightning as pl
import torch

from ..kernels import compiler
from . import memory

CPU_INFO, NVIDIA_DRIVER = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/version")


def trains_on_cuda(accelerator: str) -> bool:
    """Whether `training.accelerator` means a GPU of NVIDIA here, known before there is a trainer."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def tune_cuda() -> None:
    """Keep torch from what is slow here on CUDA, and compiled code from one run to the next."""
    # In 16 bits cuDNN's attention makes a plan for each new shape, which takes it up to 0.2 s; ranking has many shapes.
    torch.backends.cuda.enable_cudnn_sdp(False)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiler.cache_folder() / "inductor"))


def describe(trainer: pl.Trainer) -> dict[str, str]:
    """The device and the precision of a trainer, for people and for metrics.json.

    Returns:
        device: one line, such as `2 x NVIDIA H200, 139 GiB each` or `CPU, AMD EPYC 7713, 2 threads, 23 GiB, compiled
            kernels`.
        precision: as Lightning calls it, such as `bf16-mixed`.
    """
    device = trainer.strategy.root_device
    return {"device": name(device, trainer.world_size, str(trainer.precision)), "precision": str(trainer.precision)}


def lines(trainer: pl.Trainer, accelerator: str) -> list[str]:
    """What `describe` finds, as a line of the scripts' output, and a note if a device here is left unused."""
    described = describe(trainer)
    said = [f"device      {described['device']}, {described['precision']}"]
    note = unused(trainer.strategy.root_device.type, accelerator)
    return said if note is None else [*said, f"note: {note}"]


def name(device: torch.device, processes: int = 1, precision: str = "32-true") -> str:
    """A device in words: its model and memory, and on a CPU threads and kernels.

    Args:
        processes: how many work together, each with a device like this one, or with a share of the CPUs.
    """
    several = f"{processes} x " if processes > 1 else ""
    gigabytes = f"{memory.of(device) / 2**30:,.0f} GiB" + (" each" if processes > 1 and device.type != "cpu" else "")
    if device.type == "cuda":
        return f"{several}{torch.cuda.get_device_name(device)}, {gigabytes}"
    if device.type == "mps":
        return f"{several}Apple GPU (MPS), {processor()}, {gigabytes} shared with the CPU"
    if device.type != "cpu":
        return f"{several}{device.type.upper()}"
    threads = torch.get_num_threads()
    counted = f"{threads} thread{'s' if threads > 1 else ''}" + (" each" if processes > 1 else "")
    return f"{several}CPU, {processor()}, {counted}, {gigabytes}, {_kernels(precision)}"


def _kernels(precision: str) -> str:
    dtype = {"32-true": torch.float32, "64-true": torch.float64}.get(precision)
    has_kernels = dtype is not None and compiler.library(dtype) is not None
    return "compiled kernels" if has_kernels else "plain PyTorch"


def processor() -> str:
    """The model of this machine's CPU, or its architecture where the system does not say."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    models = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    told = models[0] if models else platform.processor() or platform.machine()
    return " ".join(told.replace("(R)", "").replace("(TM)", "").replace("Processor", "").split())


def unused(used: str, accelerator: str) -> str | None:
    """What this machine has but a run does not use, and the way out; None if there is nothing to say.

    Args:
        used: type of the device that is used, such as "cpu".
        accelerator: `training.accelerator`. Who asks for a CPU only hears of a GPU that is there for sure.
    """
    if used != "cpu":
        return None
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name(0)
        return f"the {gpu} is not used: training.accelerator=auto uses it"
    if torch.backends.mps.is_available():
        return "the Apple GPU (MPS) is not used: training.accelerator=auto uses it"
    if accelerator == "cpu":
        return None
    if torch.version.cuda is not None:
        if not os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip("-1, "):
            return "no GPU is used, since CUDA_VISIBLE_DEVICES hides them all: unset it"
        return (
            f"no GPU is used: PyTorch {torch.__version__} is built for CUDA {torch.version.cuda}, but finds no GPU"
            " or no driver new enough for it: see nvidia-smi, or ignore this on a machine without a GPU"
        )
    if NVIDIA_DRIVER.exists() or shutil.which("nvidia-smi") is not None:
        return (
            f"an NVIDIA GPU is not used: PyTorch {torch.__version__} is a build for CPUs; install one for CUDA, see"
            " pytorch.org/get-started"
        )
    return None
