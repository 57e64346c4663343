"""torch as an engine of ``poolgraph bench``: each way to run a checkpoint answers what the artifact answers."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from poolgraph import PoolingModel
from poolgraph.errors import InputError
from poolgraph.export.bench_checkpoint import find_checkpoint
from poolgraph.export.bench_torch import load
from poolgraph.graphs.artifact import open_artifact
from poolgraph.runtime.bench_engines import EngineRequest
from poolgraph.runtime.bench_tasks import BENCH_TASKS, choose_task
from poolgraph.runtime.bench_workloads import Workload

TEXTS = ("A lighthouse keeper counts ships.", "Two", "Where can I renew a library card on a Sunday?") * 4
ONE_EACH = tuple(range(len(TEXTS)))


def find(artifact):
    """An artifact of ``task_artifact`` and the folder of its checkpoint."""
    return artifact, artifact.with_name(f"{artifact.name}-checkpoint")


def request_for(artifact, checkpoint):
    task = choose_task(open_artifact(artifact))
    return EngineRequest(directory=artifact, task=task, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("name", "label", "sizes"),
    [
        ("embedder", "sentence-transformers fp32", (8, 32)),
        ("classifier", "transformers BertForSequenceClassification fp32", (8, 32)),
        ("reranker", "sentence-transformers CrossEncoder fp32", (8, 32)),
        ("ner", "transformers BertForTokenClassification fp32", (8, 32)),
        ("reward", "transformers GPT2ForSequenceClassification fp32", (1,)),
        ("process-reward", "transformers fp32, one text at a time", (1,)),
        ("colbert", "transformers fp32, one text at a time", (1,)),
    ],
)
def test_each_way_answers_what_the_artifact_answers(task_artifact, name, label, sizes):
    artifact, checkpoint = find(task_artifact(name))
    request = request_for(artifact, checkpoint)
    task = BENCH_TASKS[request.task]
    workload = Workload(name="mixed", texts=TEXTS, lengths=ONE_EACH, queries=TEXTS[::-1] if task.takes_pairs else ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = load(request, dtype="float32")
        answers = engine.ask(workload, sizes[0])
    assert (engine.label, engine.batch_sizes) == (label, sizes)
    with PoolingModel.load(artifact) as model:
        expected = task.ask(model, workload)
    assert len(answers) == len(expected) == len(TEXTS)
    for found, row in zip(answers, expected, strict=True):
        np.testing.assert_allclose(found, row, atol=1e-4)


def test_half_precision_is_close_and_is_refused_where_nothing_runs_it(task_artifact):
    artifact, checkpoint = find(task_artifact("embedder"))
    workload = Workload(name="mixed", texts=TEXTS, lengths=ONE_EACH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = load(request_for(artifact, checkpoint), dtype="bfloat16")
        found = np.asarray(engine.ask(workload, 8), dtype=np.float64)
    with PoolingModel.load(artifact) as model:
        expected = model.embed(TEXTS)
    assert engine.label == "sentence-transformers bf16"
    found /= np.linalg.norm(found, axis=1, keepdims=True)  # of 16 bits a number, it is 1 but to a thousandth
    assert 0.99 < (found * expected).sum(axis=1).min() < 0.9999999
    with pytest.raises(InputError, match=r"no library runs .* as it is published in bf16"):
        load(request_for(*find(task_artifact("process-reward"))), dtype="bfloat16")


def test_the_checkpoint_is_found_where_it_is_said_to_be(task_artifact, monkeypatch):
    artifact, checkpoint = find(task_artifact("embedder"))
    manifest = open_artifact(artifact)
    assert find_checkpoint(manifest, str(checkpoint)) == checkpoint
    monkeypatch.chdir(checkpoint.parent)
    assert find_checkpoint(manifest, None).resolve() == checkpoint.resolve()
    with pytest.raises(InputError, match="is not the checkpoint of this artifact: its files' hash is"):
        find_checkpoint(manifest, str(find(task_artifact("classifier"))[1]))
    with pytest.raises(InputError, match="so it is not a checkpoint"):
        find_checkpoint(manifest, str(checkpoint.parent))


def test_a_checkpoint_that_is_not_at_hand(task_artifact, monkeypatch, tmp_path):
    manifest = open_artifact(task_artifact("embedder"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="neither a folder here nor in the hub's cache; give the folder"):
        find_checkpoint(manifest, None)
    hub = msgspec.structs.replace(manifest.source, model="acme/none", revision="main")
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        raise OSError

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(InputError, match="'acme/none' is neither"):
        find_checkpoint(SimpleNamespace(source=hub), None)
    assert asked == [("acme/none", {"revision": "main", "local_files_only": True})]
