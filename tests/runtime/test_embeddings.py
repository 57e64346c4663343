import numpy as np
import pytest

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Limits, Manifest, Pooler, Report, Source, Tokenization
from poolgraph.runtime.embeddings import at_token_width, check_dimensions, choose_norm, finish_embeddings


def manifest(**pooler):
    return Manifest(
        poolgraph_version="0",
        created="",
        source=Source(model="m", revision=None, content_hash=""),
        architecture="A",
        tasks=("embed",),
        default_task="embed",
        pooler=Pooler(pooling=("mean",), embedding_size=64, **pooler),
        limits=Limits(max_model_len=8, vocab_size=9),
        tokenization=Tokenization(pad_token_id=0),
        variants=(),
        report=Report(reference=""),
        files={},
    )


@pytest.mark.parametrize(
    ("pooler", "dimensions", "message"),
    [
        (
            {},
            32,
            "Model 'M' does not support Matryoshka embeddings; dimensions must be unset (received dimensions=32).",
        ),
        ({"is_matryoshka": True}, 65, "Model 'M' only supports dimensions in range [1, 64], got 65."),
        ({"is_matryoshka": True}, 0, "Model 'M' only supports dimensions in range [1, 64], got 0."),
        (
            {"is_matryoshka": True, "matryoshka_dimensions": (16, 32)},
            33,
            "Model 'M' only supports Matryoshka dimensions [16, 32], got 33.",
        ),
    ],
)
def test_dimensions_refused(pooler, dimensions, message):
    with pytest.raises(InputError) as caught:
        check_dimensions(manifest(**pooler), dimensions, "M")
    assert (caught.value.message, caught.value.parameter, caught.value.value) == (message, "dimensions", dimensions)


@pytest.mark.parametrize("dimensions", [True, 8.0, "8", [8]])
def test_dimensions_are_an_int(dimensions):
    with pytest.raises(InputError, match=f"dimensions must be an int, not {type(dimensions).__name__}"):
        check_dimensions(manifest(is_matryoshka=True), dimensions, "M")


def test_tokens_have_a_width_of_their_own():
    model = at_token_width(manifest(is_matryoshka=True, token_embedding_size=128))
    check_dimensions(model, 100, "M")
    with pytest.raises(InputError, match=r"only supports dimensions in range \[1, 128\], got 129"):
        check_dimensions(model, 129, "M")


def test_normalize_is_a_bool():
    assert [choose_norm(manifest(normalize=True), value) for value in (None, True, False)] == [True, True, False]
    with pytest.raises(InputError, match="normalize must be a bool, not str"):
        choose_norm(manifest(normalize=True), "no")


@pytest.mark.parametrize(
    ("pooler", "dimensions"),
    [
        ({}, None),
        ({"is_matryoshka": True}, 1),
        ({"is_matryoshka": True}, 64),
        ({"is_matryoshka": True, "matryoshka_dimensions": (16, 32)}, 16),
    ],
)
def test_dimensions_accepted(pooler, dimensions):
    check_dimensions(manifest(**pooler), dimensions, "M")


def test_shortened_before_it_is_normalized():
    raw = np.array([[3.0, 4.0, 100.0]], dtype=np.float32)
    np.testing.assert_allclose(finish_embeddings(raw, normalize=True, dimensions=2), [[0.6, 0.8]], rtol=1e-7)
    np.testing.assert_array_equal(finish_embeddings(raw, normalize=False, dimensions=2), [[3.0, 4.0]])


def test_zeros_stay_zeros_and_large_values_do_not_overflow():
    raw = np.array([[0.0, 0.0], [3e30, 4e30]], dtype=np.float32)
    answer = finish_embeddings(raw, normalize=True, dimensions=None)
    np.testing.assert_allclose(answer, [[0.0, 0.0], [0.6, 0.8]], rtol=1e-6)
    assert answer.dtype == np.float32


def test_the_input_stays_as_it_is():
    raw = np.ones((2, 4), dtype=np.float32)
    for dimensions in (None, 2):
        answer = finish_embeddings(raw, normalize=True, dimensions=dimensions)
        assert not np.shares_memory(raw, answer)
    np.testing.assert_array_equal(raw, np.ones((2, 4)))


@pytest.mark.parametrize("size", [1, 7, 8, 129, 384, 1000])
@pytest.mark.parametrize("dimensions", [None, 5])
def test_bits_do_not_depend_on_the_other_rows(size, dimensions):
    raw = np.random.default_rng(size).standard_normal((33, size)).astype(np.float32)
    whole = finish_embeddings(raw, normalize=True, dimensions=dimensions)
    strided = finish_embeddings(np.asfortranarray(raw), normalize=True, dimensions=dimensions)
    alone = [finish_embeddings(raw[row], normalize=True, dimensions=dimensions) for row in range(33)]
    np.testing.assert_array_equal(whole, np.stack(alone))
    np.testing.assert_array_equal(whole, strided)
