"""Score templates: the published formats, vLLM's way of writing them, and what a hostile one can do (nothing)."""

import time
import tracemalloc
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from poolgraph.errors import InputError
from poolgraph.runtime import score_template
from poolgraph.runtime.score_template import TEMPLATES, ScoreTemplate, read_template, resolve_template

QUERY, DOCUMENT = "what is\npanda?", "The giant panda {{ is }} a bear. "
BOTH = "{{ query }}|{{ document }}"

QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {instruction}\n'
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{instruction}query: {query}\ndocument: {document}\n"
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n"
)
GEMMA = (
    "A: {query}\nB: {document}\nGiven a query A and a passage B, determine whether the passage contains an answer to "
    "the query by providing a prediction of either 'Yes' or 'No'."
)
PUBLISHED = {
    "qwen3_reranker": QWEN3.replace(
        "{instruction}", "Given a web search query, retrieve relevant passages that answer the query"
    ),
    "mxbai_rerank_v2": MXBAI.replace("{instruction}", ""),
    "bge_reranker_v2_gemma": GEMMA,
    "nemotron_rerank": "question:{query} \n \n passage:{document}",
    "plain": "{query}{document}",
}
INSTRUCTED = {
    "qwen3_reranker": QWEN3.replace("{instruction}", "Find bears"),
    "mxbai_rerank_v2": MXBAI.replace("{instruction}", "instruction: Find bears\n"),
    "bge_reranker_v2_gemma": GEMMA.rpartition("\n")[0] + "\nFind bears",
    "nemotron_rerank": PUBLISHED["nemotron_rerank"],
    "plain": PUBLISHED["plain"],
}

VLLM_STYLE = (
    '<a>{{ instruction | default(instruct | default("find", true), true) }}\n'
    'Q: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n'
    'D: {{ (messages | selectattr("role", "eq", "document") | first).content }}</a>\n\n'
)
WRITTEN_FOR_TRANSFORMERS = {
    "filters": VLLM_STYLE,
    "positions": 'Query: {{ messages[0]["content"] }}\nDocument: {{ messages[1]["content"] }}',
    "blocks": (
        "{%- set q = (messages | selectattr('role', 'equalto', 'query') | list | first)['content'] -%}\n"
        "{#- a comment -#}\n"
        "{% if '<image>' in q %}<image>{% endif %}{{ q | replace('<image>', '') }}{{ ' ' }}\n"
        "  {% for message in messages if message.role == 'document' %}\n"
        "    {{- message.content | trim ~ '/' ~ loop.index }}\n"
        "    {% break %}\n"
        "  {% endfor %}\n"
        "{% macro bold(text) %}**{{ text }}**{% endmacro %}{{ bold(messages[1]['content'][:5].upper()) }}\n"
        "{% set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + m.content|length %}"
        "{% endfor %}{{ ns.count }} {{ messages | map(attribute='role') | join(', ') }}"
        "{{ messages[1].content | tojson }}{{ raise_exception('no') if not messages }}{{ missing }}\n"
    ),
}


def fill(form: str) -> str:
    return form.replace("{query}", QUERY).replace("{document}", DOCUMENT)


@pytest.mark.parametrize("name", TEMPLATES)
def test_shipped_templates_are_the_published_formats(name):
    template = resolve_template(name)
    assert template.render(QUERY, DOCUMENT) == fill(PUBLISHED[name])
    assert template.render(QUERY, DOCUMENT, "Find bears") == fill(INSTRUCTED[name])
    assert template.render("", "") == PUBLISHED[name].replace("{query}", "").replace("{document}", "")


def test_every_shipped_template_says_where_it_is_published():
    folder = Path(score_template.__file__).parent
    assert {file.name for file in folder.glob("*.jinja")} == set(TEMPLATES.values())
    for name in TEMPLATES.values():
        assert (folder / name).read_text(encoding="utf-8").startswith("{#- "), name


@pytest.mark.parametrize("name", WRITTEN_FOR_TRANSFORMERS)
@pytest.mark.parametrize("variables", [{}, {"instruct": "search"}, {"instruction": "ask"}])
def test_templates_give_what_transformers_gives(name, variables):
    source = WRITTEN_FOR_TRANSFORMERS[name]
    messages = [{"role": "query", "content": QUERY}, {"role": "document", "content": DOCUMENT}]
    expected = _compile_jinja_template(source).render(messages=messages, **variables)
    assert ScoreTemplate.parse(source).render(QUERY, DOCUMENT, **variables) == expected


def test_content_comes_in_parts_where_the_template_takes_it_apart():
    source = (
        '{{ (messages | selectattr("role", "eq", "query") | first).content[0].text }}+'
        '{{ (messages | selectattr("role", "eq", "document") | first).content[0]["text"] }}'
    )
    template = ScoreTemplate.parse(source)
    assert template.content_parts
    assert template.render("left", "right") == "left+right"
    assert not ScoreTemplate.parse(VLLM_STYLE).content_parts


def test_variables_reach_the_template():
    template = ScoreTemplate.parse(BOTH + "{{ bos_token }}{{ flags.deep[1] }}{{ instruction }}")
    assert template.render("a", "b", "i", bos_token="<s>", flags={"deep": [1, 2]}) == "a|b<s>2i"
    assert template.render("a", "b", bos_token="<s>", flags={"deep": [1, 2]}) == "a|b<s>2"


@pytest.mark.parametrize("name", ["chat_template", "tools", "tokenize", "messages", "query", "document"])
def test_reserved_variables_are_refused(name):
    with pytest.raises(InputError, match=f"chat_template_kwargs cannot set {name}"):
        score_template.check_template_kwargs({name: 1, "other": 2})
    score_template.check_template_kwargs({"other": 2})


def test_the_texts_are_not_templates():
    assert ScoreTemplate.parse(BOTH).render("{{ 1 + 1 }}", "{% raw %}") == "{{ 1 + 1 }}|{% raw %}"


def test_resolving(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_bytes(b"{{ query }}\r\n{{ document }}")
    assert resolve_template("plain").render("a", "b") == "ab"
    assert resolve_template(str(file)).render("a", "b") == "a\nb"
    assert resolve_template(BOTH).render("a", "b") == "a|b"
    assert resolve_template(BOTH) is resolve_template(BOTH)
    assert resolve_template(BOTH).source == BOTH


@pytest.mark.parametrize("name", ["qwen", "", "no/such.jinja", "a" * 5000, "null\x00byte", "."])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(InputError, match=r"names are bge_reranker_v2_gemma, mxbai_rerank_v2, .*, qwen3_reranker"):
        resolve_template(name)


def test_not_a_str_is_refused():
    with pytest.raises(InputError, match="template must be a str, got int"):
        resolve_template(3)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_files_that_cannot_be_read(tmp_path, content):
    file = tmp_path / "bad.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.jinja cannot be read"):
        read_template(file)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ query }", "does not compile"),
        ("{% if query %}", "does not compile"),
        ("{{ query }}", "never prints the document"),
        ("{{ document | upper }} {{ query }}", "never prints the document"),
        ("Hello {{ name }}", "never prints the query and the document"),
    ],
)
def test_templates_that_make_no_sense(source, message):
    with pytest.raises(InputError, match=message):
        ScoreTemplate.parse(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('give an apple') if not apple }}", "failed: give an apple"),
        ("{{ missing.part }}", "'missing' is undefined"),
        ("{{ messages }}", "prints texts and numbers, not a list"),
    ],
)
def test_what_only_a_call_can_tell_is_refused_there(source, message):
    template = ScoreTemplate.parse(BOTH + source)
    with pytest.raises(InputError, match=message):
        template.render("a", "b")


def looped(body: str, start: str = "'a'") -> str:
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(100) %}}{body}{{% endfor %}}"


HOSTILE = {
    "repeated text": "{{ 'a' * 10**9 }}",
    "repeated list": "{{ ([1] * 10**9) | length }}",
    "power": "{{ 2 ** (10 ** 9) }}",
    "squares": looped("{% set ns.x = ns.x * ns.x %}", "3"),
    "doubled by ~": looped("{% set ns.x = ns.x ~ ns.x %}"),
    "doubled by +": looped("{% set ns.x = ns.x + ns.x %}"),
    "doubled list": looped("{% set ns.x = ns.x + ns.x %}", "[1]"),
    "doubled by a block": looped("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "replaced": looped("{% set ns.x = ns.x | replace('a', 'aaaaaaaa') %}"),
    "replaced by the method": looped("{% set ns.x = ns.x.replace('a', 'aaaaaaaa') %}"),
    "joined": looped("{% set ns.x = range(1000) | join(ns.x) %}"),
    "joined by the method": looped("{% set ns.x = ns.x.join('aaaaaaaaaa') %}"),
    "many long texts": "{% set long = range(1000) | join('a' ~ range(90) | join) %}"
    + looped("{% set ns.x = ns.x + [long + 'b'] %}", "[]"),
    "sliced": looped("{% set ns.x = (ns.x ~ 'a' * 0)[0:] %}"),
    "mapped": "{{ range(100000) | map('string') | list | length }}",
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "loop conditions": "{% for a in range(100000) if not (range(100000) | list) %}{% endfor %}",
    "loop that leaves everything out": "{% for a in range(100000) if false %}{% endfor %}",
    "recursive loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "endless macro": "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "branching macro": ("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"),
    "nested lists": looped("{% set ns.x = [ns.x, ns.x] %}"),
    "nested dicts": looped("{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "{}"),
    "width": "{{ '{:>999999999}'.format(1) }}",
    "width by %": "{{ '%0999999999d' % 1 }}",
    "centered": "{{ 'a'.center(10**9) }}",
    "centered by the filter": "{{ 'a' | center(999999999) }}",
    "bytes": "{{ (1).to_bytes(10**9) }}",
    "long range": "{{ range(10**9) | list | length }}",
    "deep": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "long": "a" * 70_000,
    "private attribute": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ ''.__class__.__base__.__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__['os'] }}",
    "globals by lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "globals by cycler": "{{ cycler.__init__.__globals__ }}",
    "include": "{% include '/etc/hostname' %}",
    "import": "{% import '/etc/hostname' as x %}",
    "extends": "{% extends '/etc/hostname' %}",
    "changed messages": "{{ messages.append(1) }}",
    "changed message": "{{ messages[0].update(role='system') }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped(name):
    started = time.thread_time()
    with pytest.raises(InputError, match=r"score template (failed|does not compile)"):
        ScoreTemplate.parse(BOTH + HOSTILE[name]).render("a", "b")
    assert time.thread_time() - started < 10


@pytest.mark.parametrize(
    "expression",
    [
        "document | replace('a', document)",
        "document.replace('a', document)",
        "range(9000) | join(document)",
        "document.join(document)",
    ],
)
def test_text_that_is_too_long_is_never_made(expression):
    template = ScoreTemplate.parse(f"{BOTH}{{% if document|length > 99 %}}{{{{ {expression} }}}}{{% endif %}}")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="too much text"):
            template.render("query", "a" * 9000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.parametrize(
    "expression", ["'' | map(attribute='__class__') | list | first", "self.__init__", "''['format']"]
)
def test_what_is_private_is_undefined(expression):
    assert ScoreTemplate.parse(f"{BOTH}{{{{ {expression} }}}}").render("a", "b") == "a|b"


def test_work_that_makes_nothing_is_stopped_by_the_clock(monkeypatch):
    monkeypatch.setattr("poolgraph.runtime.template_sandbox._MAX_SECONDS", 0.2)
    template = ScoreTemplate.parse(
        BOTH
        + "{% if document|length > 99 %}{% for i in range(100000) %}{% if 'zz' in document %}{% endif %}{% endfor %}"
        "{% endif %}"
    )
    started = time.thread_time()
    with pytest.raises(InputError, match="too many steps"):
        template.render("query", "document " * 200_000)
    assert time.thread_time() - started < 2


def test_long_documents_have_room():
    document = "word " * 200_000
    assert ScoreTemplate.parse(VLLM_STYLE).render("a", document) == f"<a>find\nQ: a\nD: {document}</a>\n"


def test_a_failure_leaves_no_budget_behind():
    template = ScoreTemplate.parse(BOTH + "{{ raise_exception('no') if query == 'bad' }}")
    for _ in range(3):
        with pytest.raises(InputError, match="failed: no"):
            template.render("bad", "b")
        assert template.render("good", "b") == "good|b"


def test_what_every_chat_template_is_given():
    template = ScoreTemplate.parse(
        "{{ query }}{{ document }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}"
    )
    assert template.render("a", "b") == "abTrueTrueFalse"
    assert template.render("a", "b", add_generation_prompt="yes") == "abTrueTrueyes"


def test_a_prompt_is_the_first_message():
    template = ScoreTemplate.parse("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    assert template.fill("a", "b", prompt="c", variables={}) == "<system>c<query>a<document>b"
    assert template.fill("a", "b", variables={}) == template.render("a", "b") == "<query>a<document>b"
    parts = ScoreTemplate.parse("{% for m in messages %}{{ m.content[0].text }}{% endfor %}")
    assert parts.fill("a", "b", prompt="c", variables={}) == "cab"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0].content }}{{ messages[-1].content }}{{ query }}", True),
        ("{{ query }}{{ document }}", False),
        (
            "{% for m in messages if m.role == 'system' %}{{ m.content | upper }}{% endfor %}{{ query }}{{ document }}",
            True,
        ),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ query }}{{ document }}", False),
        ("{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}{{ query }}{{ document }}", True),
    ],
)
def test_whether_a_template_has_a_place_for_a_prompt(source, expected):
    assert ScoreTemplate.parse(source).has_prompt({}) is expected


def test_the_form_of_a_message_that_was_found_before():
    source = "{{ messages[0].content is string }}{{ messages[1].content is string }}"
    assert [ScoreTemplate.parse(source, content_parts=parts).render("a", "b") for parts in (True, False)] == [
        "FalseFalse",
        "TrueTrue",
    ]
