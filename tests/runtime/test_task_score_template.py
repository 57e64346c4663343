"""Scores through a score template: the artifact's own, a call's, and documents cut to fit."""

import msgspec
import numpy as np
import pytest
from little_classifiers import MAX_MODEL_LEN
from little_scorers import TEMPLATE, build_scorer, draw_texts, pair_logits, prompt_logits, sigmoid

from poolgraph.config import PoolingParams
from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.artifact import save_manifest
from poolgraph.graphs.manifest import Scoring, parse_manifest
from poolgraph.runtime.llm import LLM
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.score_options import ScoreOptions

TOO_LONG = f"This model's maximum context length is {MAX_MODEL_LEN} tokens"


@pytest.fixture
def cross_encoder(tmp_path):
    with PoolingModel.load(build_scorer(tmp_path / "pair")) as model:
        yield model


@pytest.fixture
def templated(tmp_path):
    with PoolingModel.load(build_scorer(tmp_path / "templated", template=TEMPLATE)) as model:
        yield model


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
    folder = build_scorer(
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


def test_a_document_before_the_query_is_cut_alone(cross_encoder):
    options = ScoreOptions(template="{{ document }} about {{ query }} end", truncate_to=12)
    (encoded,) = cross_encoder.encode_scoring_pairs(["w1 w2"], ["w3 " * 30], [(0, 0)], options)
    assert cross_encoder.tokenizer.decode(encoded.input_ids).endswith("about w1 w2 end")
    assert encoded.num_tokens == 12


def test_too_long_prompts_are_named(templated):
    with pytest.raises(InputError, match=rf"{TOO_LONG}.* \(pair 1\)"):
        templated.score("w1", ["w2", "w3 " * 50])
    with pytest.raises(InputError, match=rf"{TOO_LONG}"):
        templated.score("w1 " * 50, "w3")
    with pytest.warns(UserWarning, match="1 of 1 pairs"):
        templated.score("w1", "w3 " * 50, truncate=True)


@pytest.mark.parametrize("limit", [3, 8, 20, 40])
@pytest.mark.parametrize(("side", "document"), [("right", ""), ("right", "w7 w8"), ("left", "w7 w8")])
def test_a_query_that_leaves_no_room_is_cut_before_the_end_of_the_template(templated, limit, side, document):
    """The template's own last word stays, and what the tokenizer adds around the text."""
    query = " ".join(f"w{number}" for number in range(50))
    options = ScoreOptions(truncate_to=limit, truncation_side=side)
    (encoded,) = templated.encode_scoring_pairs([query], [document], [(0, 0)], options)
    backend = templated.tokenizer.backend
    whole = backend.encode(f"ask w9 {query} about {document} end").ids
    begin, *inner, end = whole
    room, end_of_template = limit - 2, len(backend.encode("end", add_special_tokens=False))
    last = min(room, end_of_template if side == "right" else room)
    kept = inner[: room - last] + inner[len(inner) - last :]
    assert encoded.input_ids.tolist() == [begin, *kept, end]
    assert (encoded.num_tokens, encoded.num_truncated_tokens) == (limit, len(whole) - limit)


def test_a_template_without_an_end_of_its_own(cross_encoder):
    options = ScoreOptions(template="{{ query }} {{ document }}", truncate_to=6)
    (encoded,) = cross_encoder.encode_scoring_pairs(["w1 w2 w3 w4 w5"], ["w6"], [(0, 0)], options)
    assert cross_encoder.tokenizer.decode(encoded.input_ids) == "w1 w2 w3 w4"


SYSTEM = "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
PROMPTED = f"{SYSTEM} {{{{ query }}}} about {{{{ document }}}} {{{{ more }}}}"
PROMPTS = {"find": "w5", "none": ""}


def build_prompted(folder, *, template=PROMPTED, **changes):
    return build_scorer(folder, template=template, prompts=PROMPTS, default_prompt_name="find", **changes)


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    with PoolingModel.load(build_prompted(tmp_path_factory.mktemp("models") / "prompted")) as model:
        yield model


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({}, "w5 w1 about w2"),
        ({"prompt_name": "none"}, "w1 about w2"),
        ({"prompt": ""}, "w1 about w2"),
        ({"prompt": "w6", "prompt_name": "none"}, "w6 w1 about w2"),
        # what vLLM calls an instruction goes before the model's own prompt
        ({"instruction": "w7"}, "w7 w1 about w2"),
        ({"template_kwargs": {"instruction": "w7"}}, "w7 w1 about w2"),
        ({"template_kwargs": {"more": "w8"}}, "w5 w1 about w2 w8"),
        ({"instruction": "w7", "prompt": "w7"}, "w7 w1 about w2"),
    ],
)
def test_a_prompt_is_the_system_message(prompted, keywords, text):
    found = prompted.score("w1", "w2", use_activation=False, **keywords)
    np.testing.assert_allclose(found, [prompt_logits(prompted, text)], atol=1e-5)
    (best,) = prompted.rerank("w1", ["w2"], use_activation=False, **keywords)
    assert best.score == found[0]


def test_an_instruction_that_the_template_reads_leaves_out_the_models_own_prompt(tmp_path):
    folder = build_prompted(tmp_path / "model", template="{{ instruction }} " + PROMPTED)
    with PoolingModel.load(folder) as model:
        for keywords, text in (
            ({}, "w5 w1 about w2"),
            ({"instruction": "w7"}, "w7 w1 about w2"),
            ({"instruction": "w7", "prompt": "w6"}, "w7 w6 w1 about w2"),
        ):
            found = model.score("w1", "w2", use_activation=False, **keywords)
            np.testing.assert_allclose(found, [prompt_logits(model, text)], atol=1e-5)


def test_llm_takes_the_default_prompt_and_vllms_instruction(tmp_path):
    llm = LLM(str(build_prompted(tmp_path / "model")))
    encode = llm.get_tokenizer().backend.encode
    assert llm.score("w1", "w2")[0].prompt_token_ids == encode("w5 w1 about w2").ids
    params = PoolingParams(extra_kwargs={"chat_template_kwargs": {"instruction": "w7"}})
    assert llm.score("w1", "w2", pooling_params=params)[0].prompt_token_ids == encode("w7 w1 about w2").ids


def test_a_prompt_goes_before_the_query_of_a_pair(tmp_path):
    folder = build_scorer(tmp_path / "model", prompts={"find": "w5 "}, default_prompt_name="find")
    with PoolingModel.load(folder) as model:
        for keywords, query in (({}, "w5 w1"), ({"prompt": "w6 "}, "w6 w1"), ({"prompt": ""}, "w1")):
            found = model.score("w1", "w2", use_activation=False, **keywords)
            np.testing.assert_allclose(found, [pair_logits(model, query, "w2")], atol=1e-5)


def test_prompts_that_have_no_place(templated, prompted):
    with pytest.raises(InputError, match="the score template has no place for a prompt"):
        templated.score("w1", "w2", prompt="w3")
    with pytest.raises(InputError, match=r"prompt name 'swim' is not one of the model's prompts \['find', 'none'\]"):
        prompted.score("w1", "w2", prompt_name="swim")
    with pytest.raises(InputError, match="one place for an instruction and a prompt"):
        prompted.score("w1", "w2", prompt="w3", instruction="w4")
    # a template of the caller's own need not print the model's default prompt
    found = prompted.score("w1", "w2", template="plain", use_activation=False)
    np.testing.assert_allclose(found, [prompt_logits(prompted, "w1w2")], atol=1e-5)


def test_variables_and_special_tokens_as_the_manifest_says(tmp_path):
    scoring = Scoring(
        kind="cross_encoder",
        template="score_template.jinja",
        template_kwargs={"more": "w8"},
        content_parts=True,
        add_special_tokens=False,
    )
    template = "{% for m in messages %}{{ m.content[0].text }} {% endfor %}{{ more }}"
    folder = build_scorer(tmp_path / "model", template=template, scoring=scoring)
    with PoolingModel.load(folder) as model:
        backend = model.tokenizer.backend
        for variables, text in (({}, "w1 w2 w8"), ({"more": "w9"}, "w1 w2 w9")):
            options = ScoreOptions(template_kwargs=variables)
            (encoded,) = model.encode_scoring_pairs(["w1"], ["w2"], [(0, 0)], options)
            assert encoded.input_ids.tolist() == backend.encode(text, add_special_tokens=False).ids
        long = model.encode_scoring_pairs(["w1 " * 60], ["w2"], [(0, 0)], ScoreOptions(truncate_to=5))
        assert long[0].input_ids.tolist() == backend.encode("w1 w1 w1 w1 w8", add_special_tokens=False).ids
        # a template of the caller's own has none of this
        (other,) = model.encode_scoring_pairs(
            ["w1"], ["w2"], [(0, 0)], ScoreOptions(template="{{ query }} {{ document }}")
        )
        assert other.input_ids.tolist() == backend.encode("w1 w2").ids


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


@pytest.mark.parametrize("variables", ["instruction", 3, {1: 2}])
def test_variables_have_names(templated, variables):
    with pytest.raises(InputError, match="chat_template_kwargs must be a mapping of variable names to values"):
        templated.score("w1", "w2", template_kwargs=variables)


@pytest.mark.parametrize("name", ["tools", "chat_template", "tokenize"])
def test_reserved_variables_are_refused(templated, name):
    with pytest.raises(InputError, match=f"chat_template_kwargs cannot set {name}"):
        templated.score("w1", "w2", template_kwargs={name: 1})


def test_an_instruction_needs_a_place_in_the_template(cross_encoder):
    for template in ("{{ query }} {{ document }}", "nemotron_rerank"):
        with pytest.raises(InputError, match="the score template has no place for an instruction"):
            cross_encoder.score("w1", "w2", template=template, instruction="w3")


def test_an_instruction_given_twice(templated):
    with pytest.raises(InputError, match="contradict each other"):
        templated.score("w1", "w2", instruction="w3", template_kwargs={"instruction": "w4"})


@pytest.mark.parametrize(
    ("template", "name"), [("{{ query", "score_template.jinja"), (TEMPLATE, "other.jinja"), (TEMPLATE, "../x.jinja")]
)
def test_a_broken_template_of_the_artifact(tmp_path, template, name):
    folder = build_scorer(tmp_path / "model", template=template)
    manifest = parse_manifest((folder / "poolgraph.json").read_bytes())
    save_manifest(folder, msgspec.structs.replace(manifest, scoring=Scoring(kind="cross_encoder", template=name)))
    with PoolingModel.load(folder) as model, pytest.raises(ArtifactError, match="score template"):
        model.score("w1", "w2")


def test_a_broken_tokenizer_config(tmp_path):
    folder = build_scorer(tmp_path / "model", template=TEMPLATE, config="[]")
    with (
        PoolingModel.load(folder) as model,
        pytest.raises(ArtifactError, match=r"tokenizer_config\.json is no JSON object"),
    ):
        model.score("w1", "w2")
