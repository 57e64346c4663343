import threading
import warnings

import msgspec
import numpy as np
import pytest
import tiny_artifact

from poolgraph.errors import ArtifactError, InputError, ProviderError, SessionError, TaskNotSupported, TruncationWarning
from poolgraph.graphs.manifest import Pooler
from poolgraph.runtime import loading, pipeline
from poolgraph.runtime import session as session_module
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.embeddings import finish_embeddings
from poolgraph.runtime.model import PoolingModel

SIZE = 8
VARIANTS = ("cpu_fp32", "portable_fp32", "packed_fp32")


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def mixed_texts(num_texts, seed=0):
    rng = np.random.default_rng(seed)
    return [words(*rng.integers(0, 60, rng.integers(0, 14))) for _ in range(num_texts)]


def reference(request_module, encoded):
    """Mean over the tokens of what the tiny graph computes."""
    return np.stack([request_module.reference_tokens(text.input_ids).mean(0) for text in encoded])


@pytest.fixture
def tiny():
    """The module that builds the tiny artifact."""
    return tiny_artifact


@pytest.fixture
def model(artifact):
    with PoolingModel.load(artifact) as model:
        yield model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threads", [None, 1, 2, 5])
@pytest.mark.parametrize("max_batch_tokens", [1, 40, 1024])
def test_answers_are_the_references(make_artifact, tiny, variant, threads, max_batch_tokens):
    texts, artifact = mixed_texts(70), make_artifact(variants=VARIANTS)
    with PoolingModel.load(artifact, variant=variant, threads=threads, max_batch_tokens=max_batch_tokens) as model:
        encoded = model.tokenizer.encode(texts)
        expected = reference(tiny, encoded)
        np.testing.assert_allclose(model.run_sequence(encoded), expected, atol=1e-5)
        unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(model.embed(texts), unit, atol=1e-5)
        for rows, text in zip(model.run_token(encoded), encoded, strict=True):
            np.testing.assert_allclose(rows, tiny.reference_tokens(text.input_ids), atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(make_artifact, tiny, side):
    from poolgraph.graphs.manifest import Tokenization

    directory = make_artifact(tokenization=Tokenization(pad_token_id=0, padding_side=side))
    with PoolingModel.load(directory, variant="portable_fp32") as model:
        encoded = model.tokenizer.encode(["w1", words(*range(9)), ""])
        np.testing.assert_allclose(model.run_sequence(encoded), reference(tiny, encoded), atol=1e-5)
        for rows, text in zip(model.run_token(encoded), encoded, strict=True):
            np.testing.assert_allclose(rows, tiny.reference_tokens(text.input_ids), atol=1e-5)


def test_same_bits_alone_and_in_any_batch(model):
    texts = mixed_texts(60)
    whole = model.embed(texts)
    order = np.random.default_rng(1).permutation(60)
    np.testing.assert_array_equal(model.embed([texts[index] for index in order]), whole[order])
    np.testing.assert_array_equal(np.concatenate([model.embed(text) for text in texts]), whole)
    token = model.token_embed(texts)
    for text, rows in zip(texts, token, strict=True):
        np.testing.assert_array_equal(model.token_embed(text)[0], rows)


def test_shapes_and_types(model):
    assert model.embed("w1").shape == (1, SIZE)
    assert model.embed(["w1", ""]).shape == (2, SIZE)
    assert model.embed("w1").dtype == np.float32
    assert [rows.shape for rows in model.token_embed(["w1", ""])] == [(3, SIZE), (2, SIZE)]
    assert model.run_sequence([]).shape == (0, SIZE)
    assert model.run_token([]) == []
    assert model.count_tokens(["w1", ""]) == [3, 2]
    assert repr(model) == "PoolingModel('tiny', variant='cpu_fp32', provider='CPUExecutionProvider')"


def test_dimensions_of_tokens_are_checked_against_their_own_width(make_artifact):
    pooler = Pooler(pooling=("mean",), embedding_size=4, token_embedding_size=8, is_matryoshka=True)
    with PoolingModel.load(make_artifact(pooler=pooler)) as model:
        assert model.token_embed("w1", dimensions=6)[0].shape == (3, 6)


def test_normalize_and_dimensions(make_artifact):
    pooler = Pooler(pooling=("mean",), normalize=False, embedding_size=SIZE, is_matryoshka=True)
    with PoolingModel.load(make_artifact(pooler=pooler)) as model:
        raw = model.run_sequence(model.tokenizer.encode(["w1 w2"]))
        np.testing.assert_array_equal(model.embed("w1 w2"), raw)
        np.testing.assert_array_equal(
            model.embed("w1 w2", normalize=True), finish_embeddings(raw, normalize=True, dimensions=None)
        )
        short = model.embed("w1 w2", normalize=True, dimensions=3)
        np.testing.assert_array_equal(short, finish_embeddings(raw, normalize=True, dimensions=3))
        assert [rows.shape for rows in model.token_embed("w1 w2", dimensions=3)] == [(4, 3)]
        with pytest.raises(InputError, match=r"Model 'tiny' only supports dimensions in range \[1, 8\], got 9"):
            model.embed("w1", dimensions=9)
        for refused in ({"dimensions": True}, {"dimensions": "3"}, {"normalize": "no"}, {"truncate": 3}):
            for embed in (model.embed, model.token_embed):
                with pytest.raises(InputError, match=f"{next(iter(refused))} must be a"):
                    embed("w1", **refused)


def test_prompts(make_artifact):
    with PoolingModel.load(make_artifact(default_prompt_name="passage")) as model:
        np.testing.assert_array_equal(model.embed("w5"), model.embed("w3 w5", prompt=""))
        np.testing.assert_array_equal(model.embed("w5", prompt_name="query"), model.embed("w1 w2 w5", prompt=""))
        np.testing.assert_array_equal(
            model.embed("w5", prompt_name="query", prompt="w9 "), model.embed("w9 w5", prompt="")
        )
        with pytest.raises(InputError, match="prompt name 'nope'"):
            model.token_embed("w5", prompt_name="nope")


def test_truncation_warns_once_with_the_count(model, monkeypatch):
    monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 2})
    texts = ["w1", words(*range(20)), words(*range(30)), "w2", "w3"]
    with pytest.warns(TruncationWarning, match="2 of 5 texts were longer than 16 tokens and were cut") as caught:
        answers = model.embed(texts, truncate=True)
    assert len(caught) == 1
    np.testing.assert_array_equal(answers[1], model.embed(words(*range(14)))[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.embed(["w1"], truncate=True)


def test_too_long_names_the_text_across_windows(model, monkeypatch):
    monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 2})
    with pytest.raises(InputError, match=r"maximum context length is 16 tokens.*22 input tokens.*\(text 4\)"):
        model.embed(["w1", "w2", "w3", "w4", words(*range(20)), "w5"])


def test_windows_change_no_answer(model, monkeypatch):
    texts = mixed_texts(50)
    whole, token = model.embed(texts), model.token_embed(texts)
    monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 7})
    np.testing.assert_array_equal(model.embed(texts), whole)
    for rows, expected in zip(model.token_embed(texts), token, strict=True):
        np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("call", ["embed", "token_embed"])
def test_nan_never_leaves(model, call, monkeypatch):
    monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 2})
    with pytest.raises(SessionError, match="the answer for text 3 holds NaN or infinity"):
        getattr(model, call)(["w1", "w2", "w3", "nan", "w5"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_is_found_in_any_batch(make_artifact, variant):
    artifact = make_artifact(variants=VARIANTS)
    with PoolingModel.load(artifact, variant=variant) as model, pytest.raises(SessionError, match="text 31 holds NaN"):
        model.embed([*["w1"] * 31, "nan"])


@pytest.mark.parametrize("texts", [[], ()])
def test_no_texts(model, texts):
    with pytest.raises(InputError, match="You must pass at least one prompt"):
        model.embed(texts)


@pytest.mark.parametrize("bad", [None, b"x", 1])
def test_wrong_types(model, bad):
    with pytest.raises(InputError, match=f"text 1 must be a str, got {type(bad).__name__}"):
        model.embed(["w1", bad])


def test_inputs_stay_as_they_are(model):
    texts = ["w1", "w2"]
    encoded = model.tokenizer.encode(texts)
    before = [text.input_ids.copy() for text in encoded]
    model.run_sequence(encoded)
    model.embed(texts)
    assert texts == ["w1", "w2"]
    for text, ids in zip(encoded, before, strict=True):
        np.testing.assert_array_equal(text.input_ids, ids)


def test_progress_adds_up(model, capsys):
    steps = []
    model.run_sequence(model.tokenizer.encode(mixed_texts(30)), on_progress=steps.append)
    assert sum(steps) == 30
    model.embed(["w1", "w2"], progress=True)
    assert "2/2" in capsys.readouterr().err


def test_users_threads_share_one_model(artifact):
    texts = mixed_texts(40)
    with PoolingModel.load(artifact) as model:
        expected, failures = model.embed(texts), []

        def work(seed):
            order = np.random.default_rng(seed).permutation(40)
            for _ in range(5):
                if not np.array_equal(model.embed([texts[index] for index in order]), expected[order]):
                    failures.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_a_lone_text_starts_no_thread(model, monkeypatch):
    model.embed("w1")
    monkeypatch.setattr(threading.Thread, "start", lambda _thread: pytest.fail("a thread was started"))
    model.embed("w1")


def test_sessions_use_one_thread_or_all_cores(artifact, monkeypatch):
    opened, real = [], session_module.open_session

    def record(path, variant, threads, **providers):
        opened.append(threads)
        return real(path, variant, threads, **providers)

    monkeypatch.setattr(session_module, "open_session", record)
    cpu = CpuInfo(model="m", num_cores=4, features=())
    monkeypatch.setattr("poolgraph.runtime.loaded.read_cpu_info", lambda: cpu)
    with PoolingModel.load(artifact) as model:
        assert opened == []
        for num_texts in (1, 2, 3, 50):
            model.embed(mixed_texts(num_texts))
    assert sorted(opened) == [1, 4]


def test_tasks_that_are_not_there(make_artifact):
    with PoolingModel.load(make_artifact(tasks=("classify",))) as model:
        for call in (model.embed, model.token_embed):
            with pytest.raises(TaskNotSupported, match=r"'tiny' cannot .*; the artifact's tasks are \['classify'\]"):
                call("w1")


def test_no_token_graph(make_artifact):
    with PoolingModel.load(make_artifact(families=("sequence",), tasks=("embed",))) as model:
        with pytest.raises(TaskNotSupported, match=r"no token graph.*tasks are \['embed'\]"):
            model.run_token(model.tokenizer.encode(["w1"]))
        assert model.embed("w1").shape == (1, SIZE)


def test_closed(artifact):
    model = PoolingModel.load(artifact)
    model.close()
    with pytest.raises(SessionError, match="the model is closed"):
        model.embed("w1")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": 0}, InputError, "threads must be at least 1, got 0"),
        ({"max_batch_tokens": 0}, InputError, "max_batch_tokens must be at least 1, got 0"),
        ({"provider": "tpu"}, ProviderError, "unknown provider 'tpu'"),
        ({"provider": "cuda"}, ProviderError, "CUDAExecutionProvider does not load on this machine"),
        ({"precision": "int8"}, ArtifactError, "no variant for precision 'int8'; it has portable_fp32"),
        ({"variant": "cpu_int8"}, ArtifactError, "no variant 'cpu_int8'"),
    ],
)
def test_wishes_that_cannot_be_met(artifact, monkeypatch, options, error, message):
    monkeypatch.setattr(loading, "available_providers", lambda: ("CPUExecutionProvider",))
    with pytest.raises(error, match=message):
        PoolingModel.load(artifact, **options)


def test_fallback_warns(artifact, monkeypatch):
    monkeypatch.setattr(loading, "available_providers", lambda: ("CPUExecutionProvider",))
    with pytest.warns(UserWarning, match="does not load on this machine.*Running on CPUExecutionProvider instead"):
        model = PoolingModel.load(artifact, provider="cuda", fallback=True)
    assert model.variant.name == "cpu_fp32"


def test_unverified_variants(make_artifact):
    directory = make_artifact(edit_variant=lambda variant: msgspec.structs.replace(variant, verified=False))
    with pytest.raises(ArtifactError, match="never verified: run `poolgraph verify"):
        PoolingModel.load(directory)
    with PoolingModel.load(directory, allow_unverified=True) as model:
        assert model.embed("w1").shape == (1, SIZE)


def test_damaged_artifacts(artifact):
    graph = artifact / "onnx/cpu_fp32.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + b"x")
    with pytest.raises(ArtifactError, match="SHA-256"):
        PoolingModel.load(artifact)
    graph.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match="bytes"):
        PoolingModel.load(artifact)
    graph.unlink()
    with pytest.raises(ArtifactError, match=r"cpu_fp32\.onnx is missing"):
        PoolingModel.load(artifact)


def test_no_artifact_there(tmp_path):
    with pytest.raises(InputError, match=r"no such folder: .*nowhere"):
        PoolingModel.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is not a directory"):
        PoolingModel.load(tmp_path / "file")
    with pytest.raises(ArtifactError, match=r"has no poolgraph\.json"):
        PoolingModel.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": "2"}, "threads must be an int, not str"),
        ({"threads": 1.5}, "threads must be an int, not float"),
        ({"threads": True}, "threads must be an int, not bool"),
        ({"max_batch_tokens": "2"}, "max_batch_tokens must be an int, not str"),
        ({"provider": 3}, "provider must be a str or None, not int"),
        ({"variant": ["cpu_fp32"]}, "variant must be a str or None, not list"),
    ],
)
def test_arguments_of_wrong_types(artifact, options, message):
    with pytest.raises(InputError, match=message):
        PoolingModel.load(artifact, **options)


def test_a_part_of_a_list_counts_from_the_lists_start(model):
    rows, num_cut = model.embed_chunk(["w1", words(*range(20))], first_index=4096, truncate=True)
    np.testing.assert_array_equal(rows[0], model.embed("w1")[0])
    assert num_cut == 1
    with pytest.raises(InputError, match=r"22 input tokens.*\(text 4097\)"):
        model.embed_chunk(["w1", words(*range(20))], first_index=4096)
    with pytest.raises(SessionError, match="4097"):
        model.embed_chunk(["w1", "nan"], first_index=4096)


def test_options_are_checked_without_texts(model):
    model.check_embed_options(prompt_name="query")
    with pytest.raises(InputError, match="prompt name 'nope'"):
        model.check_embed_options(prompt_name="nope")
    with pytest.raises(InputError, match="dimensions must be unset"):
        model.check_embed_options(dimensions=3)
