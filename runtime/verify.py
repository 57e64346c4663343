"""Verification: an artifact's variants, run as users run them, against the reference's answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from poolgraph import __version__
from poolgraph.errors import ArtifactError, InputError, ProviderError, SessionError, VerificationError
from poolgraph.graphs.artifact import open_artifact, save_manifest
from poolgraph.graphs.manifest import CheckRow, Manifest, Report, Variant
from poolgraph.graphs.probe_files import StoredProbes, load_probes
from poolgraph.runtime.activations import finish_logits
from poolgraph.runtime.compare import (
    ACTIVATED,
    THRESHOLDS,
    TOKEN_WEIGHTS,
    Comparison,
    Threshold,
    allow_other_experts,
    compare_answers,
    most_missed,
)
from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.loaded import LoadedModel
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.pair_tokenizer import encode_pairs
from poolgraph.runtime.providers import CPU_PROVIDER
from poolgraph.runtime.texts import TO_MODEL_LIMIT
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer
from poolgraph.runtime.verify_queries import check_queries
from poolgraph.runtime.versions import installed_versions

OnRow: TypeAlias = Callable[[CheckRow], None]
Answers: TypeAlias = Sequence[NDArray[np.float32]] | NDArray[np.float32]
Finish: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Run: TypeAlias = Callable[[Sequence[EncodedText]], Answers]

SAME_BITS: Final = Threshold(min_cosine=-1.0, max_difference=0.0)

PACKAGES: Final = ("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")
"""Packages whose versions the report names."""


def verify_artifact(path: str | Path, *, checkpoint: str | Path | None = None, on_row: OnRow | None = None) -> Report:
    """Check every file's hash, then run every variant that this machine can run and compare its answers.

    Of a model that answers queries by a table, those are compared as well.

    A variant that passes for the first time is marked as verified in the manifest, whatever becomes of the others.

    Args:
        path: The artifact's directory.
        checkpoint: Compare with this checkpoint, run by torch here, instead of the answers stored in the artifact.
        on_row: Called with each row of the report as soon as it is known.

    Raises:
        ArtifactError: a file is missing or changed, or no variant runs on this machine.
        VerificationError: answers differ by more than allowed, or a variant failed where its provider loads; raised
            after every row was reported.
    """
    directory = Path(path)
    manifest = open_artifact(directory, check_hashes="all")
    probes = load_probes(directory) if checkpoint is None else _probe_checkpoint(directory, checkpoint)
    rows: list[CheckRow] = []
    failures: dict[str, SessionError] = {}
    for variant in manifest.variants:
        try:
            for row in _check_variant(directory, variant, probes):
                rows.append(row)
                if on_row is not None:
                    on_row(row)
        except ProviderError:
            continue
        except SessionError as error:
            failures[variant.name] = error
    for row in check_queries(directory, manifest, probes.texts, probes.queries) if rows or failures else ():
        rows.append(row)
        if on_row is not None:
            on_row(row)
    if not rows and not failures:
        raise ArtifactError(f"none of the variants {[v.name for v in manifest.variants]} runs on this machine")
    report = build_report(manifest.report.reference, rows)
    _mark_verified(directory, manifest, report, failures)
    check_report(report, failures)
    return report


def check_model(model: PoolingModel, probes: StoredProbes, families: Sequence[str] | None = None) -> Iterator[CheckRow]:
    """Yield rows for each graph family of a loaded model: its texts alone, all in one call, and one against the other.

    Args:
        model: The model, on one variant.
        probes: Texts and reference answers.
        families: Which graphs; all of the variant's where None.
    """
    encoded = encode_probes(model.tokenizer, probes.texts, probes.prompt, probes.pairs)
    stored = {"sequence": dict(enumerate(probes.sequence)), "token": probes.token}
    runs: dict[str, Run] = {"sequence": model.run_sequence, "token": model.run_token}
    for family in families or model.variant.graphs:
        required, finish = choose_comparison(model, family)
        indices = list(stored[family]) or list(range(len(encoded)))  # a twin's answers are not stored
        alone = [runs[family]([encoded[index]])[0] for index in indices]
        together = runs[family](encoded)
        batched = [together[index] for index in indices]
        expected = list(stored[family].values()) or alone
        checks = [("alone", expected, alone, required), ("in batches", expected, batched, required)]
        checks = checks if stored[family] else [("batches against texts alone", alone, batched, required)]
        if has_same_bits(model):
            checks.append(("same bits in batches", alone, batched, SAME_BITS))
        for check, reference, answers, threshold in checks:
            left, right = reference, answers
            if threshold is required:
                left, right = ([finish(rows) for rows in side] for side in (reference, answers))
            found = compare_answers(left, right, threshold)
            yield build_row(found, threshold, variant=model.variant.name, family=family, check=check)
        if family == "token" and model.manifest.pooler.token_weights is not None and stored[family]:
            yield _check_weights(model.variant, expected, batched)


def _check_weights(variant: Variant, expected: Answers, answers: Answers) -> CheckRow:
    """Compare the weights of words behind the vectors of tokens."""
    left, right = ([rows[:, -1:] for rows in side] for side in (expected, answers))
    threshold = TOKEN_WEIGHTS[variant.precision]
    found = compare_answers(left, right, threshold)
    return build_row(found, threshold, variant=variant.name, family="token", check="weights of words")


def has_same_bits(model: LoadedModel) -> bool:
    """Whether a model's variant promises a text the same bits alone and in any batch: on CPUs, without padding."""
    return model.provider == CPU_PROVIDER and model.variant.layout in ("uniform", "packed")


def choose_comparison(model: PoolingModel, family: str) -> tuple[Threshold, Finish]:
    """Return what a family's answers must reach, and what is done to both sides before: an activation for int8."""
    precision, min_cosine = model.variant.precision, model.manifest.options.get("min_cosine")
    threshold, activation = choose_threshold(precision, min_cosine), model.manifest.pooler.activation
    quantization = model.variant.quantization
    embeds = {"embed", "token_embed"} & set(model.manifest.tasks)
    if embeds and min_cosine is None and family == "token" and quantization is not None and quantization.routers:
        return allow_other_experts(threshold), lambda rows: rows
    if embeds or min_cosine is not None or ACTIVATED[precision] == threshold:
        return threshold, lambda rows: rows
    return ACTIVATED[precision], lambda rows: finish_logits(rows, activation)


def encode_probes(
    tokenizer: TextTokenizer, texts: Sequence[str], prompt: str, pairs: Sequence[tuple[str, str]]
) -> list[EncodedText]:
    """Tokenize probes, the texts first, then the pairs, all cut to the model's limit."""
    encoded = tokenizer.encode(texts, prompt=prompt, truncate_to=TO_MODEL_LIMIT)
    return [*encoded, *(encode_pairs(tokenizer, pairs, truncate_to=TO_MODEL_LIMIT) if pairs else ())]


def build_report(reference: str, rows: Sequence[CheckRow]) -> Report:
    """Build a report with the versions and the processor at hand."""
    versions = {"poolgraph": __version__} | installed_versions(PACKAGES)
    return Report(reference=reference, rows=tuple(rows), versions=versions, cpu=read_cpu_info().model)


def check_report(report: Report, failures: Mapping[str, SessionError] = MappingProxyType({})) -> None:
    """Check that every row of a report passed, and that no variant failed.

    Raises:
        VerificationError: naming the rows that did not, and those variants.
    """
    failed = [_describe(row) for row in report.rows if not row.passed]
    said = [f"{len(failed)} of {len(report.rows)} checks against {report.reference} failed: {'; '.join(failed)}"]
    said = [*(said if failed else ()), *(f"{name} does not run: {error}" for name, error in failures.items())]
    if said:
        raise VerificationError("; ".join(said))


def _check_variant(directory: Path, variant: Variant, probes: StoredProbes) -> Iterator[CheckRow]:
    with PoolingModel.load(directory, variant=variant.name, allow_unverified=True) as model:
        yield from check_model(model, probes)


def build_row(found: Comparison, required: Threshold, *, variant: str, family: str, check: str) -> CheckRow:
    """Build a row of the report; ``check`` tells of a bound that is missed and that no column is for."""
    if found.mean_cosine < required.mean_cosine:
        check = f"{check}, mean cosine {found.mean_cosine:.7f} (needs {required.mean_cosine:g})"
    if found.crowded is not None:
        missed, length = found.crowded
        allowed = most_missed(required.may_miss, length)
        check = f"{check}, {missed} of a text's {length} vectors below {required.min_cosine:g} (allowed {allowed})"
    return CheckRow(
        variant=variant,
        family=family,
        check=check,
        num_texts=found.num_texts,
        min_cosine=found.min_cosine,
        max_difference=found.max_difference,
        required_cosine=required.min_cosine,
        allowed_difference=required.max_difference,
        passed=found.passed,
    )


def choose_threshold(precision: str, min_cosine: str | None) -> Threshold:
    """Return what a precision must reach; ``min_cosine`` is the export's own bound as recorded in the manifest.

    Raises:
        ArtifactError: no threshold is known for it.
    """
    if precision not in THRESHOLDS:
        raise ArtifactError(f"no threshold for the precision {precision!r}; there is one for {sorted(THRESHOLDS)}")
    if min_cosine is not None:
        return Threshold(min_cosine=float(min_cosine))
    return THRESHOLDS[precision]


def _describe(row: CheckRow) -> str:
    return (
        f"{row.variant} {row.family} {row.check}: cosine {row.min_cosine:.7f} (needs {row.required_cosine:g}), "
        f"difference {row.max_difference:.1e} of the scale (allowed {row.allowed_difference:.1e})"
    )


def _mark_verified(directory: Path, manifest: Manifest, report: Report, failures: Collection[str]) -> None:
    """Record variants that passed for the first time, with their rows."""
    missed = {row.variant for row in report.rows if not row.passed}
    passed = {row.variant for row in report.rows} - missed - set(failures)
    fresh = {variant.name for variant in manifest.variants if not variant.verified} & passed
    if not fresh:
        return
    changed = msgspec.structs.replace
    variants = tuple(changed(v, verified=v.verified or v.name in fresh) for v in manifest.variants)
    kept = tuple(row for row in manifest.report.rows if row.variant not in fresh)
    added = tuple(row for row in report.rows if row.variant in fresh)
    merged = changed(manifest.report, rows=kept + added)
    save_manifest(directory, changed(manifest, variants=variants, report=merged))


def _probe_checkpoint(directory: Path, checkpoint: str | Path) -> StoredProbes:
    """Answer the artifact's probe texts with the checkpoint; the export room, and torch, are loaded here alone."""
    probes: StoredProbes = import_export().probe_checkpoint(directory, checkpoint)
    return probes


def import_export() -> Any:
    """Return the export room's verification, and load torch with it.

    Raises:
        InputError: they are not installed.
    """
    try:
        return import_module("poolgraph.export.verify")
    except ImportError as error:
        raise InputError(
            f'comparing with a checkpoint needs torch and transformers ({error}): pip install "poolgraph[export]"; '
            "without --checkpoint the answers stored in the artifact are used",
            parameter="checkpoint",
        ) from error
