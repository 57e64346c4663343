import msgspec
import numpy as np
import pytest

from poolgraph.errors import ArtifactError
from poolgraph.graphs.manifest import Graph, Tensor, Tokenization, parse_manifest
from poolgraph.runtime.runner import build_runner
from poolgraph.runtime.runner_packed import PackedRunner
from poolgraph.runtime.runner_padded import PaddedRunner
from poolgraph.runtime.runner_uniform import UniformRunner
from poolgraph.runtime.tokenizer import EncodedText


def text(*ids, types=None, prompt_length=0):
    types = None if types is None else np.array(types)
    return EncodedText(input_ids=np.array(ids), token_type_ids=types, prompt_length=prompt_length)


def graph(*names):
    inputs = tuple(Tensor(name=name, dtype="int64", shape=()) for name in names)
    return Graph(file="f", inputs=inputs, outputs=(), raw_output="pooled")


def lists(feed):
    return {name: array.tolist() for name, array in feed.items()}


def test_uniform_feeds_only_what_the_graph_names():
    texts = [text(1, 2, types=[0, 1], prompt_length=1), text(3, 4)]
    runner = UniformRunner()
    assert lists(runner.feed(texts, graph("input_ids"))) == {"input_ids": [[1, 2], [3, 4]]}
    assert lists(runner.feed(texts, graph("input_ids", "token_type_ids", "prompt_length"))) == {
        "input_ids": [[1, 2], [3, 4]],
        "token_type_ids": [[0, 1], [0, 0]],
        "prompt_length": [1, 0],
    }


@pytest.mark.parametrize(
    ("side", "ids", "mask", "types"),
    [
        ("right", [[1, 2, 3], [4, 9, 9]], [[1, 1, 1], [1, 0, 0]], [[0, 0, 0], [1, 0, 0]]),
        ("left", [[1, 2, 3], [9, 9, 4]], [[1, 1, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 1]]),
    ],
)
def test_padded_feeds(side, ids, mask, types):
    runner = PaddedRunner(Tokenization(pad_token_id=9, padding_side=side))
    texts = [text(1, 2, 3), text(4, types=[1], prompt_length=2)]
    feed = runner.feed(texts, graph("input_ids", "attention_mask", "token_type_ids", "prompt_length"))
    assert lists(feed) == {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "prompt_length": [0, 2]}
    assert {array.dtype for array in feed.values()} == {np.dtype(np.int64)}
    assert set(runner.feed(texts, graph("input_ids"))) == {"input_ids"}


def test_packed_feeds():
    runner = PackedRunner()
    texts = [text(1, 2, 3), text(4, types=[1], prompt_length=2), text(5, 6)]
    inputs = ("input_ids", "cu_seqlens", "token_type_ids", "attended_mask", "prompt_length")
    feed = runner.feed(texts, graph(*inputs))
    assert lists(feed) == {
        "input_ids": [1, 2, 3, 4, 5, 6],
        "cu_seqlens": [0, 3, 4, 6],
        "token_type_ids": [0, 0, 0, 1, 0, 0],
        "attended_mask": [1] * 6,
        "prompt_length": [0, 2, 0],
    }
    assert {array.dtype for array in feed.values()} == {np.dtype(np.int64)}
    assert set(runner.feed(texts, graph("input_ids", "cu_seqlens"))) == {"input_ids", "cu_seqlens"}


@pytest.mark.parametrize(
    ("runner", "answer", "expected"),
    [
        (UniformRunner(), [[0, 1], [2, 3]], [[0, 1], [2, 3]]),
        (PaddedRunner(Tokenization(pad_token_id=9)), [[0, 1, 2], [3, 4, 5]], [[0, 1, 2], [3]]),
        (PaddedRunner(Tokenization(pad_token_id=9, padding_side="left")), [[0, 1, 2], [3, 4, 5]], [[0, 1, 2], [5]]),
        (PackedRunner(), [0, 1, 2, 3], [[0, 1, 2], [3]]),
    ],
)
def test_rows_of_tokens_are_split(runner, answer, expected):
    texts = [text(*range(len(rows))) for rows in expected]
    found = runner.split_tokens(np.array(answer)[..., None], texts)
    assert [rows[:, 0].tolist() for rows in found] == expected


def test_unknown_layout(artifact):
    variant = parse_manifest((artifact / "poolgraph.json").read_bytes()).variant("cpu_fp32")
    with pytest.raises(ArtifactError, match=r"layout 'nested'; this poolgraph runs \['packed', 'padded', 'uniform'\]"):
        build_runner(msgspec.structs.replace(variant, layout="nested"), Tokenization(pad_token_id=0))
    for layout in ("packed", "padded", "uniform"):
        runner = build_runner(msgspec.structs.replace(variant, layout=layout), Tokenization(pad_token_id=0))
        assert runner.layout == layout
