"""Each task over files: what the model is asked, chunk by chunk, and what is written."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_embedder import LABELS, FakeModel, make_rows, make_score, make_vector

from poolgraph.errors import InputError, TaskNotSupported, TruncationWarning
from poolgraph.graphs.manifest import Scoring
from poolgraph.runtime.file_job import answer_file
from poolgraph.runtime.file_readers import Field
from poolgraph.runtime.file_sources import FileSource
from poolgraph.runtime.file_tasks import ENCODE_TASKS, ENTITIES, FILE_TASKS, choose_encode_task, fit_task

TEXTS = [*(f"text {number}" for number in range(9)), "Ann in Rome"]
PAIRS = (Field(default="query"), Field(default="document"))
RANKINGS = (Field(default="query"), Field(default="documents", is_list=True))
CROSS_ENCODER = Scoring(kind="cross_encoder")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("\n".join(TEXTS))
    return FileSource(path=str(path))


def save_rows(folder, fields, rows):
    path = folder / "in.jsonl"
    names = [field.key for field in fields]
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return FileSource(path=str(path), fields=fields)


def run(model, task, source, output, **options):
    answer_file(model, task, source, output, chunk_size=4, options=options)
    if output.suffix == ".npy":
        return np.load(output)
    if output.suffix == ".parquet":
        return pq.read_table(output).to_pylist()
    return [json.loads(line) for line in output.read_text().splitlines()]


def as_floats(values):
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_classify(tmp_path, texts, suffix):
    model = FakeModel()
    rows = run(model, FILE_TASKS["classify"], texts, tmp_path / f"out{suffix}", use_activation=False, truncate=True)
    assert [row["index"] for row in rows] == list(range(10))
    assert list(rows[0]) == ["index", "label", "score", "probs"]
    for row, text in zip(rows, TEXTS, strict=True):
        probs = np.abs(make_vector(text)[: len(LABELS)])
        np.testing.assert_array_equal(as_floats(row["probs"]), probs)
        assert row["label"] == LABELS[probs.argmax()]
        assert as_floats(row["score"]) == probs.max()
    assert [chunk for chunk, _ in model.calls] == [TEXTS[:4], TEXTS[4:8], TEXTS[8:]]
    assert all(options == {"use_activation": False, "truncate": True} for _, options in model.calls)


def test_classify_without_names_of_labels(tmp_path, texts):
    model = FakeModel(labels=())
    assert run(model, FILE_TASKS["classify"], texts, tmp_path / "out.jsonl")[0]["label"] is None
    probs = run(model, FILE_TASKS["classify"], texts, tmp_path / "out.npy")
    np.testing.assert_array_equal(probs, np.abs([make_vector(text)[: len(LABELS)] for text in TEXTS]))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".npy"])
def test_score(tmp_path, suffix):
    pairs = [("a b", f"b {number}") for number in range(6)]
    source, model = save_rows(tmp_path, PAIRS, pairs), FakeModel(scoring=CROSS_ENCODER)
    rows = run(model, FILE_TASKS["score"], source, tmp_path / f"out{suffix}", instruction="rank", max_tokens_per_doc=3)
    scores = rows if suffix == ".npy" else [row["score"] for row in rows]
    np.testing.assert_array_equal(as_floats(scores), as_floats([make_score(*pair) for pair in pairs]))
    assert [chunk for chunk, _ in model.calls] == [pairs[:4], pairs[4:]]
    assert all(options == {"instruction": "rank", "max_tokens_per_doc": 3} for _, options in model.calls)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rerank(tmp_path, suffix):
    rankings = [("a b", ["x", "a b", "b"]), *((f"q{number}", ["d", "e"]) for number in range(5))]
    source, model = save_rows(tmp_path, RANKINGS, rankings), FakeModel(scoring=CROSS_ENCODER)
    rows = run(model, FILE_TASKS["rerank"], source, tmp_path / f"out{suffix}", top_n=2)
    assert [row["query"] for row in rows] == [query for query, _ in rankings]
    assert rows[0]["results"] == [
        {"index": 1, "score": make_score("a b", "a b"), "text": "a b"},
        {"index": 2, "score": make_score("a b", "b"), "text": "b"},
    ]
    bare = run(model, FILE_TASKS["rerank"], source, tmp_path / f"bare{suffix}", omit_texts=True)
    assert list(bare[0]) == ["index", "results"]
    assert [list(result) for result in bare[0]["results"]] == [["index", "score"]] * 3


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".npy"])
@pytest.mark.parametrize("command", ["reward", "encode"])
def test_rewards_of_whole_texts(tmp_path, texts, suffix, command):
    task = FILE_TASKS["reward"] if command == "reward" else ENCODE_TASKS["reward"]
    model = FakeModel()
    rows = run(model, fit_task(task, model), texts, tmp_path / f"out{suffix}")
    column = "reward" if command == "reward" else "data"
    values = rows if suffix == ".npy" else [row[column] for row in rows]
    np.testing.assert_array_equal(as_floats(values), np.abs([make_vector(text)[0] for text in TEXTS]))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rewards_of_steps(tmp_path, texts, suffix):
    model = FakeModel(tasks=("token_classify",))
    task = fit_task(ENCODE_TASKS["reward"], model)
    rows = run(model, task, texts, tmp_path / f"out{suffix}", step_tag_id=5, returned_token_ids=[7, 8])
    for row, text in zip(rows, TEXTS, strict=True):
        np.testing.assert_array_equal(as_floats(row["data"]), make_rows(text)[:, : len(LABELS)])
    assert model.calls[0][1] == {"step_tag_id": 5, "returned_token_ids": [7, 8]}
    with pytest.raises(InputError, match="an npy file is one array of numbers"):
        run(model, task, texts, tmp_path / "out.npy")


@pytest.mark.parametrize(("task", "size"), [("token_embed", 8), ("token_classify", len(LABELS))])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_tokens(tmp_path, texts, task, size, suffix):
    rows = run(FakeModel(), ENCODE_TASKS[task], texts, tmp_path / f"out{suffix}")
    for row, text in zip(rows, TEXTS, strict=True):
        np.testing.assert_array_equal(as_floats(row["data"]), make_rows(text)[:, :size])


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_encode_of_whole_texts(tmp_path, texts, task):
    rows = run(FakeModel(), ENCODE_TASKS[task], texts, tmp_path / "out.jsonl")
    assert list(rows[0]) == ["index", "data"]
    np.testing.assert_array_equal(
        as_floats([row["data"] for row in rows]), run(FakeModel(), ENCODE_TASKS[task], texts, tmp_path / "out.npy")
    )


@pytest.mark.parametrize("task", ["embed", "token_embed"])
def test_no_activation_of_embeddings_is_no_normalization(tmp_path, texts, task):
    model = FakeModel()
    run(model, ENCODE_TASKS[task], texts, tmp_path / "out.jsonl", use_activation=False, prompt="p: ")
    assert model.calls[0][1] == {"normalize": False, "prompt": "p: "}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("strategy", "label"), [("simple", "entity_group"), ("none", "entity")])
def test_entities(tmp_path, texts, suffix, strategy, label):
    rows = run(FakeModel(), ENTITIES, texts, tmp_path / f"out{suffix}", aggregation_strategy=strategy)
    assert [row["entities"] for row in rows[:-1]] == [[]] * 9
    place = {"word": "ann", "start": 0, "end": 3}
    index = {"index": 3} if strategy == "none" else {}
    assert rows[-1]["entities"] == [{label: "PER", "score": 0.75, **index, **place}]


def test_cut_inputs_are_counted_over_all_chunks(tmp_path):
    pairs = [("q", "cut" if number % 3 == 0 else "d") for number in range(10)]
    source, model = save_rows(tmp_path, PAIRS, pairs), FakeModel(scoring=CROSS_ENCODER)
    with pytest.warns(TruncationWarning, match=r"^4 inputs were longer than the model takes and were cut$") as caught:
        run(model, FILE_TASKS["score"], source, tmp_path / "out.jsonl", truncate=True)
    assert len(caught) == 1


def test_cut_texts_of_token_tasks_are_counted_over_all_chunks(tmp_path, texts):
    path = tmp_path / "cut.txt"
    path.write_text("cut\n" * 6)
    with pytest.warns(TruncationWarning, match=r"^6 of 6 texts were longer than 256 tokens and were cut$") as caught:
        run(FakeModel(), ENCODE_TASKS["token_embed"], FileSource(path=str(path)), tmp_path / "out.jsonl", truncate=True)
    assert len(caught) == 1


def test_other_warnings_pass(tmp_path):
    class Loud(FakeModel):
        def score(self, queries, documents, **options):
            warnings.warn("a document without vectors", UserWarning, stacklevel=2)
            return super().score(queries, documents, **options)

    source = save_rows(tmp_path, PAIRS, [("q", "d")])
    with pytest.warns(UserWarning, match="a document without vectors"):
        run(Loud(scoring=CROSS_ENCODER), FILE_TASKS["score"], source, tmp_path / "out.jsonl")


def test_a_bad_pair_is_found_in_the_input(tmp_path):
    source = save_rows(tmp_path, PAIRS, [("q", "d")] * 5 + [("q", "too long")])
    with pytest.raises(InputError, match=r"^counted from item 4 of the input: pair 1 has 999 tokens \(parameter=") as e:
        run(FakeModel(scoring=CROSS_ENCODER), FILE_TASKS["score"], source, tmp_path / "out.jsonl")
    assert (e.value.parameter, e.value.value) == ("input_tokens", 999)


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (FILE_TASKS["embed"], {"tasks": ("classify",)}),
        (FILE_TASKS["classify"], {"tasks": ("embed",)}),
        (FILE_TASKS["reward"], {"tasks": ("embed",)}),
        (FILE_TASKS["score"], {"scoring": None}),
        (FILE_TASKS["rerank"], {"scoring": None}),
        (ENTITIES, {"tasks": ("classify",)}),
        (ENCODE_TASKS["token_embed"], {"tasks": ("embed",)}),
        (ENCODE_TASKS["token_classify"], {"tasks": ("embed",)}),
    ],
)
def test_a_task_that_the_model_lacks(tmp_path, texts, task, changes):
    class Model(FakeModel):
        def check_embed_options(self, **options):
            self.check_task("embed")

    model = Model(**changes)
    with pytest.raises(TaskNotSupported):
        run(model, task, texts, tmp_path / "out.jsonl")
    assert model.calls == []


def test_an_option_that_the_task_lacks():
    options = {"dimensions": 4, "truncate": True, "prompt": None}
    with pytest.raises(InputError, match=r"classify takes no such option; it takes use_activation, truncate \(par"):
        FILE_TASKS["classify"].select(options)
    assert FILE_TASKS["classify"].select(options | {"dimensions": None}) == {"truncate": True}
    with pytest.raises(InputError, match="entities takes no such option"):
        ENTITIES.select({"use_activation": False})


def test_the_task_of_encode():
    model = FakeModel()
    assert choose_encode_task("token_embed") is ENCODE_TASKS["token_embed"]
    assert choose_encode_task(None, model=model) is ENCODE_TASKS["classify"]
    assert choose_encode_task(None, entities=True) is ENTITIES
    assert choose_encode_task("token_classify", entities=True, model=model) is ENTITIES
    with pytest.raises(InputError, match=r"entities are found by token_classify \(parameter=task, value=embed\)"):
        choose_encode_task("embed", entities=True)
    with pytest.raises(InputError, match=r"'acme/tiny' has no default task; name one of \['classify', "):
        choose_encode_task(None, model=FakeModel(default_task=None))


def test_another_task_is_not_continued(tmp_path, texts):
    output = tmp_path / "out.jsonl"
    with pytest.raises(RuntimeError, match="power cut"):
        run(FakeModel(fail_at=1), ENCODE_TASKS["embed"], texts, output)
    with pytest.raises(InputError, match=r"task was 'encode embed' and is 'embed'"):
        answer_file(FakeModel(), FILE_TASKS["embed"], texts, output, chunk_size=4, resume=True)
    whole = run(FakeModel(), ENCODE_TASKS["embed"], texts, tmp_path / "whole.jsonl")
    answer_file(FakeModel(), ENCODE_TASKS["embed"], texts, output, chunk_size=4, resume=True)
    assert [json.loads(line) for line in output.read_text().splitlines()] == whole
