"""Training, evaluation and prediction on a device that has neither float64 nor sparse tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src import metrics, ranking
from src.batch import EvalBatch, Negatives, PredictBatch
from src.kernels import door
from src.models import BERT4Rec
from src.models.gathered_ranks import Ranks
from src.models.network import last_places
from tests.models.elsewhere import Device, There
from tests.models.test_bert4rec import BATCH, ITEMS, make_model

NEGATIVES = Negatives(torch.tensor([5, 2, 11]), torch.zeros(3))


def moved(batch: Any) -> Any:
    return type(batch)(*(There(part) if isinstance(part, torch.Tensor) else part for part in batch))


def test_the_device_refuses_what_it_does_not_have() -> None:
    ones = There(torch.ones(2, 2))
    with pytest.raises(TypeError, match="no float64"):
        ones.double()
    with pytest.raises(TypeError, match="no sparse"):
        ones.to_sparse()
    assert (ones + 1).device.type == "meta"
    assert (ones + 1).cpu().sum().item() == 8.0


def test_metrics_of_ranks_there_are_those_of_ranks_here() -> None:
    ranks = torch.tensor([0, 3, 12, 1])
    assert metrics.means(There(ranks), [1, 10], "") == metrics.means(ranks, [1, 10], "")
    for owners, found in ((torch.arange(4), None), (torch.tensor([5, 5, 7, 9]), [5, 9, 5, 7])):
        gathered = Ranks()
        gathered.update(There(ranks), There(owners))
        computed, whose = gathered.compute()
        assert computed.tolist() == [0, 1, 3, 12]
        assert (None if whose is None else whose.tolist()) == found


def on_device(model: BERT4Rec) -> BERT4Rec:
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(There(parameter.detach()))
    if model.network.architecture.share_embeddings:
        model.network.output.weight = model.network.item_embedding.weight
    return model


@pytest.mark.parametrize("loss", ["softmax", "gbce"])
def test_a_step_there_is_the_step_here(loss: str) -> None:
    here, there = (make_model(loss=loss, dropout_rate=0.0, lr=0.01).float() for _ in range(2))
    there = on_device(there)
    for model, is_there in ((here, False), (there, True)):
        batch, negatives = (moved(BATCH), moved(NEGATIVES)) if is_there else (BATCH, NEGATIVES)
        with Device():
            optimizer = model.configure_optimizers()
            for _ in range(2):
                optimizer.zero_grad()
                model.loss(batch if loss == "softmax" else batch._replace(negatives=negatives)).backward()
                optimizer.step()
    for (name, parameter), (_, twin) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        one, other = parameter.detach(), twin.detach().held
        if name.endswith("key_value.bias"):  # no score depends on the keys' half, whose gradient is rounding alone
            one, other = one.chunk(2)[1], other.chunk(2)[1]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)


def test_ranks_and_lists_there_are_those_here() -> None:
    here = make_model().float().eval()
    there = on_device(make_model().float().eval())
    inputs = torch.tensor([[0, 3, 4, ITEMS + 1], [5, 2, 2, ITEMS + 1]])
    part = EvalBatch(torch.arange(2), inputs, torch.tensor([0, 1]), torch.tensor([3, 5]), torch.tensor([7, 1]))
    with torch.no_grad(), Device():
        found: list[tuple[Tensor, Tensor]] = []
        for model, batch in ((here, part), (there, moved(part))):
            ((_, scores),) = model.candidate_scores(PredictBatch(*batch[:4]))
            items, _ = ranking.top_k(scores, 4)
            hidden = door.encode(model.network, batch.inputs, last_places(batch.inputs))
            ranks = door.target_ranks(model.network, hidden, batch.targets, batch.seen_rows, batch.seen_items)
            found.append((ranks.cpu(), items.cpu()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
