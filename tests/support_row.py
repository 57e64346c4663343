"""A row of the support table: a tiny checkpoint, its oracle and its finished answer; and one function a kind of row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from head_oracles import logits_of, vocabulary_columns
from support_oracles import (
    Maker,
    last,
    rows_of,
    save_classic,
    save_steps,
    saved,
)
from tiny_heads import STEP_TAG, STEP_TAG_ID, pair_tokenizer, yes_no_vocabulary
from tiny_llamas import save_long
from torch import Tensor

from poolgraph.tasks import GraphFamily

Finish = Callable[[Tensor, Tensor], Tensor]
"""A text's raw answer and its token ids, (num_tokens,), to what the task answers."""

FINISH: Mapping[str, Finish] = {
    "normalize": lambda raw, ids: torch.nn.functional.normalize(raw, dim=-1),
    "softmax": lambda raw, ids: raw.softmax(-1),
    "sigmoid": lambda raw, ids: raw.sigmoid(),
    "nothing": lambda raw, ids: raw,
    "steps": lambda raw, ids: raw[ids == STEP_TAG_ID].softmax(-1),
}


@dataclass(frozen=True, kw_only=True)
class SupportRow:
    """One row.

    Attributes:
        task: Of the issue's table: embed, classify, score, reward, colbert or tokens.
        architecture: As config.json names it.
        example: A published checkpoint.
        make: Saves a tiny one and returns its oracle.
        finish: Key of FINISH.
        kind: What sets it apart from other rows of its architecture.
        oracle: Whose answers are right.
        packed: Whether packed graphs are verified: those of encoders.
        options: Of the export.
        tag: What each word of a text is followed by.
        rebuilt: Whether AutoTokenizer rebuilds the tokenizer by model type, as it does for the export.
    """

    task: str
    architecture: str
    example: str
    make: Maker
    finish: str
    kind: str = ""
    oracle: str = "transformers"
    packed: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""
    rebuilt: bool = True

    @property
    def name(self) -> str:
        """Its identity."""
        return " ".join(filter(None, (self.task, self.architecture, self.kind)))

    @property
    def family(self) -> GraphFamily:
        """Which graphs are asked."""
        return "token" if self.task in ("reward", "colbert", "tokens") else "sequence"

    @property
    def method(self) -> str:
        """The method of PoolingModel."""
        methods = {"score": "classify", "colbert": "token_embed", "tokens": "token_classify"}
        return methods.get(self.task, self.task)


def embed(architecture: str, example: str, make: Maker, **rest: Any) -> SupportRow:
    """A model that embeds."""
    return SupportRow(
        task="embed", architecture=architecture, example=example, make=make, **{"finish": "normalize", **rest}
    )


def decoder(architecture: str, example: str, **changes: Any) -> SupportRow:
    """A decoder of transformers that embeds by its last token."""
    make = saved(lambda folder: save_long(folder, architecture, **changes), last(rows_of(architecture)))
    return embed(architecture, example, make, packed=False)


def classifier(task: str, backbone: str, cls: str, example: str, *, labels: int, **changes: Any) -> SupportRow:
    """A classifier of transformers' own; with one label a cross-encoder."""
    return SupportRow(
        task=task,
        architecture=cls,
        example=example,
        make=saved(save_classic(backbone, cls, num_labels=labels, **changes), logits_of(cls)),
        finish="softmax" if labels > 1 else "sigmoid",
        packed=backbone not in ("GPT2Model", "Qwen2Model"),
    )


NO, YES = yes_no_vocabulary()
NO_ID, YES_ID = (pair_tokenizer().get_vocab()[token] for token in (NO, YES))


def _two_way(cls: str) -> Any:
    columns = vocabulary_columns(cls, (NO_ID, YES_ID))

    def load(folder: Any) -> Any:
        both = columns(folder)

        def answer(inputs: dict[str, Tensor]) -> Tensor:
            row = both(inputs)[-1]
            return row[1:] - row[:1]

        return answer

    return load


def language_model(family: str, architecture: str, example: str, **rest: Any) -> SupportRow:
    """A reranker that a causal language model becomes: a head of one or two of the vocabulary's rows."""
    cls = f"{family}ForCausalLM"
    two_way = "from_2_way_softmax" if family != "Gemma" else "no_post_processing"
    tokens = [NO, YES] if family != "Gemma" else [YES]
    changes = {"tie_word_embeddings": True} if family == "Gemma" else {}
    return SupportRow(
        task="score",
        architecture=architecture,
        example=example,
        kind="from a causal LM",
        make=saved(
            save_classic(f"{family}Model", cls, **changes),
            last(vocabulary_columns(cls, (YES_ID,))) if family == "Gemma" else _two_way(cls),
        ),
        finish="sigmoid",
        packed=False,
        options={
            "hf_overrides": {"architectures": [architecture], "classifier_from_token": tokens, "method": two_way},
            "score_template": "plain",
        },
        **rest,
    )


COLUMNS = (77, 70)
STEP_CONFIG = {"pooling_type": "STEP", "step_tag_id": STEP_TAG_ID, "returned_token_ids": list(COLUMNS)}


def process_reward(family: str, example: str) -> SupportRow:
    """A causal language model that answers two tokens' logits after each step."""
    cls = f"{family}ForCausalLM"
    return SupportRow(
        task="reward",
        architecture=cls,
        example=example,
        kind="STEP",
        make=saved(save_steps(f"{family}Model", cls), vocabulary_columns(cls, COLUMNS)),
        finish="steps",
        packed=False,
        options={"task": "reward", "pooler_config": STEP_CONFIG},
        tag=STEP_TAG,
    )


def rewards(architecture: str, example: str, make: Maker, **rest: Any) -> SupportRow:
    """A reward model."""
    return SupportRow(
        task="reward",
        architecture=architecture,
        example=example,
        make=make,
        packed=False,
        **{"finish": "nothing", **rest},
    )


def tokens(backbone: str, example: str, **rest: Any) -> SupportRow:
    """A token classifier."""
    cls = backbone.replace("Model", "ForTokenClassification")
    return SupportRow(
        task="tokens",
        architecture=cls,
        example=example,
        make=saved(save_classic(backbone, cls, num_labels=5), logits_of(cls)),
        finish="softmax",
        **rest,
    )


def colbert(architecture: str, example: str, make: Maker, **rest: Any) -> SupportRow:
    """A late-interaction model."""
    return SupportRow(task="colbert", architecture=architecture, example=example, make=make, finish="normalize", **rest)
