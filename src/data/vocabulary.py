"""The frozen map between a table's item ids and token ids; it travels in the checkpoint.

Token 0 is padding, 1..N are items, N + 1 is [MASK].
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import id_forms


@dataclass(frozen=True)
class Vocabulary:
    """Items the model knows, and how often each was seen in training."""

    ids: pa.StringArray  # [N] strings exactly as they stood in the table; `ids[i]` is token i + 1
    counts: NDArray[np.int64]  # [N], training interactions of each item

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, ids: pa.StringArray) -> NDArray[np.int64]:
        """Token of each id, as it is or else in its other form, 0 where both are unknown. [R] strings -> [R] int64."""
        return id_forms.index_in(ids, self.ids) + 1

    def decode(self, tokens: NDArray[np.int64]) -> pa.StringArray:
        """Id of each item token, 1..N. [R] int64 -> [R] strings."""
        return self.ids.take(pa.array(tokens - 1))

    def difference(self, other: "Vocabulary") -> str | None:
        """How another vocabulary is not this one, such as "'x' is in one of them alone"; None if both are the same."""
        here, there = self.ids.to_pylist(), other.ids.to_pylist()
        if here == there:
            return None
        missing = sorted(set(there) - set(here)) or sorted(set(here) - set(there))
        return f"{missing[0]!r} is in one of them alone" if missing else "they come in another order"

    def most_popular(self) -> NDArray[np.int64]:
        """Item tokens, most often seen first, ties in token order. [N] int64."""
        return np.argsort(-self.counts, kind="stable") + 1

    def state_dict(self) -> dict[str, Any]:
        """Plain containers, so that a checkpoint loads under `weights_only=True`."""
        return {"ids": self.ids.to_pylist(), "counts": self.counts.tolist()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Vocabulary":
        return cls(pa.array(state["ids"], type=pa.string()), np.asarray(state["counts"], dtype=np.int64))
