"""Tests of the compiled kernels; they need a C compiler, and say so where there is none."""

import ctypes
import shutil
import sys

import pytest
import torch

from src.kernels import compiler

HAS_COMPILER = sys.platform != "win32" and any(map(shutil.which, compiler.COMPILERS))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C compiler")


def library(dtype: torch.dtype = torch.float64) -> ctypes.CDLL:
    """What has to be there where there is a compiler: if it is not, tests fail instead of being left out."""
    found = compiler.library(dtype)
    assert found is not None, compiler.missing()
    return found
