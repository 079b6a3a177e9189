"""Programs as answers: pass@1 by the benchmark's own tests, in the sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_synE.evaluation.tasks.code_answers import humaneval, mbpp
from megatron_synE.evaluation.tasks.task_files import load_tasks
from tests.helpers.benchmark_data import write_benchmarks

ADD = {
    "prompt": "def add(x):\n    '''x plus 2.'''\n", "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1) == 3\n    assert candidate(-2) == 0\n",
}  # fmt: skip
PLUS = {"test_setup_code": "TWO = 2", "test_list": ["assert plus(1) == 1 + TWO", "assert plus(0) == 2"]}


@pytest.mark.parametrize(
    "answer, passed",
    [
        ("    return x + 2\n", 1.0),
        ("    return x + 3\n", 0.0),
        ("    return (\n", 0.0),
        ("    import os\n    os._exit(0)\n", 0.0),
        ("    import socket\n    socket.socket()\n    return x + 2\n", 0.0),
        ("    open('/tmp/x', 'w')\n    return x + 2\n", 0.0),
    ],
)
def test_a_function_is_right_where_its_tests_pass(answer: str, passed: float) -> None:
    assert humaneval(ADD, [answer]) == {"pass@1": passed}


def test_a_program_is_right_where_its_tests_pass() -> None:
    assert mbpp(PLUS, ["def plus(x):\r\n  return x + 2\n"]) == {"pass@1": 1.0}
    assert mbpp(PLUS, ["def plus(x):\n  return 2"]) == {"pass@1": 0.0}


def test_the_published_solutions_of_made_up_items_pass(tmp_path: Path) -> None:
    data_dir = write_benchmarks(tmp_path, num_items=2)
    tasks = load_tasks(["mbpp", "humaneval"], data_dir, run_code=True).task_dict["tasks"]
    item = tasks["mbpp"].eval_docs[0]
    assert tasks["mbpp"].process_results(item, [f"{item['code']}\n"]) == {"pass@1": 1.0}
    item = tasks["humaneval"].eval_docs[0]
    plus = item["prompt"].rpartition("plus ")[2].partition(".")[0]
    assert tasks["humaneval"].process_results(item, [f"    return x + {plus}\n"]) == {"pass@1": 1.0}
