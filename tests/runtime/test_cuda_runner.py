"""On a CUDA device (``pytest -m gpu``): captured graphs, flat memory, providers, beside the tests of the runner that
``devices.py`` runs there too.
"""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from bound_graphs import build_variant, random_texts, reference

from poolgraph.runtime.bound_executor import BoundExecutor
from poolgraph.runtime.bucket_planner import BucketBudget, plan_buckets
from poolgraph.runtime.buckets import Bucket
from poolgraph.runtime.doctor import examine
from poolgraph.runtime.provider_options import ProviderSettings
from poolgraph.runtime.session import SessionPool

pytestmark = pytest.mark.gpu

CUDA = "CUDAExecutionProvider"
BUDGET = BucketBudget(max_model_len=64, max_graphs=8, max_batch_tokens=1024)


@pytest.fixture(params=["padded", "packed"])
def executor(request, tmp_path):
    """An executor with CUDA graphs, warmed up."""
    variant = build_variant(tmp_path, request.param, (CUDA,))
    buckets = plan_buckets(BUDGET, request.param)
    sessions = SessionPool(
        directory=tmp_path, variant=variant, provider=CUDA, settings=ProviderSettings(buckets=buckets)
    )
    made = BoundExecutor(sessions=sessions, buckets=buckets, device="cuda", pad_token_id=0, uses_graphs=True)
    made.warm_up("sequence")
    yield made
    made.close()


def used_mib():
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout.split()[0])


def lengths(count, seed):
    return np.random.default_rng(seed).integers(1, 65, count).tolist()


def check(executor, seed, count=200):
    texts = random_texts(lengths(count, seed), seed)
    np.testing.assert_allclose(executor.run_sequence(texts), [reference(text) for text in texts], atol=1e-4)


def test_every_planned_bucket_has_its_graph_and_replays_it(executor):
    pool = executor._pools["sequence"]
    assert all(slot.captured for slot in pool._idle)
    for seed in range(5):
        check(executor, seed)


def test_memory_is_flat_once_the_model_is_warm(executor):
    check(executor, 0)
    before = used_mib()
    for seed in range(50):
        check(executor, seed, count=1 + seed * 7)
    assert used_mib() <= before + 2


def test_other_threads_copy_while_graphs_are_captured(executor):
    """The token graph's buckets are captured on first use, while other calls stage and fetch."""
    failures = []

    def call(seed):
        try:
            for step in range(4):
                check(executor, 10 * seed + step)
                executor.run_token(random_texts(lengths(60, seed), seed))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_bucket_beyond_the_memory_limit_is_split(tmp_path):
    variant = build_variant(tmp_path, "padded", (CUDA,))
    # The rows of the large bucket take 256 MiB an operator, those of its quarter fit.
    buckets = (Bucket(max_length=4096, batch_size=2048),)
    sessions = SessionPool(
        directory=tmp_path,
        variant=variant,
        provider=CUDA,
        settings=ProviderSettings(buckets=buckets, uses_graphs=False, gpu_mem_limit=512 << 20),
    )
    executor = BoundExecutor(sessions=sessions, buckets=buckets, device="cuda", pad_token_id=0, uses_graphs=False)
    texts = random_texts([4096] + [8] * 600)
    with pytest.warns(UserWarning, match="no memory is left for the bucket 2048x4096"):
        found = executor.run_sequence(texts)
    np.testing.assert_allclose(found, [reference(text) for text in texts], atol=1e-4)
    executor.close()


def test_the_doctor_finds_cuda_and_the_fast_kernel():
    report = examine()
    assert report.provider == CUDA
    assert report.cuda.cudnn is not None
    assert report.cuda.attention is not None
    assert report.cuda.attention.is_fast, report.cuda.attention.reason


def test_a_process_that_only_loads_and_answers_ends_well():
    code = "from poolgraph.runtime.doctor import examine; print(examine().cuda.attention.kernel)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
