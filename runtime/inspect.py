"""An artifact described for people: what it is, what it takes, what was verified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from poolgraph.graphs.manifest import (
    Fidelity,
    FloatRange,
    Graph,
    Manifest,
    Pooler,
    Quantization,
    Report,
    Tensor,
    Variant,
)
from poolgraph.runtime.compare import OTHER_EXPERTS
from poolgraph.runtime.fidelity_table import describe_fidelity, tabulate_fidelity
from poolgraph.runtime.module_kinds import AUTO_ENCODER, read_head_kinds
from poolgraph.runtime.providers import list_needs
from poolgraph.runtime.tuning import TUNING_FILE, TuningEntry

REPORT_COLUMNS: Final = ("variant", "graph", "check", "texts", "min cosine", "max diff", "ok")

FLOAT16_MAX: Final = 65504.0

_LABEL_WIDTH: Final = 14


def describe(manifest: Manifest, path: Path, tuned: Sequence[TuningEntry] = ()) -> str:
    """Write everything about an artifact that its user may want to know; ``tuned`` are the plans stored beside it."""
    sections = [
        "\n".join(_describe_model(manifest, path)),
        *("\n".join(_describe_variant(variant, manifest)) for variant in manifest.variants),
        f"Verified against {manifest.report.reference}\n{_indent(format_report(manifest.report))}",
        *([f"Tuned ({TUNING_FILE})\n{_indent(_format_tuned(tuned))}"] if tuned else []),
    ]
    if manifest.report.fidelity is not None:
        sections.append(format_fidelity(manifest.report.fidelity))
    return "\n\n".join(sections)


def format_report(report: Report) -> str:
    """Write a verification report as a table, one line a check."""
    rows = [
        (
            row.variant,
            row.family,
            row.check,
            str(row.num_texts),
            f"{row.min_cosine:.7f}",
            f"{row.max_difference:.1e}",
            "yes" if row.passed else f"NO (needs {row.required_cosine:g}, {row.allowed_difference:.1e})",
        )
        for row in report.rows
    ]
    return format_table(REPORT_COLUMNS, rows) if rows else "nothing was verified"


def format_fidelity(fidelity: Fidelity) -> str:
    """Write a comparison of precisions as a table with a column a variant, under a line that says on what."""
    header, rows = tabulate_fidelity(fidelity)
    return f"Fidelity of {describe_fidelity(fidelity)}\n{_indent(format_table(header, rows))}"


def describe_quantization(record: Quantization) -> dict[str, str]:
    """Write what a variant's quantization record holds, by the name of each part; empty parts are left out."""
    counts = {"by static scales": record.static, "by a scale a token": record.token, "by weights alone": record.weights}
    products = ", ".join(f"{count} {how}" for how, count in counts.items() if count)
    float32 = [*record.float32, *record.float32_tables]
    cosines = (("mean cosine", record.mean_cosine), ("lowest", record.min_cosine))
    routers = f"{', '.join(record.routers)} (float32; {OTHER_EXPERTS:.0%} of token vectors may miss the minimum)"
    parts = {
        "products": f"{products}; {record.smoothed} smoothed" if products and record.smoothed else products,
        "tables": ", ".join(record.tables),
        "float32": ", ".join(float32),
        "routers": routers if record.routers else "",
        "calibration": record.calibration,
        "held out": ", ".join(f"{name} {value:.7f}" for name, value in cosines if value is not None),
    }
    return {name: text for name, text in parts.items() if text}


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align text in columns, numbers to the right."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    is_number = [all(_is_number(line[column]) for line in lines[1:]) for column in range(len(header))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(_align(line, widths, is_number) for line in lines)


def _format_tuned(tuned: Sequence[TuningEntry]) -> str:
    header = ("variant", "cpu", "cores", "threads", "batch tokens", "on", "tokens/s", "default", "by", "date")
    rows = [
        (
            entry.variant,
            entry.cpu,
            str(entry.cores),
            "by the rule" if entry.threads is None else str(entry.threads),
            str(entry.max_batch_tokens),
            entry.workload,
            f"{entry.tokens_per_s:.0f}",
            f"{entry.default_tokens_per_s:.0f}",
            f"poolgraph {entry.poolgraph_version}",
            entry.date,
        )
        for entry in tuned
    ]
    return format_table(header, rows)


def describe_float_range(record: FloatRange) -> str:
    """Write what an export found of a variant's range."""
    kept = f"in float32: {', '.join(record.float32)}" if record.float32 else "nothing stays in float32 for it"
    return f"largest activation {record.largest:,.4g} of {FLOAT16_MAX:,.0f}, by {record.calibration}; {kept}"


def format_size(size_bytes: int) -> str:
    """Write a size in the largest decimal unit that keeps it at least 1."""
    for unit, bytes_each in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= bytes_each:
            return f"{size_bytes / bytes_each:.1f} {unit}"
    return f"{size_bytes} B"


def _describe_model(manifest: Manifest, path: Path) -> list[str]:
    source = manifest.source
    size = format_size(sum(record.size for record in manifest.files.values()))
    fields = {
        "artifact": f"{path} ({len(manifest.files)} files, {size})",
        "model": source.model if source.revision is None else f"{source.model} at {source.revision}",
        "architecture": manifest.architecture,
        "tasks": _describe_tasks(manifest),
        "pooler": _describe_pooler(manifest.pooler, "features" if AUTO_ENCODER in read_head_kinds(path) else "words"),
        "dimensions": _describe_dimensions(manifest.pooler),
        "limits": f"{manifest.limits.max_model_len} tokens a text, vocabulary of {manifest.limits.vocab_size}",
        "scoring": _describe_scoring(manifest),
        "similarity": manifest.similarity_fn_name if manifest.pooler.activation is None else "",
        "prompts": _describe_prompts(manifest),
        "labels": ", ".join(manifest.labels),
        "made": f"{manifest.created} by poolgraph {manifest.poolgraph_version}, format {manifest.format_version}",
    }
    return [f"{name:<{_LABEL_WIDTH}}{value}" for name, value in fields.items() if value]


def _describe_tasks(manifest: Manifest) -> str:
    return ", ".join(f"{task} (default)" if task == manifest.default_task else task for task in manifest.tasks)


def _describe_pooler(pooler: Pooler, weighed: str) -> str:
    parts = [" + ".join(pooler.pooling) or "every token", _describe_finish(pooler)]
    if pooler.tok_pooling_type == "STEP":
        parts.append(f"rows of token {pooler.step_tag_id}")
    if pooler.sparse:
        parts.append(
            f"weights of {weighed}{'' if pooler.max_active_dims is None else f', the {pooler.max_active_dims} largest'}"
        )
    if pooler.token_weights is not None:
        parts.append("vectors of tokens with weights of words")
    if not pooler.include_prompt:
        parts.append("the prompt's tokens left out")
    return ", ".join(parts)


def _describe_finish(pooler: Pooler) -> str:
    if pooler.activation is None:
        return "normalized" if pooler.normalize else "not normalized"
    return f"activation {pooler.activation}{'' if pooler.use_activation else ' (only if asked for)'}"


def _describe_scoring(manifest: Manifest) -> str:
    scoring = manifest.scoring
    if scoring is None:
        return ""
    return f"{scoring.kind}{'' if scoring.template is None else f' through {scoring.template}'}"


def _describe_dimensions(pooler: Pooler) -> str:
    text = str(pooler.embedding_size)
    if pooler.matryoshka_dimensions:
        text += f", may be shortened to {', '.join(map(str, pooler.matryoshka_dimensions))}"
    elif pooler.is_matryoshka:
        text += ", may be shortened"
    return text if pooler.token_embedding_size is None else f"{text}; {pooler.token_embedding_size} a token"


def _describe_prompts(manifest: Manifest) -> str:
    named = [
        f"{name}{' (default)' if name == manifest.default_prompt_name else ''}: {prompt!r}"
        for name, prompt in manifest.prompts.items()
    ]
    return f"\n{' ' * _LABEL_WIDTH}".join(named)


def _describe_variant(variant: Variant, manifest: Manifest) -> list[str]:
    verified = "verified" if variant.verified else "NOT verified"
    lines = [
        f"{variant.name}  {variant.precision} for {', '.join(variant.providers)}, {variant.layout} batches, {verified}"
    ]
    if needs := list_needs(variant):
        lines.append(f"  needs         {', '.join(needs)}")
    if variant.quantization is not None:
        lines.append("  reduced")
        lines += [f"    {name:<12}{text}" for name, text in describe_quantization(variant.quantization).items()]
    if variant.float_range is not None:
        lines.append(f"  range         {describe_float_range(variant.float_range)}")
    for family, graph in variant.graphs.items():
        lines += _describe_graph(family, graph, manifest)
    return lines


def _describe_graph(family: str, graph: Graph, manifest: Manifest) -> list[str]:
    record = manifest.files.get(graph.file)
    return [
        f"  {family:<14}{graph.file} ({format_size(record.size) if record else 'not listed'})",
        f"    inputs      {_describe_tensors(graph.inputs)}",
        f"    outputs     {_describe_tensors(graph.outputs)}",
    ]


def _describe_tensors(tensors: Iterable[Tensor]) -> str:
    return "; ".join(f"{tensor.name} {tensor.dtype} ({', '.join(map(str, tensor.shape))})" for tensor in tensors)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _align(line: Sequence[str], widths: Sequence[int], is_number: Sequence[bool]) -> str:
    cells = (
        text.rjust(width) if right else text.ljust(width)
        for text, width, right in zip(line, widths, is_number, strict=True)
    )
    return "  ".join(cells).rstrip()


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
