"""Adam for tables of which a step touches few rows, clipping, schedules, and which of torch's kernels may be used."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

# Where torch's fused kernel of Adam is used. MPS has one too, which was not tried here.
FUSED_ON = ("cpu", "cuda")


def can_fuse(parameters: Iterable[Tensor]) -> bool:
    """Whether torch's fused kernel updates all of them."""
    return all(parameter.device.type in FUSED_ON for parameter in parameters)


def leave_scaling_to_scaler(optimizer: torch.optim.Optimizer) -> None:
    """Have `torch.amp.GradScaler` unscale the gradients before `step`, and skip it by itself if they overflow.

    For a fused optimiser it leaves both to the kernel. That knows nothing of gradients that it is not given, such as
    sparse ones, and by then it is too late to clip them. The price is one wait for the device a step.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


class RowwiseAdam(torch.optim.Adam):
    """`torch.optim.Adam` that also updates tables row by row, at the cost of the rows that a step touches.

    Where the gradient is sparse, only the rows in it are updated, moments included: a row that no batch touched stays
    as it is (torch's `SparseAdam` does the same, but takes nothing else). Weight decay does not reach such parameters.

    Args:
        parameters: as torch's.
        tables: parameters whose gradient is dense where there are no sparse ones, or steps need to be all alike. There
            the rows that were touched are those whose gradient is not 0 throughout.
        options: as torch's.
    """

    def __init__(self, parameters: Any, tables: Iterable[Tensor] = (), **options: Any) -> None:
        super().__init__(parameters, **options)
        self._tables = {id(table) for table in tables}
        leave_scaling_to_scaler(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        by_rows = [
            (parameter, parameter.grad, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and (parameter.grad.is_sparse or id(parameter) in self._tables)
        ]
        for parameter, _, _ in by_rows:
            parameter.grad = None
        super().step()
        for parameter, gradient, group in by_rows:
            self._update_rows(parameter, gradient, group)
            parameter.grad = gradient
        return loss

    def _update_rows(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Adam for the rows that a gradient [V, D] touches; a dense one costs no look at which they are."""
        beta1, beta2 = group["betas"]
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        tables = (parameter, state["exp_avg"], state["exp_avg_sq"])
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()  # [R], [R, D]
            here = [table.index_select(0, rows) for table in tables]  # [R, D] each
        else:
            values, here = gradient, [table.clone() for table in tables]
        adam(
            params=[here[0]],
            grads=[values],
            exp_avgs=[here[1]],
            exp_avg_sqs=[here[2]],
            max_exp_avg_sqs=[],
            state_steps=[state["step"]],  # counted up by it
            fused=self.defaults["fused"],
            capturable=group["capturable"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        for table, changed in zip(tables, here, strict=True):
            if gradient.is_sparse:
                table.index_copy_(0, rows, changed)
            else:
                table.copy_(torch.where((gradient != 0).any(dim=1, keepdim=True), changed, table))


def clip_norm(parameters: Iterable[Tensor], most: float) -> None:
    """Clip the norm of all gradients together to `most`, in place; torch's own clipping takes no sparse ones."""
    values = []
    for parameter in parameters:
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in values]))
    for value in values:
        value.mul_(torch.clamp(most / (norm + 1e-6), max=1.0))


def configure_anew(
    optimizers: Iterable[torch.optim.Optimizer], schedules: Iterable[Any], lr: float, weight_decay: float, steps: int
) -> None:
    """Give optimisers, restored or new, what the settings say, and put schedules behind so many steps."""
    factor = 1.0
    for schedule in schedules:
        factor = schedule.lr_lambdas[0](steps)
        schedule.base_lrs = [lr for _ in schedule.base_lrs]
        schedule.last_epoch = steps
    for optimizer in optimizers:
        for group, decay in zip(optimizer.param_groups, (weight_decay, 0.0), strict=False):
            group |= optimizer.defaults | {"lr": lr * factor, "weight_decay": decay}
            if group["capturable"]:  # a graph reads it anew in each step
                group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
        for parameter, state in optimizer.state.items():  # a fused kernel has its count beside the weights
            state["step"] = state["step"].to(parameter.device if optimizer.defaults["fused"] else "cpu")


def lr_factor(step: int, warmup_steps: int, total_steps: int, scheduler: str) -> float:
    """What the learning rate is multiplied by at a step, 0-based: warm-up to 1, then constant or a decay to 0.

    The paper's code decays linearly from the first step on and warms up over it; here decay begins after the warm-up.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if scheduler == "linear":
        return 1.0 - progress
    if scheduler == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
