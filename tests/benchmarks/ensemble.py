"""What an ensemble of several seeds gains over one of them, on the test items.

python -m tests.benchmarks.ensemble --data ml-1m.csv experiment=best/ml-1m training.max_steps=6000

Trains by `train_bert4rec.py -m seed=...` with the given settings, then evaluates all best.ckpt together by
`inference.checkpoint_path=[...]`. Runs that are in the folder already are not trained again.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from tests.benchmarks import common

METRICS = ("hit@10", "ndcg@10", "mrr")


def figures_of(path: Path) -> dict[str, float]:
    """The model's test figures in metrics.json or evaluation.json."""
    content: dict[str, Any] = json.loads(path.read_text())
    row = list(content["figures"]["test"].values())[-1]
    return {metric: row[f"test_{metric}"] for metric in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CSV with the columns user, item, time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("saved/ensemble"), help="of the runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the training, such as experiment=best")
    options = parser.parse_args()
    settings = [*options.settings, *common.data_overrides(options, options.folder), "evaluation.report=false"]
    runs = [options.folder / "sweep" / str(number) for number in range(len(options.seeds))]
    if not all((run / "metrics.json").is_file() for run in runs):
        seeds = ",".join(map(str, options.seeds))
        common.run_python(["train_bert4rec.py", "-m", f"seed={seeds}", *settings], options.threads)
    rows = {f"seed {seed}": figures_of(run / "metrics.json") for seed, run in zip(options.seeds, runs, strict=True)}
    alone = list(rows.values())
    checkpoints = ",".join(str(run / "checkpoints" / "best.ckpt") for run in runs)
    words = [f"inference.checkpoint_path=[{checkpoints}]", "inference.evaluate=true"]
    common.run_python(["predict_bert4rec.py", *settings, *words], options.threads)
    rows["mean"] = {metric: statistics.mean(row[metric] for row in alone) for metric in METRICS}
    rows["deviation"] = {metric: statistics.stdev(row[metric] for row in alone) for metric in METRICS}
    rows["ensemble"] = figures_of(options.folder / "evaluation.json")
    table = [[name, *(f"{value:.4f}" for value in row.values())] for name, row in rows.items()]
    gains = (f"{rows['ensemble'][metric] / rows['mean'][metric] - 1.0:+.1%}" for metric in METRICS)
    common.print_table(["", *(metric.upper() for metric in METRICS)], [*table, ["gain over the mean", *gains]])


if __name__ == "__main__":
    main()
