"""``buckets.json``: what is written is read, and what cannot be used is refused or passed over with a warning."""

from __future__ import annotations

import pytest

from poolgraph.errors import InputError
from poolgraph.runtime.bucket_file import encode_buckets, load_buckets, read_buckets
from poolgraph.runtime.bucket_planner import BucketBudget, plan_buckets
from poolgraph.runtime.buckets import Bucket, packed_bucket

BUDGET = BucketBudget(max_model_len=64, max_graphs=4, max_batch_tokens=256)
PADDED = (Bucket(max_length=64, batch_size=4), Bucket(max_length=16, batch_size=1))
PACKED = (packed_bucket(256, 64, 8),)


def test_what_is_written_is_read(tmp_path):
    file = tmp_path / "b.json"
    file.write_bytes(encode_buckets([*PACKED, *PADDED]))
    assert set(read_buckets(file)) == {*PADDED, *PACKED}
    assert file.read_text().startswith('{\n  "format_version": 1,\n  "buckets": {\n    "padded": [')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "truncated"),
        ('{"format_version": 2, "buckets": {}}', "2"),
        ('{"format_version": 1, "buckets": {"padded": [{"max_length": 0, "batch_size": 1}]}}', ">= 1"),
        ('{"format_version": 1, "buckets": {"uniform": []}}', "uniform"),
        (
            '{"format_version": 1, "buckets": {"packed": [{"max_length": 8, "batch_size": 1}]}}',
            "1x8 is a padded bucket and stands among the packed ones",
        ),
        (
            '{"format_version": 1, "buckets": {"packed": [{"max_length": 8, "batch_size": 1, "num_tokens": 8}]}}',
            "needs at least 2 slots",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    file = tmp_path / "b.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"b\.json cannot be used as buckets: ") as caught:
        read_buckets(file)
    assert message in str(caught.value)
    assert "poolgraph plan FILE --model DIR" in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot be used as buckets"):
        read_buckets(tmp_path / "b.json")


def load(given, tmp_path, layout="padded"):
    return load_buckets(given, directory=tmp_path, layout=layout, budget=BUDGET)


def test_where_buckets_come_from(tmp_path):
    planned = plan_buckets(BUDGET, "padded")
    assert load(None, tmp_path) == planned
    (tmp_path / "buckets.json").write_bytes(encode_buckets(PADDED))
    assert load(None, tmp_path) == PADDED
    assert load(None, tmp_path, "packed") == plan_buckets(BUDGET, "packed")
    other = tmp_path / "other.json"
    other.write_bytes(encode_buckets([*PADDED[1:], *PACKED]))
    assert load(other, tmp_path) == load(str(other), tmp_path) == PADDED[1:]
    assert load([PADDED[1], PADDED[0], PADDED[1]], tmp_path) == PADDED


def test_buckets_of_another_layout(tmp_path):
    with pytest.raises(InputError, match=r"of the layouts \['padded'\], and the variant runs in the packed one; plan"):
        load(PADDED, tmp_path, "packed")


@pytest.mark.parametrize("given", [5, [(64, 4)], ["a.json"], b"a.json", {"padded": PADDED}, object()])
def test_buckets_that_are_none(tmp_path, given):
    with pytest.raises(InputError, match=r"buckets must be a file of `poolgraph plan` or a sequence of Bucket, not "):
        load(given, tmp_path)


def test_a_stored_file_is_no_link_out_of_the_artifact(tmp_path):
    (tmp_path / "artifact").mkdir()
    (tmp_path / "b.json").write_bytes(encode_buckets(PADDED))
    (tmp_path / "artifact" / "buckets.json").symlink_to(tmp_path / "b.json")
    with pytest.warns(UserWarning, match="a link that leaves the artifact"):
        assert load(None, tmp_path / "artifact") == plan_buckets(BUDGET, "padded")


def test_a_stored_file_that_is_broken_is_passed_over_with_a_warning(tmp_path):
    (tmp_path / "buckets.json").write_text("{")
    with pytest.warns(UserWarning, match="Buckets are planned without it"):
        assert load(None, tmp_path) == plan_buckets(BUDGET, "padded")


def test_no_bucket_is_longer_than_the_models_texts(tmp_path):
    """A text that fills a packed bucket up would have positions that the model has not."""
    budget = BucketBudget(max_model_len=50, max_graphs=4, max_batch_tokens=256)
    for layout, longest in (("padded", 56), ("packed", 50)):
        given = [*PADDED, *PACKED]
        for buckets in (given, None):
            found = load_buckets(buckets, directory=tmp_path, layout=layout, budget=budget)
            assert max(bucket.max_length for bucket in found) == longest
    assert load_buckets(PACKED, directory=tmp_path, layout="packed", budget=budget) == (packed_bucket(256, 50, 8),)
