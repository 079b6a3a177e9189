"""The report of a run that was killed and resumed: its figures, and the page in a browser."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from megatron_synE.reporting.page import render
from megatron_synE.reporting.run_files import read_run
from megatron_synE.reporting.run_report import run_report
from tests.helpers.browser import Page, browser, find_chromium
from tests.helpers.commands import ROOT, run, run_tool, succeeded, torchrun
from tests.helpers.evaluations import write_evaluation
from tests.helpers.recorded_runs import RecordedRun
from tests.helpers.report_page import ReportPage, read_page, records_of, wrong_figures
from tests.helpers.small_job import JOB_FILE, RUN, STEPS, write_job

KILLED_AT, RESUMED_AT = 8, 6
PHONE_WIDTH = 390
KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from megatron_synE.training.metrics import MetricsWriter
from pretrain_llama3_synE import command
write = MetricsWriter.write

def write_and_die(self, kind, step, values):
    write(self, kind, step, values)
    if (kind, step) == ("step", {KILLED_AT}):
        os.kill(os.getpid(), signal.SIGKILL)

MetricsWriter.write = write_and_die
command()
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after step 8, and resumed with another learning rate from its checkpoint of
    step 6; `report.html` and `compare.html` are its reports."""
    folder = tmp_path_factory.mktemp("killed")
    write_job(folder, measured=True, evaluation={"interval_steps": 5})
    (folder / "killed.py").write_text(KILLED)
    first = run(sys.executable, "killed.py", "--config", JOB_FILE, cwd=folder)
    assert first.returncode == -signal.SIGKILL, first.stderr
    succeeded(run(*torchrun(1, "--config", JOB_FILE, "--optimizer.lr", "1e-3"), cwd=folder))
    succeeded(run_tool("report", "--run", RUN, "--output", "report.html", cwd=folder))
    succeeded(run_tool("report", "--compare", RUN, folder / RUN, "--output", "compare.html", cwd=folder))
    return folder


@pytest.fixture(scope="module")
def page(killed: Path) -> ReportPage:
    return read_page(killed / "report.html")


def test_every_figure_is_that_of_metrics_state_and_ledger(killed: Path, page: ReportPage) -> None:
    from megatron_synE.checkpoint import read_state
    from megatron_synE.config.parse import parse_job
    from megatron_synE.data import DataStream, ledger

    state, here = read_state(killed / RUN), os.getcwd()
    os.chdir(killed)
    try:
        stream = DataStream.build(parse_job(["--config", JOB_FILE]).data, state=state["stream"])
    finally:
        os.chdir(here)
    entries = ledger(stream, 0, state["consumed_samples"])
    records = records_of(killed / RUN / "metrics.jsonl")
    assert wrong_figures(page, records, state, entries) == []
    assert page.report["run"]["num_steps_logged"] == STEPS and page.report["read"]["documents_problem"] == ""


def test_the_kill_and_the_resume_are_told(page: ReportPage) -> None:
    events = [(row["kind"], row["step"]) for row in page.report["events"] if row["kind"] != "decision"]
    assert events == [
        ("start", 0), ("resume", RESUMED_AT), ("killed", RESUMED_AT), ("configuration", RESUMED_AT), ("finish", STEPS),
    ]  # fmt: skip
    (change,) = page.report["configuration"]["changes"]
    assert (change["step"], change["field"]) == (RESUMED_AT, "optimizer.lr")
    assert page.report["status"]["word"] == "finished"


def test_what_is_needed_to_do_it_again_is_there(killed: Path, page: ReportPage) -> None:
    again = page.report["reproduction"]
    assert again["command"].startswith("torchrun --nproc-per-node 1 ") and "--optimizer.lr 1e-3" in again["command"]
    assert again["directory"] == str(killed) and {"python", "torch", "megatron-core"} <= again["versions"].keys()
    assert again["machine"]["device"] and len(again["corpora"]) == 4


def test_the_page_leads_nowhere(killed: Path, page: ReportPage) -> None:
    assert page.addresses and all(address.startswith("#") for address in page.addresses)
    compared = read_page(killed / "compare.html")
    assert all(address.startswith("#") for address in compared.addresses)
    assert compared.tables["runs"][2][-2:] == [STEPS, STEPS] and compared.report["differences"] == []


@pytest.fixture(scope="module")
def crafted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with long names that are tags, and with everything that a report can show."""
    folder = tmp_path_factory.mktemp("crafted")
    recorded = RecordedRun(folder)
    evil = "<script>document.title='run'</script><img src=http://nowhere.example/x.png onerror=alert(1)>" + "long" * 30
    for record in recorded.records:
        for name in ("loss", "perplexity", "loss_by_component", "shares"):
            if isinstance(record.get(name), dict):
                record[name][evil] = record[name].pop("book", 0.1)
        record |= {"device": evil, "commit": evil, "directory": evil} if record["kind"] == "start" else {}
    place = {"step": 9, "consumed_tokens": 1000, "time": 1.7e9}
    recorded.records += [
        {"kind": "benchmark", **place, "benchmarks": {evil: {"acc": 0.5, "num_items": 3}}},
        {"kind": "forgetting", **place, "what": evil, "baseline": 1.0, "value": 2.0, "bound": 1.5, "reaction": "warn"},
        {"kind": "stop", **place, "reason": "error", "error": evil},
    ]
    recorded.write(recorded.records)
    write_evaluation(recorded.folder / "evaluation", {evil: 0.5}, model=evil)
    report = run_report(read_run(recorded.folder, recorded.read_state))
    (folder / "crafted.html").write_bytes(render({**report, "title": evil}))
    return folder / "crafted.html"


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium; Debian: apt-get install chromium")
def test_in_a_browser(killed: Path, crafted: Path) -> None:
    """On a phone in the dark, and wide in the light: all is drawn, nothing is asked for, nothing sticks out."""
    report = killed / "report.html"
    with browser() as started:
        for path in (crafted, killed / "compare.html", report):
            shown = Page(started, path, width=PHONE_WIDTH, height=844, dark=True, touch=True)
            _check_page(shown, PHONE_WIDTH, len(read_page(path).report["charts"]))
            assert sum(_background(shown)) < 3 * 60
        wide = Page(started, report, width=1280, height=844, dark=False, touch=False)
        _check_page(wide, 1280, len(read_page(report).report["charts"]))
        light, ink = _background(wide), wide.evaluate(INK)
        assert sum(light) > 3 * 200
        wide.set_dark(True)  # while the page is open
        wide.wait_for(f"{INK} !== {ink!r}")
        assert _background(wide) == _background(shown) and wide.complaints() == []


def _check_page(shown: Page, width: int, num_charts: int) -> None:
    shown.wait_for('document.documentElement?.dataset.charts === "drawn"')
    assert shown.complaints() == [] and shown.requests() == []
    assert shown.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    drawn = '[...document.querySelectorAll("[data-chart]")].filter((box) => box.querySelector("{}")).length'
    assert shown.evaluate(drawn.format("svg.main-svg")) == num_charts >= 8
    assert shown.evaluate(drawn.format("svg .scatterlayer path")) == num_charts
    assert shown.evaluate('document.querySelectorAll(".legend button").length') > 8
    assert shown.evaluate("document.title") != "run" and shown.evaluate("document.images.length") == 0


INK = 'getComputedStyle(document.querySelector(".chart .xtick text")).fill'


def _background(page: Page) -> list[int]:
    """Red, green and blue."""
    text = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return [int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(",")]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--run", "nothing"], "nothing: no such folder"),
        (["--run", "."], "no metrics.jsonl and no checkpoint in it"),
        (["--run", "good", "--against", "nothing"], "nothing: no such folder"),
        (["--run", "good", "--evaluations", "."], ".: no results_"),
        (["--run", "good", "--output", "good"], "good"),
    ],
)
def test_mistakes_are_one_message(tmp_path: Path, arguments: list[str], told: str) -> None:
    (tmp_path / "good").mkdir()
    if "good" in arguments:
        (tmp_path / "good" / "metrics.jsonl").write_text("")
    result = run_tool("report", *arguments, cwd=tmp_path)
    assert result.returncode == 1 and told in result.stderr and len(result.stderr.splitlines()) == 1
