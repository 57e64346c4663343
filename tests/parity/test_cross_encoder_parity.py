"""Scores of pairs, end to end, against sentence-transformers' CrossEncoder and a language model's own logits."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_table import largest_difference, record
from sentence_transformers import CrossEncoder
from tiny_heads import pair_tokenizer, save_logit_score, save_model
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

from poolgraph import PoolingModel, export_model
from poolgraph.export.probes import PROBE_SENTENCES

WORDS = [word for sentence in PROBE_SENTENCES for word in sentence.split()]
YES, NO = 42, 17
ORACLE = "sentence-transformers CrossEncoder"
QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {asked}\n'
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def draw_pairs(num_pairs: int, *, seed: int = 0, longest: int = 90) -> tuple[list[str], list[str]]:
    """Queries and documents from no word to many; some pairs are longer than the limit of 128 tokens."""
    source = random.Random(seed)
    texts = [" ".join(source.choices(WORDS, k=source.choice([0, 1, 3, 8, longest]))) for _ in range(2 * num_pairs)]
    return texts[:num_pairs], texts[num_pairs:]


def predict(folder: Path, queries: list[str], documents: list[str], **options: Any) -> np.ndarray:
    """The oracle, one pair at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = CrossEncoder(str(folder), device="cpu")
        return np.asarray(oracle.predict(list(zip(queries, documents, strict=True)), batch_size=1, **options))


@pytest.mark.parametrize(
    ("backbone", "cls"),
    [
        ("BertModel", "BertForSequenceClassification"),
        ("RobertaModel", "RobertaForSequenceClassification"),
        ("XLMRobertaModel", "XLMRobertaForSequenceClassification"),
    ],
)
def test_pairs_score_as_in_sentence_transformers(backbone: str, cls: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "checkpoint", backbone, cls, num_labels=1)
    export_model(folder, tmp_path / "artifact")
    queries, documents = draw_pairs(60)
    expected = predict(folder, queries, documents)
    with PoolingModel.load(tmp_path / "artifact") as model:
        with pytest.warns(UserWarning, match="pairs were longer than 128 tokens and were cut"):
            found = model.score(queries, documents, truncate=True)
        record("score", cls, ORACLE, largest_difference([expected], [found]))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        # Scores all alike would prove nothing.
        assert np.ptp(expected) > 100 * 1e-4
        order = random.Random(0).sample(range(60), 60)
        with pytest.warns(UserWarning, match="were cut"):
            shuffled = model.score([queries[i] for i in order], [documents[i] for i in order], truncate=True)
        np.testing.assert_array_equal(shuffled, found[order])
        whole = [i for i in range(60) if len(model.tokenizer.backend.encode(queries[i], documents[i])) <= 128][:20]
        alone = [model.score(queries[i], documents[i])[0] for i in whole]
        np.testing.assert_array_equal(alone, found[whole])
        candidates = [documents[i] for i in whole if len(documents[i]) < 100]
        ranked = model.rerank("where is the pool", candidates, top_n=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = CrossEncoder(str(folder), device="cpu").rank("where is the pool", candidates)
    scores = {row["corpus_id"]: row["score"] for row in oracle}
    # By score, not by index: documents whose scores differ by less than the tolerance may change places.
    own = [scores[document.index] for document in ranked]
    np.testing.assert_allclose(own, sorted(scores.values(), reverse=True)[:5], atol=1e-4)
    np.testing.assert_allclose([document.score for document in ranked], own, atol=1e-4)


def test_a_chat_template_of_sentence_transformers_scores_as_there(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "Qwen3Model", "Qwen3ForCausalLM", tokenizer=pair_tokenizer())
    folder = save_logit_score(tmp_path / "checkpoint", source, true_token_id=YES, false_token_id=NO)
    export_model(folder, tmp_path / "artifact")
    queries, documents = draw_pairs(30, longest=12)
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert model.manifest.scoring is not None
        assert model.manifest.scoring.template is not None
        found = model.score(queries, documents, use_activation=False)
    expected = predict(folder, queries, documents, activation_fn=torch.nn.Identity())
    record("score(use_activation=False)", "qwen3 with a chat template", ORACLE, largest_difference([expected], [found]))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_published_format_scores_as_the_language_model_itself(tmp_path: Path) -> None:
    """The two tokens' probabilities after a prompt that is put together here, as on the model card."""
    folder = save_model(
        tmp_path / "checkpoint",
        "Qwen3Model",
        "Qwen3ForCausalLM",
        tokenizer=pair_tokenizer(None),
        max_length=512,
        max_position_embeddings=512,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = [tokenizer.convert_ids_to_tokens(index) for index in (NO, YES)]
    export_model(
        folder,
        tmp_path / "artifact",
        convert="classify",
        hf_overrides={"classifier_from_token": words, "method": "from_2_way_softmax"},
        score_template="qwen3_reranker",
    )
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    queries, documents = draw_pairs(6, longest=12)
    with PoolingModel.load(tmp_path / "artifact") as scorer:
        for instruction in (None, "Find bears"):
            asked = instruction or "Given a web search query, retrieve relevant passages that answer the query"
            expected = [
                _yes(model, tokenizer, QWEN3.format(asked=asked, query=query, document=document))
                for query, document in zip(queries, documents, strict=True)
            ]
            found = scorer.score(queries, documents, instruction=instruction)
            head = f"qwen3_reranker template, instruction {instruction}"
            record("score", head, "transformers", largest_difference([np.array(expected)], [found]))
            np.testing.assert_allclose(found, expected, atol=1e-4)


def _yes(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str) -> float:
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1, [NO, YES]]
    return torch.softmax(logits, dim=0)[1].item()
