"""Command line and YAML → JobConfig."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from megatron_synE.config.fields import misplaced, missing, read_yaml, unknown_option, wrong_values
from megatron_synE.config.job import JobConfig
from megatron_synE.config.launch import Launch

USAGE = """torchrun --nproc-per-node N pretrain_llama3_synE.py --config FILE [--section.field value ...]
       python pretrain_llama3_synE.py --dry_run [--world_size N] --config FILE [--section.field value ...]"""
DESCRIPTION = """Continual pre-training of Llama-3 on megatron-core. The same command starts a run and resumes it.
--data.sources.help, --data.stages.help and the like show the fields of one entry."""
JOB_SECTIONS = tuple(JobConfig.__dataclass_fields__)
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
    options = [option for action in parser._actions for option in action.option_strings]
    problems = [*_file_problems(arguments), *_option_problems(arguments, options)]
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
        problems = [line for content in contents for line in misplaced(content, JobConfig)]
        problems += [line for content in contents for line in wrong_values(content, JobConfig)]
        problems = problems or [line for content in contents for line in missing(content, JobConfig)]
        raise ValueError("\n".join([*(problems or _first_lines(str(error))), HINT])) from None
    if launch is not None and (problems := launch.problems()):
        raise ValueError("\n".join(problems))
    return job


def instantiate(parser: ArgumentParser, namespace: Namespace) -> JobConfig:
    """Build the dataclasses of a parsed namespace."""
    sections = parser.instantiate_classes(namespace).as_dict()
    sections.pop("config", None)
    return JobConfig(**{name: value for name, value in sections.items() if name in JOB_SECTIONS})


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
                yield from misplaced(content, JobConfig)
            else:
                yield f"{file}: holds no sections; write for instance `data: {{seq_length: 4096}}`"


def _option_problems(arguments: Sequence[str], options: Sequence[str]) -> Iterator[str]:
    """Names of options that are neither the parser's own `options` nor a field inside of what they hold."""
    no_fields = [option for option in options if option.strip("-").partition(".")[0] not in JOB_SECTIONS]
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and len(option) > 2 and option not in options:
            problem = unknown_option(option, JobConfig, no_fields)
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
