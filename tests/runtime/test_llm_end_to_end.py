"""The interface over a real model: what users of vLLM have written runs with the package's name replaced."""

import json
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest

from poolgraph import LLM, PoolingModel, PoolingParams
from poolgraph.errors import InputError

pytestmark = pytest.mark.slow

SCRIPTS = {
    "runner": (
        """
        from vllm import LLM
        model = LLM(model=MODEL, runner="pooling", gpu_memory_utilization=0.5, enforce_eager=True)
        vector = model.embed("a green field")[0].outputs.embedding
        print(type(vector).__name__, len(vector))
        """,
        "list 384",
    ),
    "older task": (
        """
        from vllm import LLM
        [answer] = LLM(model=MODEL, task="embed").embed("a green field")
        print(answer.outputs)
        """,
        "EmbeddingOutput(hidden_size=384)",
    ),
    "matryoshka": (
        """
        from vllm import LLM, PoolingParams
        model = LLM(model=MODEL, runner="pooling", trust_remote_code=True)
        print(model.embed(["a green field"], pooling_params=PoolingParams(dimensions=32))[0].outputs)
        """,
        "EmbeddingOutput(hidden_size=32)",
    ),
    "encode without a task": (
        """
        from vllm import LLM
        [answer] = LLM(model=MODEL, task="embed").encode("a green field")
        print(answer.outputs.data.shape)
        """,
        "(384,)",
    ),
    "encode tokens": (
        """
        from vllm import LLM
        [answer] = LLM(model=MODEL, runner="pooling").encode("a green field", pooling_task="token_embed")
        print(answer.outputs.data.shape)
        """,
        "(5, 384)",
    ),
    "score": (
        """
        from vllm import LLM
        [answer] = LLM(model=MODEL, task="score").score("Where do cows graze?", "Cows graze in a green field.")
        print(answer.outputs.score > 0.5)
        """,
        "True",
    ),
}
"""What users have in their code, in the spellings of several releases of vLLM, and what it prints."""


@pytest.fixture(scope="module")
def matryoshka_artifact(minilm_artifact, tmp_path_factory) -> Path:
    """The artifact with the permission to shorten embeddings."""
    path = tmp_path_factory.mktemp("matryoshka") / "minilm"
    shutil.copytree(minilm_artifact, path)
    manifest = json.loads((path / "poolgraph.json").read_text())
    manifest["pooler"]["is_matryoshka"] = True
    (path / "poolgraph.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize("name", SCRIPTS)
def test_code_written_for_vllm_runs(name, matryoshka_artifact, capsys):
    code, printed = SCRIPTS[name]
    code = textwrap.dedent(code).replace("from vllm", "from poolgraph")
    exec(compile(code, name, "exec"), {"MODEL": str(matryoshka_artifact)})
    assert capsys.readouterr().out.strip() == printed


@pytest.fixture(scope="module")
def llm(minilm_artifact) -> LLM:
    return LLM(str(minilm_artifact), runner="pooling")


def test_nearest_text_has_the_highest_score(llm):
    documents = ["Cats are small animals that purr.", "The stock market fell today.", "Rust is a programming language."]
    scores = [output.outputs.score for output in llm.score("a pet that purrs", documents)]
    assert int(np.argmax(scores)) == 0
    assert scores[0] > 0.4 > max(scores[1:])


def test_same_vectors_as_the_fast_surface_and_as_token_ids(llm, minilm_artifact):
    texts = ["a", "The quick brown fox jumps over the lazy dog.", "word " * 100]
    outputs = llm.embed(texts)
    with PoolingModel.load(minilm_artifact) as model:
        expected = model.embed(texts)
    assert np.stack([output.outputs.data for output in outputs]).tobytes() == expected.tobytes()
    again = llm.embed([output.prompt_token_ids for output in outputs])
    assert [output.outputs for output in again] == [output.outputs for output in outputs]


def test_token_rows_average_to_the_embedding(llm):
    (rows,) = llm.encode(
        "The quick brown fox", pooling_task="token_embed", pooling_params=PoolingParams(normalize=False)
    )
    (whole,) = llm.embed("The quick brown fox")
    mean = rows.outputs.data.mean(axis=0)
    np.testing.assert_allclose(mean / np.linalg.norm(mean), whole.outputs.data, atol=1e-5)


def test_errors_name_the_real_limits(llm, minilm_artifact):
    with pytest.raises(InputError, match=r"maximum context length is 256 tokens.* contains 602 input tokens"):
        llm.embed("word " * 600)
    with pytest.raises(InputError, match=r"does not support Matryoshka embeddings; dimensions must be unset"):
        llm.embed("word", pooling_params=PoolingParams(dimensions=32))
    assert llm.embed("word " * 600, tokenization_kwargs={"truncate_prompt_tokens": -1})[0].num_truncated_tokens == 346
