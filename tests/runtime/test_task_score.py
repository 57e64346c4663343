"""Scoring by each of the three ways, on tiny artifacts built by hand; the oracles are a few lines of numpy."""

import random
import warnings

import msgspec
import numpy as np
import pytest
from little_classifiers import MAX_MODEL_LEN, build_classifier, reference_logits

from poolgraph.errors import ArtifactError, InputError, TaskNotSupported
from poolgraph.graphs.artifact import record_files, save_manifest
from poolgraph.graphs.manifest import LateInteraction, Scoring, parse_manifest
from poolgraph.runtime import pipeline, task_score
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.score_options import ScoreOptions
from poolgraph.runtime.score_pairs import plan_pairs
from poolgraph.runtime.task_score import RankedDocument

TEMPLATE = "ask {{ instruction | default('w9') }} {{ query }} about {{ document }} end"
TOO_LONG = f"This model's maximum context length is {MAX_MODEL_LEN} tokens"


def draw_texts(num_texts, *, seed=0, longest=14):
    source = random.Random(seed)
    return [" ".join(f"w{source.randrange(60)}" for _ in range(source.randint(0, longest))) for _ in range(num_texts)]


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float64)))


def build(folder, *, template=None, config=None, **changes):
    """A classifier with one label that scores pairs, or prompts when ``template`` is given."""
    scoring = Scoring(kind="cross_encoder", template=None if template is None else "score_template.jinja")
    build_classifier(folder, labels=("relevant",), **({"scoring": scoring} | changes))
    if template is not None:
        (folder / "score_template.jinja").write_text(template, encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    manifest = parse_manifest((folder / "poolgraph.json").read_bytes())
    save_manifest(folder, msgspec.structs.replace(manifest, files=record_files(folder)))
    return folder


@pytest.fixture
def cross_encoder(tmp_path):
    with PoolingModel.load(build(tmp_path / "pair")) as model:
        yield model


@pytest.fixture
def templated(tmp_path):
    with PoolingModel.load(build(tmp_path / "templated", template=TEMPLATE)) as model:
        yield model


@pytest.fixture
def bi_encoder(artifact):
    with PoolingModel.load(artifact) as model:
        yield model


@pytest.fixture
def late(make_artifact):
    directory = make_artifact(
        families=("token",),
        tasks=("token_embed",),
        default_task="token_embed",
        scoring=Scoring(kind="late_interaction"),
        late_interaction=LateInteraction(document_length=8),
        similarity_fn_name="maxsim",
        prompts={"query": "w1 ", "document": "w2 "},
    )
    with PoolingModel.load(directory) as model:
        yield model


def pair_logits(model, query, document):
    ids = model.tokenizer.backend.encode(query, document).ids
    return reference_logits(ids, 1, "sequence")[0]


# cross-encoder, pairs of sequences


def test_one_query_against_each_document_or_each_against_its_own(cross_encoder):
    queries, documents = draw_texts(20), draw_texts(20, seed=1)
    each = [pair_logits(cross_encoder, *pair) for pair in zip(queries, documents, strict=True)]
    one = [pair_logits(cross_encoder, queries[0], document) for document in documents]
    np.testing.assert_allclose(cross_encoder.score(queries, documents), sigmoid(each), atol=1e-5)
    np.testing.assert_allclose(cross_encoder.score(queries[0], documents), sigmoid(one), atol=1e-5)
    found = cross_encoder.score(queries[0], documents[0], use_activation=False)
    assert (found.shape, found.dtype) == ((1,), np.float32)
    np.testing.assert_allclose(found, one[:1], rtol=1e-5)


@pytest.mark.parametrize("variant", ["cpu_fp32", "portable_fp32"])
def test_a_pair_has_the_same_score_in_any_company(tmp_path, monkeypatch, variant):
    monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 7})
    queries, documents = draw_texts(60, seed=2), draw_texts(60, seed=3)
    with PoolingModel.load(build(tmp_path / "pair"), variant=variant) as model:
        together = model.score(queries, documents)
        alone = [model.score(query, document)[0] for query, document in zip(queries, documents, strict=True)]
        order = random.Random(0).sample(range(60), 60)
        shuffled = model.score([queries[index] for index in order], [documents[index] for index in order])
    if variant == "cpu_fp32":
        np.testing.assert_array_equal(together, alone)
        np.testing.assert_array_equal(shuffled, together[order])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(shuffled, together[order], atol=1e-6)


def test_too_long_is_refused_by_the_pairs_number(cross_encoder, monkeypatch):
    monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 2})
    documents = ["w1", "w2", "w3", "w4 " * 50]
    with pytest.raises(InputError, match=rf"{TOO_LONG}.* \(pair 3\)"):
        cross_encoder.score("w1", documents)


def test_truncation_cuts_the_longer_text_and_warns_once(cross_encoder):
    documents = ["w3 " * 50, "w4", "w5 " * 60]
    with pytest.warns(
        UserWarning, match=f"2 of 3 pairs were longer than {MAX_MODEL_LEN} tokens and were cut"
    ) as caught:
        found = cross_encoder.score("w1 w2", documents, truncate=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    cut = [pair_logits(cross_encoder, "w1 w2", text) for text in ("w3 " * (MAX_MODEL_LEN - 5), "w4")]
    np.testing.assert_allclose(found[:2], sigmoid(cut), atol=1e-5)


def test_limits_of_each_text(cross_encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cross_encoder.score("w1 w2 w3", "w4 " * 60, max_tokens_per_query=2, max_tokens_per_doc=3)
    np.testing.assert_array_equal(found, cross_encoder.score("w1 w2", "w4 w4 w4"))
    with pytest.raises(InputError, match="max_tokens_per_doc must be a non-negative integer"):
        cross_encoder.score("w1", "w2", max_tokens_per_doc=-1)
    with pytest.raises(InputError, match=rf"max_tokens_per_query \({MAX_MODEL_LEN}\) must be less than max_model_len"):
        cross_encoder.score("w1", "w2", max_tokens_per_query=MAX_MODEL_LEN)


def test_progress_counts_pairs(cross_encoder, capsys):
    cross_encoder.score("w1", ["w2", "w3"], progress=True)
    assert "2/2" in capsys.readouterr().err


def test_encoding_and_running_apart(cross_encoder):
    queries, documents = ["w1"], ["w2", "w3 w4"]
    encoded = cross_encoder.encode_scoring_pairs(queries, documents, plan_pairs(1, 2))
    assert [text.num_tokens for text in encoded] == [5, 6]
    np.testing.assert_array_equal(cross_encoder.run_pairs(encoded), cross_encoder.score(queries, documents))
    options = ScoreOptions(truncate_to=5)
    (cut,) = cross_encoder.encode_scoring_pairs(queries, ["w3 w4 w5"], [(0, 0)], options)
    assert (cut.num_tokens, cut.num_truncated_tokens) == (5, 2)


def test_an_instruction_needs_a_template(cross_encoder):
    with pytest.raises(InputError, match="has no place for an instruction"):
        cross_encoder.score("w1", "w2", instruction="w3")
    with pytest.raises(InputError, match="has no place for an instruction"):
        cross_encoder.score("w1", "w2", template_kwargs={"x": 1})


# cross-encoder, score template


def prompt_logits(model, text):
    return reference_logits(model.tokenizer.backend.encode(text).ids, 1, "sequence")[0]


def test_texts_are_put_into_the_artifacts_template(templated):
    expected = [prompt_logits(templated, f"ask w9 w1 about {text} end") for text in ("w2", "")]
    np.testing.assert_allclose(templated.score("w1", ["w2", ""]), sigmoid(expected), atol=1e-5)
    asked = prompt_logits(templated, "ask w5 w1 about w2 end")
    for options in ({"instruction": "w5"}, {"template_kwargs": {"instruction": "w5"}}):
        np.testing.assert_allclose(templated.score("w1", "w2", **options), sigmoid([asked]), atol=1e-5)


def test_a_template_of_the_call_wins(templated, cross_encoder, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("{{ document }} {{ query }}{{ more }}", encoding="utf-8")
    expected = sigmoid([prompt_logits(templated, "w2 w1")])
    for model in (templated, cross_encoder):
        np.testing.assert_allclose(model.score("w1", "w2", template=str(file)), expected, atol=1e-5)
        np.testing.assert_allclose(
            model.score("w1 ", "w2", template="plain"), model.score("", "w1 w2", template="plain")
        )
    with pytest.raises(InputError, match="names are bge_reranker_v2_gemma"):
        templated.score("w1", "w2", template="qwen")


def test_special_tokens_are_parsed_and_known_to_templates(tmp_path):
    folder = build(
        tmp_path / "model",
        template="{{ sep_token }}{{ query }}[PAD]{{ document }}{{ missing_token }}",
        config='{"sep_token": {"content": "[SEP]"}, "missing_token": null, "other": 3}',
    )
    with PoolingModel.load(folder) as model:
        (encoded,) = model.encode_scoring_pairs(["w1"], ["w2"], [(0, 0)])
        tokens = [model.tokenizer.backend.id_to_token(index) for index in encoded.input_ids]
    assert tokens == ["[CLS]", "[SEP]", "w1", "[PAD]", "w2", "[SEP]"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("limit", range(15, 27))
def test_only_the_document_of_a_template_is_cut(templated, side, limit):
    words = [f"w{number}" for number in range(10, 40)]
    options = ScoreOptions(truncate_to=limit, truncation_side=side)
    (encoded,) = templated.encode_scoring_pairs(["w1"], [" ".join(words)], [(0, 0)], options)
    room = limit - len(templated.tokenizer.backend.encode("ask w9 w1 about  end").ids)
    kept = " ".join(words[:room] if side == "right" else words[len(words) - room :]) if room else ""
    assert encoded.input_ids.tolist() == templated.tokenizer.backend.encode(f"ask w9 w1 about {kept} end").ids
    assert (encoded.num_tokens, encoded.num_truncated_tokens) == (limit, len(words) - room)


def test_a_document_printed_twice_is_cut_so_that_both_fit(cross_encoder):
    options = ScoreOptions(template="{{ document }} {{ query }} {{ document }}", truncate_to=12)
    (encoded,) = cross_encoder.encode_scoring_pairs(["w1"], ["w2 " * 30], [(0, 0)], options)
    words = cross_encoder.tokenizer.decode(encoded.input_ids)
    assert words == "w2 w2 w2 w2 w1 w2 w2 w2 w2"
    assert encoded.num_truncated_tokens == 63 - encoded.num_tokens


def test_a_query_that_leaves_no_room_is_named(templated):
    with pytest.raises(
        InputError, match=r"the query and the score template alone have 64 tokens, more than the 40 .*1\)"
    ):
        templated.score(["w1", "w1 " * 50], ["w2", "w2"], truncate=True)
    with pytest.raises(InputError, match=rf"{TOO_LONG}.* \(pair 1\)"):
        templated.score("w1", ["w2", "w3 " * 50])
    with pytest.warns(UserWarning, match="1 of 1 pairs"):
        templated.score("w1", "w3 " * 50, truncate=True)


def test_limits_of_each_text_in_a_template(templated):
    found = templated.score("w1 w2 w3", "w4 " * 60, max_tokens_per_query=2, max_tokens_per_doc=3)
    np.testing.assert_array_equal(found, templated.score("w1 w2", "w4 w4 w4"))


def test_all_tokens_that_were_cut_are_counted(templated):
    options = ScoreOptions(max_tokens_per_query=1, max_tokens_per_doc=9, truncate_to=20)
    (encoded,) = templated.encode_scoring_pairs(["w1 w2 w3"], ["w4 " * 30], [(0, 0)], options)
    whole = templated.tokenizer.count([f"ask w9 w1 w2 w3 about {'w4 ' * 30} end"])[0]
    assert (encoded.num_tokens, encoded.num_truncated_tokens) == (20, whole - 20)


def test_prompts_have_the_same_score_in_any_company(templated):
    queries, documents = draw_texts(40, seed=4, longest=8), draw_texts(40, seed=5, longest=8)
    together = templated.score(queries, documents)
    alone = [templated.score(query, document)[0] for query, document in zip(queries, documents, strict=True)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("name", ["tools", "chat_template", "tokenize"])
def test_reserved_variables_are_refused(templated, name):
    with pytest.raises(InputError, match=f"chat_template_kwargs cannot set {name}"):
        templated.score("w1", "w2", template_kwargs={name: 1})


def test_an_instruction_given_twice(templated):
    with pytest.raises(InputError, match="contradict each other"):
        templated.score("w1", "w2", instruction="w3", template_kwargs={"instruction": "w4"})


@pytest.mark.parametrize(
    ("template", "name"), [("{{ query", "score_template.jinja"), (TEMPLATE, "other.jinja"), (TEMPLATE, "../x.jinja")]
)
def test_a_broken_template_of_the_artifact(tmp_path, template, name):
    folder = build(tmp_path / "model", template=template)
    manifest = parse_manifest((folder / "poolgraph.json").read_bytes())
    save_manifest(folder, msgspec.structs.replace(manifest, scoring=Scoring(kind="cross_encoder", template=name)))
    with PoolingModel.load(folder) as model, pytest.raises(ArtifactError, match="score template"):
        model.score("w1", "w2")


def test_a_broken_tokenizer_config(tmp_path):
    folder = build(tmp_path / "model", template=TEMPLATE, config="[]")
    with (
        PoolingModel.load(folder) as model,
        pytest.raises(ArtifactError, match=r"tokenizer_config\.json is no JSON object"),
    ):
        model.score("w1", "w2")


# bi-encoder and late interaction


def test_a_bi_encoder_has_no_prompt_even_by_default(bi_encoder, make_artifact):
    with PoolingModel.load(make_artifact(name="prompted", default_prompt_name="query")) as model:
        assert not np.array_equal(model.embed("w3"), bi_encoder.embed("w3"))
        np.testing.assert_array_equal(model.score("w3", ["w4", "w5"]), bi_encoder.score("w3", ["w4", "w5"]))


def test_a_bi_encoder_compares_embeddings(bi_encoder):
    queries, documents = draw_texts(12, seed=6, longest=10), draw_texts(12, seed=7, longest=10)
    left, right = (bi_encoder.embed(texts, prompt="", normalize=False).astype(float) for texts in (queries, documents))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    expected = (left * right).sum(1) / norms
    np.testing.assert_allclose(bi_encoder.score(queries, documents), expected, atol=1e-6)
    one = (left[:1] * right).sum(1) / (np.linalg.norm(left[0]) * np.linalg.norm(right, axis=1))
    np.testing.assert_allclose(bi_encoder.score(queries[0], documents), one, atol=1e-6)


def maxsim_oracle(query, document):
    return (query.astype(float) @ document.astype(float).T).max(1).sum()


@pytest.mark.parametrize("plain", [True, False])
def test_late_interaction_adds_up_the_best_matches(late, plain):
    queries, documents = draw_texts(12, seed=8, longest=5), draw_texts(12, seed=9, longest=4)
    left = late.embed_queries(queries, plain=plain)
    right = late.embed_documents(documents, plain=plain)
    expected = [maxsim_oracle(*pair) for pair in zip(left, right, strict=True)]
    np.testing.assert_allclose(late.score(queries, documents, plain=plain), expected, rtol=1e-5)
    one = [maxsim_oracle(left[0], document) for document in right]
    np.testing.assert_allclose(late.score(queries[0], documents, plain=plain), one, rtol=1e-5)


def test_the_models_own_length_of_a_document_cuts_with_a_warning(late):
    with pytest.warns(UserWarning, match="1 of 3 texts were longer than the model takes and were cut") as caught:
        found = late.score("w1", ["w2 " * 12, "w3"])
    assert caught[0].filename == __file__
    assert found.shape == (2,)


@pytest.mark.parametrize("kind", ["bi_encoder", "late"])
def test_embedded_scores_have_the_same_bits_in_any_step(kind, request, monkeypatch):
    model = request.getfixturevalue(kind)
    queries, documents = draw_texts(50, seed=10, longest=5), draw_texts(50, seed=11, longest=5)
    queries[10:20], documents[30:40] = queries[:10], documents[:10]
    together = model.score(queries, documents)
    alone = [model.score(query, document)[0] for query, document in zip(queries, documents, strict=True)]
    np.testing.assert_array_equal(together, alone)
    for name, budget in (("_STEP_TEXTS", 3), ("_STEP_CHARACTERS", 50)):
        monkeypatch.setattr(task_score, name, budget)
    np.testing.assert_array_equal(model.score(queries, documents), together)
    order = random.Random(0).sample(range(50), 50)
    shuffled = model.score([queries[index] for index in order], [documents[index] for index in order])
    np.testing.assert_array_equal(shuffled, together[order])


def test_each_distinct_text_is_embedded_once(bi_encoder, monkeypatch):
    embedded = []
    embed_chunk = bi_encoder.embed_chunk

    def record(texts, **options):
        embedded.extend(texts)
        return embed_chunk(texts, **options)

    monkeypatch.setattr(bi_encoder, "embed_chunk", record)
    monkeypatch.setattr(task_score, "_STEP_TEXTS", 2)
    bi_encoder.score(["w1", "w2", "w1", "w3", "w1"], ["w4", "w5", "w5", "w6", "w7"])
    assert sorted(embedded) == ["w1", "w2", "w3", "w4", "w5", "w6", "w7"]


@pytest.mark.parametrize("kind", ["bi_encoder", "late"])
def test_limits_of_each_embedded_text(kind, request):
    model = request.getfixturevalue(kind)
    found = model.score("w1 w2 w3", "w4 " * 60, max_tokens_per_query=2, max_tokens_per_doc=3)
    np.testing.assert_array_equal(found, model.score("w1 w2", "w4 w4 w4"))
    with pytest.raises(InputError, match="max_tokens_per_doc must be a non-negative integer"):
        model.score("w1", "w2", max_tokens_per_doc="3")


def test_embedders_cut_to_the_limit_only_when_asked(bi_encoder):
    with pytest.raises(InputError, match="maximum context length is 16 tokens"):
        bi_encoder.score("w1", "w2 " * 30)
    with pytest.warns(UserWarning, match="1 of 2 texts were longer than the model takes and were cut"):
        found = bi_encoder.score("w1", "w2 " * 30, truncate=True)
    np.testing.assert_array_equal(found, bi_encoder.score("w1", "w2 " * 14))


@pytest.mark.parametrize("kind", ["bi_encoder", "late"])
@pytest.mark.parametrize("options", [{"template": "plain"}, {"instruction": "w1"}, {"template_kwargs": {"a": 1}}])
def test_templates_are_for_cross_encoders(kind, options, request):
    with pytest.raises(InputError, match=f"{next(iter(options))} is for a cross-encoder .* this model is a (bi|late)-"):
        request.getfixturevalue(kind).score("w1", "w2", **options)


def test_plain_is_for_late_interaction(bi_encoder, cross_encoder):
    for model in (bi_encoder, cross_encoder):
        with pytest.raises(InputError, match="plain is for late interaction"):
            model.score("w1", "w2", plain=True)
    with pytest.raises(TaskNotSupported, match="is a bi_encoder: it reads one text at a time"):
        bi_encoder.encode_scoring_pairs(["w1"], ["w2"], [(0, 0)])


# what does not score


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ("a", "b", "c")}, r"Scoring API is only enabled for num_labels == 1\. This model has 3 labels"),
        (
            {"kind": "token_classifier"},
            r"This model does not support the Scoring API\. Its tasks are \['token_classify'\]",
        ),
        (
            {"labels": ("relevant",)},
            r"This model does not support the Scoring API\. .* one of bge_reranker_v2_gemma, .*qwen3_reranker",
        ),
    ],
)
def test_models_that_do_not_score(tmp_path, options, message):
    build_classifier(tmp_path / "model", **options)
    with PoolingModel.load(tmp_path / "model") as model, pytest.raises(TaskNotSupported, match=message):
        model.score("w1", "w2")


def test_a_template_makes_a_cross_encoder_of_a_classifier_with_one_label(tmp_path):
    build_classifier(tmp_path / "model", labels=("relevant",))
    with PoolingModel.load(tmp_path / "model") as model:
        found = model.score("w1", "w2", template="{{ query }} {{ document }}")
        np.testing.assert_allclose(found, sigmoid([prompt_logits(model, "w1 w2")]), atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "documents", "message"),
    [
        (["w1", "w2"], ["w3"], "Input lengths must be either 1:1, 1:N or N:N"),
        ([], ["w3"], "At least one text element must be given"),
        ("w1", [], "At least one text_pair element must be given"),
        ((), np.array([]), "At least one text element must be given"),
        ("w1", [3], "text 0 must be a str, got int"),
        ({"content": []}, "w1", "texts must be a str or a list of str, got dict"),
        ("w1", None, "texts must be a str or a list of str, got NoneType"),
    ],
)
@pytest.mark.parametrize("kind", ["cross_encoder", "bi_encoder", "late"])
def test_texts_refused(kind, request, queries, documents, message):
    with pytest.raises(InputError, match=message):
        request.getfixturevalue(kind).score(queries, documents)


# rerank


def test_rerank_sorts_by_score_and_then_by_index(cross_encoder):
    documents = ["w3", "w4", "w3", "w5 w6", "w3"] * 12
    scores = cross_encoder.score("w1", documents)
    ranked = cross_encoder.rerank("w1", documents)
    assert [document.score for document in ranked] == sorted(map(float, scores), reverse=True)
    for text in {*documents}:
        indices = [document.index for document in ranked if document.text == text]
        assert indices == [index for index, other in enumerate(documents) if other == text]
    assert all(
        document == RankedDocument(document.index, float(scores[document.index]), documents[document.index])
        for document in ranked
    )
    assert cross_encoder.rerank("w1", documents, 2) == ranked[:2]
    assert cross_encoder.rerank("w1", documents, top_n=99) == cross_encoder.rerank("w1", documents, top_n=0) == ranked


@pytest.mark.parametrize("kind", ["bi_encoder", "late", "templated"])
def test_every_way_of_scoring_ranks(kind, request):
    documents = ["w3 w4", "w1", "w7"]
    model = request.getfixturevalue(kind)
    ranked = model.rerank("w1", documents, top_n=1)
    assert ranked[0].index == int(model.score("w1", documents).argmax())


@pytest.mark.parametrize("top_n", [-1, 1.0, "1", True])
def test_top_n_is_a_count(cross_encoder, top_n):
    with pytest.raises(InputError, match="top_n must be a number of documents"):
        cross_encoder.rerank("w1", ["w2"], top_n=top_n)


def test_rerank_takes_one_query(cross_encoder):
    with pytest.raises(InputError, match="query must be a str, got list"):
        cross_encoder.rerank(["w1"], ["w2"])
    with pytest.raises(InputError, match="At least one text_pair element"):
        cross_encoder.rerank("w1", [])


def test_rerank_warns_at_its_own_caller(cross_encoder):
    with pytest.warns(UserWarning, match="1 of 2 pairs") as caught:
        cross_encoder.rerank("w1", ["w2 " * 60, "w3"], truncate=True)
    assert caught[0].filename == __file__
