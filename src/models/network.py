"""The bidirectional transformer of BERT4Rec (paper section 3, figure 1b) as a plain `nn.Module`.

B batch, L length, D hidden_units, H num_heads, V tokens (num_items + 2), M query slots per row, N queries in the batch.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src import ranking
from src.batch import PAD
from src.models import losses
from src.models.functional import Reused, attention, dropout, keep_bytes
from src.native import compiler, encoder

INIT_STD = 0.02
# Where PyTorch has sparse gradients of embeddings; elsewhere, such as on MPS, they are dense.
HAVE_SPARSE = ("cpu", "cuda")
# Raised whenever a checkpoint of an earlier version would need conversion; `src.checkpoint` knows them all.
FORMAT_KEY, CHECKPOINT_FORMAT = "bert4rec_format", 2


class Dropout(nn.Dropout):
    """`nn.Dropout`, faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


class Attention(nn.Module):
    """Multi-head attention in which every query sees every key that is no padding (paper section 3.3)."""

    def __init__(self, hidden_units: int, num_heads: int, dropout_rate: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.query = nn.Linear(hidden_units, hidden_units)
        self.key_value = nn.Linear(hidden_units, 2 * hidden_units)

    def forward(self, queries: Tensor, sequence: Tensor, is_visible: Tensor | None) -> Tensor:
        """Heads joined, before the output projection.

        Args:
            queries: [B, M, D].
            sequence: [B, L, D].
            is_visible: [B, 1, 1, L] bool, False at padding, or None if there is none.
        """
        q = self.query(queries)  # [B, M, D]
        key_value = self.key_value(sequence)  # [B, L, 2 D]
        return attention(q, key_value, self.num_heads, is_visible, self.dropout_rate if self.training else 0.0)


class Block(nn.Module):
    """Attention and feed-forward network, each with dropout, a residual and LayerNorm after it (equations 2 to 6)."""

    def __init__(
        self,
        hidden_units: int,
        num_heads: int,
        dropout_rate: float,
        attention_dropout_rate: float,
        ffn_dropout_rate: float,
    ) -> None:
        super().__init__()
        self.attention = Attention(hidden_units, num_heads, attention_dropout_rate)
        self.attention_output = nn.Linear(hidden_units, hidden_units)
        self.attention_norm = nn.LayerNorm(hidden_units)
        self.ffn = nn.Sequential(
            nn.Linear(hidden_units, 4 * hidden_units),
            nn.GELU(),  # the exact, erf form
            Dropout(ffn_dropout_rate),
            nn.Linear(4 * hidden_units, hidden_units),
        )
        self.ffn_norm = nn.LayerNorm(hidden_units)
        self.dropout = Dropout(dropout_rate)

    def forward(
        self, x: Tensor, is_visible: Tensor | None, positions: Tensor | None = None, slots: Tensor | None = None
    ) -> Tensor:
        """[B, L, D] -> [B, L, D], or, given `positions` [B, M] and `slots` [N], only those queries: [N, D]."""
        if positions is None or slots is None:
            queries = x
            mixed = self.attention(queries, x, is_visible)  # [B, L, D]
        else:
            queries = x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[2]))  # [B, M, D]
            mixed = self.attention(queries, x, is_visible).flatten(0, 1)[slots]  # [N, D]
            queries = queries.flatten(0, 1)[slots]  # [N, D]
        h = self.attention_norm(queries + self.dropout(self.attention_output(mixed)))
        out: Tensor = self.ffn_norm(h + self.dropout(self.ffn(h)))
        return out


class Network(nn.Module):
    """Embeddings, blocks and output layer: tokens in, logits for every token out.

    Positions are counted from the end of the input: the last column has position max_len - 1 whatever the length, so
    left padding, and how much of it, changes nothing.

    Args:
        linear_init: "normal" draws all weights from N(0, 0.02). "xavier" draws those of the linear layers by Glorot and
            Bengio (2010), several times as large at the usual widths: a block then adds to its input from the start.

    Raises:
        ValueError: if `hidden_units` is not divisible by `num_heads`, or the catalogue is empty.
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
    ) -> None:
        super().__init__()
        if num_items < 1:
            raise ValueError(f"num_items={num_items}: a model needs at least one item")
        if hidden_units % num_heads:
            raise ValueError(f"hidden_units={hidden_units} must be divisible by num_heads={num_heads}")
        num_tokens = num_items + 2
        self.num_items = num_items
        self.max_len = max_len
        self.embedding_norm_first = embedding_norm_first
        self.item_embedding = nn.Embedding(num_tokens, hidden_units, padding_idx=PAD)
        self.position_embedding = nn.Embedding(max_len, hidden_units)
        self.embedding_norm = nn.LayerNorm(hidden_units)
        self.dropout = Dropout(dropout_rate)
        self.blocks = nn.ModuleList(
            Block(
                hidden_units,
                num_heads,
                dropout_rate,
                dropout_rate if attention_dropout_rate is None else attention_dropout_rate,
                dropout_rate if ffn_dropout_rate is None else ffn_dropout_rate,
            )
            for _ in range(num_layers)
        )
        self.output_transform = (
            nn.Sequential(nn.Linear(hidden_units, hidden_units), nn.GELU(), nn.LayerNorm(hidden_units))
            if output_transform
            else nn.Identity()
        )
        self.output = nn.Linear(hidden_units, num_tokens, bias=output_bias)
        self.apply(_initialise)
        if linear_init == "xavier":
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_normal_(module.weight)
        with torch.no_grad():
            self.item_embedding.weight[PAD].zero_()
        self.shares_embeddings = share_embeddings
        if share_embeddings:
            self.output.weight = self.item_embedding.weight

    def forward(self, sequences: Tensor) -> Tensor:
        """Logits at every position: [B, L] int64 tokens, L <= max_len -> [B, L, V]."""
        return self.logits(self.encode(sequences))

    def encode(
        self,
        inputs: Tensor,
        positions: Tensor | None = None,
        slots: Tensor | None = None,
        table: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the last block: [B, L] int64 -> [B, L, D].

        Given `positions` [B, M] and `slots` [N] (see `TrainBatch`), only the states at those places, [N, D]: the last
        block then computes its queries and its feed-forward network for nothing else, with the same result. A `table`
        [V, D] is read in place of the item embedding.

        Raises:
            ValueError: if L is above max_len.
        """
        length = inputs.shape[1]
        if length > self.max_len:
            raise ValueError(f"a sequence of {length} tokens is longer than max_len={self.max_len}")
        table = self.item_embedding.weight if table is None else table
        x = (
            # The gradient of the few rows that are looked up is sparse; the output layer's dense one takes it up.
            F.embedding(inputs, table, PAD, sparse=self.shares_embeddings and inputs.device.type in HAVE_SPARSE)
            + self.position_embedding.weight[self.max_len - length :]
        )  # [B, L, D]
        x = self.dropout(self.embedding_norm(x)) if self.embedding_norm_first else self.embedding_norm(self.dropout(x))
        is_visible: Tensor | None = (inputs != PAD)[:, None, None, :]  # [B, 1, 1, L]
        looks = inputs.device.type == "cpu" and not torch.compiler.is_exporting()  # a graph cannot depend on values
        if looks and bool((inputs[:, 0] != PAD).all()):  # padded on the left, if at all
            is_visible = None
        for block in self.blocks[:-1]:
            x = block(x, is_visible)
        hidden: Tensor = self.blocks[-1](x, is_visible, positions, slots)
        return hidden

    def encode_parts(self, parts: Sequence[tuple[Tensor, Tensor, Tensor]], table: Tensor | None = None) -> Tensor:
        """As `encode` of inputs, positions and slots of each part, one behind the other: [N, D].

        On a CPU by compiled code where there is a compiler, which calls none of the modules in here. Positions are then
        none that are padding.
        """
        library = None
        if (
            parts[0][0].device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_exporting()
        ):
            library = compiler.library(self.item_embedding.weight.dtype)
        if library is None:
            return torch.cat([self.encode(*part, table) for part in parts])
        table = self.item_embedding.weight if table is None else table
        embedding = (self.position_embedding.weight, self.embedding_norm.weight, self.embedding_norm.bias)
        parameters = [parameter for block in self.blocks for parameter in block.parameters()]
        return encoder.encode(
            library,
            self._sizes(),
            encoder.Sequences.of(parts),
            table,
            (*embedding, *parameters),
            self.shares_embeddings,
        )

    def _sizes(self) -> encoder.Sizes:
        block = self.blocks[0]  # as all of them
        assert isinstance(block, Block)
        inside = block.ffn[2]
        assert isinstance(inside, Dropout)
        rates = (self.dropout.p, block.attention.dropout_rate, inside.p)
        kept = (keep_bytes(rate) if self.training else 256 for rate in rates)
        width, heads = self.position_embedding.weight.shape[1], block.attention.num_heads
        return encoder.Sizes(width, heads, len(self.blocks), self.max_len, self.embedding_norm_first, *kept)

    def encode_last(self, inputs: Tensor) -> Tensor:
        """Hidden state of the last column, where prediction has its [MASK]: [B, L] int64 -> [B, D]."""
        rows, length = inputs.shape
        positions = inputs.new_full((rows, 1), length - 1)
        return self.encode_parts([(inputs, positions, torch.arange(rows, device=inputs.device))])

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V], indexed by token id."""
        return F.linear(self.output_transform(hidden), self.output.weight, self.output.bias)

    def before_output(self, hidden: Tensor) -> Tensor:
        """What the output layer multiplies when it ranks, outside autocast: [B, D] -> [B, D]."""
        with ranking.without_autocast(hidden.device):
            transformed: Tensor = self.output_transform(hidden.to(self.output.weight.dtype))
        return transformed

    def scores(self, hidden: Tensor, reused: Reused | None = None) -> Tensor:
        """`logits` to rank by, see `src.ranking.linear_scores`: [B, D] -> [B, V], in `reused` memory if it is given."""
        linear = F.linear if reused is None else reused.linear
        return ranking.linear_scores(self.before_output(hidden), self.output.weight, self.output.bias, linear)

    def cross_entropy(self, hidden: Tensor, targets: Tensor, table: Tensor | None = None) -> Tensor:
        """Mean cross entropy of `logits(hidden)` [N, V] against `targets` [N], a scalar, without keeping the logits.

        A `table` [V, D] is read in place of the output matrix.
        """
        hidden = self.output_transform(hidden)
        table = self.output.weight if table is None else table
        return losses.linear_cross_entropy(hidden, table, self.output.bias, targets)

    def sampled_scores(self, hidden: Tensor, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the targets [N] and of the same K negatives for each of them, -inf where they coincide: [N, K].

        Only these rows of the output matrix are read, and they alone get a gradient, a sparse one where there are any.
        """
        hidden = self.output_transform(hidden)  # [N, D]
        is_sparse = targets.device.type in HAVE_SPARSE
        true_rows, negative_rows = (
            F.embedding(ids, self.output.weight, sparse=is_sparse) for ids in (targets, negatives)
        )
        true_scores = (hidden * true_rows).sum(dim=1)
        negative_scores = hidden @ negative_rows.t()
        if self.output.bias is not None:
            true_scores = true_scores + self.output.bias[targets]
            negative_scores = negative_scores + self.output.bias[negatives]
        return true_scores, negative_scores.masked_fill(targets[:, None] == negatives, -math.inf)


def _initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases zero; LayerNorm keeps its own ones and zeros."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
