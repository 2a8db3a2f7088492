"""The step that tunes wgpu's kernels for the GPU, and measures what that changes."""

from __future__ import annotations


from .bench import DECODE, MEASURE, compact, gpu_name, results_name, today
from .machine import json_objects
from .session import Absent, Failed, last_line

# The most telling first: time may run out.
CASES = [
    "4x16x4096x128,f16,causal",
    f"{DECODE},f16",
    "4x32x4096x64,f32,causal",
    "4x32x4096x64,f16,causal",
]
# What a software adapter measures and compiles in seconds.
SOFTWARE_CASES = ["1x4x256x64,f32,causal", "1x8/2x1/1024x64,f32"]

# Seconds of the search for each case, if there is time. Compilations may take longer.
SEARCH = 10.0
# The share of the step's time that searches may take. The rest is for the comparison.
SEARCH_SHARE = 0.6

# How plans are made, by name: the options of `bench`. The tuned tiles come second.
TUNED = "tuned"
MATRIX_UNITS = {
    "matrix units off": ["--tuning", "off", "--matrix-units", "off"],
    "matrix units required": ["--tuning", "off", "--matrix-units", "require"],
}


def tune(session):
    """Searches, keeps the table among the results, and compares."""
    adapter = session.machine.first("wgpu")
    if adapter is None:
        raise Absent("no adapter that wgpu can use")
    cases = SOFTWARE_CASES if adapter.get("type") == "Cpu" else CASES
    number = str(session.machine.adapter("wgpu"))
    results = session.out / results_name(gpu_name(session.machine), today())
    table = results.with_suffix(".tuning")
    failure = search(session, cases, number, table)
    variants = {"planned": ["--tuning", "off"]}
    if table.exists():
        variants[TUNED] = ["--tuning", str(table)]
    variants.update(MATRIX_UNITS)
    rows, errors = compare(session, cases, number, variants)
    if rows:
        text = "".join(map(compact, rows))
        results.with_suffix(".variants").write_text(text, encoding="utf-8")
        session.tables += "\n" + as_table(cases, list(variants), rows)
    for problem in (failure, *errors):
        if problem:
            raise Failed(problem)
    if not rows:
        raise Absent("no time was left for a case")
    return gains(rows)


def search(session, cases, number, table):
    """Fills the table; returns what went wrong, which is nothing if only the time was short.

    The program writes the table after each case.
    """
    file = session.work / "cases"
    file.write_text("".join(f"{case}\n" for case in cases), encoding="utf-8")
    finished = session.command(
        [
            *[session.bundle / "bin/flashtile", "tune", "--json", "--cases", file],
            *["--seconds", SEARCH, "--adapter", number, "--tuning", table],
        ],
        SEARCH_SHARE * session.deadline.left(),
    )
    if finished.timed_out:
        session.say("no time was left for further cases")
        return None
    if finished.status != 0:
        return f"tune: {last_line(finished.output) or finished.why()}"
    return None


def compare(session, cases, number, variants):
    """Measures all cases in each way: the rows, which name theirs, and what failed."""
    questions = session.work / "questions"
    questions.write_text("".join(f"{case} wgpu:flash\n" for case in cases), encoding="utf-8")
    rows, errors = [], []
    for variant, options in variants.items():
        finished = session.command(
            [
                *[session.bundle / "bin/flashtile", "bench", "--json", "--cases", questions],
                *["--seconds", MEASURE, "--adapter", number, *options],
            ]
        )
        answers = [answer for answer in json_objects(finished.output) if answer]
        for answer in answers:
            if "ms" in answer:
                rows.append(dict(answer, variant=variant))
            elif not answer.get("refused"):
                errors.append(f"{variant}: {answer.get('case')}: {answer.get('error')}")
        if not answers:
            errors.append(f"{variant}: {last_line(finished.output) or finished.why()}")
    return rows, errors


def key(row):
    """The case of a row, as it was asked for."""
    return f"{row['case']},{row['dtype']}{',causal' if row['causal'] else ''}"


def as_table(cases, variants, rows):
    """Milliseconds of each case in each way, as Markdown."""
    times = {(key(row), row["variant"]): row["ms"] for row in rows}
    lines = [f"| wgpu flash, ms | {' | '.join(variants)} |", "| --- |" + " ---: |" * len(variants)]
    for case in cases:
        cells = [times.get((case, variant)) for variant in variants]
        shown = ["" if ms is None else f"{ms:.3g}" for ms in cells]
        lines.append(f"| {case} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def gains(rows):
    """How many times as fast the tuned tiles are, from the smallest gain to the largest."""
    times = {(key(row), row["variant"]): row["ms"] for row in rows}
    ratios = [
        ms / times[case, TUNED]
        for (case, variant), ms in times.items()
        if variant == "planned" and (case, TUNED) in times
    ]
    if not ratios:
        return "nothing was tuned"
    return f"{min(ratios):.2f} to {max(ratios):.2f} times as fast as planned"
