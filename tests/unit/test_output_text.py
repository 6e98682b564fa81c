"""From tokens to text: held back while it may become a stop string, cut where one is complete."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given

from muai_lab.stack.text import OutputText, StopStrings


class Pieces:
    """A decoder whose token `i` is `pieces[i]`; `rest` is what its flush gives."""

    def __init__(self, pieces: Sequence[str], rest: str = "") -> None:
        self._pieces = pieces
        self._rest = rest

    def push(self, token_id: int) -> str:
        return self._pieces[token_id]

    def flush(self) -> str:
        return self._rest


def sent(pieces: Sequence[str], *stop: str, rest: str = "") -> tuple[list[str], bool]:
    """What is sent after each token and at the end, and whether a stop string was met."""
    text = OutputText(Pieces(pieces, rest), StopStrings(stop))
    out = []
    for token in range(len(pieces)):
        out.append(text.push(token))
        if text.stopped:
            return out, True
    return [*out, text.end()], text.stopped


def test_without_stop_strings_text_is_sent_as_it_comes() -> None:
    assert sent(["He", "llo", "", "!"], rest="\ufffd") == (["He", "llo", "", "!", "\ufffd"], False)


def test_a_stop_string_is_not_sent_and_nothing_after_it() -> None:
    assert sent(["one", " two END", " three"], "END") == (["one", " two "], True)


def test_a_stop_string_over_several_tokens_is_held_back_until_it_is_clear() -> None:
    assert sent(["a#", "#", "#b"], "###") == (["a", "", ""], True)


def test_what_only_began_like_a_stop_string_is_sent_later() -> None:
    assert sent(["a#", "#", "b"], "###") == (["a", "", "##b", ""], False)


def test_what_is_held_back_at_the_end_is_sent_then() -> None:
    assert sent(["a#", "#"], "###") == (["a", "", "##"], False)


def test_a_stop_string_may_be_completed_by_the_last_incomplete_character() -> None:
    assert sent(["a\ufffd"], "\ufffd\ufffd", rest="\ufffd") == (["a", ""], True)


def test_of_several_stop_strings_the_first_to_be_complete_ends_the_output() -> None:
    assert sent(["xabc"], "abc", "b") == (["xa"], True)
    assert sent(["x", "a", "b"], "abc", "b") == (["x", "", "a"], True)


def test_a_stop_string_that_begins_anew_within_itself_is_found() -> None:
    assert sent(["aab", "aab", "c"], "aabc") == (["", "aab", ""], True)


def test_an_empty_stop_string_stops_nothing() -> None:
    assert sent(["a", "b"], "") == (["a", "b", ""], False)


def test_after_the_stop_nothing_more_comes() -> None:
    text = OutputText(Pieces(["a|b", "c"], rest="d"), StopStrings("|"))

    assert [text.push(0), text.push(1), text.end()] == ["a", "", ""]


TEXT = st.text(alphabet="ab#", max_size=24)


@given(text=TEXT, cuts=st.lists(st.integers(0, 24)), stops=st.lists(st.text(alphabet="ab#", min_size=1, max_size=4)))
def test_the_output_does_not_depend_on_how_the_text_is_cut(text: str, cuts: list[int], stops: list[str]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    complete = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]

    joined, stopped = sent(pieces, *stops)

    assert "".join(joined) == (text[: min(complete)[1]] if complete else text)
    assert stopped == bool(complete)


@given(text=TEXT, stops=st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), min_size=1))
def test_no_more_is_held_back_than_may_begin_a_stop_string(text: str, stops: list[str]) -> None:
    output = OutputText(Pieces(list(text)), StopStrings(stops))
    shown = ""
    for token in range(len(text)):
        shown += output.push(token)
        if output.stopped:
            return
        held = text[len(shown) : token + 1]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_the_automaton_has_at_most_one_state_for_each_character() -> None:
    stop = StopStrings(["abcd", "abce", "abcd", ""])

    assert stop.texts == ("abcd", "abce")
    assert len(stop.held) == 1 + len("abcd") + len("e")


def test_outputs_that_share_the_stop_strings_do_not_share_their_state() -> None:
    stop = StopStrings(["ab"])
    first, second = OutputText(Pieces(["a", "b"]), stop), OutputText(Pieces(["b"]), stop)

    assert (first.push(0), second.push(0)) == ("", "b")
    assert (first.push(1), first.stopped, second.stopped) == ("", True, False)
