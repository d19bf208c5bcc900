"""Random draws that follow from a seed, a stream and a place alone: the same on every device, and in any order.

SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") with the place as its counter.
"""

import math

import torch
from torch import Tensor

# Its constants, as int64; products wrap around, as they have to.
GAMMA, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
STREAM_BITS = 40  # of the counter; the streams of a seed have this many places each
RANDOM_BITS = 31  # of each draw


def integers(seed: Tensor, stream: int, *shape: int) -> Tensor:
    """Draws from 0 up to, but not including, 2^31, all equally likely: int64 of this shape.

    Args:
        seed: scalar int64, on the device that the draws are wanted on.
        stream: which of its independent sequences, from 0 on.
    """
    places = torch.arange(math.prod(shape), device=seed.device).view(shape)
    mixed = seed + (places + ((stream << STREAM_BITS) + 1)) * GAMMA
    mixed = (mixed ^ _shifted(mixed, 30)) * FIRST
    mixed = (mixed ^ _shifted(mixed, 27)) * SECOND
    return _shifted(mixed ^ _shifted(mixed, 31), 64 - RANDOM_BITS)


def below(seed: Tensor, stream: int, bound: int, *shape: int) -> Tensor:
    """Draws from 0 up to, but not including, `bound`, at most 2^31, equally likely but for one in 2^31: int64."""
    return (integers(seed, stream, *shape) * bound) >> RANDOM_BITS


def threshold(share: float) -> int:
    """`integers` are below it with this probability."""
    return round(share * (1 << RANDOM_BITS))


def _shifted(values: Tensor, places: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (values >> places) & ((1 << (64 - places)) - 1)
