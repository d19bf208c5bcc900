"""Ten checks that a reviewer of a BERT4Rec implementation would run, one test each, in fp32 and evaluation mode.

`docs/fidelity.md` compares with the paper and its code line by line.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from src import metrics, ranking
from src.data import BERT4RecDataModule, masking
from src.errors import UserError
from src.models import BERT4Rec
from src.models.optimizer import lr_factor
from tests.models.test_bert4rec import Recorder, loader, make_batch, quiet_trainer, write_table
from tests.models.test_network import erf_gelu, plain_hidden, plain_norm, tanh_gelu

ITEMS, MAX_LEN = 29, 10
MASK = ITEMS + 1


@pytest.fixture
def model() -> BERT4Rec:
    """Every parameter random, so that nothing cancels."""
    generator = torch.Generator().manual_seed(7)
    model = BERT4Rec(ITEMS, hidden_units=16, num_heads=4, num_layers=2, max_len=MAX_LEN, output_bias=True)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise if parameter.dim() > 1 else 0.2 * noise)
    return model.eval()


def within(share: float, expected: float, n: int) -> bool:
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def long_sequences(rows: int = 600, length: int = 50) -> np.ndarray:
    generator = np.random.default_rng(11)
    sequences = generator.integers(1, ITEMS + 1, (rows, length))
    sequences[np.arange(length) < generator.integers(0, 10, rows)[:, None]] = 0
    return sequences


@torch.no_grad()
def test_01_attention_looks_both_ways_and_only_positions_carry_order(model: BERT4Rec) -> None:
    def at_mask(a: int, b: int, c: int, d: int) -> Tensor:
        return model(torch.tensor([[a, b, MASK, c, d]]))[0, 2]

    plain = at_mask(3, 8, 21, 13)
    assert (at_mask(4, 8, 21, 13) - plain).abs().max() > 1e-3
    assert (at_mask(3, 8, 21, 14) - plain).abs().max() > 1e-3
    assert (at_mask(13, 21, 8, 3) - plain).abs().max() > 1e-3
    nn.init.zeros_(model.network.position_embedding.weight)
    torch.testing.assert_close(at_mask(13, 21, 8, 3), at_mask(3, 8, 21, 13), rtol=0, atol=1e-4)
    assert (at_mask(4, 8, 21, 13) - at_mask(3, 8, 21, 13)).abs().max() > 1e-3


@torch.no_grad()
def test_02_padding_changes_nothing(model: BERT4Rec) -> None:
    row = [3, 8, MASK, 21, 13]
    model = model.double()  # the bound is absolute and these logits are large
    plain = model(torch.tensor([row]))[0, :, 1:]
    nn.init.normal_(model.network.item_embedding.weight[0], std=5.0)
    for pads in (0, 1, MAX_LEN - len(row)):
        padded = model(torch.tensor([[0] * pads + row]))[0, pads:, 1:]
        assert (padded - plain).abs().max() < 1e-5


def test_03_loss_is_cross_entropy_at_the_chosen_positions_only(model: BERT4Rec) -> None:
    """A batch has no labels elsewhere that could be altered; what fills its unused slots can."""
    sequences = torch.from_numpy(np.random.default_rng(14).integers(1, ITEMS + 1, (4, 9)))
    sequences[2, :5] = 0
    is_chosen = torch.zeros_like(sequences, dtype=torch.bool)
    is_chosen[[0, 0, 2, 3], [8, 5, 7, 8]] = True
    is_chosen[1, 6:] = True
    inputs = sequences.masked_fill(is_chosen, MASK)
    batch = make_batch(inputs, sequences * is_chosen)
    loss = model.loss(batch)
    labels = torch.where(is_chosen, sequences, 0)
    log_shares = model(inputs).log_softmax(-1)
    by_hand = -sum(log_shares[b, i, sequences[b, i]] for b, i in is_chosen.nonzero().tolist()) / 7
    torch.testing.assert_close(loss, by_hand)
    reference = nn.functional.cross_entropy(model(inputs).flatten(0, 1), labels.flatten(), ignore_index=0)
    torch.testing.assert_close(loss, reference)

    unused = torch.zeros(2, dtype=torch.long)
    padded = batch._replace(places=torch.cat([batch.places, unused + 5]), targets=torch.cat([batch.targets, unused]))
    torch.testing.assert_close(model.loss(padded), loss, rtol=1e-6, atol=0)


def test_04_masking_rates(tmp_path: Path) -> None:
    sequences = long_sequences()
    generator = np.random.default_rng(12)
    is_chosen, is_last_only = masking.choose_targets(sequences, generator, 0.15, 0.0)
    inputs = masking.replace_targets(sequences, is_chosen, is_last_only, ITEMS, generator, 0.8, 0.1)
    assert not is_last_only.any()
    assert is_chosen.any(axis=1).all()
    assert not is_chosen[sequences == 0].any()
    assert (inputs[~is_chosen] == sequences[~is_chosen]).all()
    assert within(is_chosen.sum() / (sequences != 0).sum(), 0.15, (sequences != 0).sum())
    got, true = inputs[is_chosen], sequences[is_chosen]
    assert within((got == MASK).mean(), 0.8, len(got))
    assert within((got == true).mean(), 0.1 + 0.1 / ITEMS, len(got))  # a random item may be the true one
    assert within(((got != MASK) & (got != true)).mean(), 0.1 * (1 - 1 / ITEMS), len(got))
    assert set(got) == set(range(1, MASK + 1))

    data = BERT4RecDataModule(str(tmp_path), write_table(tmp_path).name, max_len=MAX_LEN)
    data.setup()
    batches = data.train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs.append(next(iter(batches)).inputs.sort(0)[0])
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])


def test_05_share_of_sequences_with_only_the_last_item_masked() -> None:
    sequences = long_sequences(rows=2000)
    generator = np.random.default_rng(13)
    is_chosen, is_last_only = masking.choose_targets(sequences, generator, 0.15, 0.3)
    inputs = masking.replace_targets(sequences, is_chosen, is_last_only, ITEMS, generator, 0.8, 0.1)
    assert within(is_last_only.mean(), 0.3, 2000)
    assert (is_chosen[is_last_only].sum(axis=1) == 1).all()
    assert (inputs[is_last_only, -1] == MASK).all()
    assert (inputs[is_last_only, :-1] == sequences[is_last_only, :-1]).all()
    only_last = (is_chosen.sum(axis=1) == 1) & is_chosen[:, -1]
    assert within(only_last.mean(), 0.3, 2000)


@torch.no_grad()
def test_06_inference_sees_the_last_items_and_a_mask(tmp_path: Path, model: BERT4Rec) -> None:
    path = write_table(tmp_path)
    histories: dict[str, list[str]] = {}
    for line in path.read_text().split()[1:]:
        user, item, _ = line.split(",")
        histories.setdefault(user, []).append(item)
    data = BERT4RecDataModule(str(tmp_path), path.name, max_len=5)
    data.setup()
    for batches, from_end in ((data.val_dataloader(), 2), (data.test_dataloader(), 1)):
        rows = 0
        for batch in batches:
            for user, inputs, target in zip(batch.users.tolist(), batch.inputs, batch.targets.tolist(), strict=True):
                known = data.vocabulary.decode(inputs[(inputs != 0)][:-1].numpy()).to_pylist()
                history = histories[f"u{user}"]
                assert inputs[-1] == data.num_items + 1
                assert known == history[:-from_end][-4:]
                assert data.vocabulary.ids[target - 1].as_py() == history[-from_end]
                assert target not in inputs  # nobody has an item twice here
                rows += 1
        assert rows == 11
    recent = [4, 9, 2, 2, 25, 13, 7, 1, 20]
    assert len(recent) == MAX_LEN - 1
    older, alone, changed = model.predict([[28, 3, *recent], recent, [28, *recent[1:]]], topk=ITEMS)
    assert older == alone != changed


@torch.no_grad()
def test_07_output_is_tied_to_the_item_embedding(model: BERT4Rec) -> None:
    network, inputs = model.network, torch.tensor([[3, 8, MASK, 21, 13]])
    hidden = network.encode(inputs)
    expected = hidden @ network.item_embedding.weight.T + network.output.bias
    torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-5)
    assert network.output.weight is network.item_embedding.weight
    before = network.logits(hidden)
    network.item_embedding.weight[17] += 1.0
    moved = (network.logits(hidden) - before)[0, 0]
    assert moved.nonzero().tolist() == [[17]]
    tokens, d, n, layers = ITEMS + 2, 16, MAX_LEN, 2
    closed_form = tokens * d + n * d + 2 * d + layers * (12 * d * d + 13 * d) + tokens
    assert sum(p.numel() for p in model.parameters()) == closed_form


@torch.no_grad()
def test_08_block_is_post_norm_with_erf_gelu(model: BERT4Rec) -> None:
    assert erf_gelu(torch.tensor(1.0)).item() == pytest.approx(0.84134, abs=1e-5)
    assert tanh_gelu(torch.tensor(1.0)).item() == pytest.approx(0.84119, abs=1e-5)
    row = [3, 8, MASK, 21, 13]
    network = model.double().network
    hidden = network.encode(torch.tensor([row]))[0]
    assert (hidden - plain_hidden(network, row, heads=4, gelu=erf_gelu)).abs().max() < 1e-10
    assert (hidden - plain_hidden(network, row, heads=4, gelu=tanh_gelu)).abs().max() > 1e-6
    last = network.blocks[-1].ffn_norm  # post-LN: undoing the last LayerNorm's scale gives standardised states
    standard = (hidden - last.bias) / last.weight
    torch.testing.assert_close(plain_norm(standard, nn.LayerNorm(16).double()), standard, rtol=0, atol=1e-4)

    torch.manual_seed(8)
    initial = BERT4Rec(ITEMS, hidden_units=64).eval().network.encode(torch.tensor([row]))
    assert initial.mean(-1).abs().max() < 1e-5
    assert (initial.var(-1, unbiased=False) - 1).abs().max() < 1e-3


def test_09_initial_weights_schedule_and_clipping() -> None:
    torch.manual_seed(9)
    model = BERT4Rec(997, hidden_units=64, lr=0.004, scheduler="linear", warmup_steps=2)
    table = model.network.item_embedding.weight
    assert (table[0] == 0).all()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            weights = parameter[1:] if parameter is table else parameter
            assert abs(weights.std().item() - 0.02) < 4 * 0.02 / math.sqrt(2 * weights.numel()), name
            assert abs(weights.mean().item()) < 4 * 0.02 / math.sqrt(weights.numel()), name
    assert [lr_factor(step, 2, 6, "linear") for step in range(7)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    batch = make_batch(torch.tensor([[5, 998, 7]]), torch.tensor([[0, 6, 7]]))
    recorder = Recorder()
    quiet_trainer(max_steps=6, gradient_clip_val=0.01, callbacks=[recorder]).fit(model, loader([batch] * 3))
    assert recorder.rates == pytest.approx([0.002, 0.004, 0.004, 0.003, 0.002, 0.001])
    assert recorder.norms == pytest.approx([0.01] * 6, rel=1e-3)


@torch.no_grad()
def test_10_ranking_is_fair(tmp_path: Path) -> None:
    path = write_table(tmp_path, users=700, items=40)
    data = BERT4RecDataModule(str(tmp_path), path.name, max_len=MAX_LEN)
    data.setup()
    pl.seed_everything(10, verbose=False)
    chance, ranks = 0.0, []
    for batch in data.test_dataloader():
        histories = [set(batch.seen_items[batch.seen_rows == row].tolist()) for row in range(len(batch.users))]
        scores = torch.randn(len(batch.users), data.num_items + 2)
        scores[:, [0, -1]] = 99.0
        items, _ = ranking.top_k(ranking.candidate_scores(scores, batch.seen_rows, batch.seen_items), 40)
        for row, history in zip(items.tolist(), histories, strict=True):
            listed = [item for item in row if item != 0]
            assert set(listed) == set(range(1, data.num_items + 1)) - history
            chance += 10 / len(listed)
        ranks.append(ranking.target_ranks(scores, batch.targets))
        level = torch.zeros_like(scores)
        ties = ranking.target_ranks(
            ranking.candidate_scores(level, batch.seen_rows, batch.seen_items), batch.targets
        ).tolist()
        assert ties == [data.num_items - len(history) - 1 for history in histories]
        broken = torch.full_like(scores, math.nan)
        with pytest.raises(UserError, match="NaN"):
            ranking.candidate_scores(broken, batch.seen_rows, batch.seen_items)
    assert within(metrics.means(torch.cat(ranks), [10], "")["hit@10"], chance / 700, 700)
