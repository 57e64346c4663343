import msgspec
import pytest

from poolgraph.config import PoolerConfig
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.task_wish import TaskWish, plan_export_options, resolve_default_task, resolve_wish


@pytest.fixture
def manifest(artifact) -> Manifest:
    return open_artifact(artifact)


@pytest.mark.parametrize(
    ("runner", "convert", "task", "config", "wish"),
    [
        ("auto", "auto", None, PoolerConfig(), TaskWish()),
        ("pooling", "none", "auto", PoolerConfig(), TaskWish(convert="none")),
        ("pooling", "embed", None, PoolerConfig(), TaskWish(convert="embed")),
        ("auto", "embed", "reward", PoolerConfig(), TaskWish(task="reward", convert="embed")),
        ("auto", "auto", "embed", PoolerConfig(task="token_embed"), TaskWish(task="token_embed")),
    ],
)
def test_what_the_arguments_ask(runner, convert, task, config, wish):
    assert resolve_wish(runner, convert, task, config) == wish


@pytest.mark.parametrize(
    ("runner", "convert", "task", "message"),
    [
        ("generate", "auto", None, "runner 'generate' is not supported: poolgraph runs pooling models"),
        ("auto", "reward", None, r"unknown convert 'reward'; allowed are \['auto', 'none', 'embed', 'classify'\]"),
        ("auto", "auto", "generate", "unknown task 'generate'; allowed are"),
    ],
)
def test_what_no_pooling_model_does(runner, convert, task, message):
    with pytest.raises(InputError, match=message):
        resolve_wish(runner, convert, task, PoolerConfig())


NOTHING = {
    "wish": TaskWish(),
    "config": PoolerConfig(),
    "hf_overrides": None,
    "score_template": None,
    "trust_remote_code": False,
}


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        ({"wish": TaskWish(task="embedding")}, {"task": "embed"}),
        ({"wish": TaskWish(task="score", convert="classify"), "trust_remote_code": True},
         {"task": "score", "convert": "classify", "trust-remote-code": "true"}),
        ({"config": PoolerConfig(task="embed", use_activation=False, dimensions=4, max_embed_len=9)}, {}),
        ({"config": PoolerConfig(pooling_type="STEP", step_tag_id=123, returned_token_ids=[456, 789])},
         {"pooler-config": '{"returned_token_ids": [456, 789], "step_tag_id": 123, "tok_pooling_type": "STEP"}'}),
        ({"config": PoolerConfig(pooling_type="CLS", logit_mean=1.5, logit_sigma=2)},
         {"pooler-config": '{"logit_mean": 1.5, "logit_sigma": 2, "seq_pooling_type": "CLS"}'}),
        ({"hf_overrides": {"is_matryoshka": True, "matryoshka_dimensions": [4]}}, {}),
        ({"hf_overrides": {"method": "x", "architectures": ["Y"], "is_matryoshka": True}},
         {"hf-overrides": '{"architectures": ["Y"], "method": "x"}'}),
        ({"score_template": "qwen3_reranker"}, {"score-template": "qwen3_reranker"}),
    ],
)  # fmt: skip
def test_export_options(given, options):
    assert plan_export_options(**NOTHING | given) == options


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (lambda config: config, "hf_overrides must be a mapping, not function"),
        ({"a": object()}, "hf_overrides has no form in JSON"),
    ],
)
def test_overrides_that_no_command_line_can_say(overrides, message):
    with pytest.raises(InputError, match=message):
        plan_export_options(**NOTHING | {"hf_overrides": overrides})


def with_tasks(manifest: Manifest, *tasks: str, default: str | None = None) -> Manifest:
    return msgspec.structs.replace(manifest, tasks=tasks, default_task=default or tasks[0])


EMBEDDER = ("embed", "token_embed")
CLASSIFIER = ("classify", "token_classify")


@pytest.mark.parametrize(
    ("tasks", "wish", "meaning"),
    [
        (EMBEDDER, {}, "embed"),
        (EMBEDDER, {"task": "embed"}, "embed"),
        (EMBEDDER, {"task": "score"}, "embed"),
        (EMBEDDER, {"task": "token_embed"}, "token_embed"),
        (EMBEDDER, {"convert": "embed"}, "embed"),
        (EMBEDDER, {"convert": "none"}, "embed"),
        (CLASSIFIER, {"task": "score"}, "classify"),
        (CLASSIFIER, {"task": "reward"}, "classify"),
        (CLASSIFIER, {"convert": "classify"}, "classify"),
        (CLASSIFIER, {"convert": "classify", "task": "token_classify"}, "token_classify"),
        (("token_classify",), {"task": "reward"}, "token_classify"),
        (("token_classify",), {"convert": "classify"}, "token_classify"),
        (("token_embed",), {"task": "score"}, "token_embed"),
        (("token_embed", "embed"), {"convert": "embed"}, "token_embed"),
    ],
)
def test_default_task(manifest, tasks, wish, meaning):
    assert resolve_default_task(with_tasks(manifest, *tasks), TaskWish(**wish)) == meaning


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"task": "reward"}, r"does not support task 'reward'; it supports \['embed', 'token_embed'\].*--task reward"),
        ({"convert": "classify"}, r"does not support convert 'classify'; it supports .* with --convert classify"),
        ({"task": "classify", "convert": "embed"}, r"does not support task 'classify'"),
    ],
)
def test_default_task_that_the_artifact_lacks(manifest, wish, message):
    with pytest.raises(TaskNotSupported, match=message):
        resolve_default_task(manifest, TaskWish(**wish))
