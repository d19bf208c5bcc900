"""BERT4Rec as a LightningModule: loss, steps, optimiser and prediction around `src.models.network.Network`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from .. import metrics, ranking
from ..batch import PAD, EvalBatch, PredictBatch, TrainBatch
from ..compiled import Compiled
from ..kernels import door
from . import losses
from .gathered_ranks import Ranks
from .gradient_exchange import mean_over_processes
from .histories import batch_of
from .network import CHECKPOINT_FORMAT, FORMAT_KEY, Architecture, Network
from .optimizer import RowwiseAdam, can_fuse, clip_norm, configure_anew, leave_scaling_to_scaler, lr_factor


class BERT4Rec(pl.LightningModule):
    """BERT4Rec (Sun et al., 2019): predicts the items of a sequence that are hidden behind [MASK].

    Args:
        num_items: size of the catalogue; items are tokens 1..num_items, 0 is padding, num_items + 1 is [MASK].
        hidden_units, num_heads, num_layers, max_len: size of the network.
        dropout_rate: after the embedding and on the residual branches, and, unless `attention_dropout_rate` or
            `ffn_dropout_rate` say otherwise, on the attention distribution and inside the feed-forward network.
        share_embeddings: whether the output layer uses the item embedding as its matrix.
        embedding_norm_first, output_transform, output_bias: parts of the paper's code that the paper's text or the
            common ports lack; see `docs/fidelity.md`.
        linear_init: how the weights of the linear layers start, "normal" or "xavier", see `Network`.
        loss: "softmax" over all tokens, or from a sample of negatives, "sampled_softmax" or "gbce".
        gbce_calibration: t of `src.models.losses.gbce`.
        lr, optimizer, weight_decay, decay_norm_and_bias: Adam with L2, or AdamW; optionally no decay on LayerNorm and
            bias.
        scheduler, warmup_steps: "none", "linear" or "cosine" decay to zero at the last step, after a linear warm-up.
        topk: the K of the metrics logged in validation and test.

    Raises:
        ValueError: if the sizes do not fit together.
    """

    def __init__(
        self,
        num_items: int,
        hidden_units: int = 64,
        num_heads: int = 4,
        num_layers: int = 3,
        max_len: int = 50,
        dropout_rate: float = 0.3,
        share_embeddings: bool = True,
        attention_dropout_rate: float | None = None,
        ffn_dropout_rate: float | None = None,
        embedding_norm_first: bool = False,
        output_transform: bool = False,
        output_bias: bool = False,
        linear_init: str = "normal",
        loss: str = "softmax",
        gbce_calibration: float = 0.75,
        lr: float = 0.0015,
        optimizer: str = "adam",
        weight_decay: float = 0.0,
        decay_norm_and_bias: bool = True,
        scheduler: str = "none",
        warmup_steps: int = 0,
        topk: Sequence[int] = (10,),
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.num_items = num_items
        self.max_len = max_len
        self.loss_name = loss
        self.gbce_calibration = gbce_calibration
        self.lr = lr
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.decay_norm_and_bias = decay_norm_and_bias
        self.scheduler = scheduler
        self.warmup_steps = warmup_steps
        self.topk = list(topk)
        self.predict_topk = 10
        self.predict_barred: Tensor | None = None  # [num_items + 2] bool, tokens that `predict_step` gives to nobody
        sizes = {field.name: self.hparams[field.name] for field in fields(Architecture)}
        self.network = Network(num_items, Architecture(**sizes))
        self._have_sparse_gradients(loss != "softmax")
        self.others = nn.ModuleList()  # networks of an ensemble beside the own one, for ranking alone
        if loss != "softmax":
            # The gradient of this table is sparse. DDP, which cannot exchange that by NCCL, leaves it to us.
            names = ["network.output.weight", *(["network.item_embedding.weight"] if share_embeddings else [])]
            self._ddp_params_and_buffers_to_ignore = names
        self.ranks = Ranks()
        self.epoch_loss = torch.zeros(2)  # over the steps of this epoch and process: sum over targets, their number
        self.compiles = False  # whether `torch.compile` makes the loss in training, of batches of few shapes
        self._compiled_loss: Callable[[TrainBatch], Tensor] | None = None
        self.whole_steps: Callable[[Any], Tensor] | None = None  # takes optimiser steps in the place of Lightning
        self.is_recorded = False  # whether CUDA graphs hold these steps
        self.observer: Metric | None = None  # shown (users, ranks, scores, targets) of every batch that is ranked

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """As Lightning's, but reading weights and plain values alone by default: code in a checkpoint does not run."""
        return super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only=weights_only, **kwargs
        )

    def forward(self, sequences: Tensor) -> Tensor:
        """Logits for every token at every position: [B, L] int64 -> [B, L, num_items + 2], indexed by token id."""
        return self.network(sequences)  # type: ignore[no-any-return]

    def _have_sparse_gradients(self, have: bool) -> None:
        """Whether a sampled loss gives the item table a gradient of the rows that it looked up alone."""
        self.has_sparse_gradients = have
        self.network.item_embedding.sparse = have and self.network.architecture.share_embeddings

    def loss(self, batch: TrainBatch) -> Tensor:
        """The loss averaged over the targets of a batch; a scalar.

        Cross entropy over all tokens (paper equation 8), or, given negatives, the sampled loss the model was made with.
        """
        hidden = door.encode(self.network, batch.inputs, batch.places)  # [N, D]
        if batch.negatives is None:
            return door.softmax_loss(self.network, hidden, batch.targets)
        how = self.loss_name, self.gbce_calibration, self.has_sparse_gradients
        return losses.sampled_loss(self.network, hidden, batch.targets, batch.negatives, *how)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.whole_steps is not None:
            return self.whole_steps(batch)
        loss = self.step_loss(batch)
        return loss if self.trainer.world_size == 1 else loss * self._share((batch.targets > PAD).sum())

    def step_loss(self, batch: TrainBatch) -> Tensor:
        """`loss`, compiled if it can be, which counts towards that of the epoch."""
        loss = (self._compiled_loss or self.loss)(batch._replace(num_rows=0))  # compiled anew for each other number
        targets = (batch.targets > PAD).sum()  # a look at it would wait for a GPU
        self.epoch_loss = self.epoch_loss.to(loss.device).add_(torch.stack([loss.detach().float() * targets, targets]))
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if self.whole_steps is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        else:
            optimizer_closure()  # calls `training_step`, after which nothing is left to do

    def on_after_backward(self) -> None:
        """Exchange what DDP leaves out, before gradients are clipped."""
        if self._leaves_table_out_of_ddp():
            table = self.network.output.weight
            assert table.grad is not None
            table.grad = mean_over_processes(table.grad)

    def _leaves_table_out_of_ddp(self) -> bool:
        return self.loss_name != "softmax" and self.trainer.world_size > 1

    def _share(self, targets: Tensor) -> Tensor:
        """Weight of this process' mean loss, so that the average over processes is the mean over all targets."""
        mine = targets.float()
        total: Tensor = self.trainer.strategy.reduce(mine.clone(), reduce_op="sum")
        return mine * self.trainer.world_size / total

    def on_train_start(self) -> None:
        """Apply the configured learning rate and weight decay, also after a resume, and begin with the same table.

        A subclass with a `configure_optimizers` of its own keeps the learning rate and the decay that it says.
        """
        # Compiled is what `Network` builds; sparse gradients cannot be.
        if self.compiles and not self.has_sparse_gradients and door.difference(self.network, "output") is None:
            self._compiled_loss = Compiled(self.loss, list(self.parameters()))
        if self._leaves_table_out_of_ddp():
            torch.distributed.broadcast(self.network.output.weight.data, 0)  # as DDP does with all others
        if type(self).configure_optimizers is not BERT4Rec.configure_optimizers:
            return
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        configure_anew(self.trainer.optimizers, schedules, self.lr, self.weight_decay, self.global_step)

    def on_train_end(self) -> None:
        self._compiled_loss = None

    def on_train_epoch_start(self) -> None:
        self.epoch_loss.zero_()

    def on_train_epoch_end(self) -> None:
        """Log the loss of the epoch, averaged over all targets of all processes.

        To the loggers at once, not when Lightning does it: the checkpoint of the epoch's end comes in between, and
        whatever belongs to the time before it has to be written by then.
        """
        summed, targets = self._epoch_loss_of_all()
        self.log("train_loss", summed / targets, prog_bar=True, logger=False)
        for logger in self.loggers:
            logger.log_metrics(
                {"train_loss": float(summed / targets), "epoch": self.current_epoch}, step=self.global_step - 1
            )
        self.epoch_loss.zero_()

    def _epoch_loss_of_all(self) -> Tensor:
        return self.trainer.strategy.reduce(self.epoch_loss.to(self.device).clone(), reduce_op="sum")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the format of the checkpoint, and the loss of the epoch so far."""
        checkpoint[FORMAT_KEY] = CHECKPOINT_FORMAT
        checkpoint["epoch_loss"] = self._epoch_loss_of_all().tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the loss of the epoch; what all processes had together, the first one takes over."""
        if self._trainer is not None and self.trainer.is_global_zero:
            self.epoch_loss = torch.tensor(checkpoint.get("epoch_loss", [0.0, 0.0]))

    def candidate_scores(self, batch: PredictBatch | EvalBatch) -> Iterator[tuple[slice, Tensor]]:
        """Scores for the item after each history, -inf for what is no candidate, some rows R at a time.

        Yields:
            which rows of the batch, and their scores [R, num_items + 2], which the next ones overwrite.
        """
        return door.next_item_scores([self.network, *self.others], batch)

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        owners = batch.users if batch.owners is None else batch.owners
        if self.observer is None:
            hidden = door.last_states(self.network, batch.inputs, batch.owners)
            ranks = door.target_ranks(self.network, hidden, batch.targets, batch.seen_rows, batch.seen_items)
            self.ranks.update(ranks, owners)
            return
        for rows, scores in self.candidate_scores(batch):
            ranks = ranking.target_ranks(scores, batch.targets[rows])
            self.observer.update(batch.users[rows], ranks, scores, batch.targets[rows])
            self.ranks.update(ranks, owners[rows])

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val_")

    def test_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test_")

    def _log_metrics(self, prefix: str) -> None:
        self.ranks.update(*torch.zeros(2, 0, dtype=torch.long, device=self.device))  # a process may have had none
        ranks, owners = self.ranks.compute()
        figures = metrics.means(ranks, self.topk, prefix, owners)
        self.ranks.reset()
        if self.observer is not None:  # while the processes are together; it keeps the result
            self.observer.compute()
        self.log_dict(figures, prog_bar=prefix == "val_")

    def configure_optimizers(self) -> Any:
        is_alone, device = self._trainer is None or self.trainer.world_size == 1, self.network.output.weight.device
        if ((self.compiles or self.is_recorded) and is_alone) or device.type not in losses.HAVE_SPARSE:
            self._have_sparse_gradients(False)
        exempt = [] if self.decay_norm_and_bias else [p for p in self.parameters() if p.dim() == 1]
        decayed = [p for p in self.parameters() if p.dim() > 1 or self.decay_norm_and_bias]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}]
        groups += [{"params": exempt, "weight_decay": 0.0}] if exempt else []
        options: dict[str, Any] = {"lr": self.lr, "fused": can_fuse(self.parameters()), "capturable": self.is_recorded}
        if self.loss_name != "softmax":
            if self.optimizer != "adam":
                raise ValueError(f"loss={self.loss_name} needs optimizer=adam, not {self.optimizer}")
            optimizer: torch.optim.Optimizer = RowwiseAdam(groups, tables=[self.network.output.weight], **options)
        else:
            optimizer = (torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam)(groups, **options)
        if self._trainer is not None and self.trainer.gradient_clip_val:
            leave_scaling_to_scaler(optimizer)  # clipping needs unscaled gradients
        if self.scheduler == "none" and self.warmup_steps == 0:
            return optimizer
        total_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, self.warmup_steps, total_steps, self.scheduler)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the norm of all gradients together."""
        if gradient_clip_val is None:
            return
        parameters = [p for p in self.parameters() if p.grad is not None]
        if any(p.grad is not None and p.grad.is_sparse for p in parameters):
            clip_norm(parameters, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def predict_step(self, batch: PredictBatch, batch_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        """Users [B] with their `predict_topk` best items and scores as `src.ranking.top_k` gives them."""
        lists = [(torch.zeros(0, self.predict_topk).long(), torch.zeros(0, self.predict_topk))]
        lists = [self._best(scores) for _, scores in self.candidate_scores(batch)] or lists
        items, best = (torch.cat(tensors) for tensors in zip(*lists, strict=True))
        return batch.users, items, best

    def _best(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        if self.predict_barred is not None:
            scores.masked_fill_(self.predict_barred.to(scores.device), ranking.EXCLUDED)
        return ranking.top_k(scores, self.predict_topk)

    @torch.inference_mode()
    def predict(
        self,
        user_sequences: Sequence[Sequence[int]],
        topk: int = 10,
        exclude_items: Sequence[Iterable[int]] | None = None,
        batch_size: int = 256,
    ) -> list[list[int]]:
        """The most likely next items of each history.

        Args:
            user_sequences: item tokens (1..num_items) of each user, oldest first; only the last max_len - 1 count,
                and a history may be empty.
            topk: how many items a user gets; fewer where fewer candidates are left.
            exclude_items: for each user, items that are no candidates.
            batch_size: users in one pass.

        Returns:
            One list of item tokens a user, best first.

        Raises:
            ValueError: if a token is no item, or `exclude_items` has another length than `user_sequences`.
        """
        if exclude_items is None:
            exclude_items = [()] * len(user_sequences)
        if len(exclude_items) != len(user_sequences):
            raise ValueError(f"exclude_items has {len(exclude_items)} entries for {len(user_sequences)} users")
        was_training, lists = self.training, list[list[int]]()
        self.eval()
        try:
            for start in range(0, len(user_sequences), batch_size):
                stop = start + batch_size
                histories, excluded = user_sequences[start:stop], exclude_items[start:stop]
                batch = batch_of(histories, excluded, self.num_items, self.max_len)
                for _, scores in self.candidate_scores(PredictBatch(*(tensor.to(self.device) for tensor in batch))):
                    items, _ = ranking.top_k(scores, topk)
                    lists += [[item for item in row if item != PAD] for row in items.tolist()]
            return lists
        finally:
            self.train(was_training)
