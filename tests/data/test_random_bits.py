"""Draws by counter: the published generator's numbers, evenly spread, and streams that have nothing in common."""

import pytest
import torch

from src.data import random_bits

# The first outputs of SplitMix64 for the seed 1234567, as the Rosetta Code task of that name has them.
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_the_numbers_are_those_of_splitmix64() -> None:
    draws = random_bits.integers(torch.tensor(1234567), 0, 5)
    assert draws.tolist() == [number >> 33 for number in PUBLISHED]


@pytest.mark.parametrize("bound", [1, 2, 7, 1000])
def test_all_values_below_the_bound_are_as_likely(bound: int) -> None:
    draws = random_bits.below(torch.tensor(3), 1, bound, 200, 500)
    counts = torch.bincount(draws.flatten(), minlength=bound)
    assert len(counts) == bound
    expected = draws.numel() / bound
    assert ((counts - expected).abs() < 5 * expected**0.5 + 1).all()


@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 1.0])
def test_a_share_of_the_draws_is_below_its_threshold(share: float) -> None:
    draws = random_bits.integers(torch.tensor(-5), 2, 400, 250)
    found = (draws < random_bits.threshold(share)).double().mean()
    assert float(found) == pytest.approx(share, abs=5 * (share * (1 - share) / draws.numel()) ** 0.5)


def test_streams_seeds_and_places_are_apart() -> None:
    draws = torch.stack(
        [random_bits.integers(torch.tensor(seed), stream, 3000) for seed in (1, 2) for stream in (0, 1)]
    )
    assert torch.equal(draws[0], random_bits.integers(torch.tensor(1), 0, 30, 100).flatten())
    correlation = torch.corrcoef(torch.cat([draws, draws[:, :1].expand(4, 1).repeat(1, 0)], dim=1).double())
    assert (correlation - torch.eye(4)).abs().max() < 0.1
