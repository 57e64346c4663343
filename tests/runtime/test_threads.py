import pytest

from poolgraph.runtime.threads import Parallelism, choose_parallelism, count_runs


@pytest.mark.parametrize("cores", range(1, 65))
def test_never_more_threads_than_cores(cores):
    for num_batches in (1, 2, 3, cores // 2, cores, cores + 1, 10 * cores):
        for callers in (1, 2, 3, cores):
            share = choose_parallelism(max(1, num_batches), cores, callers=callers)
            assert share.threads in {1, cores}
            assert 1 <= share.runs <= max(1, num_batches)
            assert share.runs * share.threads <= cores


@pytest.mark.parametrize("cores", range(1, 65))
def test_lone_batch_gets_all_cores_and_many_batches_get_one_each(cores):
    assert choose_parallelism(1, cores) == Parallelism(runs=1, threads=cores)
    assert choose_parallelism(100, cores) == Parallelism(runs=min(100, cores), threads=1)


@pytest.mark.parametrize(
    ("num_batches", "cores", "expected"),
    [
        (2, 2, Parallelism(runs=2, threads=1)),
        (2, 4, Parallelism(runs=1, threads=4)),
        (3, 4, Parallelism(runs=3, threads=1)),
        (8, 16, Parallelism(runs=1, threads=16)),
        (9, 16, Parallelism(runs=9, threads=1)),
    ],
)
def test_few_batches_side_by_side_only_above_half_the_cores(num_batches, cores, expected):
    assert choose_parallelism(num_batches, cores) == expected


def test_callers_share_the_cores_on_one_thread_each():
    assert choose_parallelism(1, 8, callers=2) == Parallelism(runs=1, threads=1)
    assert choose_parallelism(100, 8, callers=2) == Parallelism(runs=4, threads=1)
    assert choose_parallelism(100, 8, callers=20) == Parallelism(runs=1, threads=1)


@pytest.mark.parametrize(("threads", "runs"), [(1, 8), (2, 4), (3, 2), (8, 1), (16, 1)])
def test_pinned_threads_keep_their_count(threads, runs):
    assert choose_parallelism(100, 8, pinned_threads=threads) == Parallelism(runs=runs, threads=threads)
    assert choose_parallelism(1, 8, pinned_threads=threads) == Parallelism(runs=1, threads=threads)


@pytest.mark.parametrize(
    ("num_batches", "cores", "callers", "tuned", "expected"),
    [
        (100, 8, 1, 2, Parallelism(runs=4, threads=2)),
        (4, 8, 1, 2, Parallelism(runs=4, threads=2)),
        (3, 8, 1, 2, Parallelism(runs=1, threads=8)),  # three runs of two threads would leave two cores idle
        (1, 8, 1, 2, Parallelism(runs=1, threads=8)),
        (100, 8, 4, 2, Parallelism(runs=1, threads=2)),
        (100, 8, 8, 2, Parallelism(runs=1, threads=1)),
        (100, 8, 1, 8, Parallelism(runs=1, threads=8)),
        (100, 7, 1, 2, Parallelism(runs=3, threads=2)),
    ],
)
def test_tuned_threads_are_taken_where_batches_fill_the_cores(num_batches, cores, callers, tuned, expected):
    assert choose_parallelism(num_batches, cores, callers=callers, tuned_threads=tuned) == expected


def test_threads_that_a_caller_pins_win_over_tuned_ones():
    chosen = choose_parallelism(100, 8, pinned_threads=4, tuned_threads=2)
    assert chosen == Parallelism(runs=2, threads=4)


@pytest.mark.parametrize("cores", range(1, 65))
def test_as_many_runs_are_planned_as_will_run(cores):
    for callers in (1, 2, cores):
        for tuned in (None, *range(1, cores + 1)):
            runs = count_runs(cores, callers=callers, tuned_threads=tuned)
            chosen = choose_parallelism(1000, cores, callers=callers, tuned_threads=tuned)
            assert chosen.runs == runs
            assert chosen.runs * chosen.threads * callers <= max(cores, callers)
