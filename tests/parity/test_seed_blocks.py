"""Code blocks of vLLM's pages about pooling models run as they are written, but for the package's name.

The pages name published checkpoints; tiny ones of the same classes lie in folders of these names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_heads import save_model, save_reward_model

from poolgraph import LLM

pytestmark = pytest.mark.slow

CHECKPOINTS: Mapping[str, Callable[[Path], object]] = {
    "intfloat/e5-small": lambda folder: save_model(folder, "BertModel", "BertModel"),
    "jinaai/jina-embeddings-v3": lambda folder: save_model(
        folder, "XLMRobertaModel", "XLMRobertaModel", hidden_size=64, matryoshka_dimensions=[32, 64]
    ),
    "jason9693/Qwen2.5-1.5B-apeach": lambda folder: save_model(
        folder, "Qwen2Model", "Qwen2ForSequenceClassification", num_labels=2
    ),
    "BAAI/bge-reranker-v2-m3": lambda folder: save_model(
        folder, "XLMRobertaModel", "XLMRobertaForSequenceClassification", num_labels=1
    ),
    # A stand-in: the reward model of another family.
    "internlm/internlm2-1_8b-reward": lambda folder: save_reward_model(folder, "Qwen2ForRewardModel", 1),
    "peiyi9979/math-shepherd-mistral-7b-prm": lambda folder: save_model(
        folder, "LlamaModel", "LlamaForCausalLM", vocab_size=800
    ),
    "Qwen/Qwen2.5-Math-RM-72B": lambda folder: save_reward_model(folder, "Qwen2ForRewardModel", 1),
    "intfloat/e5-mistral-7b-instruct": lambda folder: save_model(folder, "MistralModel", "MistralModel"),
}
"""Where the pages' checkpoints come from."""

HELLO = "Hello, my name is"


def check_embedding(found: dict[str, Any], printed: str, *, size: int) -> None:
    assert len(found["embeds"]) == size
    assert np.linalg.norm(found["embeds"]) == pytest.approx(1)
    assert printed == f"Embeddings: {found['embeds']!r} (size={size})"


def check_short_embedding(found: dict[str, Any], printed: str) -> None:
    assert printed == "EmbeddingOutput(hidden_size=32)"
    assert np.linalg.norm(found["outputs"][0].outputs.embedding) == pytest.approx(1)


def check_probabilities(found: dict[str, Any], printed: str) -> None:
    assert sum(found["probs"]) == pytest.approx(1)
    assert printed == f"Class Probabilities: {found['probs']!r} (size=2)"


def check_score(found: dict[str, Any], printed: str) -> None:
    assert 0 < found["score"] < 1
    assert printed == f"Score: {found['score']}"


def check_rewards(found: dict[str, Any], printed: str) -> None:
    (output,) = found["llm"].reward(HELLO)
    assert found["data"].shape == (len(output.prompt_token_ids), 1)
    assert found["data"].tolist() == output.outputs.data.tolist()
    # A reward is a number, not a probability: this class has no activation.
    assert np.abs(found["data"]).max() > 1
    assert printed == f"Data: {found['data']!r}"


def check_steps(found: dict[str, Any], printed: str) -> None:
    prompts = [[10, 123, 11, 12, 123], [10, 11], "a quick brown fox"]
    outputs = found["llm"].reward([*prompts[:2], {"prompt": prompts[2]}])
    num_steps = [output.prompt_token_ids.count(123) for output in outputs]
    assert [output.outputs.data.shape for output in outputs] == [(steps, 2) for steps in num_steps]
    assert num_steps[:2] == [2, 0]
    np.testing.assert_allclose(outputs[0].outputs.data.sum(axis=1), 1, rtol=1e-6)
    assert printed == ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A code block, and what it must have done."""

    code: str
    check: Callable[[dict[str, Any], str], None]


BLOCKS = {
    "embed": Block(
        code="""
from vllm import LLM

llm = LLM(model="intfloat/e5-small", runner="pooling")
outputs = llm.embed("Hello, my name is")

embeds = outputs[0].outputs.embedding
print(f"Embeddings: {embeds!r} (size={len(embeds)})")
""",
        check=lambda found, printed: check_embedding(found, printed, size=32),
    ),
    "matryoshka": Block(
        code="""
from vllm import LLM, PoolingParams

llm = LLM(
    model="jinaai/jina-embeddings-v3",
    runner="pooling",
    trust_remote_code=True,
)
outputs = llm.embed(
    ["Follow the white rabbit."],
    pooling_params=PoolingParams(dimensions=32),
)
print(outputs[0].outputs)
""",
        check=check_short_embedding,
    ),
    "classify": Block(
        code="""
from vllm import LLM

llm = LLM(model="jason9693/Qwen2.5-1.5B-apeach", runner="pooling")
outputs = llm.classify("Hello, my name is")

probs = outputs[0].outputs.probs
print(f"Class Probabilities: {probs!r} (size={len(probs)})")
""",
        check=check_probabilities,
    ),
    "score": Block(
        code="""
from vllm import LLM

llm = LLM(model="BAAI/bge-reranker-v2-m3", runner="pooling")
outputs = llm.score(
    "What is the capital of France?",
    "The capital of Brazil is Brasilia.",
)

score = outputs[0].outputs.score
print(f"Score: {score}")
""",
        check=check_score,
    ),
    "reward": Block(
        code="""
from vllm import LLM

llm = LLM(
    model="internlm/internlm2-1_8b-reward",
    runner="pooling",
    trust_remote_code=True
)
outputs = llm.reward("Hello, my name is")

data = outputs[0].outputs.data
print(f"Data: {data!r}")
""",
        check=check_rewards,
    ),
    "process reward": Block(
        code="""
llm = LLM(
    model="peiyi9979/math-shepherd-mistral-7b-prm",
    pooler_config='{"pooling_type": "STEP", "step_tag_id": 123, "returned_token_ids": [456, 789]}'
)
""",
        check=check_steps,
    ),
    "older encode": Block(
        code="""
from vllm import LLM
llm = LLM(model="Qwen/Qwen2.5-Math-RM-72B", task="reward")
(output,) = llm.encode("Hello, my name is")
data = output.outputs.data
print(f"Data: {data!r}")
""",
        check=check_rewards,
    ),
    "older embed": Block(
        code="""
from vllm import LLM
llm = LLM(model="intfloat/e5-mistral-7b-instruct", task="embed")
(output,) = llm.embed("Hello, my name is")
embeds = output.outputs.embedding
print(f"Embeddings: {embeds!r} (size={len(embeds)})")
""",
        check=lambda found, printed: check_embedding(found, printed, size=32),
    ),
    "older classify": Block(
        code="""
from vllm import LLM
llm = LLM(model="jason9693/Qwen2.5-1.5B-apeach", task="classify")
(output,) = llm.classify("Hello, my name is")
probs = output.outputs.probs
print(f"Class Probabilities: {probs!r} (size={len(probs)})")
""",
        check=check_probabilities,
    ),
    "older score": Block(
        code="""
from vllm import LLM
llm = LLM(model="BAAI/bge-reranker-v2-m3", task="score")
(output,) = llm.score("What is the capital of France?",
"The capital of Brazil is Brasilia.")
score = output.outputs.score
print(f"Score: {score}")
""",
        check=check_score,
    ),
}
"""Every block of Python about text on the two pages; the process reward's goes on where another imported LLM."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with the checkpoints in folders of their published names."""
    folder = tmp_path_factory.mktemp("models")
    for name, save in CHECKPOINTS.items():
        save(folder / name)
    return folder


@pytest.fixture
def place(models, monkeypatch) -> Path:
    """Stand in the folder of the checkpoints, with a cache beside it."""
    monkeypatch.chdir(models)
    monkeypatch.setenv("POOLGRAPH_CACHE", str(models / ".cache"))
    return models


@pytest.mark.parametrize("name", BLOCKS)
def test_code_blocks_run(name, place, request, capsys):
    block = BLOCKS[name]
    if name != "embed":  # the one that is exported as users' are, by a child process
        request.getfixturevalue("export_here")
    found: dict[str, Any] = {} if "import" in block.code else {"LLM": LLM}
    exec(compile(block.code.replace("from vllm", "from poolgraph"), name, "exec"), found)
    block.check(found, capsys.readouterr().out.strip())
    assert "vllm" not in sys.modules
