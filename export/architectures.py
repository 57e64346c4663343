"""The architecture table: one frozen row a backbone's class name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

PositionRule = Literal["absolute", "offset"]
"""absolute: from 0. offset: from pad_token_id + 1, padding tokens in the text not counted (the RoBERTa family)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What cannot be read from a checkpoint's own files.

    Attributes:
        family: The module ``arch_<family>.py`` that prepares the backbone for tracing.
        pooling: Pooling mode where no sentence-transformers file names one.
        positions: How position ids are counted.
        refused: Precisions that the model cannot run in, and why.
        expansion: Whether it is known what tokens that the others do not attend to change in it, as those that fill up
            a ColBERT model's queries.
    """

    family: str
    pooling: str
    positions: PositionRule = "absolute"
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    expansion: bool = True


NO_FP16 = MappingProxyType({"fp16": "its activations go beyond fp16's largest number, 65,504; bf16 and fp32 hold them"})
"""Gemma 2 and 3 (vLLM refuses fp16 for them, too)."""


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "BertModel": Architecture(family="interface", pooling="cls"),
        "RobertaModel": Architecture(family="interface", pooling="cls", positions="offset"),
        "XLMRobertaModel": Architecture(family="interface", pooling="cls", positions="offset"),
        "DistilBertModel": Architecture(family="interface", pooling="cls"),
        "MPNetModel": Architecture(family="mpnet", pooling="cls", positions="offset"),
        "DebertaV2Model": Architecture(family="deberta", pooling="cls"),
        "AlbertModel": Architecture(family="interface", pooling="cls"),
        "ElectraModel": Architecture(family="interface", pooling="cls"),
        "T5EncoderModel": Architecture(family="t5", pooling="mean"),
        "MT5EncoderModel": Architecture(family="t5", pooling="mean"),
        "UMT5EncoderModel": Architecture(family="t5", pooling="mean"),
        "ModernBertModel": Architecture(family="interface", pooling="cls"),
        "GteModel": Architecture(family="interface", pooling="cls"),
        "JinaEmbeddingsV3Model": Architecture(family="interface", pooling="mean"),
        "JinaBertModel": Architecture(family="jina_bert", pooling="mean"),
        "NomicBertModel": Architecture(family="interface", pooling="cls"),
        "NomicBertMoeModel": Architecture(family="nomic_moe", pooling="cls"),
        "EuroBertModel": Architecture(family="interface", pooling="mean"),
        "Lfm2BidirectionalModel": Architecture(family="lfm2", pooling="cls", expansion=False),
        "OpenAIPrivacyFilterModel": Architecture(family="interface", pooling="cls"),
        "GPTNeoModel": Architecture(family="gpt_neo", pooling="lasttoken"),
        "GPT2Model": Architecture(family="interface", pooling="lasttoken"),
        "GemmaModel": Architecture(family="interface", pooling="lasttoken"),
        "Gemma2Model": Architecture(family="interface", pooling="lasttoken", refused=NO_FP16),
        "Gemma3TextModel": Architecture(family="interface", pooling="lasttoken", refused=NO_FP16),
        "JambaModel": Architecture(family="jamba", pooling="lasttoken"),
        "Lfm2Model": Architecture(family="lfm2", pooling="lasttoken"),
        "LlamaModel": Architecture(family="interface", pooling="lasttoken"),
        "MistralModel": Architecture(family="interface", pooling="lasttoken"),
        "Qwen2Model": Architecture(family="interface", pooling="lasttoken"),
        "Qwen3Model": Architecture(family="interface", pooling="lasttoken"),
        "Qwen3MoeModel": Architecture(family="interface", pooling="lasttoken"),
        "DeepseekV3Model": Architecture(family="deepseek", pooling="lasttoken"),
    }
)
"""Default pooling: vLLM's class defaults (CLS for the BERT and RoBERTa families, LAST for decoders)."""

COUNTED_POSITIONS = frozenset(
    {
        "CamembertModel",
        "Data2VecTextModel",
        "EsmModel",
        "IBertModel",
        "LukeModel",
        "RobertaPreLayerNormModel",
        "XLMRobertaXLModel",
        "XmodModel",
    }
)
"""Classes without a row whose positions are counted as RoBERTa's."""

_NEIGHBOURS = "mixes each token with its neighbours, padding among them, so that a text's answer depends on its batch"
_RECURRENT = "has recurrent layers whose scan is not compiled; Jamba's is"
_FIXED = "cuts sequences into pieces of a fixed length, which no graph for all lengths can"
_LENGTHS = "checks the lengths of texts while it runs, by padding tokens among their ids"

REFUSED_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "ConvBertModel": _NEIGHBOURS,
        "DeepseekV2Model": "rotates queries and keys by complex numbers, which are not traced; DeepSeek V3's are real",
        "FNetModel": "mixes tokens by a Fourier transform over the whole sequence, padding among them",
        "FunnelBaseModel": _FIXED,
        "FunnelModel": _FIXED,
        "JinaForRanking": "ranks a list of documents, all of them in one prompt; poolgraph scores pairs",
        "LongformerModel": _FIXED,
        "Mamba2Model": _RECURRENT,
        "MambaModel": _RECURRENT,
        "MobileBertModel": _NEIGHBOURS,
        "MptModel": "cuts its bias by distance out of a table where the text's length says, which is not traced",
        "NystromformerModel": _FIXED,
        "Qwen3NextModel": _RECURRENT,
        "Qwen3_5TextModel": _RECURRENT,
        "RoFormerModel": "counts positions from the batch's first column, so that padding on the left moves a text",
        "FlaubertModel": _LENGTHS,
        "XLMModel": _LENGTHS,
        "XLNetModel": "lays relative positions out by a shift that is not traced for all lengths",
    }
)
"""Classes, and names in ``architectures``, that are known not to be right here, and why."""
