"""An answer's head and body go out as one write; what has no body does not wait for one."""

from __future__ import annotations

import pytest

from poolgraph.serving.http_protocol import WholeAnswers

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Recorder:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def test_head_and_body_are_one_write():
    transport = Recorder()
    answers = WholeAnswers(transport, has_body=True)
    answers.write(HEAD)
    assert transport.sent == []
    answers.write(b"body")
    answers.write(b" and more")
    assert transport.sent == [HEAD + b"body", b" and more"]


def test_an_answer_with_an_empty_body_is_sent():
    transport = Recorder()
    answers = WholeAnswers(transport, has_body=True)
    answers.write(HEAD)
    answers.write(b"")
    assert transport.sent == [HEAD]


def test_the_answer_to_head_waits_for_nothing():
    transport = Recorder()
    WholeAnswers(transport, has_body=False).write(HEAD)
    assert transport.sent == [HEAD]


def test_a_client_that_asks_whether_to_go_on_is_told_at_once():
    transport = Recorder()
    answers = WholeAnswers(transport, has_body=True)
    answers.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert transport.sent == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    answers.write(HEAD)
    answers.write(b"body")
    assert transport.sent[1:] == [HEAD + b"body"]


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_kept_goes_out_before_the_end(begun):
    transport = Recorder()
    answers = WholeAnswers(transport, has_body=True)
    if begun:
        answers.write(HEAD)
    assert not answers.is_closing()
    answers.close()
    assert transport.sent == [HEAD] * begun
    assert answers.is_closing()
