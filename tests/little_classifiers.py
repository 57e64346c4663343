"""Tiny classifiers built by hand as artifacts: word pieces, an embedding table, one projection to the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from poolgraph.graphs.artifact import record_files, save_manifest
from poolgraph.graphs.manifest import Graph, Limits, Manifest, Pooler, Report, Source, Tensor, Tokenization, Variant

SIZE = 16
MAX_MODEL_LEN = 40
STEP = "<step>"
BIO_LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")

PIECES = tuple("abcdefghijklmnopqrstuvwxyz0123456789")
VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", STEP),
    *".,-'",
    *PIECES,
    *(f"##{piece}" for piece in PIECES),
    *(f"w{number}" for number in range(60)),
)
STEP_TAG_ID = VOCABULARY.index(STEP)

_HEADER = '<ir_version: 10, opset_import: ["": 20]>\n'
_IDS = "int64[batch_size,sequence_length]"
_UNIFORM = """hidden = Gather(table, input_ids)
    axis = Constant<value_ints=[1]>()
    shape = Shape(input_ids)
    ones = ConstantOfShape<value = float[1] {1.0}>(shape)
    weights = Unsqueeze(ones, axis)
    length = Gather(shape, axis)
    count = Cast<to=1>(length)
"""
_PADDED = """rows = Gather(table, input_ids)
    axis = Constant<value_ints=[1]>()
    last = Constant<value_ints=[2]>()
    mask = Cast<to=1>(attention_mask)
    column = Unsqueeze(mask, last)
    hidden = Mul(rows, column)
    weights = Unsqueeze(mask, axis)
    lengths = ReduceSum<keepdims=1>(mask, axis)
    count = Unsqueeze(lengths, axis)
"""
# The mean as a matrix product: ONNX Runtime's ReduceMean adds up in another order when batch_size is 1.
_MEAN = "total = MatMul(weights, hidden)\n mean = Div(total, count)\n"
_FAMILIES = {
    "sequence": "pooled = Squeeze(mean, axis)\n scores = MatMul(pooled, weight)\n logits = Add(scores, bias)\n",
    "token": "mixed = Add(hidden, mean)\n scores = MatMul(mixed, weight)\n logits = Add(scores, bias)\n",
}
_LAYOUTS = {
    "cpu_fp32": ("cpu", "uniform", ("input_ids",), _UNIFORM),
    "portable_fp32": ("portable", "padded", ("input_ids", "attention_mask"), _PADDED),
}


def weights(num_labels: int) -> dict[str, NDArray[np.float32]]:
    """The table (vocabulary, size), the projection (size, num_labels) and its bias, drawn wide."""
    rng = np.random.default_rng(num_labels)
    drawn = {"table": (len(VOCABULARY), SIZE), "weight": (SIZE, num_labels), "bias": (num_labels,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in drawn.items()}


def reference_logits(input_ids: Any, num_labels: int, family: str) -> NDArray[np.float64]:
    """What a graph answers for one text: (num_labels,), or (num_tokens, num_labels) of the token family."""
    arrays = {name: array.astype(np.float64) for name, array in weights(num_labels).items()}
    hidden = arrays["table"][np.asarray(input_ids)]
    mean = hidden.mean(0)
    rows = mean if family == "sequence" else hidden + mean
    return rows @ arrays["weight"] + arrays["bias"]


def build_tokenizer() -> Tokenizer:
    """Lower-casing word pieces; ``<step>`` is a special token that texts may hold."""
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in VOCABULARY[:5]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def build_graph(variant: str, family: str, num_labels: int) -> tuple[onnx.ModelProto, Graph]:
    """One graph whose output is ``logits``, and its record in the manifest without a file name."""
    _, _, inputs, body = _LAYOUTS[variant]
    axes = ("batch_size", "sequence_length", num_labels) if family == "token" else ("batch_size", num_labels)
    signature = ", ".join(f"{_IDS} {name}" for name in inputs)
    output = f"float[{','.join(map(str, axes))}] logits"
    model = onnx.parser.parse_model(
        f"{_HEADER} tiny ({signature}) => ({output}) {{ {body + _MEAN + _FAMILIES[family]} }}"
    )
    for name, array in weights(num_labels).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    tensors = tuple(Tensor(name=name, dtype="int64", shape=("batch_size", "sequence_length")) for name in inputs)
    outputs = (Tensor(name="logits", dtype="float32", shape=axes),)
    return model, Graph(file="", inputs=tensors, outputs=outputs, raw_output="logits")


def build_variant(directory: Path, name: str, families: tuple[str, ...], num_labels: int) -> Variant:
    """Write a variant's graphs and return its record."""
    target, layout, _, _ = _LAYOUTS[name]
    graphs = {}
    for family in families:
        model, graph = build_graph(name, family, num_labels)
        file = f"onnx/{name}{'_tokens' if family == 'token' else ''}.onnx"
        onnx.save(model, directory / file)
        graphs[family] = msgspec.structs.replace(graph, file=file)
    return Variant(
        name=name,
        target=target,
        precision="fp32",
        layout=layout,
        providers=("CPUExecutionProvider",),
        graphs=graphs,
        session_options={"graph_optimization_level": "basic", "disabled_optimizers": "MatMulAddFusion"},
        verified=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A row of the table of tiny classifiers: its labels, its graphs and what its pooler says."""

    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    families: tuple[str, ...]
    pooler: Callable[[int], Pooler]


def _pooler(num_labels: int, **fields: Any) -> Pooler:
    return Pooler(
        **{"pooling": (), "embedding_size": num_labels, "token_embedding_size": num_labels, "activation": "auto"}
        | fields
    )


KINDS = {
    "classifier": Kind(
        labels=("negative", "neutral", "positive"),
        tasks=("classify", "token_classify"),
        families=("sequence", "token"),
        pooler=lambda num_labels: _pooler(num_labels, pooling=("mean",)),
    ),
    "token_classifier": Kind(labels=BIO_LABELS, tasks=("token_classify",), families=("token",), pooler=_pooler),
    "step": Kind(
        labels=("bad", "good"),
        tasks=("token_classify",),
        families=("token",),
        pooler=lambda num_labels: _pooler(num_labels, tok_pooling_type="STEP", step_tag_id=STEP_TAG_ID),
    ),
}


def build_classifier(
    directory: Path,
    kind: str = "classifier",
    *,
    labels: tuple[str, ...] | None = None,
    variants: tuple[str, ...] = ("portable_fp32", "cpu_fp32"),
    pooler: dict[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> Path:
    """Build a tiny artifact.

    Args:
        directory: Where; must not exist.
        kind: A row of ``KINDS``.
        labels: Other labels, and so another number of columns.
        variants: Variants to build, of ``portable_fp32`` (padded) and ``cpu_fp32`` (uniform).
        pooler: Fields of the pooler to replace.
        tokenizer: Another tokenizer of no more tokens.
        changes: Fields of the manifest to replace.
    """
    row = KINDS[kind]
    labels = row.labels if labels is None else labels
    (directory / "onnx").mkdir(parents=True)
    (tokenizer or build_tokenizer()).save(str(directory / "tokenizer.json"))
    fields: dict[str, Any] = {
        "poolgraph_version": "0",
        "created": "2026-11-23T00:00:00Z",
        "source": Source(model=f"tiny-{kind}", revision=None, content_hash="0"),
        "architecture": "TinyClassifier",
        "tasks": row.tasks,
        "default_task": row.tasks[0],
        "pooler": msgspec.structs.replace(row.pooler(len(labels)), **(pooler or {})),
        "limits": Limits(max_model_len=MAX_MODEL_LEN, vocab_size=len(VOCABULARY)),
        "tokenization": Tokenization(pad_token_id=0),
        "labels": labels,
        "variants": tuple(build_variant(directory, name, row.families, len(labels)) for name in variants),
        "report": Report(reference="none"),
        "files": record_files(directory),
    }
    save_manifest(directory, Manifest(**(fields | changes)))
    return directory
