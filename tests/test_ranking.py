"""Candidates, ranks, metrics and top-K against sorting in plain Python."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src import metrics, ranking
from src.errors import UserError
from src.kernels import compiler, door
from src.kernels.ranks import linear_target_ranks
from src.models.network import Architecture, Network

ITEMS = 7


@st.composite
def score_tables(draw: st.DrawFn) -> tuple[list[list[float]], list[set[int]], list[int]]:
    """Scores [B][V] with many ties, seen items and a target of each row; a target may be among the seen."""
    batch = draw(st.integers(1, 4))
    score = st.one_of(st.sampled_from([-1.0, 0.0, 0.5]), st.floats(-1e6, 1e6, width=32))
    scores = draw(st.lists(st.lists(score, min_size=ITEMS + 2, max_size=ITEMS + 2), min_size=batch, max_size=batch))
    seen = draw(st.lists(st.sets(st.integers(1, ITEMS)), min_size=batch, max_size=batch))
    targets = draw(st.lists(st.integers(1, ITEMS), min_size=batch, max_size=batch))
    return scores, seen, targets


def candidates(scores: list[list[float]], seen: list[set[int]]) -> torch.Tensor:
    pairs = [(row, item) for row, items in enumerate(seen) for item in sorted(items)]
    rows, items = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    return ranking.candidate_scores(torch.tensor(scores), rows, items)


@given(score_tables())
@settings(max_examples=100, deadline=None)
def test_ranks_equal_sorting_with_ties_against_the_target(
    table: tuple[list[list[float]], list[set[int]], list[int]],
) -> None:
    scores, seen, targets = table
    ranks = ranking.target_ranks(candidates(scores, seen), torch.tensor(targets)).tolist()
    for row, out, target, rank in zip(scores, seen, targets, ranks, strict=True):
        in_race = [item for item in range(1, ITEMS + 1) if item not in out]
        if target in out:
            assert rank >= len(in_race)
        else:
            assert rank == sorted(in_race, key=lambda item: (-row[item], item == target)).index(target)


@given(score_tables(), st.integers(1, ITEMS + 5), st.sampled_from([1, 2, ranking.TOP_K_BLOCK]))
@settings(max_examples=150, deadline=None)
def test_top_k_equals_sorting(table: tuple[list[list[float]], list[set[int]], list[int]], k: int, block: int) -> None:
    """Also where the catalogue is large against k, which small blocks stand for here, and looked through in blocks."""
    scores, seen, _ = table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "TOP_K_BLOCK", block)
        items, values = ranking.top_k(candidates(scores, seen), k)
    for row, out, got, got_values in zip(scores, seen, items.tolist(), values.tolist(), strict=True):
        in_race = sorted(row[item] for item in range(1, ITEMS + 1) if item not in out)[::-1]
        best = in_race[:k]
        assert len(got) == min(k, ITEMS + 2)
        assert got_values == best + [-math.inf] * (len(got) - len(best))
        assert got[len(best) :] == [0] * (len(got) - len(best))
        assert len(set(got[: len(best)])) == len(best)
        assert out.isdisjoint(got)
        assert [row[item] for item in got[: len(best)]] == best
        assert set(got[: len(best)]) <= set(range(1, ITEMS + 1))


def test_padding_mask_and_seen_items_are_no_candidates() -> None:
    scores = torch.arange(18.0).view(2, 9)
    got = ranking.candidate_scores(scores, torch.tensor([0, 1, 1]), torch.tensor([7, 2, 2]))
    assert got is scores
    out = -math.inf
    assert got.tolist() == [
        [out, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, out, out],
        [out, 10.0, out, 12.0, 13.0, 14.0, 15.0, 16.0, out],
    ]


def test_ties_count_against_the_target_wherever_it_stands() -> None:
    scores = candidates([[0.0] * (ITEMS + 2)] * ITEMS, [set()] * (ITEMS - 1) + [{2, 3}])
    assert ranking.target_ranks(scores, torch.arange(1, ITEMS + 1)).tolist() == [6, 6, 6, 6, 6, 6, 4]


def ranked(
    switch: str,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    rows: torch.Tensor,
    items: torch.Tensor,
    at_a_time: int = ranking.SCORES_AT_A_TIME,
) -> torch.Tensor:
    """Ranks by a network with this output layer, by plain PyTorch (switch 0) or by kernels where there are some."""
    of = Architecture(weight.shape[1], 1, 1, share_embeddings=False, output_bias=bias is not None)
    network = Network(len(weight) - 2, of).to(weight.dtype)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        network.output.weight.copy_(weight)
        if bias is not None:
            network.output.bias.copy_(bias)
        patch.setenv(compiler.SWITCH, switch)
        patch.setattr(ranking, "SCORES_AT_A_TIME", at_a_time)
        patch.setattr(ranking, "LEAST_ROWS", 1)
        by_row = rows.argsort(stable=True)
        return door.target_ranks(network, hidden, targets, rows[by_row], items[by_row])


NONE = torch.tensor([], dtype=torch.long)


WHOLE = st.integers(-2, 2).map(float)  # products of whole numbers are exact in whatever order they are added


@st.composite
def linear_models(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Hidden states [B, 2], weight [V, 2] and bias [V] or None, whose scores have many ties."""
    batch = draw(st.integers(1, 4))
    hidden, weight = (
        torch.tensor(draw(st.lists(st.tuples(WHOLE, WHOLE), min_size=rows, max_size=rows)))
        for rows in (batch, ITEMS + 2)
    )
    bias = draw(st.none() | st.lists(WHOLE, min_size=ITEMS + 2, max_size=ITEMS + 2).map(torch.tensor))
    return hidden, weight, bias


@given(
    linear_models(),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, ITEMS))),
    st.lists(st.integers(0, ITEMS + 1), min_size=4, max_size=4),
    st.sampled_from([1, 5, 8, 13, 10_000]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["0", "auto"]),
)
@settings(max_examples=150, deadline=None)
def test_ranks_of_some_rows_at_a_time_equal_those_of_all_scores(
    model: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    seen: list[tuple[int, int]],
    targets: list[int],
    at_a_time: int,
    dtype: torch.dtype,
    native: str,
) -> None:
    hidden, weight, bias = (tensor if tensor is None else tensor.to(dtype) for tensor in model)
    rows, items = torch.tensor([pair for pair in seen if pair[0] < len(hidden)], dtype=torch.long).view(-1, 2).T
    true_items = torch.tensor(targets[: len(hidden)])
    scores = hidden @ weight.t() if bias is None else hidden @ weight.t() + bias
    expected = ranking.target_ranks(ranking.candidate_scores(scores, rows, items), true_items)
    ranks = ranked(native, hidden, weight, bias, true_items, rows, items, at_a_time)
    assert ranks.tolist() == expected.tolist()
    assert ranks.dtype == expected.dtype


@pytest.mark.parametrize(("native", "threads"), [("0", 1), ("auto", 1), ("auto", 3)])
@pytest.mark.parametrize("rows", [300, 17])
def test_ranks_of_some_rows_at_a_time_equal_those_of_all_scores_of_real_numbers(
    native: str, threads: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several thousand items, in double precision, where no two scores are within rounding of each other."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(1)
    hidden, weight = torch.randn(rows, 8).double(), torch.randn(5000, 8).double()
    targets, seen_rows, items = (
        torch.randint(*limits) for limits in ((1, 4999, (rows,)), (rows, (900,)), (1, 4999, (900,)))
    )
    ranks = ranked(native, hidden, weight, None, targets, seen_rows, items, 2**16)
    expected = ranking.target_ranks(ranking.candidate_scores(hidden @ weight.t(), seen_rows, items), targets)
    assert torch.equal(ranks, expected)
    assert ranks.unique().numel() > 0.6 * rows


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("token", [0, 3, ITEMS + 1])
@pytest.mark.parametrize("native", ["0", "auto"])
def test_scores_that_are_not_finite_have_no_ranks(bad: float, token: int, native: str) -> None:
    weight = torch.ones(ITEMS + 2, 1)
    weight[token] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        ranked(native, torch.ones(2, 1), weight, None, torch.tensor([1, 2]), NONE, NONE, 4)


@pytest.mark.parametrize("native", ["0", "auto"])
def test_large_finite_scores_have_ranks_though_their_sum_is_infinite(native: str) -> None:
    weight = torch.tensor([[0.0], [3e38], [3e38], [3.1e38], [0.0]])
    assert ranked(native, torch.ones(1, 1), weight, None, torch.tensor([2]), NONE, NONE).tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [2, 20, 40, 512])
def test_ranks_do_not_depend_on_what_the_memory_held_before(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compiler.library(dtype)
    if library is None:
        pytest.skip("there is no C compiler")
    original = torch.Tensor.new_empty

    def used_before(tensor: torch.Tensor, *sizes: Any, **options: Any) -> torch.Tensor:
        made = original(tensor, *sizes, **options)
        return made.fill_(torch.nan if made.is_floating_point() else -1)

    torch.manual_seed(1)
    hidden, weight = torch.randn(rows, 3, dtype=dtype), torch.randn(9, 3, dtype=dtype)
    targets = torch.randint(1, 8, (rows,))
    expected = ranking.target_ranks(ranking.candidate_scores(hidden @ weight.t(), NONE, NONE), targets)
    monkeypatch.setattr(torch.Tensor, "new_empty", used_before)
    ranks = linear_target_ranks(library, hidden, weight, None, targets, NONE, NONE)
    assert ranks is not None
    assert torch.equal(ranks, expected)


@pytest.mark.parametrize("width", [16, 33, 64])
@pytest.mark.parametrize("native", ["0", "auto"])
def test_an_item_with_the_same_row_ties(native: str, width: int) -> None:
    """Of each item there are two: the target's twin counts against it, and so does no rounding."""
    torch.manual_seed(5)
    hidden, single = torch.randn(100, width), torch.randn(500, width)
    weight = torch.cat([torch.zeros(1, width), single.repeat_interleave(2, dim=0), torch.zeros(1, width)])
    targets = torch.randint(1, 1001, (100,))
    scores = hidden.double() @ single.double().t()
    better = (scores > scores.gather(1, (targets[:, None] - 1) // 2)).sum(dim=1)
    ranks = ranked(native, hidden, weight, None, targets, NONE, NONE)
    assert ((ranks - (2 * better + 1)).abs() <= 2).all()  # where two scores are within rounding of each other
    assert (ranks % 2 == 1).all()


@pytest.mark.parametrize("native", ["0", "auto"])
def test_a_rank_is_never_below_zero_whatever_rounding_does(native: str) -> None:
    """The target is left out of the count, not subtracted from it: where it is the only candidate it has rank 0."""
    torch.manual_seed(2)
    hidden, weight = torch.randn(40, 33), torch.randn(9, 33)
    targets = torch.randint(1, 8, (40,))
    rows, items = (targets[:, None] != torch.arange(9)).nonzero().T
    assert ranked(native, hidden, weight, None, targets, rows, items).tolist() == [0] * 40


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("token", [0, 3, ITEMS + 1])
def test_scores_that_are_not_finite_are_an_error(bad: float, token: int) -> None:
    scores = torch.zeros(2, ITEMS + 2)
    scores[1, token] = bad
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        ranking.candidate_scores(scores, torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long))
    assert "\n" not in str(caught.value)
    assert "training.lr" in str(caught.value)


def test_infinite_scores_that_cancel_out_are_an_error_and_large_finite_ones_are_not() -> None:
    none = torch.tensor([], dtype=torch.long)
    with pytest.raises(UserError, match="NaN or infinite"):
        ranking.candidate_scores(torch.tensor([[0.0, math.inf, 2.0, -math.inf, 0.0]]), none, none)
    scores = ranking.candidate_scores(torch.tensor([[0.0, 3e38, 3e38, 3.1e38, 0.0]]), none, none)
    assert ranking.target_ranks(scores, torch.tensor([2])).tolist() == [2]


def excluded_target_ranks() -> torch.Tensor:
    return ranking.target_ranks(candidates([[9.0] * (ITEMS + 2)], [{4, 5}]), torch.tensor([4]))


def test_an_excluded_target_comes_behind_every_candidate() -> None:
    assert excluded_target_ranks().item() >= ITEMS - 2
    assert metrics.means(excluded_target_ranks(), [ITEMS - 2], "")["hit@5"] == 0.0


def test_an_excluded_target_is_no_hit_even_where_k_is_larger_than_the_catalogue() -> None:
    """No list of recommendations could have it."""
    assert metrics.means(excluded_target_ranks(), [100], "")["hit@100"] == 0.0


def test_k_larger_than_the_catalogue_hits_every_candidate() -> None:
    ranks = ranking.target_ranks(candidates([[1.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 9.0, 9.0]], [{1}]), torch.tensor([6]))
    assert ranks.tolist() == [5]
    figures = metrics.means(ranks, [100], "val_")
    assert figures == pytest.approx({"val_hit@100": 1.0, "val_ndcg@100": 1 / math.log2(7), "val_mrr": 1 / 6})


def test_formulas() -> None:
    ranks = torch.tensor([0, 1, 2, 9, 10])
    assert metrics.hit(ranks, 10).tolist() == [1, 1, 1, 1, 0]
    assert metrics.hit(ranks, 1).tolist() == [1, 0, 0, 0, 0]
    expected = [1.0, 1 / math.log2(3), 0.5, 1 / math.log2(11), 0.0]
    assert metrics.ndcg(ranks, 10).tolist() == pytest.approx(expected, abs=1e-15)
    assert metrics.reciprocal_rank(ranks).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10, 1 / 11], abs=1e-15)


def test_metrics_are_means_over_users_in_order_of_k() -> None:
    figures = metrics.means(torch.tensor([0, 3, 4, 700]), [5, 1], "test_")
    assert list(figures) == ["test_hit@5", "test_ndcg@5", "test_hit@1", "test_ndcg@1", "test_mrr"]
    expected = [3 / 4, (1 + 1 / math.log2(5) + 1 / math.log2(6)) / 4, 1 / 4, 1 / 4, (1 + 1 / 4 + 1 / 5 + 1 / 701) / 4]
    assert list(figures.values()) == pytest.approx(expected, abs=1e-15)


def test_several_targets_of_a_user_have_their_places_in_one_list() -> None:
    """User 7 has targets at places 1, 3 and 13, user 5 at place 4, user 6 at 12 and 21; worked out by hand."""
    ranks, owners = torch.tensor([12, 3, 0, 11, 20, 2]), torch.tensor([7, 5, 7, 6, 6, 7])
    figures = metrics.means(ranks, [3, 1, 10], "", owners)
    assert list(figures)[:4] == ["hit@3", "ndcg@3", "recall@3", "hit@1"]
    ideal = 1 + 1 / math.log2(3) + 1 / 2  # of three targets at places 1, 2 and 3
    assert figures == pytest.approx(
        {
            "hit@3": 1 / 3,
            "ndcg@3": (1 + 1 / 2) / ideal / 3,
            "recall@3": (2 / 3) / 3,
            "hit@1": 1 / 3,
            "ndcg@1": 1 / 3,
            "recall@1": (1 / 3) / 3,
            "hit@10": 2 / 3,
            "ndcg@10": ((1 + 1 / 2) / ideal + 1 / math.log2(5)) / 3,
            "recall@10": (2 / 3 + 1) / 3,
            "mrr": (1 + 1 / 4 + 1 / 12) / 3,
        },
        abs=1e-15,
    )


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_one_target_each_is_the_plain_case(ranks: list[int], k: int) -> None:
    plain = metrics.by_user(torch.tensor(ranks), [k])
    several = metrics.by_user(torch.tensor(ranks), [k], torch.arange(len(ranks)))
    assert several.keys() - plain.keys() == {f"recall@{k}"}
    for name, values in (*plain.items(), (f"recall@{k}", plain[f"hit@{k}"])):
        torch.testing.assert_close(several[name], values, atol=1e-15, rtol=0)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_metrics_equal_plain_numpy(ranks: list[int], k: int) -> None:
    array = np.array(ranks)
    figures = metrics.means(torch.tensor(ranks), [k], "")
    assert figures[f"hit@{k}"] == pytest.approx(np.mean(array < k))
    assert figures[f"ndcg@{k}"] == pytest.approx(np.mean(np.where(array < k, 1 / np.log2(array + 2), 0)))
    assert figures["mrr"] == pytest.approx(np.mean(1 / (array + 1)))
    assert figures[f"ndcg@{k}"] <= figures[f"hit@{k}"]


def test_a_random_scorer_hits_as_often_as_chance() -> None:
    users, items, seen_items = 5000, 60, 10
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(users, items + 2, generator=generator)
    shuffled = torch.rand(users, items, generator=generator).argsort(dim=1) + 1
    rows = torch.arange(users).repeat_interleave(seen_items)
    scores = ranking.candidate_scores(scores, rows, shuffled[:, :seen_items].flatten())
    hit = metrics.means(ranking.target_ranks(scores, shuffled[:, seen_items]), [10], "")["hit@10"]
    chance = 10 / (items - seen_items)
    assert abs(hit - chance) < 4 * math.sqrt(chance * (1 - chance) / users)


@pytest.mark.parametrize("tokens", [640, 1000, 1003])
def test_top_k_of_a_large_catalogue_is_that_of_a_sort(tokens: int) -> None:
    """Beyond some hundreds of tokens only the blocks with the best maxima are looked at."""
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.randint(0, 300, (11, tokens), generator=generator).float()  # with ties
    scores[3] = -torch.inf
    scores[4, 10:] = -torch.inf
    scores[5, -3:] = 999.0  # in what is left over after the last whole block
    for k in (1, 2, 4):
        items, best = ranking.top_k(scores, k)
        assert best.tolist() == scores.sort(dim=1, descending=True).values[:, :k].tolist()
        assert torch.equal(scores.gather(1, items)[items != 0], best[items != 0])
        assert (items[best == -torch.inf] == 0).all()
        assert all(len(set(row)) == k for row in items.tolist() if 0 not in row)


LOWER = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("rows", [40, 200])  # below and above what is computed at a time
@pytest.mark.parametrize("native", ["0", "auto"])
@pytest.mark.parametrize("mixed", [True, False])
def test_ranks_of_lower_precision_are_those_of_its_hidden_states_in_float32(
    mixed: bool, native: str, rows: int, dtype: torch.dtype
) -> None:
    """Among 20,000 items, by whole numbers: exact in float32, where their sums in bfloat16 tie by the hundred."""
    torch.manual_seed(3)
    hidden, weight, bias = (torch.randint(-128, 129, shape).float() for shape in ((rows, 16), (20_002, 16), (20_002,)))
    hidden = hidden.to(dtype)
    if not mixed:  # the weights themselves are of that type
        weight, bias = weight.to(dtype), bias.to(dtype)
    targets, seen_rows, seen = (
        torch.randint(*limits) for limits in ((1, 20_001, (rows,)), (rows, (900,)), (1, 20_001, (900,)))
    )
    scores = hidden.double() @ weight.double().t() + bias.double()
    expected = ranking.target_ranks(ranking.candidate_scores(scores, seen_rows, seen), targets)
    with torch.autocast("cpu", dtype=dtype, enabled=mixed):
        ranks = ranked(native, hidden, weight, bias, targets, seen_rows, seen)
    assert torch.equal(ranks, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_keep_full_precision(dtype: torch.dtype) -> None:
    hidden, weight = torch.ones(1, 1, dtype=dtype), torch.ones(5, 1, dtype=dtype)
    ((_, scores),) = ranking.linear_candidate_scores(hidden, weight, None, NONE, NONE)
    assert scores.dtype == dtype


def test_ranks_of_more_tokens_than_float32_counts_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "EXACT_IN_FLOAT", ITEMS)
    monkeypatch.setattr(torch, "ge", None)  # what counts in float
    ranks = ranking.target_ranks(candidates([[0.0, *range(ITEMS), 0.0]] * 2, [set(), {5}]), torch.tensor([1, 1]))
    assert ranks.tolist() == [ITEMS - 1, ITEMS - 2]
