"""What is said of the device that a run computes on, on machines of many kinds."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from src.kernels import compiler
from src.runs import devices, memory


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine of two threads without any GPU."""
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: AMD EPYC(TM) 7713 Processor\n")
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", tmp_path / "no driver")
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    monkeypatch.setattr(memory, "of", lambda device: 23 * 2**30 if device.type == "cpu" else 139 * 2**30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(compiler, "library", lambda dtype: "kernels")


@pytest.mark.parametrize(
    ("precision", "ending"),
    [
        ("32-true", "compiled kernels, 32-true"),
        ("64-true", "compiled kernels, 64-true"),
        ("bf16-mixed", "plain PyTorch, bf16-mixed"),
    ],
)
def test_a_cpu_is_named_with_threads_memory_precision_and_kernels(precision: Any, ending: str) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, precision=precision)
    described = devices.describe(trainer)
    assert devices.line(described) == f"device      CPU, AMD EPYC 7713, 2 threads, 23 GiB, {ending}"
    assert described["precision"] == precision


def test_without_a_compiler_plain_pytorch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "library", lambda dtype: None)
    assert devices.name(torch.device("cpu")).endswith("23 GiB, plain PyTorch")


def test_gpus_are_named_with_their_number_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert devices.name(torch.device("cuda", 0)) == "NVIDIA H200, 139 GiB"
    assert devices.name(torch.device("cuda", 0), 2) == "2 x NVIDIA H200, 139 GiB each"
    assert devices.name(torch.device("mps")).startswith("Apple GPU (MPS), AMD EPYC 7713, 139 GiB shared")
    assert devices.name(torch.device("cpu"), 2).startswith("2 x CPU, AMD EPYC 7713, 2 threads each, 23 GiB")


def test_a_system_that_does_not_name_its_processor_names_the_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "none")
    assert devices.processor()


def test_nothing_is_said_on_a_machine_without_a_gpu() -> None:
    assert devices.unused("cpu", "auto") is None


def test_a_gpu_that_is_not_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert devices.unused("cuda", "auto") is None
    assert devices.unused("cpu", "cpu") == "the NVIDIA H200 is not used: training.accelerator=auto uses it"


def test_an_apple_gpu_that_is_not_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert str(devices.unused("cpu", "cpu")).startswith("the Apple GPU (MPS) is not used")


def test_a_cuda_build_without_a_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "is built for CUDA 13.0, but finds no GPU" in str(devices.unused("cpu", "auto"))
    assert devices.unused("cpu", "cpu") is None
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert "CUDA_VISIBLE_DEVICES hides them all" in str(devices.unused("cpu", "auto"))


@pytest.mark.parametrize("sign", ["driver", "nvidia-smi"])
def test_a_gpu_beside_a_cpu_build_is_named(sign: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if sign == "driver":
        (tmp_path / "no driver").touch()
    else:
        monkeypatch.setattr(devices.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "is a build for CPUs; install one for CUDA" in str(devices.unused("cpu", "auto"))
    assert devices.unused("cpu", "cpu") is None
