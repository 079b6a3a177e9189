"""The journal of a model's answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_synE.evaluation.answers import AnswerJournal, first_difference, key_of

IDENTITY = {"model": {"fingerprint": "a", "dtype": "fp32"}, "bos": "one"}


def test_answers_outlive_the_process(tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path, IDENTITY)
    journal.add({"k1": [-1.2345678901234567, True], "k2": [-0.1, False]})
    journal.add({"k3": "text\n\u2028 of a generation"})
    again = AnswerJournal(tmp_path, IDENTITY)  # the first was killed: nothing was closed
    assert (again.get("k1"), again.get("k2")) == ([-1.2345678901234567, True], [-0.1, False])
    assert again.get("k3") == "text\n\u2028 of a generation" and again.get("k4") is None
    assert (again.num_found, again.began) == (3, journal.began)
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_was_being_written_is_asked_again(tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path, IDENTITY)
    journal.add({"k1": [-1.0, True]})
    journal.add({"k2": [-2.0, True], "k3": [-3.0, True]})
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    again = AnswerJournal(tmp_path, IDENTITY)
    assert (again.num_found, again.get("k2"), again.get("k3")) == (1, None, None)
    again.add({"k2": [-2.0, True]})
    again.close()
    assert AnswerJournal(tmp_path, IDENTITY).num_found == 2


@pytest.mark.parametrize(
    "identity, told",
    [
        ({**IDENTITY, "model": {"fingerprint": "b", "dtype": "fp32"}}, "model.fingerprint (a, not b)"),
        ({**IDENTITY, "model": {"fingerprint": "a", "dtype": "bf16"}}, "model.dtype (fp32, not bf16)"),
        ({**IDENTITY, "bos": "none"}, "bos (one, not none)"),
    ],
)
def test_answers_serve_no_other_model(tmp_path: Path, identity: dict[str, object], told: str) -> None:
    AnswerJournal(tmp_path, IDENTITY).close()
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(ValueError) as raised:
        AnswerJournal(tmp_path, identity)
    assert str(raised.value) == (
        f"{tmp_path}: holds an evaluation that was begun with another {told}; choose another --output-dir, or delete "
        "this one"
    )
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_whose_answers_they_are_must_be_known(tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path, IDENTITY)
    journal.add({"k1": [-1.0, True]})
    path = tmp_path / "journal.jsonl"
    first, *rest = path.read_bytes()
    path.write_bytes(bytes([first ^ 1, *rest]))
    with pytest.raises(ValueError, match="the line that says whose answers these are is damaged"):
        AnswerJournal(tmp_path, IDENTITY)


def test_keys_are_of_content_and_boundary() -> None:
    keys = {
        key_of("log_likelihood", [(1, 2), (3,)]), key_of("log_likelihood", [(1,), (2, 3)]),
        key_of("log_likelihood", [(1, 2), (4,)]), key_of("generate", [(1, 2), (3,)]),
        key_of("generate", [(1, 2)], ["."], 5), key_of("generate", [(1, 2)], ["."], 6),
    }  # fmt: skip
    assert len(keys) == 6
    assert key_of("generate", [(1, 2)], ("a",), 5) == key_of("generate", [(1, 2)], ("a",), 5)


def test_the_first_difference_is_told() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) == ""
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}) == "a.c (None, not 2)"
