"""BERT4Rec as a LightningModule: loss, optimiser, evaluation and prediction, through its public functions."""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src import ranking
from src.batch import EvalBatch, Negatives, PredictBatch, TrainBatch
from src.command_line.cli import CONFIGS
from src.data import BERT4RecDataModule
from src.data.splits import SplitOptions
from src.errors import UserError
from src.kernels import door
from src.models import BERT4Rec
from src.models.optimizer import lr_factor

ITEMS, WIDTH, HEADS, LAYERS, MAX_LEN = 13, 8, 2, 2, 7
MASK = ITEMS + 1


def make_model(seed: int = 0, **options: Any) -> BERT4Rec:
    """A float64 model whose weights are large enough for every input to show in the scores."""
    sizes = {"hidden_units": WIDTH, "num_heads": HEADS, "num_layers": LAYERS, "max_len": MAX_LEN}
    torch.manual_seed(seed)
    model = BERT4Rec(ITEMS, **{**sizes, **options}).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
            parameter.add_(noise if parameter.dim() > 1 else 0.2 * noise)
    return model


def make_batch(inputs: Tensor, labels: Tensor) -> TrainBatch:
    """A training batch from labels as common ports have them: [B, L], 0 where nothing is to be predicted."""
    return TrainBatch(inputs, labels.flatten().nonzero()[:, 0], labels[labels != 0], None, len(inputs))


INPUTS = torch.tensor([[0, 0, 4, MASK, 9], [MASK, 2, 2, MASK, 13], [0, 0, 0, 0, MASK]])
LABELS = torch.tensor([[0, 0, 0, 11, 0], [1, 0, 6, 3, 0], [0, 0, 0, 0, 8]])
BATCH = make_batch(INPUTS, LABELS)


def quiet_trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def loader(batches: list[TrainBatch]) -> DataLoader[TrainBatch]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def write_table(folder: Path, users: int = 11, items: int = 17, seed: int = 0) -> Path:
    """A small table of random histories of 4 to 11 items, none twice."""
    generator = np.random.default_rng(seed)
    lines = ["user,item,time"]
    for user in range(users):
        history = generator.permutation(items)[: generator.integers(4, 12)]
        lines += [f"u{user},i{item},{time}" for time, item in enumerate(history)]
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("thing", "sections"),
    [
        (BERT4Rec, ["model", "training", "evaluation"]),
        (BERT4RecDataModule, ["data", "model", "evaluation", "training", None]),
    ],
)
def test_defaults_equal_those_of_the_yaml(thing: type, sections: list[str | None]) -> None:
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("bert4rec"))
    keywords = {k: p.default for k, p in inspect.signature(thing).parameters.items() if k != "num_items"}
    places = {k: [s for s in sections if k in (composed[s] if s else composed)][:1] for k in keywords}
    values = {k: (composed[s] if s else composed)[k] for k, place in places.items() for s in place}
    if thing is BERT4RecDataModule:
        values["eval_batch_size"] = composed["evaluation"]["batch_size"]
        values["num_negatives"] = 0  # softmax, the default loss, needs none
        values["split"] = SplitOptions(composed["data"]["split"], composed["data"]["split_at"])
        values |= {"table_options": None, "cache_dir": None, "frame": None}  # all is recognised, and nothing kept
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in keywords.items()} == values


def test_only_the_catalogue_has_no_default() -> None:
    assert BERT4Rec(num_items=ITEMS)(torch.tensor([[0, 3, MASK]])).shape == (1, 3, ITEMS + 2)


def test_forward_gives_logits_by_token_id_at_every_position() -> None:
    logits = make_model()(INPUTS)
    assert logits.shape == (3, 5, ITEMS + 2)
    assert logits.isfinite().all()


def test_loss_is_the_cross_entropy_of_the_forward_logits_where_there_are_labels() -> None:
    model = make_model().eval()
    total, count = 0.0, 0
    for logits, labels in zip(model(INPUTS).tolist(), LABELS.tolist(), strict=True):
        for scores, label in zip(logits, labels, strict=True):
            if label != 0:
                total += math.log(sum(math.exp(score) for score in scores)) - scores[label]
                count += 1
    assert count == 5
    assert model.loss(BATCH).item() == pytest.approx(total / count, abs=1e-12)


def test_gradient_of_the_loss_equals_that_of_cross_entropy_over_all_positions() -> None:
    model = make_model().eval()
    model.loss(BATCH).backward()
    got = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    model.zero_grad()
    nn.functional.cross_entropy(model(INPUTS).flatten(0, 1), LABELS.flatten(), ignore_index=0).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_loss_is_divided_by_the_number_of_targets_even_if_some_lose_nothing() -> None:
    model = make_model(output_bias=True).eval()
    nn.init.zeros_(model.network.output.bias)
    model.network.output.bias.data[4] = 1000.0  # so certain of item 4 that its loss is exactly 0
    labels = torch.where(LABELS == 3, 3, torch.where(LABELS != 0, 4, 0))
    logits = model(INPUTS)[1, 3]
    expected = torch.logsumexp(logits, 0) - logits[3]
    assert expected > 900
    assert model.loss(make_batch(INPUTS, labels)).item() == pytest.approx(expected.item() / 5, rel=1e-12)


@pytest.mark.parametrize(
    ("scheduler", "warmup", "expected"),
    [
        ("none", 0, {0: 1.0, 5: 1.0, 14: 1.0, 99: 1.0}),
        ("none", 4, {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 14: 1.0}),
        ("linear", 0, {0: 1.0, 7: 0.5, 14: 0.0, 99: 0.0}),
        ("linear", 4, {0: 0.25, 3: 1.0, 4: 1.0, 5: 0.9, 9: 0.5, 13: 0.1, 14: 0.0, 99: 0.0}),
        ("cosine", 4, {1: 0.5, 4: 1.0, 9: 0.5, 14: 0.0, 99: 0.0, 5: 0.5 + 0.5 * math.cos(math.pi / 10)}),
        ("linear", 14, {0: 1 / 14, 13: 1.0}),
        ("cosine", 20, {0: 0.05, 13: 0.7}),
    ],
)
def test_lr_factor(scheduler: str, warmup: int, expected: dict[int, float]) -> None:
    got = {step: lr_factor(step, warmup, 14, scheduler) for step in expected}
    assert got == pytest.approx(expected, abs=1e-12)


class Recorder(pl.Callback):
    """Learning rate and norm of the gradient at each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.rates += [group["lr"] for group in optimizer.param_groups[:1]]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        gradients = [p.grad.to_dense().flatten() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.cat(gradients).norm().item())


def test_schedule_in_training_counts_steps_of_all_epochs() -> None:
    recorder = Recorder()
    model = make_model(lr=0.02, scheduler="linear", warmup_steps=2).float()
    quiet_trainer(max_epochs=3, callbacks=[recorder]).fit(model, loader([BATCH] * 2))
    assert recorder.rates == pytest.approx([0.01, 0.02, 0.02, 0.015, 0.01, 0.005])


@pytest.mark.parametrize(
    ("precision", "loss"), [("32-true", "softmax"), ("bf16-mixed", "softmax"), ("32-true", "gbce")]
)
def test_gradient_clip_bounds_the_norm(precision: Any, loss: str) -> None:
    negatives = None if loss == "softmax" else Negatives(torch.tensor([5, 2, 11]), torch.zeros(3))
    steps: Any = DataLoader([BATCH._replace(negatives=negatives)] * 3, batch_size=None)  # type: ignore[arg-type]
    norms = {}
    for clip in (None, 0.001):
        recorder = Recorder()
        trainer = quiet_trainer(max_epochs=1, gradient_clip_val=clip, callbacks=[recorder], precision=precision)
        trainer.fit(make_model(dropout_rate=0.0, loss=loss).float(), steps)
        norms[clip] = recorder.norms
    assert len(norms[None]) == 3
    assert min(norms[None]) > 0.01
    assert norms[0.001] == pytest.approx([0.001] * 3, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_weight_decay_spares_layer_norm_and_bias_only_when_asked(optimizer: str, decay_norm_and_bias: bool) -> None:
    """One step with zero gradients: Adam turns the L2 term into a full step, AdamW shrinks by lr * weight_decay."""
    model = make_model(
        optimizer=optimizer,
        lr=0.01,
        weight_decay=0.1,
        decay_norm_and_bias=decay_norm_and_bias,
        output_transform=True,
        output_bias=True,
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.configure_optimizers().step()
    spared = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    norms_and_biases = {name for name in before if "norm" in name or name.endswith("bias")} | {
        name for name in before if name.startswith("network.output_transform.2")
    }
    assert spared == (set() if decay_norm_and_bias else norms_and_biases)
    assert {"network.item_embedding.weight", "network.position_embedding.weight"}.isdisjoint(spared)
    for name, parameter in model.named_parameters():
        if name not in spared:
            expected = before[name] * (1 - 0.001) if optimizer == "adamw" else before[name] - 0.01 * before[name].sign()
            torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_optimiser_has_every_parameter_once(decay_norm_and_bias: bool) -> None:
    model = make_model(decay_norm_and_bias=decay_norm_and_bias)
    optimizer = model.configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    assert type(make_model(optimizer="adamw").configure_optimizers()) is torch.optim.AdamW
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def plain_metrics(model: BERT4Rec, rows: list[tuple[list[int], int]], topk: Sequence[int]) -> dict[str, float]:
    """Figures by sorting the forward logits of one history at a time."""
    totals: dict[str, float] = {}
    for history, target in rows:
        inputs = torch.tensor([[*history[-(model.max_len - 1) :], model.num_items + 1]])
        scores = model(inputs)[0, -1].tolist()
        rivals = [item for item in range(1, model.num_items + 1) if item != target and item not in history]
        rank = sum(scores[item] >= scores[target] for item in rivals)
        for k in topk:
            totals[f"hit@{k}"] = totals.get(f"hit@{k}", 0.0) + (rank < k)
            totals[f"ndcg@{k}"] = totals.get(f"ndcg@{k}", 0.0) + (1 / math.log2(rank + 2) if rank < k else 0.0)
        totals["mrr"] = totals.get("mrr", 0.0) + 1 / (rank + 1)
    return {name: total / len(rows) for name, total in totals.items()}


@pytest.mark.parametrize("stage", ["val", "test"])
@torch.no_grad()
def test_metrics_are_exact_whatever_the_batch_size(tmp_path: Path, stage: str) -> None:
    path = write_table(tmp_path)
    figures = []
    for eval_batch_size in (1, 4, 100):  # 11 users: batches of 4, 4 and 3 among them
        data = BERT4RecDataModule(str(tmp_path), path.name, max_len=MAX_LEN, eval_batch_size=eval_batch_size)
        data.setup()
        torch.manual_seed(1)
        model = BERT4Rec(data.num_items, WIDTH, HEADS, LAYERS, MAX_LEN, topk=[1, 5, 10])
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
        evaluate = quiet_trainer().validate if stage == "val" else quiet_trainer().test
        figures.append(evaluate(model, datamodule=data, verbose=False)[0])
    assert figures[0] == figures[1] == figures[2]
    evaluation_set = data.evaluation_set(from_end=2 if stage == "val" else 1)
    spans = evaluation_set.histories
    histories = [evaluation_set.tokens[a:b].tolist() for a, b in zip(spans.starts, spans.stops, strict=True)]
    rows = list(zip(histories, evaluation_set.targets.tolist(), strict=True))
    assert len(rows) == 11
    expected = {f"{stage}_{name}": value for name, value in plain_metrics(model.eval(), rows, [1, 5, 10]).items()}
    assert list(figures[0]) == list(expected)
    assert figures[0] == pytest.approx(expected, abs=1e-6)
    assert 0 < expected[f"{stage}_hit@10"] < 1


def test_ranks_of_an_earlier_evaluation_do_not_count_again(tmp_path: Path) -> None:
    data = BERT4RecDataModule(str(tmp_path), write_table(tmp_path).name, max_len=MAX_LEN)
    data.setup()
    torch.manual_seed(2)
    model, other = (BERT4Rec(data.num_items, WIDTH, HEADS, LAYERS, MAX_LEN) for _ in range(2))
    first, alone = (quiet_trainer().validate(one, data, verbose=False) for one in (model, other))
    assert first != alone
    model.load_state_dict(other.state_dict())
    assert quiet_trainer().validate(model, data, verbose=False) == alone


def test_metric_names_by_default(tmp_path: Path) -> None:
    data = BERT4RecDataModule(str(tmp_path), write_table(tmp_path).name, max_len=MAX_LEN)
    data.setup()
    model, trainer = BERT4Rec(data.num_items, WIDTH, HEADS, LAYERS, MAX_LEN), quiet_trainer(max_epochs=1)
    trainer.fit(model, data)
    assert set(trainer.callback_metrics) == {"train_loss", "val_hit@10", "val_ndcg@10", "val_mrr"}
    assert set(trainer.test(model, data, verbose=False)[0]) == {"test_hit@10", "test_ndcg@10", "test_mrr"}


def test_evaluation_of_a_diverged_model_is_an_error(tmp_path: Path) -> None:
    data = BERT4RecDataModule(str(tmp_path), write_table(tmp_path).name, max_len=MAX_LEN)
    data.setup()
    model = BERT4Rec(data.num_items, WIDTH, HEADS, LAYERS, MAX_LEN)
    model.network.position_embedding.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN or infinite"):
        quiet_trainer().validate(model, data, verbose=False)


def many_items(transform: bool) -> BERT4Rec:
    torch.manual_seed(4)
    model = BERT4Rec(20_000, 16, 2, 1, MAX_LEN, output_transform=transform, output_bias=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def ranking_batch(model: BERT4Rec) -> EvalBatch:
    inputs = torch.randint(1, model.num_items + 1, (90, 5))
    inputs[:, -1] = model.num_items + 1
    rows = torch.arange(90)
    targets = torch.randint(1, model.num_items + 1, (90,))
    return EvalBatch(rows, inputs, rows, inputs[:, 0], targets)


@pytest.mark.parametrize("transform", [True, False])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_the_output_layer_ranks_in_float32_whatever_the_precision(
    precision: Any, transform: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same hidden states: validation, the observer's scores and prediction. No ties are made."""
    model, hidden = many_items(transform), []
    encode = door.encode
    monkeypatch.setattr(door, "encode", lambda *arguments: hidden.append(encode(*arguments)) or hidden[-1])
    batch = ranking_batch(model)
    batches: Any = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    ranks: list[Tensor] = []
    monkeypatch.setattr(model.ranks, "update", lambda some, owners: ranks.append(some))
    monkeypatch.setattr(model, "on_test_epoch_end", lambda: None)
    trainer = quiet_trainer(precision=precision)
    trainer.test(model, batches, verbose=False)
    model.predict_topk = 5
    ((_, items, listed),) = trainer.predict(model, DataLoader([PredictBatch(*batch[:4])], batch_size=None))
    assert len(hidden) == 2
    assert torch.equal(hidden[0], hidden[1])
    network = model.network
    dtypes = {"bf16-mixed": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}
    assert network.output.weight.dtype == dtypes[precision]
    with torch.no_grad():
        last = network.output_transform(hidden[0].to(network.output.weight.dtype)).double()
        scores = last @ network.output.weight.double().t() + network.output.bias.double()
    scores = ranking.candidate_scores(scores, batch.seen_rows, batch.seen_items)
    expected = ranking.target_ranks(scores, batch.targets)
    assert (ranks[0] - expected).abs().max() <= 1  # where two scores are within float32's rounding of each other
    assert listed.dtype == torch.float32
    torch.testing.assert_close(listed.double(), scores.gather(1, items), rtol=1e-5, atol=1e-5)
    assert torch.equal(items, ranking.top_k(scores, 5)[0])


HISTORIES = [[1, 2, 3, 4], [5, 6, 7], [], [9], [3, 8, 3, 1, 12, 13, 10, 2, 11, 5]]


def test_predict_as_in_the_guide() -> None:
    model = BERT4Rec(ITEMS)
    predictions = model.predict(
        user_sequences=[[1, 2, 3, 4], [5, 6, 7]], topk=10, exclude_items=[{1, 2, 3, 4}, {5, 6, 7}]
    )
    assert isinstance(predictions, list)
    for row, seen in zip(predictions, [{1, 2, 3, 4}, {5, 6, 7}], strict=True):
        assert isinstance(row, list)
        assert all(type(item) is int for item in row)
        assert set(row) <= set(range(1, ITEMS + 1)) - seen
    assert len(set(predictions[0])) == len(predictions[0]) == 9  # 13 items less 4: no more candidates
    assert len(set(predictions[1])) == len(predictions[1]) == 10


def test_predict_reads_the_position_that_training_fills() -> None:
    """The scores behind a prediction are the forward logits at the last column of history and [MASK]."""
    model = make_model().eval()
    predictions = model.predict(HISTORIES, topk=ITEMS)
    for history, row in zip(HISTORIES, predictions, strict=True):
        inputs = torch.tensor([[*history[-(MAX_LEN - 1) :], MASK]])
        logits = model(inputs)[0, -1]
        assert row == sorted(range(1, ITEMS + 1), key=lambda item: -logits[item].item())
        batch = PredictBatch(torch.tensor([0]), inputs, torch.tensor([0]), torch.tensor([6]))
        ((_, scores),) = model.candidate_scores(batch)
        scores = scores[0]
        is_candidate = scores > -math.inf
        assert is_candidate.nonzero().flatten().tolist() == [item for item in range(1, ITEMS + 1) if item != 6]
        torch.testing.assert_close(scores[is_candidate], logits[is_candidate], rtol=1e-12, atol=1e-12)  # float64 stays
        labels = torch.zeros_like(inputs)
        labels[0, -1] = row[0]
        expected = torch.logsumexp(logits, 0) - logits[row[0]]
        torch.testing.assert_close(model.loss(make_batch(inputs, labels)), expected)


def test_predict_excludes_for_each_user_apart() -> None:
    model = make_model()
    whole = model.predict(HISTORIES, topk=ITEMS)
    excluded = [[2, 2], set(), {13}, (1, 7), range(1, ITEMS + 1)]
    got = model.predict(HISTORIES, topk=5, exclude_items=excluded)
    assert got == [[i for i in row if i not in out][:5] for row, out in zip(whole, excluded, strict=True)]
    assert got[4] == []


def test_predict_gives_fewer_items_where_there_are_fewer() -> None:
    assert [len(row) for row in make_model().predict([[1], []], topk=99, exclude_items=[{4, 5}, {6}])] == [11, 12]


def test_predict_does_not_see_what_is_older_than_max_len() -> None:
    model = make_model()
    recent = [4, 1, 9, 9, 2, 13]
    assert len(recent) == MAX_LEN - 1
    first, second, third = model.predict([[8, 8, 3, *recent], recent, [8, *recent[1:]]], topk=ITEMS)
    assert first == second
    assert first != third


def test_predict_keeps_the_only_item_of_a_history() -> None:
    model = make_model()
    assert len({tuple(row) for row in model.predict([[], [3], [10]], topk=ITEMS)}) == 3


def test_predict_does_not_depend_on_the_batch_size() -> None:
    model = make_model()
    expected = model.predict(HISTORIES, topk=6, exclude_items=HISTORIES)
    for batch_size in (1, 2, 3, 5):
        assert model.predict(HISTORIES, topk=6, exclude_items=HISTORIES, batch_size=batch_size) == expected


def test_predict_of_nobody() -> None:
    assert make_model().predict([]) == []


@pytest.mark.parametrize("token", [0, -1, MASK, 99])
def test_predict_refuses_what_is_no_item(token: int) -> None:
    model = make_model()
    message = f"^{token} is no item of this model, whose items are 1 to 13$"
    with pytest.raises(ValueError, match=message):
        model.predict([[1], [2, token]])
    with pytest.raises(ValueError, match=message):
        model.predict([[1], [2]], exclude_items=[{3}, {token}])


def test_predict_refuses_exclusions_for_another_number_of_users() -> None:
    with pytest.raises(ValueError, match="exclude_items has 1 entries for 2 users"):
        make_model().predict([[1], [2]], exclude_items=[{3}])


@pytest.mark.parametrize("training", [True, False])
def test_predict_is_without_dropout_and_leaves_the_mode_as_it_was(training: bool) -> None:
    model = make_model(dropout_rate=0.9)
    expected = model.eval().predict(HISTORIES, topk=ITEMS)
    model.train(training)
    assert model.predict(HISTORIES, topk=ITEMS) == expected
    assert all(module.training is training for module in model.modules())
    with pytest.raises(ValueError, match="is no item"):
        model.predict([[99]])
    assert model.training is training


def test_it_learns_what_follows_what(tmp_path: Path) -> None:
    """Everybody walks round a ring of 11 items; the model must find the next one of nearly every walk."""
    starts = np.random.default_rng(0).permutation(66) % 11
    lines = [f"u{user},i{(start + step) % 11:02d}" for user, start in enumerate(starts) for step in range(6)]
    (tmp_path / "ring.csv").write_text("user,item\n" + "\n".join(lines) + "\n")
    data = BERT4RecDataModule(
        str(tmp_path), "ring.csv", batch_size=22, max_len=MAX_LEN, mask_prob=0.3, mask_last_share=0.3, holdout=0
    )
    data.setup()
    pl.seed_everything(0, verbose=False)
    model = BERT4Rec(data.num_items, 16, 2, 1, MAX_LEN, dropout_rate=0.0, lr=0.01)
    quiet_trainer(max_epochs=80).fit(model, data)
    ids = data.vocabulary.ids.to_pylist()
    walks = [[(start + step) % 11 for step in range(4)] for start in range(11)]
    best = model.predict([[ids.index(f"i{item:02d}") + 1 for item in walk] for walk in walks], topk=1)
    right = [ids[row[0] - 1] == f"i{(walk[-1] + 1) % 11:02d}" for row, walk in zip(best, walks, strict=True)]
    assert sum(right) >= 8


@pytest.mark.parametrize("is_edited", [False, True])
def test_only_an_output_layer_as_it_was_built_is_compiled(is_edited: bool) -> None:
    model = make_model()
    model.compiles = True
    model._trainer = mock.Mock(world_size=1, lr_scheduler_configs=[], optimizers=[])
    if is_edited:
        model.network.output.register_forward_hook(lambda *_: None)
    model.on_train_start()
    assert (model._compiled_loss is None) == is_edited
