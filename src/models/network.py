"""The bidirectional transformer of BERT4Rec (paper section 3, figure 1b) as a plain `nn.Module`, on every device.

B batch, L length, D hidden_units, H heads, d = D / H width of a head, V tokens (num_items + 2), N places asked for.

This is the reference: `src.kernels` computes the same on a CPU, faster, and `tests/kernels` holds both equal.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batch import PAD
from .dropout import Dropout, attention

INIT_STD = 0.02
LINEAR_INITS = ("normal", "xavier")
# Raised whenever a checkpoint of an earlier version would need conversion; `src.runs.checkpoint` knows them all.
FORMAT_KEY, CHECKPOINT_FORMAT = "bert4rec_format", 2


@dataclass(frozen=True)
class Architecture:
    """Sizes and parts of a network.

    Attributes:
        dropout_rate: after the embedding and on the residual branches, and, where they are None, also of the attention
            distribution (`attention_dropout_rate`) and inside the feed-forward network (`ffn_dropout_rate`).
        share_embeddings: whether the output layer uses the item embedding as its matrix (paper section 3.5).
        embedding_norm_first: LayerNorm of the embedding before its dropout, as in the authors' code.
        output_transform: Linear, GELU and LayerNorm before the output matrix, as in the authors' code.
        output_bias: a bias for each token (paper equation 7).
        linear_init: "normal" draws all weights from N(0, 0.02). "xavier" draws those of the linear layers by Glorot and
            Bengio (2010), several times as large at the usual widths: a block then adds to its input from the start.

    Raises:
        ValueError: if `hidden_units` is not divisible by `num_heads`.
    """

    hidden_units: int = 64
    num_heads: int = 4
    num_layers: int = 3
    max_len: int = 50
    dropout_rate: float = 0.3
    share_embeddings: bool = True
    attention_dropout_rate: float | None = None
    ffn_dropout_rate: float | None = None
    embedding_norm_first: bool = False
    output_transform: bool = False
    output_bias: bool = False
    linear_init: str = "normal"

    def __post_init__(self) -> None:
        if self.hidden_units % self.num_heads:
            raise ValueError(f"hidden_units={self.hidden_units} must be divisible by num_heads={self.num_heads}")

    @property
    def dropout_in_attention(self) -> float:
        """Rate of the attention distribution's dropout."""
        return self.dropout_rate if self.attention_dropout_rate is None else self.attention_dropout_rate

    @property
    def dropout_in_ffn(self) -> float:
        """Rate of the dropout inside the feed-forward network."""
        return self.dropout_rate if self.ffn_dropout_rate is None else self.ffn_dropout_rate


class Attention(nn.Module):
    """Multi-head attention in which every position sees every other that is no padding (paper section 3.3)."""

    def __init__(self, hidden_units: int, num_heads: int, dropout_rate: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.query = nn.Linear(hidden_units, hidden_units)
        self.key_value = nn.Linear(hidden_units, 2 * hidden_units)

    def forward(self, x: Tensor, is_visible: Tensor) -> Tensor:
        """Heads joined, before the output projection: [B, L, D], [B, 1, 1, L] bool, False at padding -> [B, L, D]."""
        q = self.query(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, H, L, d]
        k, v = self.key_value(x).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, L, d] each
        rate = self.dropout_rate if self.training else 0.0
        mixed = attention(q, k, v, is_visible, rate)  # [B, H, L, d]
        return mixed.transpose(1, 2).flatten(2)  # [B, L, D]


class Block(nn.Module):
    """Attention and feed-forward network, each with dropout, a residual and LayerNorm after it (equations 2 to 6)."""

    def __init__(self, of: Architecture) -> None:
        super().__init__()
        self.attention = Attention(of.hidden_units, of.num_heads, of.dropout_in_attention)
        self.attention_output = nn.Linear(of.hidden_units, of.hidden_units)
        self.attention_norm = nn.LayerNorm(of.hidden_units)
        self.ffn = nn.Sequential(
            nn.Linear(of.hidden_units, 4 * of.hidden_units),
            nn.GELU(),  # the exact, erf form
            Dropout(of.dropout_in_ffn),
            nn.Linear(4 * of.hidden_units, of.hidden_units),
        )
        self.ffn_norm = nn.LayerNorm(of.hidden_units)
        self.dropout = Dropout(of.dropout_rate)

    def forward(self, x: Tensor, is_visible: Tensor, places: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D], or, given `places` [N] of the flattened [B * L] positions, only those: [N, D]."""
        mixed = self.attention(x, is_visible)  # [B, L, D]
        if places is not None:  # all that follows is done for each position by itself
            x, mixed = x.flatten(0, 1)[places], mixed.flatten(0, 1)[places]  # [N, D] each
        h = self.attention_norm(x + self.dropout(self.attention_output(mixed)))
        out: Tensor = self.ffn_norm(h + self.dropout(self.ffn(h)))
        return out


class Network(nn.Module):
    """Embeddings, blocks and output layer: tokens in, logits for every token out.

    Positions are counted from the end of the input: the last column has position max_len - 1 whatever the length, so
    left padding, and how much of it, changes nothing.

    Raises:
        ValueError: if the catalogue is empty.
    """

    def __init__(self, num_items: int, architecture: Architecture) -> None:
        super().__init__()
        if num_items < 1:
            raise ValueError(f"num_items={num_items}: a model needs at least one item")
        width, num_tokens = architecture.hidden_units, num_items + 2
        self.num_items = num_items
        self.architecture = architecture
        self.max_len = architecture.max_len
        self.item_embedding = nn.Embedding(num_tokens, width, padding_idx=PAD)
        self.position_embedding = nn.Embedding(self.max_len, width)
        self.embedding_norm = nn.LayerNorm(width)
        self.dropout = Dropout(architecture.dropout_rate)
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.num_layers))
        self.output_transform = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
            if architecture.output_transform
            else nn.Identity()
        )
        self.output = nn.Linear(width, num_tokens, bias=architecture.output_bias)
        self.apply(_initialise)
        if architecture.linear_init == "xavier":
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_normal_(module.weight)
        with torch.no_grad():
            self.item_embedding.weight[PAD].zero_()
        if architecture.share_embeddings:
            self.output.weight = self.item_embedding.weight

    def forward(self, sequences: Tensor) -> Tensor:
        """Logits at every position: [B, L] int64 tokens, L <= max_len -> [B, L, V]."""
        return self.logits(self.encode(sequences))

    def encode(self, inputs: Tensor, places: Tensor | None = None) -> Tensor:
        """Hidden states of the last block: [B, L] int64 -> [B, L, D].

        Given `places` [N] of the flattened inputs, only the states there, [N, D]: the last block then computes its
        feed-forward network for nothing else, with the same result.

        Raises:
            ValueError: if L is above max_len.
        """
        length = inputs.shape[1]
        if length > self.max_len:
            raise ValueError(f"a sequence of {length} tokens is longer than max_len={self.max_len}")
        x = self.item_embedding(inputs) + self.position_embedding.weight[self.max_len - length :]  # [B, L, D]
        if self.architecture.embedding_norm_first:
            x = self.dropout(self.embedding_norm(x))
        else:
            x = self.embedding_norm(self.dropout(x))
        is_visible = (inputs != PAD)[:, None, None, :]  # [B, 1, 1, L]
        for block in self.blocks[:-1]:
            x = block(x, is_visible)
        hidden: Tensor = self.blocks[-1](x, is_visible, places)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V], indexed by token id."""
        scores: Tensor = self.output(self.output_transform(hidden))
        return scores


def last_places(inputs: Tensor) -> Tensor:
    """The last column of every row, where prediction has its [MASK]: [B, L] -> places [B] of the flattened inputs."""
    rows, length = inputs.shape
    return torch.arange(1, rows + 1, device=inputs.device) * length - 1


def _initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases zero; LayerNorm keeps its own ones and zeros."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
