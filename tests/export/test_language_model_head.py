"""Rows cut out of a language model's head: which tokens, which rows, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from poolgraph.errors import ExportError, InputError
from poolgraph.export.checkpoint import WeightFolder
from poolgraph.export.head import HeadPlan, load_steps
from poolgraph.export.language_model_head import (
    METHODS,
    NO_POST_PROCESSING,
    RERANKERS,
    TWO_WAY,
    find_reranker,
    plan_score_rows,
    plan_token_rows,
    token_ids_of,
)
from poolgraph.runtime.score_template import TEMPLATES

HEAD = torch.arange(20.0).reshape(5, 4) ** 2
BIAS = torch.tensor([5.0, -1.0, 3.0, 0.5, 2.0])
CONFIG: Any = SimpleNamespace()


def folder(path: Path, **tensors: torch.Tensor) -> WeightFolder:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path / "model.safetensors")
    return WeightFolder(path)


def apply(plan: HeadPlan, rows: torch.Tensor) -> torch.Tensor:
    for module in load_steps(plan.shared):
        rows = module(rows)
    return rows.detach()


# --- published rerankers


def test_published_rerankers_have_shipped_templates_and_known_methods() -> None:
    for reranker in RERANKERS:
        assert reranker.template in TEMPLATES
        assert reranker.method in METHODS
        assert len(reranker.tokens) == (2 if reranker.method == TWO_WAY else 1)


@pytest.mark.parametrize(
    ("model_type", "tokens", "template"),
    [
        ("qwen3", (), "qwen3_reranker"),
        ("qwen3", ("no", "yes"), "qwen3_reranker"),
        ("qwen3", ["no", "yes"], "qwen3_reranker"),
        ("qwen3", ("yes", "no"), None),
        ("qwen3", ("0", "1"), None),
        ("qwen2", (), "mxbai_rerank_v2"),
        ("qwen2", ("0", "1"), "mxbai_rerank_v2"),
        ("gemma", ("Yes",), "bge_reranker_v2_gemma"),
        ("gemma2", (), None),
        ("llama", (), None),
    ],
)
def test_find_reranker(model_type: str, tokens: Any, template: str | None) -> None:
    found = find_reranker(model_type, tokens)
    assert (found.template if found else None) == template


# --- tokens


class FakeTokenizer:
    def get_vocab(self) -> dict[str, int]:
        return {"no": 3, "yes": 1, "1": 4}


def test_tokens_keep_their_order() -> None:
    tokenizer: Any = FakeTokenizer()
    assert token_ids_of(["yes", "no"], tokenizer) == (1, 3)
    assert token_ids_of(["no", "yes", "1"], tokenizer) == (3, 1, 4)


def test_tokens_that_are_none_are_named() -> None:
    tokenizer: Any = FakeTokenizer()
    with pytest.raises(InputError, match=r"names \['Yes', 'maybe not'\], which the tokenizer does not have") as caught:
        token_ids_of(["no", "Yes", "maybe not"], tokenizer)
    assert caught.value.parameter == "classifier_from_token"


# --- rows


@pytest.mark.parametrize(
    "name", ["lm_head", "embed_out", "model.embed_tokens", "embed_tokens", "model.wte", "wte", "model.word_embeddings"]
)
def test_rows_of_heads_and_tied_embeddings_by_any_name(tmp_path: Path, name: str) -> None:
    weights = folder(tmp_path, **{f"{name}.weight": HEAD})
    plan = plan_token_rows(weights, CONFIG, "model", (3, 1))
    assert (plan.pooling, plan.column_token_ids, plan.converted, plan.kind) == (None, (3, 1), True, "logits")
    rows = torch.randn(2, 4)
    torch.testing.assert_close(apply(plan, rows), rows @ HEAD[[3, 1]].T)


def test_a_head_of_its_own_goes_before_the_embeddings(tmp_path: Path) -> None:
    weights = folder(tmp_path, lm_head__weight=HEAD, model__embed_tokens__weight=-HEAD)
    plan = plan_token_rows(weights, CONFIG, "model", (2,))
    torch.testing.assert_close(apply(plan, torch.ones(1, 4)), HEAD[2].sum().reshape(1, 1))


def test_embeddings_under_another_prefix_are_no_head(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no language-model head; looked for \['lm_head', "):
        plan_token_rows(folder(tmp_path, vision__embed_tokens__weight=HEAD), CONFIG, "model", (2,))


def test_two_way_is_the_second_row_less_the_first(tmp_path: Path) -> None:
    """Whose sigmoid is the second's share of a softmax over both."""
    plan = plan_score_rows(folder(tmp_path, lm_head__weight=HEAD, lm_head__bias=BIAS), CONFIG, "model", (3, 1), TWO_WAY)
    assert (plan.pooling, plan.converted, plan.column_token_ids) == (("lasttoken",), True, ())
    assert plan.sequence_size(4) == 1
    rows = torch.randn(3, 4) * 0.01
    both = rows @ HEAD[[3, 1]].T + BIAS[[3, 1]]
    torch.testing.assert_close(apply(plan, rows), both[:, 1:] - both[:, :1])
    torch.testing.assert_close(apply(plan, rows).sigmoid(), both.softmax(-1)[:, 1:])


@pytest.mark.parametrize("ids", [(2,), (4, 0), (1, 1, 3)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_no_post_processing_takes_the_rows_as_they_are(tmp_path: Path, ids: tuple[int, ...], has_bias: bool) -> None:
    weights = folder(tmp_path, lm_head__weight=HEAD, **({"lm_head__bias": BIAS} if has_bias else {}))
    plan = plan_score_rows(weights, CONFIG, "model", ids, NO_POST_PROCESSING)
    rows = torch.randn(3, 4)
    expected = rows @ HEAD[list(ids)].T + (BIAS[list(ids)] if has_bias else 0)
    torch.testing.assert_close(apply(plan, rows), expected)
    assert plan.token_size(4) == len(ids)


@pytest.mark.parametrize("ids", [(1,), (1, 2, 3), ()])
def test_two_way_of_another_number_of_tokens(tmp_path: Path, ids: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=f"takes two tokens, false and true, not {len(ids)}"):
        plan_score_rows(folder(tmp_path, lm_head__weight=HEAD), CONFIG, "model", ids, TWO_WAY)


@pytest.mark.parametrize("method", ["", "from_3_way_softmax", "None"])
def test_unknown_method(tmp_path: Path, method: str) -> None:
    with pytest.raises(InputError, match=f"method {method!r} is unknown; choose one of .*{TWO_WAY}.*") as caught:
        plan_score_rows(folder(tmp_path, lm_head__weight=HEAD), CONFIG, "model", (1, 2), method)
    assert caught.value.parameter == "method"


@pytest.mark.parametrize("ids", [(5,), (1, 99), (-1, 2)])
def test_tokens_out_of_vocabulary(tmp_path: Path, ids: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"token ids \[.*\] are out of vocabulary: .* has 5 rows"):
        plan_token_rows(folder(tmp_path, lm_head__weight=HEAD), CONFIG, "model", ids)


def test_bent_logits_are_refused(tmp_path: Path) -> None:
    """Gemma 2 and 3 cap their logits, which rows of the head alone would not."""
    weights = folder(tmp_path, lm_head__weight=HEAD)
    bent: Any = SimpleNamespace(final_logit_softcapping=30.0)
    with pytest.raises(ExportError, match="final_logit_softcapping"):
        plan_token_rows(weights, bent, "model", (1,))
    with pytest.raises(ExportError, match="final_logit_softcapping"):
        plan_score_rows(weights, bent, "model", (1, 2), TWO_WAY)
    straight: Any = SimpleNamespace(final_logit_softcapping=None)
    assert plan_token_rows(weights, straight, "model", (1,)).column_token_ids == (1,)
