"""The artifact's README.md: what it is, how to use it, and how it was verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poolgraph.graphs.manifest import CheckRow, Fidelity, Manifest, Pooler, Tensor
from poolgraph.runtime.fidelity_table import describe_fidelity, tabulate_fidelity
from poolgraph.runtime.inspect import describe_float_range, describe_quantization
from poolgraph.runtime.providers import list_needs

TEMPLATE = """\
# {model}

{architecture} compiled by poolgraph {version} into ONNX graphs, pooler and head included.

| | |
|---|---|
| source | {model}{revision} |
| tasks | {tasks} |
| pooling | {pooling}{normalize} |
| {width} | {size} |
| longest text | {limit} tokens |
| prompts | {prompts} |

```python
from poolgraph import PoolingModel

model = PoolingModel.load("PATH/TO/THIS/FOLDER")
{usage}
```

## Files

| variant | graph | inputs | outputs |
|---|---|---|---|
{graphs}

`onnx/model.onnx` uses standard operators only: any ONNX runtime can load it.
Its output `{output}` is the {kind}.
{quantization}
## Verification

Reference: {reference}. Differences are shares of the largest absolute reference answer.

| variant | graph | check | texts | lowest cosine | largest difference | required | passed |
|---|---|---|---|---|---|---|---|
{rows}
{unverified}{fidelity}"""

UNVERIFIED = """
Not verified: {names}, which the machine of the export could not run. `poolgraph verify PATH` on a machine that has
{providers} compares them with the stored answers; they load once it has passed.
"""

FIDELITY = """
## fp32 against {precisions}

{subject}. `-` where a measure is of both together.

{table}
"""

QUANTIZATION = """
## Quantization

| variant | part | how |
|---|---|---|
{rows}

Products and tables that are named under float32 are not in 8 bits: they cost too much fidelity. What chooses experts
stays in float32 in bf16, too, whose record has nothing else. Held out are the
calibration texts and probes by which this was decided; their answers are compared with those in float32.
"""
"""The section of an artifact with a quantized variant."""

RANGES = """
## Range of fp16

{rows}
"""
"""The section of an artifact with variants in fp16."""

USAGE: Mapping[str, str] = {
    "embed": 'vectors = model.embed(["a text", "another text"])  # numpy, (2, {size})',
    "embed_sparse": 'weights = model.embed_sparse(["a text", "another text"])  # a list, token ids and their weights',
    "classify": 'probabilities = model.classify(["a text", "another text"])  # numpy, (2, {size})',
    "token_embed": 'matrices = model.token_embed(["a text", "another text"])  # a list of numpy, (num_tokens, {size})',
    "token_classify": 'matrices = model.token_classify(["a text", "another"])  # a list of numpy, (num_rows, {size})',
}
"""The line of code that shows each task, or sparse embeddings."""


def render_model_card(manifest: Manifest) -> str:
    """Return the model card of an artifact with a report."""
    pooler = manifest.pooler
    return TEMPLATE.format(
        model=manifest.source.model,
        revision=f", revision {manifest.source.revision}" if manifest.source.revision else "",
        architecture=manifest.architecture,
        version=manifest.poolgraph_version,
        tasks=", ".join(manifest.tasks),
        pooling=" + ".join(pooler.pooling) or "every token",
        normalize=", normalized" if pooler.normalize else "",
        width="embedding size" if pooler.activation is None else "labels",
        usage=USAGE["embed_sparse" if pooler.sparse else manifest.tasks[0]].format(size=pooler.embedding_size),
        output=_finished_output(manifest),
        kind=_describe_answer(pooler),
        size=pooler.embedding_size,
        limit=manifest.limits.max_model_len,
        prompts=", ".join(manifest.prompts) or "none",
        graphs="\n".join(_graph_rows(manifest)),
        quantization=_describe_quantized(manifest) + _describe_ranges(manifest),
        reference=manifest.report.reference,
        rows="\n".join(_check_row(row) for row in manifest.report.rows),
        unverified=_describe_unverified(manifest),
        fidelity="" if manifest.report.fidelity is None else _render_fidelity(manifest, manifest.report.fidelity),
    )


def _describe_answer(pooler: Pooler) -> str:
    if pooler.activation is not None:
        return f"answer before its activation ({pooler.activation})"
    if pooler.max_active_dims is not None:
        return f"finished answer, of whose weights the {pooler.max_active_dims} largest are kept"
    return "finished answer"


def _render_fidelity(manifest: Manifest, fidelity: Fidelity) -> str:
    precisions = dict.fromkeys(manifest.variant(row.variant).precision for row in fidelity.rows)
    header, rows = tabulate_fidelity(fidelity)
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return FIDELITY.format(precisions=", ".join(precisions), subject=describe_fidelity(fidelity), table=table)


def _finished_output(manifest: Manifest) -> str:
    graph = next(iter(manifest.variants[0].graphs.values()))
    return graph.output or graph.raw_output


def _graph_rows(manifest: Manifest) -> list[str]:
    return [
        f"| {variant.name} | {graph.file} | {_names(graph.inputs)} | {_names(graph.outputs)} |"
        for variant in manifest.variants
        for graph in variant.graphs.values()
    ]


def _describe_quantized(manifest: Manifest) -> str:
    rows = [
        f"| {variant.name} | {name} | {text} |"
        for variant in manifest.variants
        if variant.quantization is not None
        for name, text in describe_quantization(variant.quantization).items()
    ]
    return QUANTIZATION.format(rows="\n".join(rows)) if rows else ""


def _describe_ranges(manifest: Manifest) -> str:
    rows = [
        f"* {variant.name}: {describe_float_range(variant.float_range)}"
        for variant in manifest.variants
        if variant.float_range is not None
    ]
    return RANGES.format(rows="\n".join(rows)) if rows else ""


def _describe_unverified(manifest: Manifest) -> str:
    variants = [variant for variant in manifest.variants if not variant.verified]
    if not variants:
        return ""
    providers = dict.fromkeys(it for variant in variants for it in (*variant.providers, *list_needs(variant)))
    return UNVERIFIED.format(names=", ".join(it.name for it in variants), providers=" and ".join(providers))


def _names(tensors: Sequence[Tensor]) -> str:
    return ", ".join(tensor.name for tensor in tensors)


def _check_row(row: CheckRow) -> str:
    required = f">= {row.required_cosine:g}" if row.required_cosine > -1 else "equal bits"
    return (
        f"| {row.variant} | {row.family} | {row.check} | {row.num_texts} | {row.min_cosine:.7f} "
        f"| {row.max_difference:.1e} | {required} | {'yes' if row.passed else 'NO'} |"
    )
