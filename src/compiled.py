"""Functions by `torch.compile`, which go on without it where it does not work."""

import warnings
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Compiled(Generic[P, R]):
    """A function, compiled at its first call with arguments of a shape; so few shapes are wanted."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.plain = function
        self.function: Callable[P, R] = torch.compile(function, dynamic=False)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return self.function(*args, **kwargs)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException

            if not isinstance(error, TorchDynamoException):
                raise
            reason = " ".join(str(error).split())[:120]
            warnings.warn(
                f"torch.compile does not work here ({type(error).__name__}: {reason}): training goes on without it,"
                " slower; training.compile=false says nothing about it",
                stacklevel=2,
            )
            self.function = self.plain
            return self.plain(*args, **kwargs)
