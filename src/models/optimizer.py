"""Adam for parameters of which a step touches few rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class RowwiseAdam(torch.optim.Adam):
    """`torch.optim.Adam` that also takes sparse gradients, whose cost then is that of the rows they touch.

    Where the gradient is sparse, only the rows in it are updated, moments included: a row that no batch touched stays
    as it is (torch's `SparseAdam` does the same, but takes nothing else). Weight decay does not reach such parameters.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = [
            (parameter, parameter.grad, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        for parameter, _, _ in sparse:
            parameter.grad = None
        super().step()
        for parameter, gradient, group in sparse:
            self._update_rows(parameter, gradient.coalesce(), group)
            parameter.grad = gradient
        return loss

    def _update_rows(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        rows, values = gradient.indices()[0], gradient.values()  # [R], [R, D]
        mean = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - beta1)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(beta2).addcmul_(values, values, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        correction1 = 1 - beta1 ** state["step"]
        correction2 = 1 - beta2 ** state["step"]
        change = mean / (square / correction2).sqrt_().add_(group["eps"]) * (-group["lr"] / correction1)
        parameter.index_add_(0, rows, change)
