"""The support table: one frozen row an architecture and task."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import partial
from typing import Any

from architecture_graphs import MAX_LENGTH
from head_oracles import reward_layers
from support_embedders import EMBEDDER_ROWS
from support_oracles import (
    Maker,
    Publish,
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
    projected,
    published,
    rows_of,
    save_classic,
    save_rewards,
    saved,
)
from support_row import (
    SupportRow,
    classifier,
    colbert,
    decoder,
    embed,
    language_model,
    process_reward,
    rewards,
    tokens,
)
from tiny_colbert import build_lfm2, build_modern_backbone, save_pylate, save_stanford
from tiny_deberta import oracle_of as deberta_logits
from tiny_deberta import save as save_deberta
from tiny_heads import STEP_TAG, STEP_TAG_ID, step_tokenizer
from tiny_jina_bert import save_jina_bert
from tiny_llamas import save_long
from tiny_models import VOCAB_SIZE
from tiny_nomic import publish_nomic
from tiny_rotary import publish_gte, publish_jina
from torch import Tensor

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


Pool = Callable[[Tensor], Tensor]


def _rotary(
    architecture: str, example: str, kind: str, publish: Publish, pool: Pool, *, native: bool = False, **rest: Any
) -> SupportRow:
    make = published(publish, pool, native=native)
    return embed(architecture, example, make, kind=kind, rebuilt=False, **rest)


def _nomic(kind: str, *, factor: float | None = None, **rest: Any) -> SupportRow:
    publish = publish_nomic if factor is None else lambda: publish_nomic(factor=factor)
    return _rotary("NomicBertModel", NOMIC, kind, publish, _mean, finish="nothing", **rest)


def _deberta(architecture: str) -> Maker:
    return saved(
        lambda folder: save_deberta(folder, architecture, architecture),
        lambda folder: deberta_logits(folder, architecture),
    )


EMBED_ROWS = (
    embed(
        "BertModel", "BAAI/bge-base-en-v1.5", saved(save_classic("BertModel", "BertModel"), first(rows_of("BertModel")))
    ),
    decoder("Gemma2Model", "BAAI/bge-multilingual-gemma2"),
    decoder("LlamaModel", "samaya-ai/RepLLaMA-reproduced"),
    decoder("MistralModel", "intfloat/e5-mistral-7b-instruct"),
    decoder("Qwen2Model", "ssmits/Qwen2-7B-Instruct-embed-base"),
    embed(
        "Qwen2Model",
        "Alibaba-NLP/gte-Qwen2-7B-instruct",
        saved(lambda folder: save_long(folder, "Qwen2Model", is_causal=False), last(both_ways("Qwen2Model"))),
        kind="is_causal: false",
        packed=False,
    ),
    decoder("Qwen3Model", "Qwen/Qwen3-Embedding-0.6B"),
    _nomic("remote-code layout"),
    _nomic("native layout", native=True),
    _nomic("dynamic NTK", factor=2.0),
    _nomic(
        "dynamic NTK, native layout", factor=2.0, native=True, options={"hf_overrides": {"n_positions": MAX_LENGTH}}
    ),
    embed(
        "NomicBertModel",
        "nomic-ai/nomic-embed-text-v2-moe",
        make_nomic_moe,
        kind="experts",
        finish="nothing",
        oracle="numpy",
        rebuilt=False,
    ),
    embed(
        "ModernBertModel",
        "Alibaba-NLP/gte-modernbert-base",
        saved(lambda folder: save_long(folder, "ModernBertModel"), first(rows_of("ModernBertModel"))),
    ),
    _rotary("NewModel", GTE, "fixed NTK", publish_gte, _first),
    _rotary(
        "NewModel",
        "Alibaba-NLP/gte-base-en-v1.5",
        "no scaling, no token types",
        lambda: publish_gte(factor=None, type_vocab_size=0),
        _first,
    ),
    _rotary("GteModel", GTE, "native layout", publish_gte, _first, native=True),
    _rotary("XLMRobertaModel", JINA, "default adapter", lambda: publish_jina(task="text-matching"), _mean),
    _rotary(
        "XLMRobertaModel",
        JINA,
        "lora_task retrieval.query",
        lambda: publish_jina(task="retrieval.query"),
        _mean,
        options={"hf_overrides": {"lora_task": "retrieval.query"}},
    ),
    _rotary("JinaEmbeddingsV3Model", JINA, "native layout", publish_jina, _mean, native=True),
    embed("Gemma3TextModel", "google/embeddinggemma-300m", make_embeddinggemma),
    embed("LlamaBidirectionalModel", "nvidia/llama-nemotron-embed-1b-v2", make_bidirectional_llama(), packed=False),
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
    classifier("classify", "GPT2Model", "GPT2ForSequenceClassification", "nie3e/sentiment-polish-gpt2-small", labels=3),
    classifier(
        "classify",
        "BertModel",
        "BertForSequenceClassification",
        "nlptown/bert-base-multilingual-uncased-sentiment",
        labels=3,
    ),
    classifier(
        "classify",
        "RobertaModel",
        "RobertaForSequenceClassification",
        "cardiffnlp/twitter-roberta-base-sentiment",
        labels=3,
    ),
    classifier("classify", "Qwen2Model", "Qwen2ForSequenceClassification", "jason9693/Qwen2.5-1.5B-apeach", labels=2),
)

SCORE_ROWS = (
    SupportRow(
        task="score",
        architecture="DebertaV2ForSequenceClassification",
        example="mixedbread-ai/mxbai-rerank-base-v1",
        make=_deberta("DebertaV2ForSequenceClassification"),
        finish="sigmoid",
        packed=False,
    ),
    classifier("score", "BertModel", "BertForSequenceClassification", "cross-encoder/ms-marco-MiniLM-L-6-v2", labels=1),
    classifier(
        "score", "ElectraModel", "ElectraForSequenceClassification", "cross-encoder/ms-marco-electra-base", labels=1
    ),
    classifier("score", "XLMRobertaModel", "XLMRobertaForSequenceClassification", "BAAI/bge-reranker-v2-m3", labels=1),
    SupportRow(
        task="score",
        architecture="JinaBertForSequenceClassification",
        example="jinaai/jina-reranker-v1-turbo-en",
        make=lambda folder: save_jina_bert(folder, num_labels=1),
        finish="sigmoid",
        oracle="numpy",
        rebuilt=False,
    ),
    language_model("Qwen2", "Qwen2ForSequenceClassification", "mixedbread-ai/mxbai-rerank-base-v2"),
    language_model("Qwen3", "Qwen3ForSequenceClassification", "Qwen/Qwen3-Reranker-0.6B"),
    language_model("Gemma", "GemmaForSequenceClassification", "BAAI/bge-reranker-v2-gemma"),
    SupportRow(
        task="score",
        architecture="LlamaBidirectionalForSequenceClassification",
        example="nvidia/llama-nemotron-rerank-1b-v2",
        make=make_bidirectional_llama(1),
        finish="sigmoid",
        packed=False,
    ),
    classifier(
        "score",
        "ModernBertModel",
        "ModernBertForSequenceClassification",
        "Alibaba-NLP/gte-reranker-modernbert-base",
        labels=1,
    ),
    *(
        SupportRow(
            task="score",
            architecture=architecture,
            example=example,
            kind="native layout" if native else "remote-code layout",
            make=published(publish, native=native),
            finish="sigmoid",
            rebuilt=False,
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
    rewards("InternLM2ForRewardModel", "internlm/internlm2-1_8b-reward", make_internlm, oracle="numpy", rebuilt=False),
    process_reward("Llama", "a Llama fine-tuned as math-shepherd is"),
    process_reward("Mistral", "peiyi9979/math-shepherd-mistral-7b-prm"),
    rewards(
        "Qwen2ForRewardModel",
        "Qwen/Qwen2.5-Math-RM-72B",
        saved(save_rewards("Qwen2ForRewardModel", 1), reward_layers),
    ),
    rewards(
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
    colbert(
        "HF_ColBERT",
        "answerdotai/answerai-colbert-small-v1",
        saved(
            lambda folder: save_stanford(folder, {"query_maxlen": 32, "doc_maxlen": MAX_LENGTH}, max_length=MAX_LENGTH),
            projected(bert_of_colbert),
        ),
    ),
    colbert(
        "ColBERTModernBertModel",
        "lightonai/GTE-ModernColBERT-v1",
        saved(
            lambda folder: save_pylate(
                folder,
                PYLATE,
                build=partial(build_modern_backbone, 28),
                max_length=MAX_LENGTH,
                transformer={"max_seq_length": MAX_LENGTH},
            ),
            projected(rows_of("ModernBertModel")),
        ),
        options={"hf_overrides": {"architectures": ["ColBERTModernBertModel"]}},
    ),
    colbert(
        "ColBERTLfm2Model",
        "LiquidAI/LFM2-ColBERT-350M",
        saved(
            lambda folder: save_pylate(
                folder,
                PYLATE,
                build=build_lfm2,
                max_length=MAX_LENGTH,
                transformer={"max_seq_length": MAX_LENGTH},
            ),
            projected(rows_of("Lfm2Model")),
        ),
        packed=False,
        options={"hf_overrides": {"architectures": ["ColBERTLfm2Model"]}},
    ),
    colbert(
        "ColBERTJinaRobertaModel",
        "jinaai/jina-colbert-v2",
        make_jina_colbert(lambda: publish_jina("HF_ColBERT")),
        options={"hf_overrides": {"architectures": ["ColBERTJinaRobertaModel"]}},
    ),
)

TOKEN_ROWS = (
    tokens("BertModel", "boltuix/NeuroBERT-NER"),
    tokens("RobertaModel", "Jean-Baptiste/roberta-large-ner-english"),
    tokens("XLMRobertaModel", "Davlan/xlm-roberta-base-ner-hrl"),
    tokens("ModernBertModel", "disham993/electrical-ner-ModernBERT-base"),
    tokens("OpenAIPrivacyFilterModel", "openai/privacy-filter"),
)

SUPPORT_ROWS = (*EMBED_ROWS, *EMBEDDER_ROWS, *CLASSIFY_ROWS, *SCORE_ROWS, *REWARD_ROWS, *COLBERT_ROWS, *TOKEN_ROWS)
