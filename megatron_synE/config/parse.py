"""Command line and YAML → JobConfig."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from megatron_synE.config.job import JobConfig

DESCRIPTION = """Continual pre-training of Llama-3 on megatron-core.

torchrun --nproc-per-node N pretrain_llama3_synE.py --config FILE [--section.field value ...]"""


def job_parser() -> ArgumentParser:
    """The parser: `--config FILE`, `--section.field value`, `--print_config`, `--help`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="pretrain_llama3_synE.py", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    parser.add_class_arguments(JobConfig, as_group=False)
    return parser


def parse_job(arguments: Sequence[str]) -> JobConfig:
    """The job that the command line describes.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or a config file that is missing or no YAML.
    """
    parser = job_parser()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            namespace = parser.parse_args(list(arguments))
        return instantiate(parser, namespace)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError("the command line could not be read; see --help") from None
    except Exception as error:
        hint = "See --help for every field, --print_config for all values."
        raise ValueError(f"{_first_lines(str(error))}\n{hint}") from None


def instantiate(parser: ArgumentParser, namespace: Namespace) -> JobConfig:
    """Build the dataclasses of a parsed namespace."""
    sections = parser.instantiate_classes(namespace).as_dict()
    sections.pop("config", None)
    return JobConfig(**{name: value for name, value in sections.items() if name in JobConfig.__dataclass_fields__})


def _first_lines(text: str, most: int = 12) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:most])
