"""Command line and YAML → the configuration of a run, or of another job with sections."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from megatron_synE.config.fields import misplaced, missing, read_yaml, unknown_option, wrong_values
from megatron_synE.config.job import JobConfig
from megatron_synE.config.launch import Launch

USAGE = """torchrun --nproc-per-node N pretrain_llama3_synE.py --config FILE [--section.field value ...]
       python pretrain_llama3_synE.py --dry_run [--world_size N] --config FILE [--section.field value ...]"""
DESCRIPTION = """Continual pre-training of Llama-3 on megatron-core. The same command starts a run and resumes it.
--data.sources.help, --data.stages.help and the like show the fields of one entry."""
HINT = "See --help for every field, --print_config for all values."

Config = TypeVar("Config")


def job_parser(launch: Launch | None = None) -> ArgumentParser:
    """The trainer's parser, with a start's own options."""
    return config_parser(JobConfig, USAGE, DESCRIPTION, launch.add_to if launch is not None else None)


def parse_job(arguments: Sequence[str], launch: Launch | None = None) -> JobConfig:
    """The job that the command line describes.

    Args:
        launch: takes the options that concern this start only; None: they are refused.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or a config file that is missing or no YAML.
    """
    job = parse_config(JobConfig, arguments, job_parser(launch))
    if launch is not None and (problems := launch.problems()):
        raise ValueError("\n".join(problems))
    return job


def config_parser(
    kind: type, usage: str, description: str | None, add_options: Callable[[ArgumentParser], None] | None = None
) -> ArgumentParser:
    """The parser of a configuration: `--config FILE`, `--section.field value`, `--print_config`, `--help`.

    Args:
        kind: the dataclass that has the sections.
        add_options: adds those that are no fields.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(usage=usage, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    if add_options is not None:
        add_options(parser)
    parser.add_class_arguments(kind, as_group=False)
    return parser


def parse_config(kind: type[Config], arguments: Sequence[str], parser: ArgumentParser) -> Config:
    """The configuration that the command line describes.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or a config file that is missing or no YAML.
    """
    options = [option for action in parser._actions for option in action.option_strings]
    problems = [*_file_problems(arguments, kind), *_option_problems(arguments, options, kind)]
    if problems:
        raise ValueError("\n".join([*problems, HINT] if any(": unknown" in line for line in problems) else problems))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            namespace = parser.parse_args(list(arguments))
        sections = parser.instantiate_classes(namespace).as_dict()
        return kind(**{name: value for name, value in sections.items() if name in _field_names(kind)})
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError("the command line could not be read; see --help") from None
    except Exception as error:
        contents = list(_contents(arguments))
        problems = [line for content in contents for line in misplaced(content, kind)]
        problems += [line for content in contents for line in wrong_values(content, kind)]
        problems = problems or [line for content in contents for line in missing(content, kind)]
        raise ValueError("\n".join([*(problems or _first_lines(str(error))), HINT])) from None


def _field_names(kind: Any) -> set[str]:
    return set(kind.__dataclass_fields__)


def _file_problems(arguments: Sequence[str], kind: type) -> Iterator[str]:
    """Files that cannot be read, and keys in them that no field has."""
    for file in _config_files(arguments):
        try:
            content = read_yaml(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            yield f"--config: {file}: {error.strerror}"
        except ValueError as error:
            yield f"{file}: {error}"
        else:
            if isinstance(content, dict):
                yield from misplaced(content, kind)
            else:
                yield f"{file}: holds no sections; write for instance `data: {{seq_length: 4096}}`"


def _option_problems(arguments: Sequence[str], options: Sequence[str], kind: type) -> Iterator[str]:
    """Names of options that are neither the parser's own `options` nor a field inside of what they hold."""
    no_fields = [option for option in options if option.strip("-").partition(".")[0] not in _field_names(kind)]
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and len(option) > 2 and option not in options:
            problem = unknown_option(option, kind, no_fields)
            if problem is not None:
                yield problem


def _contents(arguments: Sequence[str]) -> Iterator[object]:
    """What was written, in the shape of a YAML file: each file, and each option."""
    for file in _config_files(arguments):
        yield read_yaml(Path(file).read_text(encoding="utf-8"))
    for argument, following in _with_following(arguments):
        option, is_joined, value = argument.partition("=")
        if option.startswith("--") and "." in option and not option.endswith("+"):
            with contextlib.suppress(ValueError):
                content = read_yaml(value if is_joined else following)
                for name in reversed(option.removeprefix("--").split(".")):
                    content = {name: content}
                yield content


def _config_files(arguments: Sequence[str]) -> Iterator[str]:
    for argument, following in _with_following(arguments):
        if argument.startswith("--config="):
            yield argument.removeprefix("--config=")
        elif argument == "--config":
            yield following


def _with_following(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument, and the one after it."""
    return zip(arguments, [*arguments[1:], ""], strict=False)


def _first_lines(text: str, most: int = 12) -> list[str]:
    return [line for line in text.splitlines() if line.strip()][:most]
