"""The campaign's tables, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.flows import ANSWERS, COUNT
from tests.faults.lab import Load
from tests.faults.schedule import KINDS, LAYERS
from tests.faults.verdict import Sum, Verdict, percentile, summed

STREAM_HEAD = ("", "faults", "transparent", "stall ms p50", "p99", "max", "control p50", "p99", "without RTO",
               "octets wrong", "connections lost", "errors")
HEAD = ("", "faults", "transparent", "lost p50", "p95", "max", "gap ms p50", "p99", "max", "control p50", "p99", "dup",
        "reord", "errors")


def sums(verdicts: Sequence[Verdict], controls: Sequence[Verdict], load: Load) -> list[Sum]:
    """Per layer (faults that hit it alone), per kind, per moment, and the control."""
    alone = [verdict for verdict in verdicts if len(verdict.layers) == 1]
    lines = [summed(f"{layer}: kill", [v for v in alone if (v.layers, v.kinds) == ([layer], ["kill"])])
             for layer in LAYERS]
    lines += [summed(f"{layer}: all kinds", [v for v in alone if v.layers == [layer]]) for layer in LAYERS]
    lines += [summed(f"kind {kind}", [v for v in alone if v.kinds == [kind]]) for kind in KINDS]
    lines += [summed(f"moment {moment}", [v for v in verdicts if v.moment == moment]) for moment in load.moments]
    lines.append(summed("all incidents", verdicts))
    lines.append(summed("control (no fault)", controls))
    return [line for line in lines if line.faults]


def line(verdict: Verdict) -> str:
    """One incident that was noticed."""
    faults = ", ".join(f"{kind} {layer}" for kind, layer in zip(verdict.kinds, verdict.layers, strict=True))
    lost = ", ".join(f"{flow} {count}" for flow, count in verdict.lost.items() if count) or "nothing"
    return (f"{verdict.moment}: {faults}: lost {lost}; gap {verdict.gap_ms} ms, away {verdict.away_ms} ms; "
            f"{'; '.join([*verdict.notes, *verdict.errors[:8]])}")


def flows(load: Load) -> str:
    """How much each flow sent, and how much of that was answered."""
    cells = {name: load.books[name].cells for name in load.flows}
    return ", ".join(f"{name} {cells[name][COUNT]}/{cells[name][ANSWERS]}" for name in load.flows)


def stream_rows(lines: Sequence[Sum]) -> list[tuple[str, ...]]:
    """The table's cells, for a load of streams."""
    return [(line.what, str(line.faults), f"{100 * line.transparent / line.faults:.1f} %",
             *(f"{value:.1f}" for value in (*line.gap_ms, *line.control_ms)),
             f"{100 * line.without_timeout / line.faults:.1f} %", str(line.octets_wrong), str(line.ended),
             str(line.errors)) for line in lines]


def rows(lines: Sequence[Sum]) -> list[tuple[str, ...]]:
    """The table's cells, for a load of datagrams."""
    return [(line.what, str(line.faults), f"{100 * line.transparent / line.faults:.1f} %",
             *(f"{value:.0f}" for value in line.lost), *(f"{value:.1f}" for value in (*line.gap_ms, *line.control_ms)),
             str(line.duplicated), str(line.reordered), str(line.errors)) for line in lines]


def table_of(lines: Sequence[Sum], streams: bool) -> list[tuple[str, ...]]:
    """Head and rows."""
    return [STREAM_HEAD, *stream_rows(lines)] if streams else [HEAD, *rows(lines)]


def text(lines: Sequence[Sum], streams: bool = False) -> str:
    """For a terminal."""
    table = table_of(lines, streams)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in table)


def markdown(lines: Sequence[Sum], streams: bool = False) -> str:
    """For docs/recovery.md."""
    head, *body = table_of(lines, streams)
    table = [head, ("---", *("---:" for _ in head[1:])), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def promises(verdicts: Sequence[Verdict]) -> list[tuple[bool, str]]:
    """What docs/recovery.md promises, checked."""
    kills = [v for v in verdicts if v.kinds == ["kill"]]
    hangs = [v for v in verdicts if len(v.kinds) == 1 and v.kinds[0] in ("stop", "loop", "sleep")]
    errors = sum(len(v.errors) for v in verdicts)
    away = max((v.away_ms for v in hangs), default=0.0)
    checks = [
        (errors == 0, f"application errors: {errors} (promised: none)"),
        (all(v.recovered for v in verdicts), "every incident recovered from"),
        (away <= 500, f"a hung layer noticed and replaced, longest: {away:.0f} ms (promised: 500 ms)"),
    ]
    if kills:
        losses, gaps = [v.lost_total for v in kills], [v.gap_ms for v in kills]
        free, most = sum(not each for each in losses) / len(losses), max(losses)
        p50, p99 = percentile(gaps, 50), percentile(gaps, 99)
        checks += [
            (free >= 0.95, f"SIGKILLs that lost nothing: {100 * free:.1f} % (promised: 95 %)"),
            (most <= 64, f"most datagrams lost to one SIGKILL: {most} (promised: 64)"),
            (p50 <= 20, f"gap after a SIGKILL, p50: {p50:.1f} ms (promised: 20 ms)"),
            (p99 <= 100, f"gap after a SIGKILL, p99: {p99:.1f} ms (promised: 100 ms)"),
        ]
    return checks


def stream_promises(verdicts: Sequence[Verdict]) -> list[tuple[bool, str]]:
    """What docs/recovery.md promises of streams, checked. Stalls are those of incidents of one SIGKILL."""
    whole = summed("", verdicts)
    kills = [v for v in verdicts if v.kinds == ["kill"]]
    stalls, control = [v.gap_ms for v in kills], [v.control_ms for v in kills]
    beyond = [max(0.0, v.gap_ms - v.control_ms) for v in kills]
    calm = sum(not v.timeouts for v in kills) / max(1, len(kills)) if kills else 1.0
    unanswered = sum(v.lost_total for v in verdicts)
    return [
        (whole.octets_wrong == 0, f"blocks and answers with wrong octets: {whole.octets_wrong} (promised: none)"),
        (whole.ended == 0, f"connections lost: {whole.ended} (promised: none)"),
        (whole.errors == 0, f"application errors, these included: {whole.errors} (promised: none)"),
        (unanswered == 0, f"blocks and calls that never arrived: {unanswered} (promised: none)"),
        (all(v.recovered for v in verdicts), "every incident recovered from"),
        *((percentile(stalls, percent) <= promised,
           f"stall after a SIGKILL, p{percent}: {percentile(stalls, percent):.1f} ms (promised: {promised} ms; control "
           f"{percentile(control, percent):.1f}, beyond it {percentile(beyond, percent):.1f})")
          for percent, promised in ((50, 30), (99, 250))),
        (calm >= 0.9, f"SIGKILLs without a retransmission timeout of the peer: {100 * calm:.1f} % (promised: 90 %)"),
    ]
