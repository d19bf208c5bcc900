"""A checkpoint that training wrote is enough to predict; anything else is one clear line."""

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from src.data import BERT4RecDataModule
from src.errors import UserError
from src.models import BERT4Rec
from src.runs import checkpoint
from tests.models.test_bert4rec import write_table

HISTORIES = [[1, 2, 3, 4], [5, 6, 7], []]
SETTINGS: dict[str, Any] = {
    "hidden_units": 8,
    "num_heads": 2,
    "num_layers": 1,
    "max_len": 6,
    "dropout_rate": 0.2,
    "share_embeddings": False,
    "ffn_dropout_rate": 0.0,
    "output_bias": True,
    "optimizer": "adamw",
    "scheduler": "linear",
    "topk": [5, 10],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BERT4Rec, BERT4RecDataModule]:
    """One real epoch: the checkpoint, the model in memory, and its data."""
    folder = tmp_path_factory.mktemp("run with spaces")
    data = BERT4RecDataModule(str(folder), write_table(folder).name, max_len=6)
    data.setup()
    torch.manual_seed(0)
    model = BERT4Rec(data.num_items, **SETTINGS)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        callbacks=[ModelCheckpoint(folder, filename="last")],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    return folder / "last.ckpt", model.eval(), data


Trained = tuple[Path, BERT4Rec, BERT4RecDataModule]


def refusal(path: Path) -> str:
    """The message with which a file is refused: one line that names the file."""
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_round_trip(trained: Trained) -> None:
    path, model, data = trained
    loaded, vocabulary = checkpoint.load(path)
    assert not loaded.training
    assert loaded.device.type == "cpu"
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    inputs = torch.tensor([[0, 3, 5, model.num_items + 1]])
    assert torch.equal(loaded(inputs), model(inputs))
    assert vocabulary.ids.equals(data.vocabulary.ids)
    assert vocabulary.counts.tolist() == data.vocabulary.counts.tolist()
    assert len(vocabulary) == loaded.num_items == data.num_items


@pytest.mark.parametrize("options", [{}, {"weights_only": True}])
def test_load_from_checkpoint_as_in_the_guide(trained: Trained, options: dict[str, bool]) -> None:
    path, model, _ = trained
    loaded = BERT4Rec.load_from_checkpoint(str(path), **options)
    loaded.eval()
    predictions = loaded.predict(
        user_sequences=[[1, 2, 3, 4], [5, 6, 7]], topk=10, exclude_items=[{1, 2, 3, 4}, {5, 6, 7}]
    )
    assert predictions == model.predict([[1, 2, 3, 4], [5, 6, 7]], 10, [{1, 2, 3, 4}, {5, 6, 7}])
    assert [len(row) for row in predictions] == [10, 10]


def test_hyper_parameters_and_vocabulary_are_plain_containers(trained: Trained) -> None:
    path, _, data = trained
    content = torch.load(path, weights_only=True)
    assert type(content["hyper_parameters"]) is dict
    assert content["hyper_parameters"] == BERT4Rec(data.num_items, **SETTINGS).hparams
    assert content["hyper_parameters"] | {"num_items": data.num_items, **SETTINGS} == content["hyper_parameters"]

    def kinds(value: Any) -> set[type]:
        if isinstance(value, dict):
            return {type(value)}.union(*map(kinds, value), *map(kinds, value.values()))
        return {type(value)}.union(*map(kinds, value)) if isinstance(value, list | tuple) else {type(value)}

    plain = {dict, list, tuple, str, int, float, bool, type(None)}
    assert kinds(content["hyper_parameters"]) <= plain
    assert kinds(content["BERT4RecDataModule"]) <= plain


def test_missing_file(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nothing here.ckpt")
    assert "train_bert4rec.py" in message
    assert "inference.checkpoint_path" in message


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    refusal(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_truncated_file(trained: Trained, tmp_path: Path, share: float) -> None:
    whole = trained[0].read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[: int(len(whole) * share)])
    refusal(path)


def test_random_bytes_and_text(tmp_path: Path) -> None:
    path = tmp_path / "noise.ckpt"
    generator = random.Random(0)
    texts = [b"user,item\n1,2\n", b"}", b".", b"PK\x03\x04", b'{"figures": {}}', b"\x80\x02."]
    for content in texts + [generator.randbytes(generator.randrange(1, 200)) for _ in range(60)]:
        path.write_bytes(content)
        refusal(path)


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}}, {"a": torch.ones(3), "b": [1, "x"]}, [1, 2], torch.ones(2), "text", None],
    ids=str,
)
def test_what_torch_saved_for_something_else(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    assert "is no checkpoint of this program" in refusal(path)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("state_dict", {}),
        ("state_dict", None),
        ("state_dict", {1: 2}),
        ("hyper_parameters", None),
        ("hyper_parameters", {"num_items": 17, "layers": 3}),
        ("hyper_parameters", {"num_items": "17"}),
        ("hyper_parameters", {"num_items": 16, **SETTINGS}),
        ("hyper_parameters", {"num_items": 17, **SETTINGS, "num_heads": 3}),
        ("hyper_parameters", {"num_items": 17, **SETTINGS, "num_heads": 0}),
        ("BERT4RecDataModule", None),
        ("BERT4RecDataModule", {}),
        ("BERT4RecDataModule", {"vocabulary": {"ids": None, "counts": []}}),
        ("BERT4RecDataModule", {"vocabulary": {"ids": [1.5], "counts": [1]}}),
        ("BERT4RecDataModule", {"vocabulary": {"ids": ["a"], "counts": ["x"]}}),
        ("BERT4RecDataModule", {"vocabulary": {"ids": ["a"], "counts": [1]}}),
    ],
)
def test_a_checkpoint_whose_parts_do_not_fit(trained: Trained, tmp_path: Path, section: str, value: Any) -> None:
    content = torch.load(trained[0], weights_only=True)
    assert len(content["BERT4RecDataModule"]["vocabulary"]["ids"]) == 17
    path = tmp_path / "odd.ckpt"
    torch.save(content | {section: value}, path)
    assert "is no checkpoint of this program" in refusal(path)


@pytest.mark.parametrize("number", [1, 2])
def test_a_checkpoint_of_each_format_loads(number: int) -> None:
    """Files that are never written anew: what a version has written, every later one has to read."""
    path = Path(__file__).parents[1] / "checkpoints" / f"format-{number}.ckpt"
    assert torch.load(path, weights_only=True).get("bert4rec_format", 1) == number
    model, vocabulary = checkpoint.load(path)
    assert vocabulary.ids.to_pylist() == list("xyzwv")
    assert vocabulary.counts.tolist() == [1, 2, 2, 1, 0]
    row = model.network.item_embedding.weight[1].tolist()
    assert row == pytest.approx({1: [-0.016059, 0.020098], 2: [-0.013908, 0.017946]}[number], abs=1e-6)
    assert sorted(model.predict([[1, 2]], topk=5)[0]) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [3, 99, "2", 2.0, None, True])
def test_a_format_that_is_not_known(trained: Trained, tmp_path: Path, number: Any) -> None:
    path = tmp_path / "future.ckpt"
    content = torch.load(trained[0], weights_only=True)
    assert content["bert4rec_format"] == 2
    torch.save(content | {"bert4rec_format": number}, path)
    assert "reads up to format 2" in refusal(path)


@pytest.mark.parametrize(
    "forged",
    [
        {"hidden_units": 10**9},
        {"hidden_units": 2**40, "num_heads": 2**20},
        {"num_layers": 10**12},
        {"max_len": 10**12},
        {"num_items": 10**12},
    ],
    ids=str,
)
def test_forged_sizes_cost_neither_memory_nor_time(trained: Trained, tmp_path: Path, forged: dict[str, int]) -> None:
    content = torch.load(trained[0], weights_only=True)
    path = tmp_path / "forged.ckpt"
    torch.save(content | {"hyper_parameters": content["hyper_parameters"] | forged}, path)
    assert "is no checkpoint of this program" in refusal(path)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("ids", ["a"] * 17, "stands for two items"),
        ("ids", [None, *"bcdefghijklmnopq"], "without an id"),
        ("counts", [-1] * 17, "below 0"),
        ("counts", [1] * 16, "counts of shape (16,) for 17"),
    ],
)
def test_a_forged_vocabulary(trained: Trained, tmp_path: Path, key: str, value: list[Any], named: str) -> None:
    content = torch.load(trained[0], weights_only=True)
    content["BERT4RecDataModule"]["vocabulary"][key] = value
    path = tmp_path / "forged.ckpt"
    torch.save(content, path)
    assert named in refusal(path)


class Payload:
    """Creates a file when it is unpickled, as malicious code in a checkpoint would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o755)


@pytest.mark.parametrize("writer", ["torch", "pickle", "inside"])
def test_code_in_a_checkpoint_does_not_run(trained: Trained, tmp_path: Path, writer: str) -> None:
    proof, path = tmp_path / "it ran", tmp_path / "evil.ckpt"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Payload(proof)}, protocol=2))
    elif writer == "torch":
        torch.save(Payload(proof), path)
    else:
        torch.save(torch.load(trained[0], weights_only=True) | {"callbacks": Payload(proof)}, path)
    assert "holds more than weights" in refusal(path)
    assert not proof.exists()
    with pytest.raises(pickle.UnpicklingError):
        BERT4Rec.load_from_checkpoint(str(path))
    assert not proof.exists()


def test_a_payload_would_run_if_it_were_let(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    proof = tmp_path / "it ran"
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.is_dir()
