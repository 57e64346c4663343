"""transformers on torch: padded with SDPA or flash_attention_2, unpadded with torch's variable-length flash attention.

Padded batches hold texts of about one length, as careful users build them; ids go to the device and pooled answers come
back within what is timed. Without padding, texts stand end to end in one row, and attention is told where each begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from gpu_engines import Engine, Job, Rows
from gpu_models import MODELS
from gpu_workloads import Ids, pad, plan_packed, plan_padded
from torch import Tensor
from transformers import AttentionInterface, AutoModel

UNPADDED = "benchmark_unpadded"
_BOUNDS: list[Tensor] = []
"""Where the texts of the row under way begin, (num_texts + 1,) int32 on the device; and the longest, on the host."""
_LONGEST: list[int] = []


def load(job: Job, *, dtype: str, way: str = "padded", attention: str = "sdpa") -> Engine:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if way == "unpadded":
        AttentionInterface.register(UNPADDED, _unpadded_attention)
        attention = UNPADDED
    model = AutoModel.from_pretrained(job.checkpoint_dir, dtype=getattr(torch, dtype), attn_implementation=attention)
    model = model.to(job.device).eval()
    pooling = MODELS[job.model].pooling
    if way == "compiled":
        model = torch.compile(model, mode="reduce-overhead")
    run = _run_unpadded if way == "unpadded" else _run_padded
    plan = plan_packed if way == "unpadded" else plan_padded

    @torch.inference_mode()
    def answer(ids: Sequence[Ids]) -> Rows:
        parts = [(batch, run(model, [ids[row] for row in batch], job.device, pooling)) for batch in plan_of(ids)]
        rows = torch.empty(len(ids), parts[0][1].shape[1])
        for batch, part in parts:
            rows[torch.from_numpy(batch)] = part.float().cpu()
        return rows.numpy()

    def plan_of(ids: Sequence[Ids]) -> list[Any]:
        return list(plan([len(row) for row in ids]))

    embed = _load_sentence_transformer(job, dtype) if way == "padded" and attention == "sdpa" else None
    return Engine(answer=answer, embed=embed, note=f"torch {torch.__version__}, {attention}")


def _load_sentence_transformer(job: Job, dtype: str) -> Callable[[Sequence[str]], Rows] | None:
    """Return sentence-transformers' ``encode``, which is what runs a checkpoint from strings; loaded on first use."""
    loaded: list[Any] = []

    def embed(texts: Sequence[str]) -> Rows:
        from sentence_transformers import SentenceTransformer

        if not loaded:
            options = {"dtype": getattr(torch, dtype)}
            model: Any = SentenceTransformer(str(job.checkpoint_dir), device=job.device, model_kwargs=options)
            del model[-1]  # the norm, of which cosines know nothing
            loaded.append(model)
        rows: Rows = loaded[0].encode(list(texts), batch_size=32, show_progress_bar=False, convert_to_numpy=True)
        return rows

    return embed


def _run_padded(model: Any, rows: Sequence[Ids], device: str, pooling: str) -> Tensor:
    input_ids, mask = (torch.from_numpy(array).to(device, non_blocking=True) for array in pad(rows))
    hidden = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
    if pooling == "cls_token":
        return hidden[:, 0]
    lengths = mask.sum(1)
    if pooling == "lasttoken":
        return hidden[torch.arange(len(hidden), device=device), lengths - 1]
    summed = (hidden.float() * mask[..., None]).sum(1)
    return summed / lengths[:, None]


def _run_unpadded(model: Any, rows: Sequence[Ids], device: str, pooling: str) -> Tensor:
    lengths = torch.tensor([len(row) for row in rows])
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32, non_blocking=True)
    input_ids = torch.cat([torch.from_numpy(row) for row in rows]).to(device, non_blocking=True)
    positions = torch.cat([torch.arange(len(row)) for row in rows]).to(device, non_blocking=True)
    _BOUNDS[:], _LONGEST[:] = [bounds], [int(lengths.max())]
    inputs = {"input_ids": input_ids[None], "position_ids": positions[None]}
    if hasattr(model.config, "type_vocab_size"):
        # BERT makes them by itself for its longest text alone.
        inputs["token_type_ids"] = torch.zeros_like(input_ids)[None]
    hidden = model(**inputs).last_hidden_state[0]
    starts, ends = bounds[:-1].long(), bounds[1:].long()
    if pooling == "cls_token":
        return hidden[starts]
    if pooling == "lasttoken":
        return hidden[ends - 1]
    sums = torch.zeros(len(rows), hidden.shape[1], device=device, dtype=torch.float32)
    text = torch.repeat_interleave(torch.arange(len(rows), device=device), ends - starts, output_size=len(hidden))
    return sums.index_add_(0, text, hidden.float()) / (ends - starts)[:, None]


def _unpadded_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **_others: Any,
) -> tuple[Tensor, None]:
    """Adapt transformers' (1, num_heads, num_tokens, head_dim) to texts of which each sees its own tokens alone."""
    causal = module.is_causal if is_causal is None else is_causal
    reach = -1 if sliding_window is None else sliding_window - 1
    window = (reach, 0 if causal else reach)
    rows = [it[0].transpose(0, 1) for it in (query, key, value)]
    attend = _varlen if query.is_cuda else _one_by_one
    return attend(rows, window, scaling)[None], None


def _varlen(rows: Sequence[Tensor], window: tuple[int, int], scaling: float | None) -> Tensor:
    """torch's varlen_attn, whose parameters differ by version: older ones want ``is_causal`` and repeated heads."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    query, key, value = (it.contiguous() for it in rows)
    options: dict[str, Any] = {"scale": scaling} if "scale" in known else {}
    if "scale" not in known and scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    if "enable_gqa" in known:
        options["enable_gqa"] = key.shape[1] != query.shape[1]
    else:
        key, value = (it.repeat_interleave(query.shape[1] // it.shape[1], 1) for it in (key, value))
    if "window_size" in known:
        options["window_size"] = window
    elif window in ((-1, -1), (-1, 0)):
        options["is_causal"] = window == (-1, 0)
    else:
        raise NotImplementedError(f"varlen_attn of torch {torch.__version__} has no windows")
    result: Tensor = varlen_attn(query, key, value, _BOUNDS[0], _BOUNDS[0], _LONGEST[0], _LONGEST[0], **options)
    return result


def _one_by_one(rows: Sequence[Tensor], window: tuple[int, int], scaling: float | None) -> Tensor:
    """The same a text at a time, to try the benchmark on a CPU."""
    bounds = _BOUNDS[0].tolist()
    parts = []
    for start, end in pairwise(bounds):
        query, key, value = (it[start:end].transpose(0, 1) for it in rows)
        distance = torch.arange(end - start)[None] - torch.arange(end - start)[:, None]
        left, right = (end if side < 0 else side for side in window)
        seen = (distance >= -left) & (distance <= right)
        shared = key.shape[0] != query.shape[0]
        part = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=scaling, enable_gqa=shared
        )
        parts.append(part.transpose(0, 1))
    return torch.cat(parts)
