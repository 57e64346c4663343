import sys
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import tiny_artifact

from poolgraph.errors import ArtifactError, InputError, SessionError, VerificationError
from poolgraph.graphs.artifact import open_artifact, record_files, save_manifest
from poolgraph.graphs.manifest import Quantization
from poolgraph.graphs.probe_files import save_probes
from poolgraph.runtime.compare import THRESHOLDS, compare_answers
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.verify import build_row, choose_comparison, choose_threshold, has_same_bits, verify_artifact

TEXTS = ["", "w1", "w2 w3", "w4 w5", " ".join(f"w{number}" for number in range(40))]


def unverified(variant):
    return msgspec.structs.replace(variant, verified=False)


@pytest.fixture
def tiny():
    """The module that builds the tiny artifact."""
    return tiny_artifact


@pytest.fixture
def add_probes(tiny):
    def add(directory, error=0.0):
        with PoolingModel.load(directory, allow_unverified=True) as model:
            encoded = model.tokenizer.encode(TEXTS, prompt="w9 ", truncate_to=-1)
        token = [tiny.reference_tokens(text.input_ids).astype(np.float32) for text in encoded]
        sequence = [rows.mean(0) for rows in token]
        sequence[2] = sequence[2] + np.float32(error)
        save_probes(directory, TEXTS, "w9 ", sequence, token)
        manifest = open_artifact(directory)
        save_manifest(directory, msgspec.structs.replace(manifest, files=record_files(directory)))
        return directory

    return add


def test_a_good_artifact_passes(artifact, add_probes):
    seen = []
    report = verify_artifact(add_probes(artifact), on_row=seen.append)
    assert tuple(seen) == report.rows
    assert [(row.variant, row.family, row.check) for row in report.rows] == [
        ("portable_fp32", "sequence", "alone"),
        ("portable_fp32", "sequence", "in batches"),
        ("portable_fp32", "token", "alone"),
        ("portable_fp32", "token", "in batches"),
        ("cpu_fp32", "sequence", "alone"),
        ("cpu_fp32", "sequence", "in batches"),
        ("cpu_fp32", "sequence", "same bits in batches"),
        ("cpu_fp32", "token", "alone"),
        ("cpu_fp32", "token", "in batches"),
        ("cpu_fp32", "token", "same bits in batches"),
    ]
    assert all(row.passed and row.num_texts == len(TEXTS) for row in report.rows)
    assert {"poolgraph", "numpy"} <= set(report.versions)
    assert {"onnxruntime", "onnxruntime-gpu"} & set(report.versions)
    assert report.cpu


@pytest.mark.parametrize(
    ("layout", "provider", "expected"),
    [
        ("uniform", "CPUExecutionProvider", True),
        ("packed", "CPUExecutionProvider", True),
        ("padded", "CPUExecutionProvider", False),
        ("packed", "CUDAExecutionProvider", False),
    ],
)
def test_which_variants_promise_the_same_bits(layout, provider, expected):
    model = SimpleNamespace(provider=provider, variant=SimpleNamespace(layout=layout))
    assert has_same_bits(model) is expected


def test_a_wrong_answer_fails_after_every_row(artifact, add_probes):
    seen = []
    with pytest.raises(VerificationError, match=r"4 of 10 checks .*portable_fp32 sequence alone: cosine") as caught:
        verify_artifact(add_probes(artifact, error=0.05), on_row=seen.append)
    assert len(seen) == 10
    assert "needs 0.99999" in str(caught.value)
    assert [row.passed for row in seen].count(False) == 4


def test_passing_marks_the_variants_as_verified(make_artifact, add_probes):
    directory = add_probes(make_artifact(edit_variant=unverified))
    with pytest.raises(ArtifactError, match="never verified"):
        PoolingModel.load(directory)
    report = verify_artifact(directory)
    manifest = open_artifact(directory, check_hashes="all")
    assert all(variant.verified for variant in manifest.variants)
    assert manifest.report.rows == report.rows
    PoolingModel.load(directory).close()


def test_failing_marks_nothing(make_artifact, add_probes):
    directory = add_probes(make_artifact(edit_variant=unverified), error=0.05)
    before = (directory / "poolgraph.json").read_bytes()
    with pytest.raises(VerificationError):
        verify_artifact(directory)
    assert (directory / "poolgraph.json").read_bytes() == before


def test_a_variant_that_fails_keeps_no_other_from_being_marked(make_artifact, add_probes, monkeypatch):
    def run_sequence(model, *args, **options):
        if model.variant.name == "cpu_fp32":
            raise SessionError("a kernel failed")
        return real(model, *args, **options)

    real = PoolingModel.run_sequence
    directory = add_probes(make_artifact(edit_variant=unverified))
    monkeypatch.setattr(PoolingModel, "run_sequence", run_sequence)
    with pytest.raises(VerificationError, match=r"^cpu_fp32 does not run: a kernel failed$"):
        verify_artifact(directory)
    assert {it.name: it.verified for it in open_artifact(directory).variants} == {
        "portable_fp32": True,
        "cpu_fp32": False,
    }


def test_a_verified_artifact_is_left_as_it_is(artifact, add_probes):
    before = (add_probes(artifact) / "poolgraph.json").read_bytes()
    verify_artifact(artifact)
    assert (artifact / "poolgraph.json").read_bytes() == before


def test_every_hash_is_checked(artifact, add_probes):
    tokenizer = add_probes(artifact) / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b"w59", b"w58", 1))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json does not have the SHA-256"):
        verify_artifact(artifact)


def test_no_probes(artifact):
    with pytest.raises(ArtifactError, match="probes"):
        verify_artifact(artifact)


def test_nothing_that_runs_here(make_artifact, add_probes):
    directory = add_probes(make_artifact())
    manifest = open_artifact(directory)
    variants = tuple(msgspec.structs.replace(v, providers=("CUDAExecutionProvider",)) for v in manifest.variants)
    save_manifest(directory, msgspec.structs.replace(manifest, variants=variants))
    with pytest.raises(ArtifactError, match=r"none of the variants \['portable_fp32', 'cpu_fp32'\] runs"):
        verify_artifact(directory)


def test_thresholds():
    assert choose_threshold("fp32", None).max_difference == 1e-4
    assert choose_threshold("fp32", "0.97").min_cosine == 0.97
    with pytest.raises(ArtifactError, match="no threshold for the precision 'int4'"):
        choose_threshold("int4", None)


@pytest.mark.parametrize(
    ("routers", "family", "tasks", "options", "may_miss"),
    [
        (("router",), "token", ("embed", "token_embed"), {}, 0.05),
        (("router",), "sequence", ("embed", "token_embed"), {}, 0.0),
        (("router",), "token", ("token_classify",), {}, 0.0),
        (("router",), "token", ("token_embed",), {"min_cosine": "0.9"}, 0.0),
        ((), "token", ("embed", "token_embed"), {}, 0.0),
    ],
)
def test_token_vectors_of_embedders_with_experts_alone_may_miss_the_minimum(routers, family, tasks, options, may_miss):
    variant = SimpleNamespace(precision="int8", quantization=Quantization(token=1, routers=routers))
    manifest = SimpleNamespace(options=options, pooler=SimpleNamespace(activation=None), tasks=tasks)
    threshold, _ = choose_comparison(SimpleNamespace(variant=variant, manifest=manifest), family)
    assert threshold.may_miss == may_miss
    assert threshold.least_cosine == (0.5 if may_miss else -1.0)


def test_comparing_with_a_checkpoint_needs_the_export_extra(artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "poolgraph.export.verify", None)
    with pytest.raises(InputError, match=r'pip install "poolgraph\[export\]"'):
        verify_artifact(artifact, checkpoint="somewhere")


def test_a_mean_that_is_too_low_is_said_in_the_row():
    close, off = np.array([1.0, 0.0]), np.array([np.cos(0.15), np.sin(0.15)])  # a cosine of 0.989
    found = compare_answers([close, close], [off, off], THRESHOLDS["int8"])
    row = build_row(found, THRESHOLDS["int8"], variant="v", family="sequence", check="alone")
    assert not row.passed
    assert row.min_cosine > row.required_cosine
    assert row.check == "alone, mean cosine 0.9887711 (needs 0.995)"
    found = compare_answers([close, close, close], [close, close, off], THRESHOLDS["int8"])
    assert build_row(found, THRESHOLDS["int8"], variant="v", family="sequence", check="alone").check == "alone"
