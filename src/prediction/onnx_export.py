"""The model as an ONNX file that needs nothing of this package: histories in, the best items out.

B batch, L length of the histories, X excluded items per row, K length of the list, V tokens (num_items + 2).
"""

import json
import logging
import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import ranking
from ..batch import PAD, mask_token
from ..data.vocabulary import Vocabulary
from ..errors import UserError
from ..models.network import Network, last_places
from ..runs import checkpoint
from ..runs.proposals import how_to_install

# A single file cannot hold more than 2 GiB; above this the weights go into a second one.
LARGEST_SINGLE_FILE = 1_800_000_000


class NextItems(nn.Module):
    """What the exported graph computes.

    Raises:
        ValueError: if `topk` is below 1.
    """

    no_candidate: Tensor

    def __init__(self, network: Network, topk: int) -> None:
        super().__init__()
        if topk < 1:
            raise ValueError(f"topk={topk} must be at least 1")
        self.network = network
        self.topk = min(topk, network.num_items)
        no_candidate = torch.zeros(network.num_items + 2)  # [V]
        no_candidate[[PAD, mask_token(network.num_items)]] = ranking.EXCLUDED
        self.register_buffer("no_candidate", no_candidate)

    def forward(self, histories: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
        """The K best next items of each history.

        Args:
            histories: [B, L] int64 item tokens, oldest first, padded on the left with 0; 1 <= L < max_len.
            excluded: [B, X] int64, tokens that may not come in that row, 0 for none; X >= 1.

        Returns:
            items [B, K] int64, best first, 0 where fewer candidates are left, and their scores [B, K] float32.
        """
        mask = histories.new_full((histories.shape[0], 1), mask_token(self.network.num_items))
        inputs = torch.cat([histories, mask], dim=1)  # [B, L + 1]
        hidden = self.network.encode(inputs, last_places(inputs))  # [B, D]
        scores = self.network.logits(hidden).float() + self.no_candidate  # [B, V]
        best, items = scores.scatter(1, excluded, ranking.EXCLUDED).topk(self.topk, dim=1)  # [B, K] each
        return items.masked_fill(best == ranking.EXCLUDED, PAD), best


def export(checkpoint_path: Path, path: Path, topk: int) -> None:
    """Write the model of a checkpoint as ONNX, and say what was written; without Lightning, so with `print`."""
    network, vocabulary = checkpoint.load_network(checkpoint_path)
    print(f"model       {checkpoint_path}, {len(vocabulary):,} items")
    for written in write_onnx(network, vocabulary, path, topk):
        print(f"written     {written}, {written.stat().st_size:,} bytes")


def write_onnx(network: Network, vocabulary: Vocabulary, path: Path, topk: int) -> list[Path]:
    """Write `path`, and beside it a .json with what a caller needs to know: ids, max_len, topk, most popular items.

    Every file appears under its name only when it is whole. Batch and length stay free; K is fixed.

    Returns:
        The files written.

    Raises:
        UserError: if the libraries for it are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"inference.export needs a library that is not installed ({error.name}): {how_to_install('export')}"
        ) from error
    model = NextItems(network, topk).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")  # a folder: the weights of a large model go into a file of their own
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        size = sum(weight.nbytes for weight in network.parameters())
        _program(model).save(part / path.name, external_data=size > LARGEST_SINGLE_FILE)
        content = {
            "max_len": network.max_len,
            "topk": model.topk,
            "items": vocabulary.ids.to_pylist(),
            "most_popular": vocabulary.decode(vocabulary.most_popular()[: model.topk]).to_pylist(),
        }
        (part / path.with_suffix(".json").name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        written = [path.parent / file.name for file in sorted(part.iterdir(), reverse=True)]
        for file in written:
            os.replace(part / file.name, file)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return written


def _program(model: NextItems) -> "torch.onnx.ONNXProgram":
    longest = model.network.max_len - 1
    histories = torch.ones(2, min(3, longest), dtype=torch.long)
    many = 2**31 - 1  # a size without an upper bound makes torch 2.7 exclude the largest int64, and refuse that
    batch = torch.export.Dim("batch", min=1, max=many)
    length: dict[int, torch.export.Dim] = {1: torch.export.Dim("length", min=1, max=longest)} if longest > 1 else {}
    excluded = {0: batch, 1: torch.export.Dim("excluded", min=1, max=many)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            model,
            (histories, torch.zeros(2, 3, dtype=torch.long)),
            dynamo=True,
            input_names=["histories", "excluded"],
            output_names=["items", "scores"],
            dynamic_shapes=({0: batch, **length}, excluded),
            verbose=False,
        )
    assert program is not None
    return program
