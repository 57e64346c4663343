import threading
import time

import pytest

from poolgraph.runtime.pipeline import CallCounter, encode_windows, plan_windows, run_ahead, run_side_by_side


@pytest.mark.parametrize(
    ("num_items", "first", "most", "sizes"),
    [
        (0, 3, 4, []),
        (1, 3, 4, [1]),
        (3, 3, 4, [3]),
        (30, 2, 8, [2, 4, 8, 8, 8]),
        (9, 4, 4, [4, 4, 1]),
        (20, 3, 8, [3, 6, 8, 3]),
    ],
)
def test_windows_grow(num_items, first, most, sizes):
    bounds = plan_windows(num_items, first, most)
    assert [stop - start for start, stop in bounds] == sizes
    assert [start for start, _ in bounds] == [sum(sizes[:place]) for place in range(len(sizes))]


def test_a_first_window_is_yielded_before_the_others_are_tokenized():
    def encode(items, *, first_index):
        return list(items)

    windows = list(encode_windows(list(range(11)), encode, 2, window=6))
    assert windows == [(0, [0, 1]), (2, [2, 3, 4, 5]), (6, [6, 7, 8, 9, 10])]


@pytest.mark.parametrize("runs", [1, 2, 5])
@pytest.mark.parametrize("num_items", [0, 1, 2, 40])
def test_every_item_runs_once(runs, num_items):
    done = []
    run_side_by_side(range(num_items), done.append, runs=runs)
    assert sorted(done) == list(range(num_items))


def test_runs_overlap():
    barrier = threading.Barrier(3, timeout=10)
    run_side_by_side(range(3), lambda _item: barrier.wait(), runs=3)


@pytest.mark.parametrize(("runs", "num_items"), [(1, 5), (4, 1)])
def test_one_run_starts_no_thread(runs, num_items):
    threads = set()
    run_side_by_side(range(num_items), lambda _item: threads.add(threading.current_thread()), runs=runs)
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("in_caller", [True, False])
def test_an_error_stops_the_rest(error, in_caller):
    caller, done = threading.current_thread(), []

    def run(item):
        if (threading.current_thread() is caller) is in_caller:
            raise error
        time.sleep(0.002)
        done.append(item)

    with pytest.raises(error):
        run_side_by_side(range(1000), run, runs=2)
    assert len(done) < 500
    assert not any("poolgraph" in t.name for t in threading.enumerate())


def test_windows_come_in_order_and_bounded():
    held, most = set(), []

    def encode(texts, *, first_index):
        held.add(first_index)
        most.append(len(held))
        return [(first_index + offset, text) for offset, text in enumerate(texts)]

    texts = [str(number) for number in range(103)]
    seen = []
    for first, window in encode_windows(texts, encode, window=10):
        assert first == len(seen)
        seen += window
        held.discard(first)
    assert seen == list(enumerate(texts))
    assert max(most) <= 2


def test_the_next_window_is_tokenized_meanwhile():
    started = threading.Event()

    def encode(texts, *, first_index):
        if first_index:
            started.set()
        return list(texts)

    windows = encode_windows(["a"] * 4, encode, window=2)
    next(windows)
    assert started.wait(10)
    windows.close()


def test_one_window_stays_in_the_calling_thread():
    threads = []

    def encode(texts, *, first_index):
        threads.append(threading.current_thread())
        return list(texts)

    assert list(encode_windows(["a", "b"], encode, window=2)) == [(0, ["a", "b"])]
    assert threads == [threading.current_thread()]


def test_an_error_of_a_later_window_arrives():
    def encode(texts, *, first_index):
        if first_index:
            raise ValueError("second")
        return list(texts)

    with pytest.raises(ValueError, match="second"):
        list(encode_windows(["a"] * 4, encode, window=2))


def test_calls_are_counted():
    calls = CallCounter()
    assert (calls.enter(), calls.enter()) == (1, 2)
    calls.leave()
    assert calls.enter() == 2


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_answers_come_in_order_however_many_windows_run_ahead(ahead):
    threads = set()

    def run(window, _stopped):
        threads.add(threading.current_thread())
        time.sleep(0.003 * (window % 3))
        return window * window

    assert list(run_ahead(range(9), run, ahead=ahead)) == [(window, window * window) for window in range(9)]
    assert (threading.current_thread() in threads) == (ahead == 0)


def test_the_next_window_runs_while_the_caller_thinks():
    started = threading.Event()

    def run(window, _stopped):
        if window == 1:
            started.set()
        return window

    answers = run_ahead(range(3), run, ahead=1)
    assert next(answers) == (0, 0)
    assert started.wait(10)
    answers.close()


def test_no_more_windows_are_taken_than_run():
    taken = []

    def windows():
        for window in range(9):
            taken.append(window)
            yield window

    for window, _ in run_ahead(windows(), lambda window, _stopped: window, ahead=1):
        assert len(taken) <= window + 2


def test_an_error_of_a_window_that_runs_ahead_arrives_behind_the_answers_before_it():
    def run(window, _stopped):
        if window == 2:
            raise ValueError("third")
        return window

    seen = []
    with pytest.raises(ValueError, match="third"):
        seen.extend(window for window, _ in run_ahead(range(9), run, ahead=1))
    answers = run_ahead(range(9), run, ahead=1)
    assert [next(answers)[0], next(answers)[0]] == [0, 1]
    with pytest.raises(ValueError, match="third"):
        next(answers)


def test_windows_that_run_ahead_are_told_when_the_caller_stops_and_have_ended():
    running = []

    def run(window, stopped):
        running.append(window)
        if window:
            assert stopped.wait(10)
        running.remove(window)
        return window

    answers = run_ahead(range(9), run, ahead=1)
    next(answers)
    answers.close()
    assert running == []
