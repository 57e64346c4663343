from itertools import count

import numpy as np
import pytest

from poolgraph.errors import SessionError
from poolgraph.runtime.model_arguments import ModelArguments, load_runner
from poolgraph.runtime.prompts import parse_prompts
from poolgraph.runtime.requests import read_options
from poolgraph.runtime.score_request import plan_score_request
from poolgraph.runtime.score_requests import answer_scores
from poolgraph.runtime.work import Finished, Run, advance, drive


@pytest.fixture
def runner(artifact):
    return load_runner(ModelArguments(model=artifact))


def options(**changes):
    given = {"pooling_params": None, "use_tqdm": False, "lora_request": None, "tokenization_kwargs": None}
    return read_options(truncate_prompt_tokens=None, **given | changes)


def test_a_request_asks_for_a_run_and_finishes_what_it_is_sent(runner):
    work = runner.answer_prompts(parse_prompts(["w1", "w2 w3"]), "embed", options(), count(7))
    run = advance(work, None)
    assert isinstance(run, Run)
    assert (run.family, [text.input_ids.tolist() for text in run.encoded]) == ("sequence", [[2, 5, 3], [2, 6, 7, 3]])
    step = advance(work, np.array([[3.0, 4, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 2]], dtype=np.float32))
    assert isinstance(step, Finished)
    assert [output.request_id for output in step.result] == ["7", "8"]
    np.testing.assert_allclose(step.result[0].outputs.data[:2], [0.6, 0.8], rtol=1e-6)


def test_tokens_are_asked_of_the_token_graph(runner):
    step = advance(runner.answer_prompts(["w1"], "token_embed", options(), count()), None)
    assert step.family == "token"


def test_a_score_is_a_request_too(runner):
    request = plan_score_request(runner, ["w1"], ["w2", "w1"], options(), None)
    outputs = drive(runner.model, answer_scores(runner, request, count()))
    assert outputs[1].outputs.score == pytest.approx(1)
    assert outputs[0].outputs.score < 1


def test_nothing_happens_before_the_first_step(runner):
    runner.answer_prompts(["w1"], "no task", options(), count()).close()


def test_a_failed_run_closes_the_request(runner):
    closed = []

    def work():
        try:
            yield Run(family="sequence", encoded=runner.tokenizer.encode(["nan"]))
        finally:
            closed.append(True)

    with pytest.raises(SessionError, match="NaN"):
        drive(runner.model, work())
    assert closed == [True]
