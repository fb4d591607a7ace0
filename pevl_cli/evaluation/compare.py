"""Compare results of `pevl benchmark`, clip by clip."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pevl_cli.errors import PevlError, UsageError
from pevl_cli.evaluation.outcome import FORMAT
from pevl_cli.metrics import PairedTest, paired_test

MAX_SHOWN = 12  # maximum number of differing labels and clips that are listed


@dataclass(frozen=True)
class Result:
    """The parts of a result.json that are compared."""

    name: str  # name of the folder or file
    path: str  # path in the command
    dataset: str
    split: str
    top1: float
    top5: float
    mean_class: float
    calibration_error: float
    low: float  # 95 % interval of top-1
    high: float
    answers: dict[str, tuple[str, str]]  # clip -> true label, answer
    groups: dict[str, str]  # clip -> group


@dataclass(frozen=True)
class Difference:
    """The difference of a result from the first result, on their common clips."""

    name: str
    clips: int
    paired: PairedTest | None  # None without common clips
    labels: list[tuple[str, int, int]]  # label, clips correct only in the first, only in this
    only_first: list[str]  # clips correct only in the first result
    only_this: list[str]  # clips correct only in this result


@dataclass(frozen=True)
class Comparison:
    """Two or more results, and the difference of each from the first."""

    results: list[Result]
    differences: list[Difference]  # of the second, the third, ... from the first

    HEAD: ClassVar = (
        "run, %",
        "split",
        "clips",
        "top-1 (95 %)",
        "top-5",
        "mean class",
        "cal. error",
    )

    def rows(self) -> list[list[str]]:
        """The table's cells below `HEAD`, in %; the last row has mean and standard deviation."""
        rows = []
        for r in self.results:
            figures = (r.top5, r.mean_class, r.calibration_error)
            rows.append(
                [
                    *(r.name, f"{r.dataset} {r.split}", f"{len(r.answers):,}"),
                    f"{100 * r.top1:.1f} ({100 * r.low:.1f}–{100 * r.high:.1f})",
                    *(f"{100 * v:.1f}" for v in figures),
                ]
            )
        columns = [
            [getattr(r, name) for r in self.results]
            for name in ("top1", "top5", "mean_class", "calibration_error")
        ]
        mean = [
            f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
            for values in columns
        ]
        return [*rows, [f"mean of {len(rows)}", "", "", *mean]]

    def sentences(self) -> list[str]:
        """The differences, one per line; details of a difference are indented below it."""
        lines = []
        first = self.results[0]
        for d in self.differences:
            p = d.paired
            if p is None:
                lines.append(f"{d.name} and {first.name} have no clip in common: not compared.")
                continue
            lines.append(
                f"{d.name} compared with {first.name} on {d.clips:,} common clips: "
                f"{100 * p.difference:+.1f} points (95 %: {100 * p.interval.low:+.1f} to "
                f"{100 * p.interval.high:+.1f}); clips correct only in {d.name}: {p.only_second}, "
                f"only in {first.name}: {p.only_first}; McNemar's exact test: p = {p.p_value:.3g}."
            )
            for label, lost, gained in d.labels[:MAX_SHOWN]:
                lines.append(f"  {label}: {gained} gained, {lost} lost")
            for word, clips in (("gained", d.only_this), ("lost", d.only_first)):
                if clips:
                    more = f" and {len(clips) - MAX_SHOWN} more" if len(clips) > MAX_SHOWN else ""
                    lines.append(f"  {word}: {', '.join(clips[:MAX_SHOWN])}{more}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The content of a JSON file, without the answers for single clips."""
        content = asdict(self)
        for result in content["results"]:
            result["clips"] = len(result.pop("answers"))
            del result["groups"]
        return content


def read_result(path: Path) -> Result:
    """Read a result.json from its folder or path. PevlError when it is missing or not readable."""
    file = path / "result.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PevlError(f"{file}: this result of `pevl benchmark` does not exist.") from error
    except (OSError, ValueError) as error:
        raise PevlError(f"{file}: cannot be read as a result ({error}).") from error
    try:
        if raw["format"] != FORMAT:
            newer = raw["format"] > FORMAT
            age, hint = ("a newer", "update pevl") if newer else ("an older", "measure again")
            raise PevlError(
                f"{file}: written by {age} pevl (format {raw['format']}); hint: {hint}."
            )
        accuracy, interval = raw["accuracy"], raw["intervals"]["top1"]
        return Result(
            name=file.resolve().parent.name if file.name == "result.json" else file.stem,
            path=str(path),
            dataset=raw["dataset"],
            split=raw["split"],
            top1=float(accuracy["top1"]),
            top5=float(accuracy["top5"]),
            mean_class=float(accuracy["mean_class"]),
            calibration_error=float(raw["reliability"]["error"]),
            low=float(interval["low"]),
            high=float(interval["high"]),
            answers={c["clip"]: (c["label"], c["predictions"][0][0]) for c in raw["clips"]},
            groups={c["clip"]: c["group"] for c in raw["clips"]},
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise PevlError(f"{file}: not a result of `pevl benchmark` ({error!r}).") from error


def compare(results: Sequence[Result]) -> Comparison:
    """Compare the first with each other result.

    UsageError for fewer than two, or a repeated result.
    """
    if len(results) < 2:
        raise UsageError("two or more results are needed; hint: pevl compare RUN RUN")
    if len({r.name for r in results}) < len(results):  # then use the path as the name
        results = [replace(r, name=r.path) for r in results]
    if len({r.name for r in results}) < len(results):
        raise UsageError("pevl compare: the same result was given twice.")
    return Comparison(list(results), [_difference(results[0], other) for other in results[1:]])


def _difference(first: Result, other: Result) -> Difference:
    # The same name can be another clip in another data set; it usually has another label.
    common = [
        clip
        for clip, (label, _) in first.answers.items()
        if other.answers.get(clip, ("", ""))[0] == label
    ]
    first_correct, other_correct = (
        np.array([r.answers[c][0] == r.answers[c][1] for c in common], bool) for r in (first, other)
    )
    lost = [common[i] for i in np.flatnonzero(first_correct & ~other_correct)]
    gained = [common[i] for i in np.flatnonzero(other_correct & ~first_correct)]
    losses = Counter(first.answers[c][0] for c in lost)
    gains = Counter(first.answers[c][0] for c in gained)
    names = sorted(losses.keys() | gains.keys())
    labels = [(name, losses[name], gains[name]) for name in names]
    labels.sort(key=lambda row: -abs(row[2] - row[1]))
    groups = [first.groups[c] for c in common]
    return Difference(
        name=other.name,
        clips=len(common),
        paired=paired_test(first_correct, other_correct, groups) if common else None,
        labels=labels,
        only_first=lost,
        only_this=gained,
    )


def markdown(comparison: Comparison) -> str:
    """The table and the differences as Markdown."""
    columns = comparison.HEAD
    head = "| " + " | ".join(columns) + " |\n|---|---|" + "---:|" * (len(columns) - 2)
    rows = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        for cells in comparison.rows()
    ]
    points = [
        f"- {line}" if line[0] != " " else f"  - {line.strip()}" for line in comparison.sentences()
    ]
    return "\n".join([head, *rows, "", *points]) + "\n"
