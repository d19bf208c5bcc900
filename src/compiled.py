"""A loss by `torch.compile`, which goes on without it where it does not work."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# How far the compiled and the plain one may be apart, which draw dropout otherwise: relative, of the loss and of the
# norm of its gradient. A batch of 24 sequences of 50 has up to 0.002 and 0.04.
LOSS_APART, GRADIENT_APART = 0.05, 0.25


class Compiled:
    """A function to a loss, compiled at its first call with arguments of a shape; so few shapes are wanted.

    The first call sees that loss and gradient are near those of the function itself.
    """

    def __init__(self, function: Callable[..., Tensor], parameters: Sequence[nn.Parameter]) -> None:
        self.plain = function
        self.parameters = parameters
        self.function: Callable[..., Tensor] = torch.compile(function, dynamic=False)
        self._is_checked = False

    def __call__(self, *args: object) -> Tensor:
        if self.function is self.plain:
            return self.plain(*args)
        from torch._dynamo.exc import TorchDynamoException

        try:
            if not self._is_checked:
                self._is_checked = True
                self._check(*args)
            return self.function(*args)
        except (TorchDynamoException, ArithmeticError) as error:
            warnings.warn(
                f"torch.compile does not work here ({type(error).__name__}: {' '.join(str(error).split())[:120]}):"
                " training goes on without it, slower; training.compile=false says nothing about it",
                stacklevel=2,
            )
            self.function = self.plain
            return self.plain(*args)

    def _check(self, *args: object) -> None:
        """Compare, and leave the state of random draws as it was.

        Raises:
            ArithmeticError: if it computes something else.
        """
        device = self.parameters[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            (loss, norm), (plain_loss, plain_norm) = (
                self._loss_and_norm(function, *args) for function in (self.function, self.plain)
            )
        is_near = abs(loss - plain_loss) <= LOSS_APART * abs(plain_loss)
        if not is_near or abs(norm - plain_norm) > GRADIENT_APART * plain_norm:
            raise ArithmeticError(
                f"compiled, the loss is {loss:.4g} and its gradient's norm {norm:.4g},"
                f" else {plain_loss:.4g} and {plain_norm:.4g}"
            )

    def _loss_and_norm(self, function: Callable[..., Tensor], *args: object) -> tuple[float, float]:
        loss = function(*args)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
        return float(loss.detach()), float(torch.stack(norms).norm())
