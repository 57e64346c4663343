import re
import warnings
from itertools import pairwise, product

import msgspec
import numpy as np
import pytest
from little_classifiers import BIO_LABELS, KINDS, MAX_MODEL_LEN, STEP_TAG_ID, build_classifier, reference_logits
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as models_of_tokenizers

from poolgraph.errors import InputError, SessionError, TaskNotSupported, TruncationWarning
from poolgraph.runtime import pipeline
from poolgraph.runtime.activations import finish_logits
from poolgraph.runtime.model import PoolingModel

VARIANTS = ("cpu_fp32", "portable_fp32")
LONG = " ".join(f"w{number}" for number in range(50))


def mixed_texts(num_texts, seed=0):
    """Texts of 2 tokens to the limit, some with step tags."""
    rng = np.random.default_rng(seed)
    words = [*(f"w{number}" for number in range(60)), *["<step>"] * 8]
    lengths = [0, 1, MAX_MODEL_LEN - 2, *rng.integers(0, MAX_MODEL_LEN - 1, num_texts - 3)]
    return [" ".join(rng.choice(words, length)) for length in rng.permutation(lengths)]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers")
    built = {kind: build_classifier(folder / kind, kind) for kind in KINDS}
    built["reward"] = build_classifier(folder / "reward", labels=("reward",))
    return built


@pytest.fixture(scope="module")
def models(artifacts):
    return {kind: PoolingModel.load(artifact) for kind, artifact in artifacts.items()}


def references(model, texts, family):
    encoded = model.tokenizer.encode(texts, truncate_to=-1)
    return [reference_logits(text.input_ids, len(model.labels), family) for text in encoded]


def softmax(rows):
    powers = np.exp(rows - rows.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def assert_rows_equal(found, expected):
    for rows, others in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rows, others)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("max_batch_tokens", [1, 100, 1024])
def test_answers_are_the_references(artifacts, variant, max_batch_tokens):
    texts = mixed_texts(50)
    with PoolingModel.load(artifacts["classifier"], variant=variant, max_batch_tokens=max_batch_tokens) as model:
        expected = np.stack(references(model, texts, "sequence"))
        np.testing.assert_allclose(model.classify(texts), softmax(expected), atol=1e-5)
        np.testing.assert_allclose(model.classify(texts, use_activation=False), expected, atol=1e-5)
        for rows, logits in zip(model.token_classify(texts), references(model, texts, "token"), strict=True):
            np.testing.assert_allclose(rows, softmax(logits), atol=1e-5)


def test_shapes_types_and_labels(models):
    model = models["classifier"]
    assert model.labels == ("negative", "neutral", "positive")
    probabilities = model.classify("w1")
    assert (probabilities.shape, probabilities.dtype) == ((1, 3), np.float32)
    assert model.labels[probabilities[0].argmax()] in model.labels
    assert [rows.shape for rows in model.token_classify(["w1 w2", ""])] == [(4, 3), (2, 3)]
    assert [rows.dtype for rows in model.token_classify(["w1"])] == [np.float32]


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        *product(["classifier", "reward"], ["classify", "token_classify", "reward"]),
        *product(["token_classifier", "step"], ["token_classify", "reward"]),
    ],
)
def test_same_bits_alone_and_in_any_batch(models, kind, call):
    model = models[kind]
    answer = getattr(model, call)
    texts = mixed_texts(80)
    whole = answer(texts)
    assert_rows_equal([answer(text)[0] for text in texts], whole)
    order = np.random.default_rng(1).permutation(len(texts))
    assert_rows_equal(answer([texts[index] for index in order]), [whole[index] for index in order])
    assert_rows_equal(answer(texts[::3]), whole[::3])


def test_entities_alone_and_in_any_batch(models):
    model = models["token_classifier"]
    texts = [text.replace("<step>", "hello, world") for text in mixed_texts(60)]
    whole = model.extract_entities(texts, stride=5)
    assert [model.extract_entities(text, stride=5)[0] for text in texts] == whole
    assert model.extract_entities(texts[::-1], stride=5) == whole[::-1]


def test_the_manifest_and_the_request_decide_on_the_activation(tmp_path):
    off = build_classifier(tmp_path / "off", pooler={"use_activation": False, "activation": "sigmoid"})
    with PoolingModel.load(off) as model:
        raw = model.run_sequence(model.tokenizer.encode(["w1 w2"]))
        np.testing.assert_array_equal(model.classify("w1 w2"), raw)
        np.testing.assert_array_equal(model.classify("w1 w2", use_activation=True), finish_logits(raw, "sigmoid"))
        np.testing.assert_array_equal(model.reward("w1 w2", use_activation=True), finish_logits(raw, "sigmoid"))
        tokens = model.run_token(model.tokenizer.encode(["w1"]))[0]
        np.testing.assert_array_equal(model.token_classify("w1")[0], tokens)
        np.testing.assert_array_equal(
            model.token_classify("w1", use_activation=True)[0], finish_logits(tokens, "sigmoid")
        )
        with pytest.raises(InputError, match="use_activation must be a bool"):
            model.classify("w1", use_activation=1)


def test_pairs_of_texts(models):
    model = models["classifier"]
    firsts, seconds = ["w1 w2", "w3", ""], ["w4", "w5 w6", "w7"]
    found = model.classify(firsts, seconds, use_activation=False)
    for row, first, second in zip(found, firsts, seconds, strict=True):
        ids = model.tokenizer.backend.encode(first, second).ids
        np.testing.assert_allclose(row, reference_logits(ids, 3, "sequence"), atol=1e-5)
    np.testing.assert_array_equal(model.classify("w1 w2", "w4", use_activation=False), found[:1])
    with pytest.raises(InputError, match="3 texts have 2 second texts; give one for each"):
        model.classify(firsts, seconds[:2])
    with pytest.raises(InputError, match=r"maximum context length is 40 tokens.*\(pair 1\)"):
        model.classify(["w1", LONG], ["w2", "w3"])
    with pytest.warns(TruncationWarning, match="1 of 2 texts were longer than 40 tokens and were cut"):
        cut = model.classify(["w1", LONG], ["w2", "w3"], truncate=True, use_activation=False)
    kept = " ".join(LONG.split()[: MAX_MODEL_LEN - 4])
    np.testing.assert_array_equal(cut[1], model.classify(kept, "w3", use_activation=False)[0])


def test_rewards_of_whole_texts(models):
    texts = mixed_texts(20)
    one, several = models["reward"], models["classifier"]
    assert one.reward(texts).shape == (20,)
    assert one.reward("w1").shape == (1,)
    np.testing.assert_array_equal(one.reward(texts), one.classify(texts)[:, 0])
    np.testing.assert_allclose(
        one.reward(texts, use_activation=False), np.concatenate(references(one, texts, "sequence")), atol=1e-5
    )
    np.testing.assert_array_equal(several.reward(texts), several.classify(texts))
    message = r"Task classify only supports \['use_activation'\] parameters, does not support \['step_tag_id'\]"
    with pytest.raises(InputError, match=message):
        one.reward("w1", step_tag_id=STEP_TAG_ID)


def test_rewards_of_all_tokens(models):
    model = models["token_classifier"]
    assert_rows_equal(model.reward(["w1 w2", ""]), model.token_classify(["w1 w2", ""]))
    message = r"Task token_classify only supports \['use_activation'\] parameters, does not support"
    with pytest.raises(InputError, match=message):
        model.reward("w1", returned_token_ids=[0])


def test_rewards_of_steps(models):
    model = models["step"]
    texts = ["w1 <step> w2 w3 <step>", "w1 w2", "<step>"]
    rewards = model.reward(texts)
    assert [rows.shape for rows in rewards] == [(2, 2), (0, 2), (1, 2)]
    assert_rows_equal(model.token_classify(texts), rewards)
    logits = references(model, texts, "token")[0]
    np.testing.assert_allclose(rewards[0], softmax(logits[[2, 5]]), atol=1e-5)
    np.testing.assert_allclose(
        model.reward(texts, returned_token_ids=[1], use_activation=False)[0], logits[[2, 5], 1:], atol=1e-5
    )
    # The activation comes after the columns: that of one column is the sigmoid.
    np.testing.assert_allclose(
        model.reward(texts, returned_token_ids=[1])[0], 1 / (1 + np.exp(-logits[[2, 5], 1:])), atol=1e-5
    )
    other = model.tokenizer.backend.token_to_id("w1")
    assert [rows.shape for rows in model.reward(texts, step_tag_id=other, returned_token_ids=[1, 0, 1])] == [
        (1, 3),
        (1, 3),
        (0, 3),
    ]
    with pytest.raises(InputError, match=r"\[2\] are no columns of this model: it has 2, counted from 0 to 1"):
        model.reward(texts, returned_token_ids=[2])


def test_columns_cut_out_of_a_language_model_head(tmp_path):
    pooler = {"column_token_ids": (31, 7), "returned_token_ids": (7,)}
    with PoolingModel.load(build_classifier(tmp_path / "prm", "step", pooler=pooler)) as model:
        logits = references(model, ["w1 <step>"], "token")[0]
        rows = model.reward("w1 <step>", use_activation=False)[0]
        np.testing.assert_allclose(rows, logits[[2], 1:], atol=1e-5)
        both = model.reward("w1 <step>", returned_token_ids=[7, 31], use_activation=False)[0]
        np.testing.assert_allclose(both, logits[[2]][:, [1, 0]], atol=1e-5)


@pytest.mark.parametrize("call", ["classify", "token_classify", "reward", "extract_entities"])
def test_truncation_warns_once_at_the_caller(models, call, monkeypatch):
    monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 2})
    model = models["classifier"]
    answer = getattr(model, call)
    with pytest.raises(InputError, match=r"maximum context length is 40 tokens.*52 input tokens.*\(text 3\)"):
        answer(["w1", "w2", "w3", LONG, "w4"])
    with pytest.warns(TruncationWarning, match="2 of 5 texts were longer than 40 tokens and were cut") as caught:
        cut = answer(["w1", LONG, LONG, "w2", "w3"], truncate=True)
    assert [warning.filename for warning in caught] == [__file__]
    kept = answer(" ".join(LONG.split()[: MAX_MODEL_LEN - 2]))[0]
    np.testing.assert_array_equal(cut[1], kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(["w1"], truncate=True)


@pytest.mark.parametrize("kind", ["classifier", "step"])
def test_windows_change_no_answer(models, kind, monkeypatch):
    model, texts = models[kind], mixed_texts(30)
    calls = {
        "token_classify": lambda: model.token_classify(texts),
        "reward": lambda: model.reward(texts),
    }
    if kind == "classifier":
        calls["classify"] = lambda: model.classify(texts)
        calls["pairs"] = lambda: model.classify(texts[:15], ["w1 w2"] * 15, truncate=True)
        calls["entities"] = lambda: model.extract_entities(texts, stride=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = {name: call() for name, call in calls.items()}
        monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 7})
        for name, call in calls.items():
            for rows, expected in zip(call(), whole[name], strict=True):
                np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("name", ["classify_chunk", "token_classify_chunk", "reward_chunk", "entities_chunk"])
def test_chunks_count_as_the_caller_does_and_do_not_warn(models, name, monkeypatch):
    monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 2})
    model = models["classifier"]
    texts = ["w1", "w2", LONG, "w3", LONG]
    done = []
    answers, num_cut = getattr(model, name)(texts, first_index=100, truncate=True, on_progress=done.append)
    assert (len(answers), num_cut, sum(done)) == (5, 2, 5)
    with pytest.raises(InputError, match=r"\(text 102\)"):
        getattr(model, name)(texts, first_index=100)
    empty, num_cut = getattr(model, name)([])
    assert (len(empty), num_cut) == (0, 0)


@pytest.mark.parametrize("call", ["classify", "token_classify", "reward", "extract_entities"])
def test_nan_never_leaves(models, call, monkeypatch):
    model = models["classifier"]
    run = model._executor._run_batch

    def spoil(*arguments):
        answer = run(*arguments).copy()
        answer[...] = np.nan
        return answer

    monkeypatch.setattr(type(model._executor), "_run_batch", lambda self, *arguments: spoil(*arguments))
    with pytest.raises(SessionError, match="the answer for text 0 holds NaN"):
        getattr(model, call)("w1")


@pytest.mark.parametrize("call", ["classify", "token_classify", "reward", "extract_entities"])
def test_progress(models, call, capsys):
    getattr(models["classifier"], call)(["w1", "w2"], progress=True)
    assert "2/2" in capsys.readouterr().err


def test_tasks_that_an_artifact_lacks(models, tmp_path):
    with pytest.raises(TaskNotSupported, match=re.escape("'tiny-step' cannot classify; the artifact's tasks are")):
        models["step"].classify("w1")
    with pytest.raises(TaskNotSupported, match="scores steps, not words; call reward or token_classify"):
        models["step"].extract_entities("w1")
    embedder = build_classifier(tmp_path / "embedder", tasks=("embed",))
    with PoolingModel.load(embedder) as model:
        with pytest.raises(TaskNotSupported, match="gives no rewards: that takes the task classify or token_classify"):
            model.reward("w1")
        for call in ("classify", "token_classify", "extract_entities"):
            with pytest.raises(TaskNotSupported, match="the artifact's tasks are"):
                getattr(model, call)("w1")


def test_entities_need_a_label_for_each_column(artifacts):
    with PoolingModel.load(artifacts["token_classifier"]) as model:
        model.manifest = msgspec.structs.replace(model.manifest, labels=BIO_LABELS[:3])
        with pytest.raises(TaskNotSupported, match="has 5 scores a token and 3 labels; entities need a label for each"):
            model.extract_entities("w1")


def test_no_texts(models):
    for call in ("classify", "token_classify", "reward", "extract_entities"):
        with pytest.raises(InputError, match="You must pass at least one prompt"):
            getattr(models["classifier"], call)([])
        with pytest.raises(InputError, match="text 1 must be a str, got int"):
            getattr(models["classifier"], call)(["w1", 3])


def test_entities_have_the_places_of_their_words(models):
    model = models["token_classifier"]
    text = "w1 hello,  w2 <step> w3"
    tokens = model.extract_entities(text, aggregation_strategy="none", ignore_labels=())[0]
    assert [token.word for token in tokens[:6]] == ["w1", "h", "##e", "##l", "##l", "##o"]
    assert [text[token.start : token.end] for token in tokens] == [
        *("w1", "h", "e", "l", "l", "o", ",", "w2", "<step>", "w3")
    ]
    probabilities = model.token_classify(text)[0]
    for token in tokens:
        row = probabilities[token.index]
        assert token.label == BIO_LABELS[row.argmax()]
        assert token.score == pytest.approx(row.max(), abs=1e-6)
    for strategy in ("first", "average", "max"):
        for entity in model.extract_entities(text, aggregation_strategy=strategy, ignore_labels=())[0]:
            assert entity.start in (0, 3, 8, 11, 14, 21)
            assert entity.end in (2, 8, 9, 13, 20, 23)


def test_a_tokenizer_without_marks_is_warned_of_once(tmp_path):
    tokenizer = Tokenizer(models_of_tokenizers.WordLevel({"[UNK]": 0, "w1": 1, "w2": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with PoolingModel.load(build_classifier(tmp_path / "unmarked", "token_classifier", tokenizer=tokenizer)) as model:
        with pytest.warns(UserWarning, match="does not mark the pieces that continue a word") as caught:
            model.extract_entities(["w1 w2", "w2 w1"], aggregation_strategy="max")
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.extract_entities("w1 w2")


def test_a_long_text_is_read_whole_in_windows(models):
    model = models["token_classifier"]
    with pytest.raises(InputError, match="maximum context length is 40 tokens"):
        model.extract_entities(LONG)
    found = model.extract_entities(["w1", LONG], stride=10, ignore_labels=())[1]
    assert found[0].start == 0
    assert found[-1].end == len(LONG)
    assert all(before.end <= after.start for before, after in pairwise(found))
    done = []
    _, num_cut = model.entities_chunk(["w1", LONG], stride=10, on_progress=done.append)
    assert (sum(done), num_cut) == (2, 0)
