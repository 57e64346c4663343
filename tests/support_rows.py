"""The support table: one frozen row an architecture and task, with a tiny checkpoint, its oracle and its finished answer."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from architecture_graphs import MAX_LENGTH
from head_oracles import logits_of, reward_layers, vocabulary_columns
from support_oracles import (
    Maker,
    bert_of_colbert,
    both_ways,
    first,
    last,
    make_bidirectional_llama,
    make_embeddinggemma,
    make_internlm,
    make_jamba,
    make_jina_colbert,
    make_nomic_moe,
    mean,
    projected,
    published,
    rows_of,
    save_classic,
    save_rewards,
    save_steps,
    saved,
)
from tiny_colbert import save_pylate, save_stanford
from tiny_deberta import oracle_of as deberta_logits
from tiny_deberta import save as save_deberta
from tiny_heads import STEP_TAG, STEP_TAG_ID, pair_tokenizer, step_tokenizer, yes_no_vocabulary
from tiny_llamas import save_long
from tiny_models import VOCAB_SIZE
from tiny_nomic import publish_nomic
from tiny_rotary import publish_gte, publish_jina
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


def _embed(architecture: str, example: str, make: Maker, **rest: Any) -> SupportRow:
    return SupportRow(
        task="embed", architecture=architecture, example=example, make=make, **{"finish": "normalize", **rest}
    )


def _decoder(architecture: str, example: str, **changes: Any) -> SupportRow:
    make = saved(lambda folder: save_long(folder, architecture, **changes), last(rows_of(architecture)))
    return _embed(architecture, example, make, packed=False)


def _classifier(task: str, backbone: str, cls: str, example: str, *, labels: int, **changes: Any) -> SupportRow:
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


def _language_model(family: str, architecture: str, example: str, **rest: Any) -> SupportRow:
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


def _process_reward(family: str, example: str) -> SupportRow:
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


def _rewards(architecture: str, example: str, make: Maker, **rest: Any) -> SupportRow:
    return SupportRow(
        task="reward", architecture=architecture, example=example, make=make, packed=False, **{"finish": "nothing", **rest}
    )


def _tokens(backbone: str, example: str) -> SupportRow:
    cls = backbone.replace("Model", "ForTokenClassification")
    return SupportRow(
        task="tokens",
        architecture=cls,
        example=example,
        make=saved(save_classic(backbone, cls, num_labels=5), logits_of(cls)),
        finish="softmax",
    )


def _colbert(architecture: str, example: str, make: Maker, **rest: Any) -> SupportRow:
    return SupportRow(
        task="colbert", architecture=architecture, example=example, make=make, finish="normalize", **rest
    )


PYLATE = {
    "model_type": "ColBERT",
    "similarity_fn_name": "MaxSim",
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 32,
    "document_length": MAX_LENGTH,
    "attend_to_expansion_tokens": False,
    "skiplist_words": list(string.punctuation),
}

NOMIC, GTE = "nomic-ai/nomic-embed-text-v1.5", "Alibaba-NLP/gte-multilingual-base"
GTE_RERANKER, JINA, JINA_RERANKER = (
    "Alibaba-NLP/gte-multilingual-reranker-base",
    "jinaai/jina-embeddings-v3",
    "jinaai/jina-reranker-v2-base-multilingual",
)


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(0)


def _first(rows: Tensor) -> Tensor:
    return rows[0]


EMBED_ROWS = (
    _embed("BertModel", "BAAI/bge-base-en-v1.5", saved(save_classic("BertModel", "BertModel"), first(rows_of("BertModel")))),
    _decoder("Gemma2Model", "BAAI/bge-multilingual-gemma2"),
    _decoder("LlamaModel", "samaya-ai/RepLLaMA-reproduced"),
    _decoder("MistralModel", "intfloat/e5-mistral-7b-instruct"),
    _decoder("Qwen2Model", "ssmits/Qwen2-7B-Instruct-embed-base"),
    _embed(
        "Qwen2Model",
        "Alibaba-NLP/gte-Qwen2-7B-instruct",
        saved(lambda folder: save_long(folder, "Qwen2Model", is_causal=False), last(both_ways("Qwen2Model"))),
        kind="is_causal: false",
        packed=False,
    ),
    _decoder("Qwen3Model", "Qwen/Qwen3-Embedding-0.6B"),
    _embed("NomicBertModel", NOMIC, published(publish_nomic, _mean), kind="remote-code layout", finish="nothing"),
    _embed("NomicBertModel", NOMIC, published(publish_nomic, _mean, native=True), kind="native layout", finish="nothing"),
    _embed(
        "NomicBertModel", NOMIC, published(lambda: publish_nomic(factor=2.0), _mean), kind="dynamic NTK", finish="nothing"
    ),
    _embed(
        "NomicBertModel",
        NOMIC,
        published(lambda: publish_nomic(factor=2.0), _mean, native=True),
        kind="dynamic NTK, native layout",
        finish="nothing",
        options={"hf_overrides": {"n_positions": MAX_LENGTH}},
    ),
    _embed("NomicBertModel", "nomic-ai/nomic-embed-text-v2-moe", make_nomic_moe, kind="experts", finish="nothing", oracle="numpy"),
    _embed(
        "ModernBertModel",
        "Alibaba-NLP/gte-modernbert-base",
        saved(lambda folder: save_long(folder, "ModernBertModel"), first(rows_of("ModernBertModel"))),
    ),
    _embed("NewModel", GTE, published(publish_gte, _first), kind="fixed NTK"),
    _embed(
        "NewModel",
        "Alibaba-NLP/gte-base-en-v1.5",
        published(lambda: publish_gte(factor=None, type_vocab_size=0), _first),
        kind="no scaling, no token types",
    ),
    _embed("GteModel", GTE, published(publish_gte, _first, native=True), kind="native layout"),
    _embed("XLMRobertaModel", JINA, published(lambda: publish_jina(task="text-matching"), _mean), kind="default adapter"),
    _embed(
        "XLMRobertaModel",
        JINA,
        published(lambda: publish_jina(task="retrieval.query"), _mean),
        kind="lora_task retrieval.query",
        options={"hf_overrides": {"lora_task": "retrieval.query"}},
    ),
    _embed("JinaEmbeddingsV3Model", JINA, published(publish_jina, _mean, native=True), kind="native layout"),
    _embed("Gemma3TextModel", "google/embeddinggemma-300m", make_embeddinggemma),
    _embed(
        "LlamaBidirectionalModel", "nvidia/llama-nemotron-embed-1b-v2", make_bidirectional_llama(), packed=False
    ),
)

CLASSIFY_ROWS = (
    SupportRow(
        task="classify",
        architecture="JambaForSequenceClassification",
        example="ai21labs/Jamba-tiny-reward-dev",
        make=make_jamba,
        finish="nothing",
        packed=False,
    ),
    _classifier("classify", "GPT2Model", "GPT2ForSequenceClassification", "nie3e/sentiment-polish-gpt2-small", labels=3),
    _classifier("classify", "BertModel", "BertForSequenceClassification", "nlptown/bert-base-multilingual-uncased-sentiment", labels=3),
    _classifier("classify", "RobertaModel", "RobertaForSequenceClassification", "cardiffnlp/twitter-roberta-base-sentiment", labels=3),
    _classifier("classify", "Qwen2Model", "Qwen2ForSequenceClassification", "jason9693/Qwen2.5-1.5B-apeach", labels=2),
)

SCORE_ROWS = (
    SupportRow(
        task="score",
        architecture="DebertaV2ForSequenceClassification",
        example="mixedbread-ai/mxbai-rerank-base-v1",
        make=saved(
            lambda folder: save_deberta(folder, "DebertaV2ForSequenceClassification", "DebertaV2ForSequenceClassification"),
            lambda folder: deberta_logits(folder, "DebertaV2ForSequenceClassification"),
        ),
        finish="sigmoid",
        packed=False,
    ),
    _classifier("score", "BertModel", "BertForSequenceClassification", "cross-encoder/ms-marco-MiniLM-L-6-v2", labels=1),
    _classifier("score", "XLMRobertaModel", "XLMRobertaForSequenceClassification", "BAAI/bge-reranker-v2-m3", labels=1),
    _language_model("Qwen2", "Qwen2ForSequenceClassification", "mixedbread-ai/mxbai-rerank-base-v2"),
    _language_model("Qwen3", "Qwen3ForSequenceClassification", "Qwen/Qwen3-Reranker-0.6B"),
    _language_model("Gemma", "GemmaForSequenceClassification", "BAAI/bge-reranker-v2-gemma"),
    SupportRow(
        task="score",
        architecture="LlamaBidirectionalForSequenceClassification",
        example="nvidia/llama-nemotron-rerank-1b-v2",
        make=make_bidirectional_llama(1),
        finish="sigmoid",
        packed=False,
    ),
    _classifier(
        "score", "ModernBertModel", "ModernBertForSequenceClassification", "Alibaba-NLP/gte-reranker-modernbert-base", labels=1
    ),
    *(
        SupportRow(
            task="score",
            architecture=architecture,
            example=example,
            kind="native layout" if native else "remote-code layout",
            make=published(publish, native=native),
            finish="sigmoid",
        )
        for architecture, example, publish, native in (
            ("NewForSequenceClassification", GTE_RERANKER, lambda: publish_gte(classifier=True), False),
            ("GteForSequenceClassification", GTE_RERANKER, lambda: publish_gte(classifier=True), True),
            (
                "XLMRobertaForSequenceClassification",
                JINA_RERANKER,
                lambda: publish_jina("XLMRobertaForSequenceClassification"),
                False,
            ),
            (
                "JinaEmbeddingsV3ForSequenceClassification",
                JINA_RERANKER,
                lambda: publish_jina("XLMRobertaForSequenceClassification"),
                True,
            ),
        )
    ),
)

REWARD_ROWS = (
    _rewards("InternLM2ForRewardModel", "internlm/internlm2-1_8b-reward", make_internlm, oracle="numpy"),
    _process_reward("Llama", "a Llama fine-tuned as math-shepherd is"),
    _process_reward("Mistral", "peiyi9979/math-shepherd-mistral-7b-prm"),
    _rewards(
        "Qwen2ForRewardModel",
        "Qwen/Qwen2.5-Math-RM-72B",
        saved(save_rewards("Qwen2ForRewardModel", 1), reward_layers),
    ),
    _rewards(
        "Qwen2ForProcessRewardModel",
        "Qwen/Qwen2.5-Math-PRM-7B",
        saved(
            save_rewards("Qwen2ForProcessRewardModel", 2, tokenizer=step_tokenizer(), vocab_size=VOCAB_SIZE + 1),
            reward_layers,
        ),
        kind="STEP",
        finish="steps",
        options={"pooler_config": {"step_tag_id": STEP_TAG_ID}},
        tag=STEP_TAG,
    ),
)

COLBERT_ROWS = (
    _colbert(
        "HF_ColBERT",
        "answerdotai/answerai-colbert-small-v1",
        saved(
            lambda folder: save_stanford(
                folder, {"query_maxlen": 32, "doc_maxlen": MAX_LENGTH}, max_length=MAX_LENGTH
            ),
            projected(bert_of_colbert),
        ),
    ),
    _colbert(
        "ColBERTModernBertModel",
        "lightonai/GTE-ModernColBERT-v1",
        saved(
            lambda folder: save_pylate(
                folder, PYLATE, local_attention=28, max_length=MAX_LENGTH, transformer={"max_seq_length": MAX_LENGTH}
            ),
            projected(rows_of("ModernBertModel")),
        ),
        options={"hf_overrides": {"architectures": ["ColBERTModernBertModel"]}},
    ),
    _colbert(
        "ColBERTJinaRobertaModel",
        "jinaai/jina-colbert-v2",
        make_jina_colbert(lambda: publish_jina("HF_ColBERT")),
        options={"hf_overrides": {"architectures": ["ColBERTJinaRobertaModel"]}},
    ),
)

TOKEN_ROWS = (
    _tokens("BertModel", "boltuix/NeuroBERT-NER"),
    _tokens("RobertaModel", "Jean-Baptiste/roberta-large-ner-english"),
    _tokens("XLMRobertaModel", "Davlan/xlm-roberta-base-ner-hrl"),
    _tokens("ModernBertModel", "disham993/electrical-ner-ModernBERT-base"),
)

SUPPORT_ROWS = (*EMBED_ROWS, *CLASSIFY_ROWS, *SCORE_ROWS, *REWARD_ROWS, *COLBERT_ROWS, *TOKEN_ROWS)
