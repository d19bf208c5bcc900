"""Intervals, against what theory says of the mean."""

import math

import numpy as np
import pytest

from src.evaluation import bootstrap
from src.evaluation.bootstrap import interval, resampled_means


def test_the_spread_is_that_of_the_mean_of_so_many_users() -> None:
    generator = np.random.default_rng(1)
    values = np.column_stack([generator.random(400) < 0.3, generator.normal(5.0, 2.0, 400)]).astype(float)
    means = resampled_means(values, 4000, seed=3)
    assert means.shape == (4000, 2)
    error = values.std(axis=0) / math.sqrt(400)
    assert means.mean(axis=0) == pytest.approx(values.mean(axis=0), abs=4 * error.max() / math.sqrt(4000))
    assert means.std(axis=0) == pytest.approx(error, rel=0.05)
    for column in range(2):
        low, high = interval(means[:, column])
        assert low == pytest.approx(values[:, column].mean() - 1.96 * error[column], abs=0.2 * error[column])
        assert high == pytest.approx(values[:, column].mean() + 1.96 * error[column], abs=0.2 * error[column])


def test_every_mean_is_one_of_users_of_the_set_and_columns_share_the_users() -> None:
    values = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    means = resampled_means(values, 50, seed=1)
    assert set(np.round(means[:, 0] * 3).astype(int)) == {0, 1, 2, 3}
    assert means.sum(axis=1) == pytest.approx(np.ones(50))


def test_the_seed_decides_and_the_size_of_the_parts_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(12.0)[:, None]
    means = resampled_means(values, 20, seed=5)
    assert (resampled_means(values, 20, seed=5) == means).all()
    assert (resampled_means(values, 20, seed=6) != means).any()
    monkeypatch.setattr(bootstrap, "ENTRIES", 30)  # two resamples at a time
    assert (resampled_means(values, 20, seed=5) == means).all()


def test_interval_is_the_middle_95_percent() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx([25.0, 975.0])
