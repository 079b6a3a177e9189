"""Command line and YAML → JobConfig."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from megatron_synE.config.fields import read_yaml, unknown_fields, unknown_option, wrong_values
from megatron_synE.config.job import JobConfig
from megatron_synE.config.launch import Launch

USAGE = """torchrun --nproc-per-node N pretrain_llama3_synE.py --config FILE [--section.field value ...]
       python pretrain_llama3_synE.py --dry_run [--world_size N] --config FILE [--section.field value ...]"""
DESCRIPTION = "Continual pre-training of Llama-3 on megatron-core. The same command starts a run and resumes it."
HINT = "See --help for every field, --print_config for all values."


def job_parser(launch: Launch | None = None) -> ArgumentParser:
    """The parser: `--config FILE`, `--section.field value`, `--print_config`, `--help`, and a start's own options."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(usage=USAGE, description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    if launch is not None:
        launch.add_to(parser)
    parser.add_class_arguments(JobConfig, as_group=False)
    return parser


def parse_job(arguments: Sequence[str], launch: Launch | None = None) -> JobConfig:
    """The job that the command line describes.

    Args:
        launch: takes the options that concern this start only; None: they are refused.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or a config file that is missing or no YAML.
    """
    parser = job_parser(launch)
    own_options = [option for action in parser._actions for option in action.option_strings if "." not in option]
    others = [option for option in own_options if option.removeprefix("--") not in JobConfig.__dataclass_fields__]
    problems = [*_file_problems(arguments), *_option_problems(arguments, others)]
    if problems:
        raise ValueError("\n".join([*problems, HINT] if any(": unknown" in line for line in problems) else problems))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            namespace = parser.parse_args(list(arguments))
        job = instantiate(parser, namespace)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError("the command line could not be read; see --help") from None
    except Exception as error:
        contents = list(_contents(arguments))
        problems = [problem for content in contents for problem in unknown_fields(content, JobConfig)]
        problems += [problem for content in contents for problem in wrong_values(content, JobConfig)]
        raise ValueError("\n".join([*(problems or _first_lines(str(error))), HINT])) from None
    if launch is not None and (problems := launch.problems()):
        raise ValueError("\n".join(problems))
    return job


def instantiate(parser: ArgumentParser, namespace: Namespace) -> JobConfig:
    """Build the dataclasses of a parsed namespace."""
    sections = parser.instantiate_classes(namespace).as_dict()
    sections.pop("config", None)
    return JobConfig(**{name: value for name, value in sections.items() if name in JobConfig.__dataclass_fields__})


def _file_problems(arguments: Sequence[str]) -> Iterator[str]:
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
                yield from unknown_fields(content, JobConfig)
            else:
                yield f"{file}: holds no sections; write for instance `data: {{seq_length: 4096}}`"


def _option_problems(arguments: Sequence[str], others: Sequence[str]) -> Iterator[str]:
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            problem = unknown_option(argument.partition("=")[0], JobConfig, others)
            if problem is not None:
                yield problem


def _contents(arguments: Sequence[str]) -> Iterator[object]:
    """What was written, in the shape of a YAML file: each file, and each option."""
    for file in _config_files(arguments):
        yield read_yaml(Path(file).read_text(encoding="utf-8"))
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, is_joined, value = argument.partition("=")
        if option.startswith("--") and "." in option and not option.endswith("+"):
            with contextlib.suppress(ValueError):
                content = read_yaml(value if is_joined else following)
                for name in reversed(option.removeprefix("--").split(".")):
                    content = {name: content}
                yield content


def _config_files(arguments: Sequence[str]) -> Iterator[str]:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith("--config="):
            yield argument.removeprefix("--config=")
        elif argument == "--config":
            yield following


def _first_lines(text: str, most: int = 12) -> list[str]:
    return [line for line in text.splitlines() if line.strip()][:most]
