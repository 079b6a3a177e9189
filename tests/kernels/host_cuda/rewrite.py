"""CUDA C++ into C++, for what headers alone cannot do: launches, __shared__ variables, __launch_bounds__."""

from __future__ import annotations

import re

SHARED = re.compile(r"(extern )?__shared__ (?:alignas\((\w+)\) )?([\w:]+(?:<[^;>]*>)?) (\w+)((?:\[[^;\]]*\])*);")
BOUNDS = re.compile(r"__launch_bounds__\(")


def closing(text: str, opening: int) -> int:
    """Index of the bracket that closes the one at `opening`."""
    pairs = {"(": ")", "{": "}", "<": ">"}
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == text[opening]) - (text[index] == pairs[text[opening]])
        if depth == 0:
            return index
    raise ValueError("unbalanced brackets")


def kernel_begin(text: str, end: int) -> int:
    """Where the kernel's name starts that ends at `end`, template arguments included."""
    begin, depth = end, 0
    while depth or re.match(r"[\w:>]", text[begin - 1]):
        begin -= 1
        depth += (text[begin] == ">") - (text[begin] == "<")
    return begin


def rewrite_launches(text: str) -> str:
    """kernel<<<configuration>>>(arguments) -> host_cuda::launch(configuration, [&] { kernel(arguments); })"""
    while (at := text.find("<<<")) >= 0:
        begin, end = kernel_begin(text, at), text.index(">>>", at)
        stop = closing(text, text.index("(", end)) + 1
        call = text[begin:at] + text[end + 3 : stop].lstrip()
        configuration = f"::host_cuda::Configuration({text[at + 3 : end]})"
        text = f"{text[:begin]}::host_cuda::launch({configuration}, [&] {{ {call}; }}){text[stop:]}"
    return text


def rewrite_shared(match: re.Match[str]) -> str:
    dynamic, alignment, kind, name, dimensions = match.groups()
    key = f"static char key_of_{name};"
    memory = f"::host_cuda::shared_memory(&key_of_{name}, {'0' if dynamic else f'sizeof({kind}{dimensions})'})"
    assert alignment is None or int(alignment) <= 64, "shared variables are aligned to 64 bytes"
    if dynamic:
        return f"{key} auto* {name} = static_cast<{kind}*>({memory});"
    return f"{key} auto& {name} = *static_cast<{kind}(*){dimensions}>({memory});"


def rewrite_bounds(text: str) -> str:
    """A kernel with __launch_bounds__(most, …) begins by comparing its block with `most`."""
    position = 0
    while match := BOUNDS.search(text, position):
        stop = closing(text, match.end() - 1)
        most = text[match.end() : stop].split(",")[0]
        arguments = text.index("(", stop)
        body = text.index("{", closing(text, arguments)) + 1
        check = f" ::host_cuda::require_block_of_at_most({most});"
        text = text[:body] + check + text[body:]
        position = stop
    return text


def rewrite(text: str) -> str:
    """The C++ of a .cu file; lines keep their numbers."""
    return rewrite_launches(SHARED.sub(rewrite_shared, rewrite_bounds(text)))
