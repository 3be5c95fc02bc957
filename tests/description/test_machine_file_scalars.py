"""One word, one meaning: YAML 1.1's surprises, numbers and sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.description.model import MachineDescription
from polymmu.description.units import format_size, parse_size

HEAD = "name: m\narch: toy\nmemory: 1 GiB\n"
SIZE = "not a size (bytes, or a whole number of B, KiB, MiB, GiB, TiB)"


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("0755", "not a whole number; write 755, or 0o755 if octal is meant"),
        ("0855", "not a whole number; write 855"),
        ("1e3", "not a whole number; write 1000"),
        ("1.0", "not a whole number; write 1"),
        ("1.5", "not a whole number"),
        ("1_000", "not a whole number; write 1000"),
        ("1:30", "not a whole number"),
        ("0b101", "not a whole number; write 0x5"),
        ("'4'", "not a whole number; write 4 without quotes"),
        ("on", "not a whole number"),
        ("true", "not a whole number"),
        (".inf", "not a whole number"),
        ("1e999999999", "not a whole number"),
        ("4 KiB", "not a whole number"),
    ],
)
def test_a_word_that_some_reader_takes_for_another_number_is_refused(
    word: str, complaint: str, refusal: Callable[..., str]
) -> None:
    shown = word.strip("'")
    assert refusal(f"{HEAD}seed: {word}\n") == f"f.yaml:4:7: seed: '{shown}' is {complaint}"


def test_a_number_of_thousands_of_digits_is_refused_without_being_converted(
    refusal: Callable[..., str],
) -> None:
    message = refusal(f"{HEAD}seed: {'9' * 10_000}\n")
    assert message == f"f.yaml:4:7: seed: '{'9' * 37}...' is not a whole number that fits in 64 bits"


@pytest.mark.parametrize(("word", "value"), [("255", 255), ("+7", 7), ("0", 0), ("0xff", 255), ("0o17", 15)])
def test_yaml_1_2_whole_numbers_are_read(
    word: str, value: int, load: Callable[..., MachineDescription]
) -> None:
    assert load(f"{HEAD}seed: {word}\n").seed == value


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("on", "; write true"),
        ("Yes", "; write true"),
        ("y", "; write true"),
        ("1", "; write true"),
        ("off", "; write false"),
        ("NO", "; write false"),
        ("0", "; write false"),
        ("'true'", "; write true"),
        ("tRuE", "; write true"),
        ("maybe", ""),
    ],
)
def test_only_true_and_false_are_truth_values(word: str, hint: str, refusal: Callable[..., str]) -> None:
    shown = word.strip("'")
    message = refusal(f"{HEAD}toy: {{tagged: {word}}}\n")
    assert message == f"f.yaml:4:15: toy.tagged: '{shown}' is not true or false{hint}"


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "1:30", "2001-01-01", "~x", "=", "1_000"])
def test_words_that_only_yaml_1_1_converts_are_text(
    word: str, load: Callable[..., MachineDescription]
) -> None:
    assert load(f"{HEAD}summary: {word}\n").summary == word


@pytest.mark.parametrize("word", ["3.0", "12", "0755", "true", "0x10", ".5", "1e3"])
def test_a_number_or_truth_value_where_text_is_wanted_must_be_quoted(
    word: str, load: Callable[..., MachineDescription], refusal: Callable[..., str]
) -> None:
    assert refusal(f"{HEAD}summary: {word}\n") == (
        f"f.yaml:4:10: summary: '{word}' is not text to YAML; write \"{word}\""
    )
    assert load(f'{HEAD}summary: "{word}"\n').summary == word


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1 B", 1),
        ("4 KiB", 4096),
        ("4KiB", 4096),
        ("2  MiB", 2 << 20),
        ("16 GiB", 16 << 30),
        ("1 TiB", 1 << 40),
    ],
)
def test_a_size_is_a_whole_number_of_a_binary_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("4 KB", "; did you mean '4 KiB'?"),
        ("4k", "; did you mean '4 KiB'?"),
        ("64K", "; did you mean '64 KiB'?"),
        ("4 kib", "; did you mean '4 KiB'?"),
        ("4 MB", "; did you mean '4 MiB'?"),
        ("16G", "; did you mean '16 GiB'?"),
        ("4 bytes", "; did you mean '4 B'?"),
        ("1.5 GiB", "; did you mean '1536 MiB'?"),
        ("0.3 B", ""),
        ("-4 KiB", ""),
        ("04 KiB", "; did you mean '04 KiB'?"),
        ("4 PiB", ""),
        ("KiB", ""),
        ("4 KiB ", ""),
    ],
)
def test_any_other_size_is_refused_with_what_was_probably_meant(text: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_size(text)
    assert str(caught.value) == SIZE + hint


@given(st.integers(min_value=0, max_value=1 << 50))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_a_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size
    number, unit = format_size(size).split()
    assert size == 0 or unit == "TiB" or int(number) % 1024


@pytest.mark.parametrize("word", ["4096", "0x1000", "4 KiB", '"4 KiB"', "4096 B"])
def test_a_bare_whole_number_is_a_size_in_bytes(word: str, load: Callable[..., MachineDescription]) -> None:
    assert load(f"{HEAD}toy: {{hole: {word}}}\n").section.hole == 4096


def test_a_size_of_leading_zeros_is_refused_as_a_number_is(refusal: Callable[..., str]) -> None:
    assert refusal(f"{HEAD}toy: {{hole: 010}}\n") == (
        "f.yaml:4:13: toy.hole: '010' is not a whole number; write 10, or 0o10 if octal is meant"
    )
