"""A tiny artifact built by hand: an embedding table, one projection, a mean; three layouts, both graph families."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from poolgraph.graphs.artifact import record_files, save_manifest
from poolgraph.graphs.manifest import (
    Graph,
    Limits,
    Manifest,
    Pooler,
    Report,
    Source,
    Tensor,
    Tokenization,
    Variant,
)

SIZE = 8
MAX_MODEL_LEN = 16
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(60)), "nan"]

_HEADER = '<ir_version: 10, opset_import: ["": 20]>\n'
_SHAPES = {"input_ids": ("batch_size", "sequence_length"), "attention_mask": ("batch_size", "sequence_length")}
_PACKED_SHAPES = {"input_ids": ("num_tokens",), "cu_seqlens": ("num_bounds",)}
_PROJECTION = "rows = Gather(table, input_ids)\n hidden = MatMul(rows, weight)\n"

GRAPHS = {
    ("uniform", "sequence"): (
        ("input_ids",),
        # Not ReduceMean over axis 1: ONNX Runtime adds up in another order when batch_size is 1.
        _PROJECTION
        + """axis = Constant<value_ints=[1]>()
        shape = Shape(input_ids)
        ones = ConstantOfShape<value = float[1] {1.0}>(shape)
        row = Unsqueeze(ones, axis)
        column = MatMul(row, hidden)
        total = Squeeze(column, axis)
        length = Gather(shape, axis)
        count = Cast<to=1>(length)
        pooled = Div(total, count)
        """,
    ),
    ("uniform", "token"): (("input_ids",), _PROJECTION + "raw_token_embeddings = Identity(hidden)\n"),
    ("padded", "sequence"): (
        ("input_ids", "attention_mask"),
        _PROJECTION
        + """axis = Constant<value_ints=[1]>()
        last = Constant<value_ints=[-1]>()
        mask = Cast<to=1>(attention_mask)
        column = Unsqueeze(mask, last)
        masked = Mul(hidden, column)
        total = ReduceSum<keepdims=0>(masked, axis)
        count = ReduceSum<keepdims=1>(mask, axis)
        pooled = Div(total, count)
        """,
    ),
    ("padded", "token"): (
        ("input_ids", "attention_mask"),
        _PROJECTION
        + """last = Constant<value_ints=[-1]>()
        mask = Cast<to=1>(attention_mask)
        column = Unsqueeze(mask, last)
        raw_token_embeddings = Mul(hidden, column)
        """,
    ),
    ("packed", "sequence"): (
        ("input_ids", "cu_seqlens"),
        _PROJECTION
        + """zero = Constant<value_int=0>()
        one = Constant<value_int=1>()
        step = Constant<value_ints=[1]>()
        begin = Constant<value_ints=[0]>()
        back = Constant<value_ints=[-1]>()
        far = Constant<value_ints=[4096]>()
        nothing = Constant<value_float=0.0>()
        tokens = Size(input_ids)
        positions = Range(zero, tokens, one)
        first = Slice(cu_seqlens, begin, back)
        last = Slice(cu_seqlens, step, far)
        firsts = Unsqueeze(first, step)
        lasts = Unsqueeze(last, step)
        behind = GreaterOrEqual(positions, firsts)
        before = Less(positions, lasts)
        own = And(behind, before)
        mask = Unsqueeze(own, back)
        kept = Where(mask, hidden, nothing)
        total = ReduceSum<keepdims=0>(kept, step)
        length = Sub(lasts, firsts)
        count = Cast<to=1>(length)
        pooled = Div(total, count)
        """,
    ),
    ("packed", "token"): (("input_ids",), _PROJECTION + "raw_token_embeddings = Identity(hidden)\n"),
}

OUTPUTS = {
    "sequence": Tensor(name="pooled", dtype="float32", shape=("batch_size", SIZE)),
    "token": Tensor(name="raw_token_embeddings", dtype="float32", shape=("batch_size", "sequence_length", SIZE)),
}
_PACKED_ROWS = Tensor(name="raw_token_embeddings", dtype="float32", shape=("num_tokens", SIZE))

VARIANTS = {
    "cpu_fp32": ("cpu", "uniform"),
    "portable_fp32": ("portable", "padded"),
    "packed_fp32": ("packed", "packed"),
}


def tiny_weights() -> tuple[np.ndarray, np.ndarray]:
    """The table (vocabulary, size), whose row of the word ``nan`` is NaN, and the projection (size, size)."""
    rng = np.random.default_rng(7)
    table = rng.standard_normal((len(VOCABULARY), SIZE)).astype(np.float32)
    table[VOCABULARY.index("nan")] = np.nan
    return table, rng.standard_normal((SIZE, SIZE)).astype(np.float32)


def reference_tokens(ids) -> np.ndarray:
    """What the token graph answers, (num_tokens, size)."""
    table, weight = tiny_weights()
    return table[np.asarray(ids)] @ weight


def build_tokenizer() -> Tokenizer:
    """A word-level tokenizer with truncation and padding baked in, as some checkpoints have."""
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(VOCABULARY[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=6)
    return tokenizer


def build_graph(layout: str, family: str) -> tuple[onnx.ModelProto, Graph]:
    """The tiny graph of a layout and family, and its record in the manifest without a file name."""
    inputs, body = GRAPHS[layout, family]
    packed = layout == "packed"
    shapes = _PACKED_SHAPES if packed else _SHAPES
    output = _PACKED_ROWS if packed and family == "token" else OUTPUTS[family]
    signature = ", ".join(f"int64[{','.join(shapes[name])}] {name}" for name in inputs)
    axes = ",".join(map(str, output.shape))
    text = f"{_HEADER} tiny ({signature}) => (float[{axes}] {output.name}) {{ {body} }}"
    model = onnx.parser.parse_model(text)
    for name, array in zip(("table", "weight"), tiny_weights(), strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    tensors = tuple(Tensor(name=name, dtype="int64", shape=shapes[name]) for name in inputs)
    return model, Graph(file="", inputs=tensors, outputs=(output,), raw_output=output.name)


def build_variant(directory: Path, name: str, families: tuple[str, ...]) -> Variant:
    """Write a variant's graphs and return its record."""
    target, layout = VARIANTS[name]
    graphs = {}
    for family in families:
        model, graph = build_graph(layout, family)
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


def build_manifest(**changes) -> Manifest:
    """A manifest without variants and files; ``changes`` replace its fields."""
    fields = {
        "poolgraph_version": "0",
        "created": "2026-11-22T00:00:00Z",
        "source": Source(model="tiny", revision=None, content_hash="0"),
        "architecture": "TinyModel",
        "tasks": ("embed", "token_embed"),
        "default_task": "embed",
        "pooler": Pooler(pooling=("mean",), normalize=True, embedding_size=SIZE, token_embedding_size=SIZE),
        "limits": Limits(max_model_len=MAX_MODEL_LEN, vocab_size=len(VOCABULARY)),
        "tokenization": Tokenization(pad_token_id=0),
        "prompts": {"query": "w1 w2 ", "passage": "w3 "},
        "variants": (),
        "report": Report(reference="none"),
        "files": {},
    }
    return Manifest(**(fields | changes))


def write_artifact(
    directory: Path,
    *,
    variants: tuple[str, ...] = ("portable_fp32", "cpu_fp32"),
    families: tuple[str, ...] = ("sequence", "token"),
    edit_variant: Callable[[Variant], Variant] = lambda variant: variant,
    **changes,
) -> Path:
    """Write a tiny artifact into a directory that is made; keywords replace the manifest's fields."""
    (directory / "onnx").mkdir(parents=True)
    build_tokenizer().save(str(directory / "tokenizer.json"))
    rows = tuple(edit_variant(build_variant(directory, variant, families)) for variant in variants)
    save_manifest(directory, build_manifest(variants=rows, files=record_files(directory), **changes))
    return directory
