"""What ``LLM`` is told about a checkpoint reaches its graph; what needs no graph makes no second artifact."""

from pathlib import Path

import numpy as np
import pytest
from tiny_heads import save_model, yes_no_vocabulary
from tiny_models import save_checkpoint

from poolgraph import LLM, PoolingParams
from poolgraph.errors import ExportError

pytestmark = pytest.mark.slow

TEXTS = ["a quick brown fox", "jumps", "over the lazy dog of any length"]
RAW = PoolingParams(use_activation=False)
TEMPLATE = "{{ instruction or 'judge' }}: {{ query }} or {{ document }}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, export_here) -> Path:
    """An empty cache, and exports in this process."""
    monkeypatch.setenv("POOLGRAPH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artifacts"


def count_artifacts(cache: Path) -> int:
    return len([path for path in cache.iterdir() if path.is_dir()])


def test_another_pooling_beats_the_files(tmp_path, cache):
    folder = save_checkpoint(tmp_path / "bert", "BertModel")
    llm = LLM(folder, pooler_config={"pooling_type": "CLS", "use_activation": False})
    tokens = llm.encode(TEXTS, pooling_task="token_embed")
    for whole, rows in zip(llm.embed(TEXTS), tokens, strict=True):
        np.testing.assert_allclose(whole.outputs.data, rows.outputs.data[0], atol=1e-5)
    again = LLM(
        folder,
        override_pooler_config='{"pooling_type": "CLS", "dimensions": 8}',
        hf_overrides={"is_matryoshka": True},
        runner="pooling",
    )
    assert again.embed(TEXTS)[0].outputs.hidden_size == 8
    assert count_artifacts(cache) == 1
    mean = LLM(folder).encode(TEXTS[0], pooling_params=RAW)[0].outputs.data
    np.testing.assert_allclose(mean, tokens[0].outputs.data.mean(0), atol=1e-5)
    assert count_artifacts(cache) == 2


def test_scaling_of_logits_and_labels_of_an_override(tmp_path):
    folder = save_model(tmp_path / "classifier", "BertModel", "BertForSequenceClassification", num_labels=3)
    names = {"id2label": {"0": "no", "1": "maybe", "2": "yes"}}
    scaled = LLM(folder, pooler_config={"logit_mean": 0.5, "logit_sigma": 2.0}, hf_overrides=names)
    before = LLM(folder).encode(TEXTS, RAW)
    for plain, output in zip(before, scaled.encode(TEXTS, RAW), strict=True):
        np.testing.assert_allclose(output.outputs.data, (plain.outputs.data - 0.5) / 2, atol=1e-5)
    assert scaled._runner.manifest.labels == ("no", "maybe", "yes")
    compiled = scaled._runner.model.path
    LLM(compiled, pooler_config={"logit_mean": 0.5, "logit_sigma": 2.0}, hf_overrides=names)


def test_a_language_model_becomes_a_reranker(tmp_path, cache):
    folder = save_model(tmp_path / "qwen", "Qwen3Model", "Qwen3ForCausalLM")
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": list(yes_no_vocabulary()),
        "method": "from_2_way_softmax",
    }
    with pytest.raises(ExportError):
        LLM(folder, hf_overrides=overrides)
    llm = LLM(folder, runner="pooling", hf_overrides=overrides, chat_template=TEMPLATE)
    outputs = llm.score("fox", ["brown", "lazy dog"])
    written = llm.classify(["judge: fox or brown", "judge: fox or lazy dog"])
    assert [output.outputs.score for output in outputs] == [answer.outputs.probs[0] for answer in written]
    assert outputs[0].prompt_token_ids == written[0].prompt_token_ids
    params = PoolingParams(extra_kwargs={"chat_template_kwargs": {"instruction": "find"}})
    (found,) = llm.score("fox", "brown", pooling_params=params)
    assert found.outputs.score == llm.classify("find: fox or brown")[0].outputs.probs[0]
    assert LLM(llm._runner.model.path).score("fox", "brown")[0].outputs == outputs[0].outputs
    assert count_artifacts(cache) == 1
