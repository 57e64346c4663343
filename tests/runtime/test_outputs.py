import numpy as np
import pytest

from poolgraph.runtime.late_chunking import plan_chunks
from poolgraph.runtime.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)


def answer(data) -> PoolingRequestOutput[PoolingOutput]:
    data = np.asarray(data, dtype=np.float32)
    return PoolingRequestOutput("3", PoolingOutput(data), [2, 5, 3], 0, True, num_truncated_tokens=7)


def test_embedding_is_the_array_as_a_list_made_once():
    base = answer([0.1, 0.2])
    output = EmbeddingRequestOutput.from_base(base)
    assert output.outputs.embedding == base.outputs.data.tolist()
    assert output.outputs.embedding is output.outputs.embedding
    assert type(output.outputs.embedding[0]) is float
    assert output.outputs.data is base.outputs.data
    assert output.outputs.hidden_size == 2


@pytest.mark.parametrize("kind", [EmbeddingRequestOutput, ClassificationRequestOutput])
def test_from_base_keeps_all_fields(kind):
    output = kind.from_base(answer([0.1, 0.2]))
    assert isinstance(output, kind)
    assert isinstance(output, PoolingRequestOutput)
    assert (output.request_id, output.prompt_token_ids, output.num_cached_tokens) == ("3", [2, 5, 3], 0)
    assert (output.finished, output.num_truncated_tokens) == (True, 7)


def test_probabilities_are_a_list():
    output = ClassificationRequestOutput.from_base(answer([0.25, 0.75])).outputs
    assert (output.probs, output.num_classes) == ([0.25, 0.75], 2)


@pytest.mark.parametrize("data", [0.5, [0.5], [[0.5]]])
def test_score_is_one_number(data):
    output = ScoringRequestOutput.from_base(answer(data))
    assert output.outputs == ScoringOutput(0.5)
    assert type(output.outputs.score) is float


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (EmbeddingRequestOutput, [[1, 2]], "pooled_data should be a 1-D embedding vector"),
        (ClassificationRequestOutput, 1, "pooled_data should be a 1-D probability vector"),
        (ScoringRequestOutput, [1, 2], "pooled_data should be a scalar score"),
    ],
)
def test_from_base_refuses_other_shapes(kind, data, message):
    with pytest.raises(ValueError, match=message):
        kind.from_base(answer(data))


def test_reprs_hide_the_payload():
    data = np.zeros(384, dtype=np.float32)
    assert repr(EmbeddingOutput(data)) == "EmbeddingOutput(hidden_size=384)"
    assert repr(ClassificationOutput(data)) == "ClassificationOutput(num_classes=384)"
    assert repr(ScoringOutput(0.5)) == "ScoringOutput(score=0.5)"
    assert repr(EmbeddingRequestOutput.from_base(answer([1, 2]))) == (
        "EmbeddingRequestOutput(request_id='3', outputs=EmbeddingOutput(hidden_size=2), prompt_token_ids=[2, 5, 3], "
        "num_cached_tokens=0, finished=True, num_truncated_tokens=7)"
    )


def test_chunks_are_kept_and_there_is_never_an_error():
    chunks = plan_chunks(3, 2)
    base = PoolingRequestOutput("3", PoolingOutput(np.ones(2)), [2, 5, 3], late_chunking=chunks)
    assert EmbeddingRequestOutput.from_base(base).late_chunking is chunks
    assert (base.error, answer([1.0]).late_chunking) == (None, None)


def test_outputs_are_equal_by_content():
    assert answer([1, 2]) == answer([1, 2])
    assert answer([1, 2]) != answer([1, 3])
    assert EmbeddingOutput(np.ones(2)) != ClassificationOutput(np.ones(2))
