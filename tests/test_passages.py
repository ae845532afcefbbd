"""Documents split into passages."""

import itertools

import pytest

from data_preparation.passages import passage_spans, split_into_passages


def test_a_document_by_hand():
    assert split_into_passages("T", "a b c d e f g", window=4, stride=2) == ["T a b c d", "T c d e f", "T e f g"]


def test_no_passage_more_than_needed():
    # A window after the one that reaches the end would have no new words.
    assert split_into_passages("T", "a b c d e f", window=4, stride=2) == ["T a b c d", "T c d e f"]
    assert split_into_passages("T", "a b c d", window=4, stride=2) == ["T a b c d"]
    assert split_into_passages("T", "a", window=4, stride=2) == ["T a"]


def test_cap_keeps_the_first_and_the_last():
    body = "a b c d e f g h i"
    assert len(split_into_passages("T", body, window=4, stride=2)) == 4
    capped = split_into_passages("T", body, window=4, stride=2, max_passages=3)
    assert capped == ["T a b c d", "T c d e f", "T g h i"]
    assert split_into_passages("T", body, window=4, stride=2, max_passages=2) == ["T a b c d", "T g h i"]
    assert split_into_passages("T", body, window=4, stride=2, max_passages=1) == ["T g h i"]
    assert split_into_passages("T", "a b", window=4, stride=2, max_passages=2) == ["T a b"]


@pytest.mark.parametrize(("window", "stride"), [(5, 5), (7, 3)])
def test_cap_drops_passages_before_the_last(window, stride):
    for num_words in range(30):
        every = passage_spans(num_words, window, stride)
        for cap in range(1, 12):
            capped = passage_spans(num_words, window, stride, cap)
            assert capped == (every if len(every) <= cap else every[: cap - 1] + every[-1:])


def test_a_title_alone_is_not_a_passage():
    assert split_into_passages("A title", "  \n ") == []


def test_white_space_becomes_one_space():
    assert split_into_passages(" A\ttitle ", "one\n\n two\u00a0three") == ["A title one two three"]
    assert split_into_passages("", "one two") == ["one two"]


def test_defaults_are_those_of_bert_maxp():
    assert passage_spans(301) == [(0, 150), (75, 225), (150, 300), (225, 301)]


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (5, 5), (7, 3), (7, 1), (4, 3)])
def test_every_word_is_covered_and_every_passage_needed(window, stride):
    for num_words in range(1, 30):
        spans = passage_spans(num_words, window, stride)
        assert spans[0][0] == 0 and spans[-1][1] == num_words
        assert all(end - start == window for start, end in spans[:-1])
        for (start, end), (next_start, next_end) in itertools.pairwise(spans):
            assert next_start == start + stride <= end < next_end


@pytest.mark.parametrize(("window", "stride", "cap"), [(4, 5, None), (4, 0, None), (0, 0, None), (4, 2, 0)])
def test_impossible_numbers(window, stride, cap):
    with pytest.raises(ValueError, match=r"stride|max_passages"):
        split_into_passages("T", "a b", window, stride, cap)
