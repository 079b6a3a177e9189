"""What every --help says: all options with a text, all defaults, and no document that is not there."""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_synE.command_line import ToolParser
from megatron_synE.config.launch import Launch
from megatron_synE.config.parse import job_parser

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__")
CITED = re.compile(r"(?<![\w/.-])[\w./-]*\w\.(?:md|py|yaml|sh|slurm|toml)\b")
OF_THE_USER = {"job.yaml"}


class Help(Exception):
    """Carries the parser that was about to read a command line."""


def parser_of(tool: str, monkeypatch: pytest.MonkeyPatch) -> ToolParser:
    """The parser that the tool's main makes; nothing is read or done."""

    def caught(self: argparse.ArgumentParser, *arguments: object, **options: object) -> None:
        raise Help(self)

    monkeypatch.setattr(ToolParser, "parse_args", caught)
    monkeypatch.setattr(ToolParser, "parse_known_args", caught)
    monkeypatch.setattr(sys, "argv", [f"{tool}.py"])
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module(f"tools.{tool}")
    with pytest.raises(Help) as raised:
        module.main([])
    (parser,) = raised.value.args
    return parser


def with_commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from with_commands(command)


def missing_documents(text: str) -> list[str]:
    cited = {path for path in CITED.findall(text) if path not in OF_THE_USER}
    bare = {path.name for path in [*(ROOT / "tools").glob("*.py"), *ROOT.glob("*.py")]}
    return sorted(path for path in cited if path not in bare and not (ROOT / path).exists())


@pytest.mark.parametrize("tool", TOOLS)
def test_every_option_of_a_tool_has_a_text_and_its_default(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for parser in with_commands(parser_of(tool, monkeypatch)):
        text = " ".join(parser.format_help().split())
        assert missing_documents(parser.format_help()) == []
        for action in parser._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), f"{tool}: {action.option_strings}"
            if action.default not in (None, False, [], argparse.SUPPRESS) and not action.required:
                told = parser._get_formatter()._expand_help(action)
                assert "default" in told, f"{tool}: {action.option_strings} does not tell {action.default!r}"
                assert " ".join(told.split()) in text


def test_the_trainers_help_cites_what_is_there() -> None:
    text = job_parser(Launch()).format_help()
    assert missing_documents(text) == []
    assert "--data.heldout_samples" in text and "default: 64" in text and "--dry_run" in text


def test_a_document_that_is_not_there_is_found() -> None:
    assert missing_documents("see RECIPE.md, tools/gone.py and README.md; tools/doctor.py, doctor.py") == [
        "RECIPE.md", "tools/gone.py",
    ]  # fmt: skip


def test_an_installation_has_a_command_for_every_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    commands = runpy.run_path(str(ROOT / "setup.py"))["COMMANDS"]
    modules = [function.removeprefix("megatron_synE_tools.") for function in commands.values()]
    assert sorted(modules) == sorted([*(f"{tool}:main" for tool in TOOLS), "pretrain_llama3_synE:command"])
