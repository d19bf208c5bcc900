"""The structures that the kernels are called with, as C has them."""

import ctypes
from collections.abc import Iterable
from typing import Any

Fields = list[tuple[str, Any]]


def _longs(names: str) -> Fields:
    return [(name, ctypes.c_long) for name in names.split()]


def _pointers(names: str) -> Fields:
    return [(name, ctypes.c_void_p) for name in names.split()]


class Encoder(ctypes.Structure):
    """`Encoder` of `encoder.c`, field by field."""

    _fields_ = [
        *_longs("width heads layers max_len norm_first kept kept_attention kept_ffn"),
        ("seed", ctypes.c_uint64),
        *_longs("sequences groups threads slots"),
        *_pointers("tokens starts queries query_starts group_starts table parameters packed saved saved_starts"),
        *_longs("scratch_size"),
        *_pointers("scratch hidden hidden_gradient token_gradient sums gradients"),
    ]


class CrossEntropy(ctypes.Structure):
    """`CrossEntropy` of `cross_entropy.c`, field by field."""

    _fields_ = [
        *_longs("count tokens width rows threads slots"),
        *_pointers("hidden weight bias targets held memory losses hidden_gradient weight_gradient bias_gradient"),
    ]


class Ranks(ctypes.Structure):
    """`Ranks` of `ranks.c`, field by field."""

    _fields_ = [
        *_longs("rows tokens width excluded threads slots"),
        *_pointers("hidden weight bias targets excluded_rows excluded_items"),
        *_pointers("panels thresholds scores counts ranks check"),
    ]


def sizes() -> Iterable[tuple[str, int]]:
    """The function of C that tells the size of each structure there, and the size here, in bytes."""
    return [
        ("encoder_size", ctypes.sizeof(Encoder)),
        ("cross_entropy_size", ctypes.sizeof(CrossEntropy)),
        ("ranks_size", ctypes.sizeof(Ranks)),
    ]
