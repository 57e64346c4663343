"""What ``poolgraph plan`` says of the two layouts."""

from types import SimpleNamespace

import numpy as np
import pytest

from poolgraph.graphs.manifest import Variant
from poolgraph.runtime.bucket_planner import BucketBudget
from poolgraph.runtime.bucket_report import advise_layout, plan_report

BUDGET = BucketBudget(max_model_len=512)


CUDA = {"target": "cuda", "precision": "fp16", "providers": ("CUDAExecutionProvider",), "graphs": {}}
MANIFEST = SimpleNamespace(
    variants=(
        Variant(name="portable_fp32", layout="padded", **{**CUDA, "providers": ("CPUExecutionProvider",)}),
        Variant(name="own_packed_fp16", layout="packed", **CUDA),
        Variant(name="own_fp16", layout="padded", **CUDA),
        Variant(name="own_bf16", layout="padded", **CUDA),
    )
)


def mixed(count):
    lengths = np.random.default_rng(0).lognormal(np.log(90), 0.9, count)
    return np.clip(lengths.round(), 8, 512).astype(int).tolist()


@pytest.mark.parametrize(
    ("lengths", "advice"),
    [([512] * 512, "load(variant='own_fp16')"), (mixed(200), "packed is the default")],
    ids=["of one length", "a few of many lengths"],
)
def test_the_layout_that_is_likely_faster(lengths, advice):
    reports = [plan_report(lengths, BUDGET, layout) for layout in ("padded", "packed")]
    assert advice in advise_layout(reports, MANIFEST)
    assert advise_layout(reports, MANIFEST) == advise_layout(reports[::-1], MANIFEST)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_one_layout_is_no_choice(layout):
    assert advise_layout([plan_report([5, 9], BUDGET, layout)], MANIFEST) is None
