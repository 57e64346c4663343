"""docs/tasks.md and the examples run, with tiny models in the places of real ones."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest

Find: TypeAlias = Callable[[str], Path]

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/tasks.md").read_text(), re.MULTILINE | re.DOTALL)
CORPUS = (ROOT / "examples/corpus.txt").read_text().splitlines()


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.findall(r'"([a-z-]+)"\)', block)[0])
def test_blocks_of_the_tasks_page_print_what_they_say(
    block: str, task_artifact: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert said
    for name in re.findall(r'(?:load|LLM)\("([a-z-]+)"\)', block):
        monkeypatch.chdir(task_artifact(name).parent)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {})
    assert printed.getvalue().splitlines() == said


def test_every_task_has_a_block() -> None:
    methods = set(re.findall(r"(?:model|\))\.(\w+)\(", "\n".join(BLOCKS)))
    assert methods >= {"embed", "token_embed", "classify", "score", "rerank", "reward", "token_classify"}


@pytest.mark.slow
def test_two_stage_retrieval(task_artifact: Find, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("two_stage_retrieval")
    example.main(["--embedder", str(task_artifact("embedder")), "--reranker", str(task_artifact("reranker")), "pan"])
    query, *rows = capsys.readouterr().out.splitlines()
    assert (query, len(rows)) == ("pan", 3)
    assert all(row.split(maxsplit=1)[1] in CORPUS for row in rows)
    scores = [float(row.split()[0]) for row in rows]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_colbert_reranking(task_artifact: Find, capsys: pytest.CaptureFixture[str]) -> None:
    load_example("colbert_reranking").main([str(task_artifact("colbert")), "pan"])
    summary, query, *rows = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{len(CORPUS)} documents, \d+ vectors of 16 values", summary)
    assert (query, len(rows)) == ("pan", 3)


@pytest.mark.slow
def test_entity_extraction(task_artifact: Find, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Ada Lovelace was born in London."
    load_example("entity_extraction").main([str(task_artifact("ner")), text])
    printed, *rows = capsys.readouterr().out.splitlines()
    assert printed == text
    assert rows
    assert all(re.fullmatch(r"  (PER|LOC) \[(.+)\] \d\.\d{3}", row)[2] in text for row in rows)


@pytest.mark.parametrize("name", ["colbert_reranking", "entity_extraction", "reward_scoring"])
def test_an_example_without_a_model_says_how_it_is_called(name: str) -> None:
    with pytest.raises(SystemExit, match=f"python examples/{name}.py"):
        load_example(name).main([])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["reward", "process-reward"])
def test_reward_scoring(model: str, task_artifact: Find, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("reward_scoring")
    example.main([str(task_artifact(model))])
    rows = capsys.readouterr().out.splitlines()
    assert sorted(row.split(maxsplit=1)[1] for row in rows) == sorted(example.ANSWERS)
    grades = [float(row.split()[0]) for row in rows]
    assert grades == sorted(grades, reverse=True)
