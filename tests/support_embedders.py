"""The support table's rows of masked language models, encoders without a decoder, and decoders made to embed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from architecture_graphs import TextOracle
from head_oracles import logits_of
from support_oracles import OFFSET_FAMILY, Maker, first, last, mean, rows_of, save_classic, saved
from support_row import SupportRow, decoder, embed
from tiny_bge_m3 import OVERRIDES, add_layers
from tiny_embedders import save_giga, save_jina_v5, save_lfm2, save_t5, save_voyage
from tiny_jina_bert import save_jina_bert
from tiny_llamas import save_long


def _masked(family: str) -> Maker:
    backbone = f"{family}Model"
    assert backbone in OFFSET_FAMILY or family == "Bert"
    return saved(save_classic(backbone, f"{family}ForMaskedLM"), first(rows_of(backbone)))


def _jina(size: str, backbone: str, task: str, kind: str) -> SupportRow:
    return embed(
        "JinaEmbeddingsV5Model",
        f"jinaai/jina-embeddings-v5-text-{size}",
        partial(save_jina_v5, name=backbone, task=task),
        kind=kind,
        packed=size == "nano",
        rebuilt=False,
        options={} if task == "retrieval" else {"hf_overrides": {"jina_task": task}},
    )


def _weights_of_words(folder: Path) -> TextOracle:
    """SPLADE of a masked language model of transformers."""
    scores = saved(save_classic("BertModel", "BertForMaskedLM"), logits_of("BertForMaskedLM"))(folder)
    return lambda inputs: scores(inputs).relu().log1p().amax(0)


def _bge_m3(folder: Path) -> TextOracle:
    backbone = "XLMRobertaModel"
    oracle = saved(save_classic(backbone, backbone), first(rows_of(backbone)))(folder)
    add_layers(folder)
    return oracle


EMBEDDER_ROWS = (
    embed("BertForMaskedLM", "google-bert/bert-base-uncased", _masked("Bert")),
    embed(
        "BertSpladeSparseEmbeddingModel",
        "naver/splade-v3",
        _weights_of_words,
        finish="nothing",
        packed=False,
        options={"hf_overrides": {"architectures": ["BertSpladeSparseEmbeddingModel"]}},
    ),
    embed("BgeM3EmbeddingModel", "BAAI/bge-m3", _bge_m3, options={"hf_overrides": OVERRIDES}),
    embed("RobertaForMaskedLM", "FacebookAI/roberta-base", _masked("Roberta")),
    embed(
        "AlbertModel",
        "sentence-transformers/paraphrase-albert-small-v2",
        saved(save_classic("AlbertModel", "AlbertModel"), first(rows_of("AlbertModel"))),
    ),
    embed(
        "EuroBertForMaskedLM",
        "EuroBERT/EuroBERT-210m",
        saved(lambda folder: save_long(folder, "EuroBertModel", "EuroBertForMaskedLM"), mean(rows_of("EuroBertModel"))),
    ),
    embed(
        "JinaBertForMaskedLM",
        "jinaai/jina-embeddings-v2-base-en",
        save_jina_bert,
        oracle="numpy",
        rebuilt=False,
    ),
    embed(
        "JinaBertForMaskedLM",
        "jinaai/jina-embeddings-v2-base-code",
        partial(save_jina_bert, post_norm=True),
        kind="qk-post-norm",
        oracle="numpy",
        rebuilt=False,
    ),
    embed("T5EncoderModel", "sentence-transformers/sentence-t5-base", save_t5, rebuilt=False),
    embed("UMT5EncoderModel", "google/umt5-base", partial(save_t5, family="UMT5"), rebuilt=False),
    embed("VoyageQwen3BidirectionalEmbedModel", "voyageai/voyage-4-nano", save_voyage, packed=False),
    _jina("small", "Qwen3Model", "retrieval", "Qwen3"),
    _jina("small", "Qwen3Model", "text-matching", "jina_task text-matching"),
    _jina("nano", "EuroBertModel", "retrieval", "EuroBERT"),
    embed("Lfm2BidirectionalModel", "LiquidAI/LFM2.5-Embedding-350M", save_lfm2, oracle="torch"),
    decoder("Lfm2Model", "LiquidAI/LFM2-350M"),
    embed("DeepseekV3BidirectionalModel", "ai-sage/Giga-Embeddings-instruct-10B-A1.8B", save_giga, packed=False),
    embed(
        "GPTNeoModel",
        "Muennighoff/SGPT-125M-weightedmean-nli-bitfit",
        saved(save_classic("GPTNeoModel", "GPTNeoModel"), last(rows_of("GPTNeoModel"))),
        packed=False,
    ),
    decoder("Qwen3MoeModel", "Qwen/Qwen3-30B-A3B"),
)
