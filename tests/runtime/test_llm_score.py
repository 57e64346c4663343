"""``LLM.score`` and ``LLM.rerank`` over the three kinds of models that score."""

import re

import msgspec
import numpy as np
import pytest
from little_classifiers import build_classifier, reference_logits

from poolgraph import LLM, PoolerConfig, PoolingModel, PoolingParams
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.graphs.artifact import open_artifact, save_manifest
from poolgraph.graphs.manifest import LateInteraction, QueryExpansion, Scoring
from poolgraph.runtime.outputs import ScoringRequestOutput

TEMPLATE = "{{ instruction or 'find' }} {{ query }} . {{ document }}"


@pytest.fixture
def bi_encoder(artifact) -> LLM:
    return LLM(artifact)


@pytest.fixture
def make_reranker(tmp_path):
    def make(*, name="reranker", **changes):
        fields = {"labels": ("relevant",), "scoring": Scoring(kind="cross_encoder"), **changes}
        return build_classifier(tmp_path / name, **fields)

    return make


@pytest.fixture
def make_colbert(make_artifact):
    def make(*, similarity="maxsim", **late):
        fields = {"query_length": 6, "document_length": 8, "skip_token_ids": (9,)}
        return make_artifact(
            name=f"colbert-{similarity}",
            families=("token",),
            tasks=("token_embed",),
            default_task="token_embed",
            prompts={"query": "w1 ", "document": "w2 "},
            similarity_fn_name=similarity,
            scoring=Scoring(kind="late_interaction"),
            late_interaction=LateInteraction(**fields | late),
        )

    return make


def vectors(outputs) -> np.ndarray:
    return np.stack([output.outputs.data for output in outputs]).astype(np.float64)


def scores(outputs) -> list[float]:
    return [output.outputs.score for output in outputs]


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


SHAPES = [
    ("w1", "w2", ["0_1"]),
    ("w1", ["w2", "w3"], ["0_1", "0_2"]),
    (["w1"], ["w2", "w3"], ["0_1", "0_2"]),
    (["w1", "w2"], ["w3", "w4"], ["0_2", "1_3"]),
]


@pytest.mark.parametrize(("data_1", "data_2", "ids"), SHAPES)
def test_score_of_an_embedder_is_the_cosine(bi_encoder, data_1, data_2, ids):
    outputs = bi_encoder.score(data_1, data_2)
    assert [output.request_id for output in outputs] == ids
    assert all(type(output) is ScoringRequestOutput for output in outputs)
    texts = [*([data_1] if isinstance(data_1, str) else data_1), *([data_2] if isinstance(data_2, str) else data_2)]
    embedded = vectors(bi_encoder.embed(texts))
    for output in outputs:
        query, document = map(int, output.request_id.split("_"))
        assert output.outputs.score == pytest.approx(embedded[query] @ embedded[document], abs=1e-6)


def test_the_cosine_does_not_depend_on_the_activation(bi_encoder, artifact):
    raw = LLM(artifact, pooler_config={"use_activation": False})
    assert raw.score("w1", "w2")[0].outputs == bi_encoder.score("w1", "w2")[0].outputs


def test_an_answer_shows_both_prompts_and_what_was_cut(bi_encoder):
    (output,) = bi_encoder.score("w1", "w2 " * 20, truncate_prompt_tokens=4)
    assert output.prompt_token_ids == [2, 5, 3, 0, 2, 6, 6, 3]
    assert output.num_truncated_tokens == 18


def test_token_ids_and_content_parts(bi_encoder):
    parts = {"content": [{"type": "text", "text": "w1"}, {"type": "text", "text": "w3"}]}
    (output,) = bi_encoder.score(parts, {"prompt_token_ids": [2, 6, 3]})
    assert output.prompt_token_ids == [2, 5, 7, 3, 0, 2, 6, 3]
    (again,) = bi_encoder.score([parts], [[2, 6, 3]])
    assert again.outputs == output.outputs


@pytest.mark.parametrize(
    ("data_1", "data_2", "message"),
    [
        (["w1", "w2"], ["w3"], "Input lengths must be either 1:1, 1:N or N:N"),
        ([], ["w3"], "At least one text element must be given"),
        ("w1", [], "At least one text_pair element must be given"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, "w1", "MultiModalParam is not supported for TinyModel"),
        ("w1", {"content": [{"type": "text", "text": 3}]}, "MultiModalParam is not supported for TinyModel"),
        ("w1", {"content": []}, "MultiModalParam is not supported for TinyModel"),
        ("w1", {"prompt": "w1", "multi_modal_data": {"image": 1}}, "MultiModalParam is not supported for TinyModel"),
        ("w1", 3, "prompts must be a str"),
    ],
)
def test_data_that_is_refused(bi_encoder, data_1, data_2, message):
    with pytest.raises(InputError, match=message):
        bi_encoder.score(data_1, data_2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling_params": [PoolingParams()]}, "score takes one PoolingParams for all texts"),
        ({"lora_request": object()}, "lora_request is not supported"),
        ({"chat_template": TEMPLATE}, "template is for a cross-encoder"),
        ({"pooling_params": PoolingParams(extra_kwargs={"max_tokens_per_doc": -1})},
         "max_tokens_per_doc must be a non-negative integer"),
        ({"pooling_params": PoolingParams(extra_kwargs={"max_tokens_per_query": 16})},
         "max_tokens_per_query (16) must be less than max_model_len (16)."),
        ({"pooling_params": PoolingParams(extra_kwargs={"chat_template_kwargs": 3})},
         "chat_template_kwargs must be a Mapping, not int"),
        ({"pooling_params": PoolingParams(extra_kwargs={"plain_late_interaction": 1})},
         "plain_late_interaction must be a bool, not int"),
        ({"pooling_params": PoolingParams(task="classify")}, "You cannot overwrite pooling_params.task='classify'"),
    ],
)  # fmt: skip
def test_options_that_are_refused(bi_encoder, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        bi_encoder.score("w1", "w2", **options)


def test_extra_kwargs_without_effect_are_warned_about(bi_encoder):
    with pytest.warns(UserWarning, match=r"extra_kwargs \[3, 'top_k'\] have no effect on scores") as caught:
        bi_encoder.score("w1", "w2", pooling_params=PoolingParams(extra_kwargs={"top_k": 3, 3: 4}))
    assert caught[0].filename == __file__


def test_texts_of_an_embedder_are_cut_before_they_are_embedded(bi_encoder):
    params = PoolingParams(extra_kwargs={"max_tokens_per_query": 1, "max_tokens_per_doc": 2})
    (output,) = bi_encoder.score("w1 w2 w3", "w4 w5 w6", pooling_params=params)
    assert output.prompt_token_ids == [2, 5, 3, 0, 2, 8, 9, 3]
    assert output.num_truncated_tokens == 3
    assert output.outputs == bi_encoder.score("w1", "w4 w5")[0].outputs
    (output,) = bi_encoder.score([[2, 5, 3]], "w4", pooling_params=params)
    assert (output.prompt_token_ids, output.num_truncated_tokens) == ([2, 0, 2, 8, 3], 2)


def test_a_template_of_the_whole_llm_rests_where_it_has_no_use(artifact, bi_encoder):
    llm = LLM(artifact, chat_template=TEMPLATE)
    assert llm.score("w1", "w2")[0].outputs == bi_encoder.score("w1", "w2")[0].outputs


def test_a_cross_encoder_reads_pairs(make_reranker):
    llm = LLM(make_reranker(), task="score")
    outputs = llm.score("w1", ["w2", "w3 w4"])
    assert [output.request_id for output in outputs] == ["0", "1"]
    assert outputs[1].prompt_token_ids == llm.get_tokenizer().backend.encode("w1", "w3 w4").ids
    for output in outputs:
        assert type(output) is ScoringRequestOutput
        logit = reference_logits(output.prompt_token_ids, 1, "sequence")[0]
        assert output.outputs.score == pytest.approx(sigmoid(logit), rel=1e-5)
    raw = llm.score("w1", "w2", pooling_params=PoolingParams(softmax=False))[0]
    assert raw.outputs.score == pytest.approx(reference_logits(raw.prompt_token_ids, 1, "sequence")[0], rel=1e-5)


@pytest.mark.parametrize("data", [("w1", ["w2", "w3"]), (["w1", "w2"], ["w3", "w4"]), ("w1", "w2 w3")])
def test_a_cross_encoder_gives_what_the_pooling_model_gives(make_reranker, data):
    path = make_reranker()
    with PoolingModel.load(path) as model:
        assert model.score(*data).tolist() == scores(LLM(path).score(*data))


def test_the_config_says_whether_scores_are_activated(make_reranker):
    path = make_reranker()
    llm = LLM(path, pooler_config=PoolerConfig(use_activation=False))
    raw = LLM(path).score("w1", "w2", pooling_params=PoolingParams(use_activation=False))
    assert scores(llm.score("w1", "w2")) == scores(raw)


def test_truncation_of_pairs(make_reranker):
    llm = LLM(make_reranker())
    with pytest.raises(InputError, match=r"maximum context length is 40 tokens.* contains 54 input tokens"):
        llm.score("w1", "w2 " * 50)
    (output,) = llm.score("w1", "w2 " * 50, truncate_prompt_tokens=-1)
    assert (len(output.prompt_token_ids), output.num_truncated_tokens) == (40, 14)
    (output,) = llm.score("w1", "w2 " * 50, tokenization_kwargs={"truncate_prompt_tokens": 9})
    assert len(output.prompt_token_ids) == 9
    params = PoolingParams(extra_kwargs={"max_tokens_per_doc": 3, "max_tokens_per_query": 1})
    (output,) = llm.score("w1 w5", "w2 " * 50, pooling_params=params)
    assert output.prompt_token_ids == llm.get_tokenizer().backend.encode("w1", "w2 w2 w2").ids
    lower = LLM(make_reranker(name="lower"), max_model_len=10)
    with pytest.raises(InputError, match="maximum context length is 10 tokens"):
        lower.score("w1", "w2 " * 8)


def test_what_pairs_do_not_take(make_reranker):
    llm = LLM(make_reranker())
    with pytest.raises(InputError, match="a cross-encoder takes texts, not token ids") as caught:
        llm.score("w1", [[2, 5, 3]])
    assert caught.value.parameter == "data_2"
    with pytest.raises(InputError, match="add_special_tokens=False is for single texts"):
        llm.score("w1", "w2", tokenization_kwargs={"add_special_tokens": False})
    with pytest.raises(InputError, match=re.escape("Task 'classify' only supports ['use_activation'] parameters")):
        llm.score("w1", "w2", pooling_params=PoolingParams(dimensions=2))


def test_templates_of_the_call_of_the_llm_and_of_the_artifact(make_reranker):
    path = make_reranker()
    own = LLM(path, chat_template=TEMPLATE)

    def ids(text):
        return own.get_tokenizer().backend.encode(text).ids

    assert own.score("w1", "w2")[0].prompt_token_ids == ids("find w1 . w2")
    called = own.score("w1", "w2", chat_template="{{ document }} - {{ query }}")
    assert called[0].prompt_token_ids == ids("w2 - w1")
    params = PoolingParams(extra_kwargs={"chat_template_kwargs": {"instruction": "w9"}})
    assert own.score("w1", "w2", pooling_params=params)[0].prompt_token_ids == ids("w9 w1 . w2")
    assert LLM(path).score("w1", "w2")[0].prompt_token_ids == own.get_tokenizer().backend.encode("w1", "w2").ids
    reserved = PoolingParams(extra_kwargs={"chat_template_kwargs": {"tokenize": True}})
    with pytest.raises(InputError, match="chat_template_kwargs cannot set tokenize"):
        own.score("w1", "w2", pooling_params=reserved)


def test_a_template_may_be_a_file(make_reranker, tmp_path):
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    path = make_reranker()
    by_file = LLM(path).score("w1", "w2", chat_template=tmp_path / "mine.jinja")
    assert by_file[0].prompt_token_ids == LLM(path).score("w1", "w2", chat_template=TEMPLATE)[0].prompt_token_ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ("a", "b"), "scoring": None}, "Scoring API is only enabled for num_labels == 1."),
        ({"labels": ("a",), "scoring": None}, "This model does not support the Scoring API."),
        ({"kind": "token_classifier", "scoring": None}, "This model does not support the Scoring API."),
    ],
)
def test_classifiers_that_do_not_score(tmp_path, options, message):
    llm = LLM(build_classifier(tmp_path / "classifier", **options))
    with pytest.raises(TaskNotSupported, match=re.escape(message)):
        llm.score("w1", "w2")


def test_a_template_makes_a_scorer_of_a_classifier_with_one_label(make_reranker):
    llm = LLM(make_reranker(scoring=None))
    (output,) = llm.score("w1", "w2", chat_template=TEMPLATE)
    assert output.outputs.score == pytest.approx(
        sigmoid(reference_logits(output.prompt_token_ids, 1, "sequence")[0]), rel=1e-5
    )


def plain_maxsim(llm, query, document):
    rows = [output.outputs.data.astype(np.float64) for output in llm.encode([query, document])]
    return (rows[0] @ rows[1].T).max(1).sum()


@pytest.mark.parametrize(("data_1", "data_2", "ids"), SHAPES)
def test_an_embedder_used_for_tokens_scores_by_maxsim(artifact, data_1, data_2, ids):
    llm = LLM(artifact, pooler_config={"task": "token_embed"})
    outputs = llm.score(data_1, data_2)
    assert [output.request_id for output in outputs] == ids
    queries = [data_1] * len(outputs) if isinstance(data_1, str) else list(data_1) * (len(outputs) // len(data_1))
    documents = [data_2] if isinstance(data_2, str) else data_2
    for output, query, document in zip(outputs, queries, documents, strict=True):
        assert output.outputs.score == pytest.approx(plain_maxsim(llm, query, document), rel=1e-5)


def test_late_interaction_by_the_checkpoints_definition(make_colbert):
    path = make_colbert(query_expansion=QueryExpansion(strategy="fixed", token_id=4, length=6, attend=True))
    llm = LLM(path)
    outputs = llm.score("w7 w8", ["w6 w5", "w7"])
    assert outputs[0].prompt_token_ids == [2, 5, 11, 12, 3, 4, 0, 2, 6, 10, 9, 3]
    with PoolingModel.load(path) as model:
        assert scores(outputs) == model.score("w7 w8", ["w6 w5", "w7"]).tolist()
        query, document = model.embed_queries("w7 w8")[0], model.embed_documents("w6 w5")[0]
    assert (len(query), len(document)) == (6, 4)
    assert outputs[0].outputs.score == pytest.approx((query @ document.T).max(1).sum(), rel=1e-5)


@pytest.mark.parametrize("similarity", ["maxsim", "meanmaxsim"])
def test_plain_late_interaction_is_that_of_vllm(make_colbert, similarity):
    llm = LLM(make_colbert(similarity=similarity))
    plain = PoolingParams(extra_kwargs={"plain_late_interaction": True})
    (output,) = llm.score("w7 w8", "w6 w5", pooling_params=plain)
    assert output.prompt_token_ids == [2, 11, 12, 3, 0, 2, 10, 9, 3]
    assert output.outputs.score == pytest.approx(plain_maxsim(llm, "w7 w8", "w6 w5"), rel=1e-5)
    assert scores(llm.score("w7 w8", "w6 w5")) != scores([output])


def test_the_mean_of_the_query_vectors(make_colbert):
    total, mean = (LLM(make_colbert(similarity=name)).score("w7 w8", "w6")[0] for name in ("maxsim", "meanmaxsim"))
    assert total.outputs.score == pytest.approx(mean.outputs.score * 5, rel=1e-5)


def test_limits_of_late_interaction(make_colbert):
    llm = LLM(make_colbert())
    (output,) = llm.score("w7 " * 9, "w6 " * 9)
    assert (len(output.prompt_token_ids), output.num_truncated_tokens) == (6 + 1 + 8, 6 + 4)
    (output,) = llm.score("w7 " * 9, "w6 " * 9, truncate_prompt_tokens=5)
    assert len(output.prompt_token_ids) == 5 + 1 + 5
    kwargs = {"truncation_side": "left", "truncate_prompt_tokens": 4}
    (output,) = llm.score("w7 w8 w9", "w4 w5 w6", tokenization_kwargs=kwargs)
    assert output.prompt_token_ids == [2, 12, 13, 3, 0, 2, 9, 10, 3]
    with pytest.raises(InputError, match="truncate_prompt_tokens=17 cannot be greater than max_total_tokens = 16"):
        llm.score("w7", "w6", truncate_prompt_tokens=17)
    params = PoolingParams(extra_kwargs={"max_tokens_per_query": 1, "max_tokens_per_doc": 2})
    (output,) = llm.score("w7 " * 9, "w6 " * 9, pooling_params=params)
    assert output.prompt_token_ids == [2, 5, 11, 3, 0, 2, 6, 10, 10, 3]
    assert output.num_truncated_tokens == 8 + 7
    with pytest.raises(InputError, match="late interaction takes texts, not token ids"):
        llm.score([[2, 5, 3]], "w6")
    with pytest.raises(InputError, match="add_special_tokens=False is for single texts"):
        llm.score("w7", "w6", tokenization_kwargs={"add_special_tokens": False})


def test_documents_longer_than_the_model_are_cut_only_where_asked(make_colbert):
    llm = LLM(make_colbert(document_length=None))
    with pytest.raises(InputError, match="maximum context length is 16 tokens"):
        llm.score("w7", "w6 " * 20)
    (output,) = llm.score("w7", "w6 " * 20, truncate_prompt_tokens=-1)
    assert len(output.prompt_token_ids) == 4 + 1 + 16


def test_rerank_puts_the_best_first(bi_encoder, artifact):
    documents = ["w2 w9", "w3", "w1 w4", "w3"]
    ranked = bi_encoder.rerank("w1", documents)
    found = scores(bi_encoder.score("w1", documents))
    assert [document.index for document in ranked] == sorted(range(4), key=lambda index: -found[index])
    assert [document.score for document in ranked] == sorted(found, reverse=True)
    assert [document.text for document in ranked] == [documents[document.index] for document in ranked]
    assert [document.index for document in ranked if document.text == "w3"] == [1, 3]
    assert bi_encoder.rerank("w1", documents, 2) == ranked[:2]
    assert bi_encoder.rerank("w1", documents, top_n=0) == ranked
    with PoolingModel.load(artifact) as model:
        assert model.rerank("w1", documents, 3) == ranked[:3]


def test_rerank_of_token_ids_and_what_it_refuses(bi_encoder):
    assert bi_encoder.rerank([2, 5, 3], [[2, 6, 3]])[0].text == "w2"
    with pytest.raises(InputError, match="rerank takes one query, got 2; score takes several"):
        bi_encoder.rerank(["w1", "w2"], ["w3", "w4"])
    with pytest.raises(InputError, match="top_n must be a number of documents"):
        bi_encoder.rerank("w1", ["w3"], top_n=-1)
    with pytest.raises(InputError, match="At least one text_pair element must be given"):
        bi_encoder.rerank("w1", [])


def test_rerank_takes_the_options_of_score(make_reranker):
    llm = LLM(make_reranker())
    params = PoolingParams(use_activation=False)
    ranked = llm.rerank("w1", ["w2", "w3"], pooling_params=params, chat_template=TEMPLATE)
    found = scores(llm.score("w1", ["w2", "w3"], pooling_params=params, chat_template=TEMPLATE))
    assert [document.score for document in ranked] == sorted(found, reverse=True)


def test_artifacts_without_a_word_on_scoring_are_bi_encoders(artifact):
    manifest = open_artifact(artifact)
    assert manifest.scoring is None
    before = scores(LLM(artifact).score("w1", "w2"))
    save_manifest(artifact, msgspec.structs.replace(manifest, scoring=Scoring(kind="bi_encoder")))
    assert scores(LLM(artifact).score("w1", "w2")) == before


def test_progress_counts_what_runs(bi_encoder, make_reranker):
    totals = []

    class Bar:
        def __init__(self, *, total, **_options):
            totals.append(total)

        def update(self, number):
            totals[-1] -= number

        def close(self):
            totals.append("closed")

    bi_encoder.score("w1", ["w2", "w3"], use_tqdm=Bar)
    LLM(make_reranker()).score("w1", ["w2", "w3"], use_tqdm=Bar)
    assert totals == [0, "closed", 0, "closed"]
