"""Figures of popularity and item-item on a table, without training: what a model has to beat.

python -m tests.benchmarks.baselines --data ml-1m.csv --holdout 1 --protocols full uniform-100 popularity-100

Splits as training does by default, ranks by the functions that rank a model, and counts the targets that no training
sequence has ("cold"): they are candidates, and a baseline or a model nearly always misses them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.data import BERT4RecDataModule
from src.data.sequences import flatten
from src.evaluation import protocols
from src.evaluation.comparison import Contest, Figures
from tests.benchmarks import common


def contest_of(path: Path, holdout: int, from_end: int, protocol_names: Sequence[str], seed: int) -> Contest:
    """Both baselines on the items `from_end` places from the end of each history, the last `holdout` not counted."""
    data = BERT4RecDataModule(str(path.resolve().parent), path.name, holdout=holdout)
    data.setup()
    contest = Contest(
        data.evaluation_set(from_end),
        data.evaluated_user_ids(from_end),
        data.vocabulary.counts,
        list(protocol_names),
        seed,
        topk=[10],
    )
    contest.add_baselines(data.spans)
    return contest


def cold_targets(contest: Contest) -> int:
    """How many of the targets are items without any training interaction."""
    return int((contest.counts[contest.evaluation_set.targets - 1] == 0).sum())


def own_negatives(contest: Contest, protocol: str, seed: int) -> float:
    """Mean number of a user's negatives that would be items of the user's own history if those were not excluded."""
    weights = np.ones(len(contest.counts)) if protocol == protocols.UNIFORM else contest.counts.astype(np.float64)
    sets, generator = contest.evaluation_set, np.random.default_rng(seed)
    found = 0
    for row in range(len(sets.targets)):
        _, history = flatten(sets.tokens, sets.histories[np.array([row])])
        size = min(protocols.NEGATIVES, np.count_nonzero(weights))
        drawn = generator.choice(len(weights), size, replace=False, p=weights / weights.sum()) + 1
        found += int(np.isin(drawn, history).sum())
    return found / len(sets.targets)


def rows_of(figures: Figures) -> list[list[str]]:
    return [[name, *(f"{value:.4f}" for value in row.values())] for name, row in figures.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CSV with the columns user, item, time")
    parser.add_argument("--holdout", type=int, default=2, choices=(1, 2), help="data.holdout of the model beside it")
    parser.add_argument("--stage", default="test", choices=("val", "test"), help="val: the item before the last one")
    parser.add_argument("--protocols", nargs="+", default=["full"], choices=("full", "uniform-100", "popularity-100"))
    parser.add_argument("--own-negatives", action="store_true", help="count what excluding the history takes out")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    if options.stage == "val" and options.holdout == 1:
        parser.error("--stage val needs --holdout 2: with --holdout 1 the item before the last one is trained on")
    from_end = 2 if options.stage == "val" else 1
    contest = contest_of(options.data, options.holdout, from_end, options.protocols, options.seed)
    users, cold = len(contest.evaluation_set.targets), cold_targets(contest)
    print(f"{users:,} users, {len(contest.counts):,} items; {cold:,} targets ({cold / users:.2%}) are cold")
    for protocol in dict.fromkeys([protocols.FULL, *options.protocols]):
        print(f"\n{protocol}")
        common.print_table(["", "HIT@10", "NDCG@10", "MRR"], rows_of(contest.figures(protocol, "")))
        if options.own_negatives and protocol != protocols.FULL:
            mean = own_negatives(contest, protocol, options.seed)
            print(f"without the exclusion, {mean:.1f} negatives of a user would be items of the own history")


if __name__ == "__main__":
    main()
