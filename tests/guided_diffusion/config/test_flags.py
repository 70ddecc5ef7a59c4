"""Dataclasses as flags: parsing, refusing, and where a value comes from."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig, RunConfig, SuperResConfig
from guided_diffusion.config.flags import ParsedFlags, Parser, architecture_from, flag, str2bool
from guided_diffusion.errors import InputError


@dataclass(frozen=True)
class Example:
    """Example."""

    count: int = flag(3, "things", minimum=1, maximum=9)
    share: float = flag(0.5, "share of 100 %", minimum=0.0, maximum=1.0)
    limit: float = flag(None, "largest value", type=float, minimum=0.1)
    name: str = flag("", "what it is called")
    kind: str = flag("a", "sort", choices=("a", "b"), architecture=True)
    fast: bool = flag(False, "hurry", aliases=("quick",))
    steady: bool = flag(True, "do not hurry")
    size: int = flag(8, "side, pixels", minimum=1, architecture=True)


@dataclass(frozen=True)
class Other:
    """Other."""

    size: int = flag(8, "side, pixels", minimum=1, architecture=True)
    depth: int = flag(1, "levels", minimum=1)


def parse(*argv: str) -> Example:
    return Parser("Program.", Example, Other).parse(argv).make(Example)


def refused(capsys, *argv: str) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1
    return told.err


def test_defaults():
    assert parse() == Example()


def test_every_type():
    example = parse("--count", "4", "--share", "1e-1", "--limit", "7", "--name", "x y", "--kind", "b", "--fast", "y")
    assert example == Example(count=4, share=0.1, limit=7.0, name="x y", kind="b", fast=True)
    assert isinstance(example.limit, float)


@pytest.mark.parametrize("text", ["yes", "true", "t", "y", "1", "True", "TRUE", "Yes"])
def test_true(text):
    assert parse("--fast", text).fast is True
    assert str2bool(text) is True


@pytest.mark.parametrize("text", ["no", "false", "f", "n", "0", "False", "FALSE", "No"])
def test_false(text):
    assert parse("--steady", text).steady is False
    assert str2bool(text) is False


def test_a_bare_boolean_is_true():
    assert parse("--fast").fast is True
    assert parse("--fast", "--count", "2") == Example(fast=True, count=2)
    assert parse("--steady").steady is True


@pytest.mark.parametrize("text", ["2", "", "maybe", "None"])
def test_str2bool_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a boolean"):
        str2bool(text)


def test_aliases_and_abbreviations():
    assert parse("--quick", "True").fast is True
    assert parse("--cou", "5").count == 5


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["--count", "0"], ["--count", "found 0", "1 to 9"]),
        (["--count", "10"], ["--count", "found 10", "1 to 9"]),
        (["--count", "2.5"], ["--count", "'2.5'", "whole number"]),
        (["--count"], ["--count", "expected one argument"]),
        (["--share", "nan"], ["--share", "found nan", "0.0 to 1.0"]),
        (["--share", "-0.1"], ["--share", "found -0.1"]),
        (["--share", "much"], ["--share", "'much'", "a number"]),
        (["--limit", "0"], ["--limit", "found 0", "at least 0.1"]),
        (["--limit", "inf"], ["--limit", "found inf"]),
        (["--kind", "c"], ["--kind", "'c'", "one of a, b"]),
        (["--fast", "2"], ["--fast", "'2'", "boolean"]),
        (["--unheard_of", "1"], ["--unheard_of"]),
        (["stray"], ["stray"]),
    ],
)
def test_one_line_names_flag_value_and_expectation(capsys, argv, fragments):
    line = refused(capsys, *argv)
    assert all(fragment in line for fragment in fragments), line


@settings(max_examples=60, deadline=None)
@given(st.integers(), st.floats())
def test_what_is_accepted_is_in_range(count, share):
    try:
        example = parse(f"--count={count}", f"--share={share!r}")
    except SystemExit:
        assert not (1 <= count <= 9 and 0 <= share <= 1)
    else:
        assert (example.count, example.share) == (count, share) and 1 <= count <= 9 and 0 <= share <= 1


def test_given_remembers_only_what_was_said():
    given_flags = Parser("Program.", Example, Other).parse(["--count", "3", "--size", "16"])
    assert given_flags.values == {"count": 3, "size": 16}  # 3 is the default, yet it was said
    assert given_flags.make(Other) == Other(size=16)
    assert given_flags.make(Example, name="from elsewhere", count=7) == Example(count=3, size=16, name="from elsewhere")
    assert given_flags.resolve(Example, Other) == dataclasses.asdict(Example(size=16)) | {"depth": 1}


def test_two_defaults_for_one_flag_are_a_programming_error():
    @dataclass(frozen=True)
    class Clash:
        size: int = flag(9, "side, pixels")

    with pytest.raises(AssertionError, match="--size"):
        Parser("Program.", Example, Clash)


def test_help_says_type_range_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        Parser("Program.", Example).parse(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "--count N things (1 to 9; default 3)",
        "--share X share of 100 % (0.0 to 1.0; default 0.5)",
        "--limit X largest value (at least 0.1; no default)",
        "--name TEXT what it is called (default '')",
        "--kind TEXT sort (one of a, b; default 'a')",
    ):
        assert expected in text


class TestArchitecture:
    def test_flag_then_checkpoint_then_default(self):
        found = architecture_from(ParsedFlags({"kind": "b"}), Example, {"size": 32}, "model.pt")
        assert found == Example(kind="b", size=32)

    def test_without_config(self):
        assert architecture_from(ParsedFlags({"size": 4}), Example, None, "model.pt") == Example(size=4)

    def test_only_architecture_is_taken_from_the_checkpoint(self):
        assert architecture_from(ParsedFlags({}), Example, {"count": 9, "depth": 7, "junk": 1}, "model.pt") == Example()

    def test_agreement_is_no_contradiction(self):
        assert architecture_from(ParsedFlags({"size": 32}), Example, {"size": 32}, "model.pt").size == 32

    def test_contradictions_are_named_flag_by_flag(self):
        with pytest.raises(InputError) as error:
            parsed = ParsedFlags({"size": 16, "kind": "b"})
            architecture_from(parsed, Example, {"size": 32, "kind": "a"}, "dir/model.pt")
        line = str(error.value)
        assert "dir/model.pt" in line and "\n" not in line
        assert "--size 16 (the checkpoint has 32)" in line and "--kind b (the checkpoint has a)" in line

    @pytest.mark.parametrize("stored", [{"size": "32"}, {"size": 0}, {"size": None}, {"kind": "z"}, {"size": True}])
    def test_values_of_the_checkpoint_are_checked_like_flags(self, stored):
        with pytest.raises(InputError, match=f"config.json.*{next(iter(stored))}"):
            architecture_from(ParsedFlags({}), Example, stored, "model.pt")


@pytest.mark.parametrize("config", [ClassifierConfig, DiffusionConfig, ModelConfig, RunConfig, SuperResConfig])
def test_defaults_of_the_real_configs_are_in_their_own_range(config):
    for field in dataclasses.fields(config):
        low, high, choices = (field.metadata[name] for name in ("minimum", "maximum", "choices"))
        if choices is not None:
            assert field.default in choices
        if field.metadata["type"] in (int, float):
            assert (-math.inf if low is None else low) <= field.default <= (math.inf if high is None else high)
