"""The search for the richest dialect that a server accepts."""

from __future__ import annotations

from muai_lab.load.dialect import Dialect, dialects


def test_the_richest_dialect_comes_first_and_the_plainest_last() -> None:
    found = dialects(Dialect(salted=True))

    assert found[0] == Dialect(salted=True)
    assert found[-1] == Dialect("none", False, "max_completion_tokens", False)
    assert len(found) == len(set(found)) == 3 * 2 * 2 * 2


def test_a_dialect_that_gives_up_one_thing_comes_before_those_that_give_up_two() -> None:
    found = dialects(Dialect())

    assert set(found[1:4]) == {Dialect("final"), Dialect(ignore_eos=False), Dialect(limit="max_completion_tokens")}


def test_what_was_not_wanted_is_not_tried() -> None:
    assert not any(dialect.ignore_eos or dialect.salted for dialect in dialects(Dialect(ignore_eos=False)))


def test_the_verdict_names_what_the_server_lacks() -> None:
    wanted = Dialect()

    assert not list(wanted.notes(wanted))
    notes = " ".join(Dialect("none", False, "max_completion_tokens").notes(wanted))
    assert "target.tokenizer" in notes
    assert "ignore_eos" in notes
    assert "max_completion_tokens" in notes
