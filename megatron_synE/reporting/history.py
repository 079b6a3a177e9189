"""What happened to a run, in the order it happened; its configuration, and what differs from another one's."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_synE.config.leaves import leaves
from megatron_synE.reporting.records import RunRecords
from megatron_synE.reporting.run_files import RunData

Json = dict[str, Any]

STOP_WORDS = {
    "finished": "came to its end",
    "told": "stopped as told, and saved",
    "exit_after_steps": "stopped after training.exit_after_steps, and saved",
    "forgetting": "stopped by the forgetting guard, and saved",
    "error": "ended with an error",
}
REACTION_WORDS = {
    "warn": "told", "stop": "the run saves and ends", "restore_share": "share is moved back to its source",
}  # fmt: skip
ACTION_WORDS = {
    "record": "recorded",
    "skip": "the step's update was left out",
    "rollback": "went back to a checkpoint",
    "stop": "the run ended",
}


def event_rows(records: RunRecords) -> list[Json]:
    """Starts, stops, incidents, decisions and the like, by time."""
    rows = [row for kind, events in records.events.items() for record in events.records if (row := _row(kind, record))]
    starts = records.events["start"].records
    if not starts:  # a run of a version that kept no starts
        rows += [_event(record, "resume", "resumed") for record in records.events["resume"].records]
    rows += _sudden_ends(records)
    return sorted(rows, key=lambda row: (row["time"] or 0, row["step"]))


def _row(kind: str, record: Mapping[str, Any]) -> Json | None:
    if kind == "start":
        step = record["step"]
        first = f"resumed after step {step:,}" if step else "started"
        where = f"{record.get('num_processes')} processes on {record.get('host')}, {record.get('device')}"
        return _event(record, "resume" if step else "start", f"{first}: {where}")
    if kind == "stop":
        reason = str(record.get("reason"))
        error = f": {record['error']}" if record.get("error") else ""
        return _event(record, "finish" if reason == "finished" else "stop", STOP_WORDS.get(reason, reason) + error)
    if kind == "incident":
        action, back = str(record.get("action")), record.get("resumed_from_step")
        done = f"back to step {back:,}" if isinstance(back, int) else ACTION_WORDS.get(action, action)
        return _event(record, "incident", f"{record.get('cause')}; {done}{_documents(record)}")
    if kind == "configuration":
        fields = ", ".join(record.get("changes") or {})
        return _event(record, "configuration", f"configuration changed: {fields}")
    if kind == "forgetting":
        since = f"at step {record.get('baseline_step', 0)}"
        numbers = f"{record.get('value')} against {record.get('baseline')} {since}, bound {record.get('bound')}"
        reaction, why = str(record.get("reaction")), record.get("reason")
        done = REACTION_WORDS.get(reaction, reaction) + (f": {why}" if why else "")
        return _event(record, "forgetting", f"forgetting: {record.get('what')}: {numbers}; {done}")
    if kind == "decision":
        words = "share moved back to a source" if record.get("moves") == "sources" else "topic shares adjusted"
        return _event(record, "decision", words)
    return None


def _event(record: Mapping[str, Any], kind: str, text: str) -> Json:
    return {
        "kind": kind, "step": record["step"], "tokens": record["consumed_tokens"], "time": record.get("time"),
        "text": text,
    }  # fmt: skip


def _documents(record: Mapping[str, Any]) -> str:
    """Where to look: the documents that an incident blames."""
    named = [
        f"{entry.get('corpus')} {', '.join(map(str, entry['documents']))}" for entry in record.get("documents") or ()
    ]
    if not named:
        return ""
    total = record.get("num_documents", 0)
    more = f", of {total:,} documents" if total > sum(len(entry["documents"]) for entry in record["documents"]) else ""
    return f" (documents {'; '.join(named)}{more})"


def _sudden_ends(records: RunRecords) -> Iterator[Json]:
    """A start before which nothing says that the one before it had ended: it was killed, or its machine was lost.

    What it had done since the checkpoint that was gone on from is not in the records any more.
    """
    starts, stops = records.events["start"], records.events["stop"]
    if starts.num_left_out or stops.num_left_out:
        return
    stopped_at = {record["step"] for record in stops.records}
    for record in starts.records[1:]:
        if record["step"] not in stopped_at:
            text = "the start before this one ended without a word: killed, or its machine was lost"
            yield {**_event(record, "killed", text), "time": record.get("time")}


def status(run: RunData) -> Json:
    """In one word and one sentence, how the run stands."""
    records = run.records
    stops, starts = records.events["stop"].records, records.events["start"].records
    last_step = run.start.get("last_step")
    ended = stops and (not starts or (stops[-1].get("time") or 0) >= (starts[-1].get("time") or 0))
    of = f" of {last_step:,}" if isinstance(last_step, int) else ""
    if ended and stops[-1].get("reason") == "finished":
        return {"word": "finished", "text": f"Finished: {records.last_step:,}{of} steps."}
    if ended:
        words = STOP_WORDS.get(str(stops[-1].get("reason")), "stopped")
        return {"word": "stopped", "text": f"After step {records.last_step:,}{of} it {words}."}
    if records.num_records == 0:
        return {"word": "unknown", "text": "There are no records: all that is known is in the checkpoint."}
    return {
        "word": "open",
        "text": f"At step {records.last_step:,}{of} when this page was made: it goes on, or was killed.",
    }


def configuration(run: RunData, other: RunData | None) -> Json:
    """The whole configuration as YAML, its changes at resumes, and how it differs from the other run's."""
    import yaml

    changes = []
    recorded = run.records.events["configuration"].records
    listed = recorded or (run.state or {}).get("config_changes") or []
    for record in listed:
        for field, values in (record.get("changes") or {}).items():
            was, now = values
            changes.append({"step": record.get("step"), "field": field, "was": _written(was), "now": _written(now)})
    text = yaml.safe_dump(_plain(run.config), allow_unicode=True, sort_keys=False) if run.config else ""
    return {
        "yaml": text,
        "changes": changes,
        "against": None if other is None else differences([run.config, other.config]),
    }


def differences(configs: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Fields that are not the same in all configurations: `field`, and `values`, each as JSON."""
    found = [dict(leaves(config)) for config in configs]
    fields = dict.fromkeys(field for values in found for field in values)
    rows = [{"field": field, "values": [_written(values.get(field)) for values in found]} for field in fields]
    return [row for row in rows if len(set(row["values"])) > 1]


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def reproduction(run: RunData) -> Json | None:
    """How to do it again, from the newest start; None for a run of a version that kept no starts."""
    start = run.start
    if not start:
        return None
    arguments, per_node = [str(part) for part in start.get("arguments", [])], start.get("processes_per_node")
    program, processes = str(start.get("program")), start.get("num_processes")
    nodes = processes // per_node if isinstance(processes, int) and isinstance(per_node, int) and per_node else 1
    launcher = ["torchrun", *(["--nnodes", str(nodes)] if nodes > 1 else []), "--nproc-per-node", str(per_node)]
    whole = [*launcher, program, *arguments]
    return {
        "command": shlex.join(whole),
        "directory": start.get("directory"),
        "num_nodes": nodes,
        "commit": start.get("commit"),
        "versions": start.get("versions") or {},
        "machine": {name: start.get(name) for name in ("host", "device", "num_processors", "platform")},
        "num_processes": processes,
        "earlier": _earlier_versions(run),
        "starts_from": _starts_from(run.config),
        "corpora": start.get("components") or [],
    }


def _starts_from(config: Mapping[str, Any]) -> str:
    checkpoint = config.get("checkpoint") or {}
    for field in ("init_from_hf", "load"):
        if checkpoint.get(field):
            return f"checkpoint.{field}: {checkpoint[field]}"
    return "random weights"


def _earlier_versions(run: RunData) -> list[Json]:
    """Starts whose software, commit or machine was not that of the newest one."""
    keys = ("versions", "commit", "device", "host", "num_processes")
    now = {key: run.start.get(key) for key in keys}
    found = []
    for record in run.records.events["start"].records[:-1]:
        changed = {key: record.get(key) for key in keys if record.get(key) != now[key]}
        if changed:
            found.append({"step": record["step"], "changed": {key: _written(value) for key, value in changed.items()}})
    return found
