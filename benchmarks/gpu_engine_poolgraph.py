"""poolgraph: the artifact's variant as its users load it, with buckets for the lengths that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gpu_engines import Engine, Job, Rows
from gpu_models import MAX_SEQ_LENGTH
from gpu_workloads import Ids

from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.tokenizer import EncodedText


def load(job: Job, *, variant: str | None = None, cuda_graphs: bool = True) -> Engine:
    options: dict[str, Any] = {"provider": job.device}
    if job.device == "cuda":
        options |= {"variant": variant, "cuda_graphs": cuda_graphs, "allow_unverified": True}
        options["buckets"] = plan_buckets(job, "packed" if "packed" in str(variant) else "padded")
    model = PoolingModel.load(job.artifact_dir, **options)
    has_types = any(tensor.name == "token_type_ids" for tensor in model.variant.graphs["sequence"].inputs)

    def answer(ids: Sequence[Ids]) -> Rows:
        types = [np.zeros_like(row) if has_types else None for row in ids]
        encoded = [EncodedText(input_ids=row, token_type_ids=kind) for row, kind in zip(ids, types, strict=True)]
        return model._executor.run_sequence(encoded)

    buckets = options.get("buckets", ())
    return Engine(
        answer=answer,
        embed=lambda texts: np.asarray(model.embed(texts, normalize=False)),
        note=f"{model.variant.name} on {model.provider}, {len(buckets)} buckets",
    )


def plan_buckets(job: Job, layout: str) -> list[Any]:
    """Return a bucket for each workload of one length, and what the planner proposes for the mixed one."""
    from poolgraph.runtime import bucket_planner
    from poolgraph.runtime.buckets import Bucket, order_buckets, packed_bucket, round_length

    buckets = []
    for workload in job.workloads:
        longest, count = round_length(max(workload.lengths)), len(workload.ids)
        if workload.is_one_shape:
            count = min(count, bucket_planner.MAX_BUCKET_TOKENS // longest)
            is_packed = layout == "packed"
            buckets.append(
                packed_bucket(count * longest, longest, count)
                if is_packed
                else Bucket(max_length=longest, batch_size=count)
            )
        else:
            budget = bucket_planner.BucketBudget(max_model_len=MAX_SEQ_LENGTH)
            histogram = bucket_planner.count_lengths(workload.lengths, MAX_SEQ_LENGTH)
            buckets.extend(bucket_planner.plan_buckets(budget, layout, histogram))
    return list(order_buckets(buckets))
