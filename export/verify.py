"""Verification at export: the artifact as the runtime runs it, against the reference, before it gets its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from poolgraph.errors import InputError, ProviderError
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.options import ExportOptions
from poolgraph.export.probes import (
    build_longest,
    build_overlong,
    build_probe_pairs,
    build_probe_texts,
    choose_lengths,
)
from poolgraph.export.reference import ReferenceAnswers, compute_reference, reference_name
from poolgraph.export.resolve import ExportPlan, resolve_plan
from poolgraph.export.static_query import answer_queries
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import CheckRow, Manifest, Variant
from poolgraph.graphs.probe_files import StoredProbes
from poolgraph.runtime.compare import compare_answers
from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.embeddings import finish_by_default
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.providers import PORTABLE
from poolgraph.runtime.runner import Runner, build_runner
from poolgraph.runtime.session import Session, mapped_errors, open_session
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer
from poolgraph.runtime.verify import build_row, check_model, choose_comparison, encode_probes

Answers = list[NDArray[np.float32]]

MIXED_BATCH = 6
"""Texts of a mixed-length batch: enough for long padding, small enough for little memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Texts, the prompt before them, pairs, and the tokens of all as the artifact's tokenizer gives them."""

    texts: tuple[str, ...]
    prompt: str
    pairs: tuple[tuple[str, str], ...]
    encoded: tuple[EncodedText, ...]


def build_probes(tokenizer: TextTokenizer, manifest: Manifest) -> Probes:
    """Build the probes of an artifact, a text beyond the limit among them unless it is too long to be answered."""
    limit = manifest.limits.max_model_len
    prompt = manifest.prompts.get(manifest.default_prompt_name or "", "")
    texts = build_probe_texts(tokenizer.count, choose_lengths(limit))
    texts.append(build_longest(tokenizer.count, limit))
    pairs = build_probe_pairs(limit) if takes_pairs(manifest) else ()
    encoded = encode_probes(tokenizer, texts, prompt, pairs)
    return Probes(texts=tuple(texts), prompt=prompt, pairs=pairs, encoded=tuple(encoded))


def takes_pairs(manifest: Manifest) -> bool:
    """Whether two texts can be one input: encoders that classify, unless a score template joins the texts."""
    pooler = manifest.pooler
    templated = manifest.scoring is not None and manifest.scoring.template is not None
    return pooler.activation is not None and pooler.pooling not in ((), ("lasttoken",)) and not templated


def check_tokenizer(
    probes: Probes, tokenizer: TextTokenizer, reference: PreTrainedTokenizerBase, limit: int
) -> CheckRow:
    """Compare token ids with the reference's tokenizer, exactly; the cosine column holds the share of equal texts.

    A text and, where there are pairs, one of them are cut at the limit, whether such are answered or not.
    """
    options = {"truncation": True, "max_length": limit, "padding": False}
    overlong = build_overlong(limit)
    probed = list(dict.fromkeys((*probes.texts, overlong)))
    pairs = list(dict.fromkeys((*probes.pairs, (overlong, overlong)))) if probes.pairs else []
    encoded = encode_probes(tokenizer, probed, probes.prompt, pairs)
    expected = reference([probes.prompt + text for text in probed], **options)["input_ids"]
    if pairs:
        expected += reference(*map(list, zip(*pairs, strict=True)), **options)["input_ids"]
    equal = sum(list(own.input_ids) == ids for own, ids in zip(encoded, expected, strict=True))
    share = equal / len(expected)
    return CheckRow(
        variant="tokenizer",
        family="ids",
        check="equal ids",
        num_texts=len(expected),
        min_cosine=share,
        max_difference=1.0 - share,
        required_cosine=1.0,
        allowed_difference=0.0,
        passed=equal == len(expected),
    )


def verify_variant(
    directory: Path, variant: Variant, probes: Probes, reference: ReferenceAnswers, *, threads: int | None = None
) -> Iterator[CheckRow]:
    """Yield rows that compare one variant's graphs with the reference, texts alone, in batches and padded.

    None where the provider that it is for does not load on this machine.

    Args:
        directory: The artifact, complete but for its report.
        variant: Which one.
        probes: The texts.
        reference: Their raw answers.
        threads: As in ``PoolingModel.load``; with one, no weights are packed twice.
    """
    stored = store_answers(probes, reference)
    for family in variant.graphs:
        # One family at a time: each session holds the weights, packed anew.
        try:
            model = PoolingModel.load(directory, variant=variant.name, allow_unverified=True, threads=threads)
        except ProviderError:
            return
        with model:
            yield from check_model(model, stored, families=(family,))
        if variant.target == PORTABLE:
            yield from _check_padding(model, family, probes.encoded, reference)


def store_answers(probes: Probes, reference: ReferenceAnswers) -> StoredProbes:
    """Join probes and their reference answers, raw and complete."""
    return StoredProbes(
        texts=probes.texts,
        prompt=probes.prompt,
        pairs=probes.pairs,
        sequence=np.stack(reference.sequence) if reference.sequence else np.empty((0, 0), dtype=np.float32),
        token=dict(enumerate(reference.token or ())),
    )


def probe_checkpoint(directory: Path, checkpoint: str | Path) -> StoredProbes:
    """Answer an artifact's probes anew with the checkpoint that it was made from.

    Raises:
        InputError: another checkpoint than the artifact's.
    """
    manifest = open_artifact(directory)
    plan = _plan_reference(manifest, checkpoint)
    probes = build_probes(TextTokenizer(directory, manifest), manifest)
    stored = store_answers(probes, compute_reference(plan, probes.encoded))
    queries = answer_queries(plan.static, probes.texts)
    return stored if queries is None else replace(stored, queries=tuple(queries))


def ask_checkpoint(
    manifest: Manifest, checkpoint: str | Path, family: str, encoded: Sequence[EncodedText]
) -> tuple[str, Sequence[NDArray[np.float32]]]:
    """Answer tokenized texts with the checkpoint that an artifact was made from.

    Returns:
        What answered, and the raw answers of one graph family.

    Raises:
        InputError: another checkpoint than the artifact's.
    """
    answers = compute_reference(_plan_reference(manifest, checkpoint), encoded)
    chosen = answers.sequence if family == "sequence" else answers.token
    assert chosen is not None
    return reference_name(), chosen


def _plan_reference(manifest: Manifest, checkpoint: str | Path) -> ExportPlan:
    opened = open_checkpoint(checkpoint, manifest.source.revision)
    if opened.content_hash != manifest.source.content_hash:
        raise InputError(
            f"{checkpoint} is not the checkpoint of this artifact: its files' hash is {opened.content_hash[:12]}, "
            f"the artifact was made from {manifest.source.content_hash[:12]} ({manifest.source.model})"
        )
    options = ExportOptions.from_record(manifest.options)
    plan = resolve_plan(opened, options=options, precisions=("fp32",), targets=("cpu",), trust_remote_code=False)
    return replace(plan, limits=manifest.limits)


def _check_padding(
    model: PoolingModel, family: str, texts: Sequence[EncodedText], reference: ReferenceAnswers
) -> Iterator[CheckRow]:
    expected = reference.sequence if family == "sequence" else reference.token
    assert expected is not None
    threshold, finish = choose_comparison(model, family)
    file = model.path / model.variant.graphs[family].file
    session = open_session(file, model.variant, read_cpu_info().num_cores, provider=model.provider)
    finished: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for side, indices in split_sides([text.num_tokens for text in texts]).items():
        answers = [expected[index] for index in indices]
        mixed, done = _run_mixed(model, family, [texts[index] for index in indices], side, session)
        found = compare_answers([finish(rows) for rows in answers], [finish(rows) for rows in mixed], threshold)
        yield build_row(found, threshold, variant=model.variant.name, family=family, check=f"padded {side}")
        finished += zip(_finish_answers(model, family, answers, mixed), done, strict=True)
    wanted, given = ([finish(rows) for rows in column] for column in zip(*finished, strict=True))
    found = compare_answers(wanted, given, threshold)
    yield build_row(found, threshold, variant=model.variant.name, family=family, check="finished output")


def split_sides(lengths: Sequence[int]) -> dict[str, list[int]]:
    """Return the indices of the texts that are padded on each side: of two that are next in length, one on either.

    Every text on both sides was a third of all tokens that the verification of fp32 and bf16 computed.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    return {"right": by_length[::2], "left": by_length[1::2]}


def _finish_answers(
    model: PoolingModel, family: str, expected: Sequence[NDArray[np.float32]], found: Answers
) -> Answers:
    """Return what the finished output should be: of the reference's raw answers, unless the graph keeps the largest.

    Of two numbers that nearly tie rounding may keep the other one, so then it is of the graph's own, compared already.
    """
    if model.variant.graphs[family].output is None:
        return list(expected)
    if model.manifest.pooler.max_active_dims is None:
        return [finish_by_default(answer, model.manifest) for answer in expected]
    return list(finish_by_default(np.stack(found), model.manifest))


def _run_mixed(
    model: PoolingModel, family: str, texts: Sequence[EncodedText], side: str, session: Session
) -> tuple[Answers, Answers]:
    """Run batches of very different lengths, padded on ``side``; return the raw and the finished answers of one run."""
    graph = model.variant.graphs[family]
    runner = build_runner(model.variant, msgspec.structs.replace(model.manifest.tokenization, padding_side=side))
    outputs = list(dict.fromkeys((graph.raw_output, graph.output or graph.raw_output)))
    answers: dict[int, Answers] = {}
    for indices in mix_lengths([text.num_tokens for text in texts]):
        batch = [texts[index] for index in indices]
        with mapped_errors(f"running {graph.file}"):
            results = session.run(outputs, runner.feed(batch, graph))
        rows = [_take(runner, result, batch, family) for result in results]
        answers |= {index: list(own) for index, own in zip(indices, zip(*rows, strict=True), strict=True)}
    in_order = [answers[index] for index in range(len(texts))]
    return [found[0] for found in in_order], [found[-1] for found in in_order]


def mix_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Return the indices of each batch: of the longer half, texts of like lengths; of the shorter half, of all lengths.

    Most texts then follow much padding, and few batches are as long as the longest text.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    num_batches = -(-len(lengths) // MIXED_BATCH)
    num_long = len(lengths) // 2
    per_batch = -(-num_long // num_batches)
    long, short = by_length[:num_long], by_length[num_long:]
    return [
        [*long[batch * per_batch : (batch + 1) * per_batch], *short[batch::num_batches]] for batch in range(num_batches)
    ]


def _take(runner: Runner, answer: NDArray[np.float32], texts: Sequence[EncodedText], family: str) -> Answers:
    return list(answer) if family == "sequence" else runner.split_tokens(answer, texts)
