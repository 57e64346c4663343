"""The texts on which precisions are compared."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from poolgraph.errors import InputError
from poolgraph.runtime.fidelity_corpus import MAX_TEXTS, SHIPPED_FILE, read_corpus, read_passages, shipped_corpus
from poolgraph.runtime.file_sources import FileSource

ROOT = Path(__file__).parents[2]


def test_the_passages_are_many_of_many_subjects_and_languages():
    passages = read_passages()
    languages = Counter(passage.language for passage in passages)
    assert len(passages) >= 200
    assert set(Counter(passage.topic for passage in passages).values()) == {10}
    assert languages["en"] > 180
    assert len(languages) > 15
    texts = [text for passage in passages for text in (passage.text, passage.query) if text is not None]
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() and "\n" not in text for text in texts)


def test_the_passages_are_none_by_which_scales_were_chosen():
    with (ROOT / "export" / "calibration_texts.jsonl").open(encoding="utf-8") as lines:
        calibration = {json.loads(line)["text"] for line in lines}
    corpus = shipped_corpus()
    assert len(calibration) > 250
    assert not calibration & {*corpus.queries, *corpus.documents}


def test_the_shipped_corpus_is_judged():
    passages, corpus = read_passages(), shipped_corpus()
    assert corpus.is_judged
    assert len(corpus.queries) == len(corpus.anchors) >= 40
    asked = {passage.query: passage.text for passage in passages}
    assert [asked[query] for query in corpus.queries] == [corpus.documents[anchor] for anchor in corpus.anchors]
    assert len(set(corpus.anchors)) == len(corpus.anchors)


def test_a_part_of_it_has_whole_topics():
    part, whole = shipped_corpus(3), shipped_corpus()
    assert len(part.documents) == 30
    assert part.documents == whole.documents[:30]
    assert part.queries == whole.queries[: len(part.queries)]
    assert max(part.anchors) < 30
    assert len(part.queries) > 10


def test_the_file_is_installed_with_the_package():
    assert (ROOT / "runtime" / SHIPPED_FILE).is_file()
    assert '"poolgraph.runtime" = ["*.jinja", "*.jsonl"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def make_file(folder: Path, texts: list[str]) -> FileSource:
    file = folder / "own.txt"
    file.write_text("".join(f"{text}\n" for text in texts))
    return FileSource(path=str(file))


def test_every_eighth_text_of_a_file_is_a_query(tmp_path):
    corpus = read_corpus(make_file(tmp_path, ["", *(f"text {number}" for number in range(20)), "  "]))
    assert corpus.queries == ("text 0", "text 8", "text 16")
    assert corpus.documents == tuple(f"text {number}" for number in range(20) if number % 8)
    assert [corpus.documents[anchor] for anchor in corpus.anchors] == ["text 1", "text 9", "text 17"]
    assert not corpus.is_judged
    assert corpus.name == f"texts of {tmp_path / 'own.txt'}"


def test_a_query_at_the_end_of_a_file_has_a_document_near_it(tmp_path):
    corpus = read_corpus(make_file(tmp_path, [f"text {number}" for number in range(25)]))
    assert corpus.queries[-1] == "text 24"
    assert corpus.documents[corpus.anchors[-1]] == "text 23"


def test_a_long_file_is_read_in_part(tmp_path):
    corpus = read_corpus(make_file(tmp_path, [f"text {number}" for number in range(MAX_TEXTS + 50)]))
    assert len(corpus.queries) + len(corpus.documents) == MAX_TEXTS


@pytest.mark.parametrize("texts", [["one"], ["", " "], [f"text {number}" for number in range(19)]])
def test_too_few_texts(tmp_path, texts):
    with pytest.raises(InputError, match=rf"holds {sum(map(bool, map(str.strip, texts)))} texts .* at least 20"):
        read_corpus(make_file(tmp_path, texts))


def test_an_empty_file(tmp_path):
    with pytest.raises(InputError, match=r"own\.txt holds no text"):
        read_corpus(make_file(tmp_path, []))
