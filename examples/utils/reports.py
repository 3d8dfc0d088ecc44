"""How an evaluation is shown: tables on the screen, rows for a paper in LaTeX and Markdown."""

from collections.abc import Mapping, Sequence

from utils.tables import aligned, markdown


# The columns in which papers give a benchmark; others are given in their own metrics.
PUBLISHED = {
    "cirr": [*(f"recall@{k}" for k in (1, 5, 10, 50)), *(f"recall_subset@{k}" for k in (1, 2, 3))],
    "circo": [f"map@{k}" for k in (5, 10, 25, 50)],
    "fashioniq": ["recall@10", "recall@50"],
    "genecis": ["recall@1"],
    "coco": ["recall@1", "recall@5", "recall@10"],
}


def short(column: str) -> str:
    """`recall_subset@1` as `Rs@1`."""
    for name, letters in (("recall_subset@", "Rs@"), ("recall_reverse@", "Rr@"), ("recall@", "R@"), ("map@", "mAP@")):
        column = column.replace(name, letters)
    return column


def columns_of(benchmark, metrics: Mapping[str, float]) -> list[str]:
    """The overall figures of a benchmark, without its name."""
    wanted = [*benchmark.metrics, *benchmark.averages]
    return [column for column in wanted if f"{benchmark.name}_{column}" in metrics]


def main_table(benchmark, rows: Mapping[str, Mapping[str, float]], gain: Mapping[str, Mapping] | None) -> str:
    """One line for every way to compose the query, and the gain with its interval.

    Args:
        benchmark (`CIRBenchmark`): What was scored.
        rows (`Mapping`): By what the line is called its metrics in percent.
        gain (`Mapping`, *optional*): As `CIRResult.gain_over` gives it.
    """
    columns = columns_of(benchmark, next(iter(rows.values())))
    keys = [f"{benchmark.name}_{column}" for column in columns]
    body = [["", *map(short, columns)]]
    body += [[label, *(f"{metrics[key]:.2f}" for key in keys)] for label, metrics in rows.items()]
    if gain:
        body.append(["gain", *(f"{gain[key]['gain']:+.2f}" for key in keys)])
        body.append(["  95 % interval", *(f"[{gain[key]['low']:+.2f}, {gain[key]['high']:+.2f}]" for key in keys)])
    return aligned(body)


def part_table(benchmark, metrics: Mapping[str, float]) -> str:
    """The figures of every group and aspect; empty where there are none."""
    parts = [group for group in benchmark.groups if group]
    parts += dict.fromkeys(aspect for query in benchmark.queries for aspect in query.aspects)
    columns = [*benchmark.metrics, *benchmark.averages]
    wanted = [c for c in columns if any(f"{benchmark.name}_{part}_{c}" in metrics for part in parts)]
    if not parts or not wanted:
        return ""
    cells = [
        [part, *(f"{metrics[key]:.2f}" if (key := f"{benchmark.name}_{part}_{c}") in metrics else "" for c in wanted)]
        for part in parts
    ]
    return aligned([["", *map(short, wanted)], *cells])


def preservation_table(rows: Mapping[str, Mapping[str, float]], gain: Mapping[str, Mapping] | None) -> str:
    """Plain retrieval in both directions, one line a metric."""
    names = list(rows)
    head = ["plain retrieval", *names, *(["change", "95 % interval"] if gain else [])]
    body = []
    for key in next(iter(rows.values())):
        line = [key, *(f"{rows[name][key]:.2f}" for name in names)]
        if gain:
            line += [f"{gain[key]['gain']:+.2f}", f"[{gain[key]['low']:+.2f}, {gain[key]['high']:+.2f}]"]
        body.append(line)
    return aligned([head, *body])


def paper_rows(benchmark, rows: Mapping[str, Mapping[str, float]], *, kind: str, note: str = "") -> str:
    """Rows in the columns of published tables.

    Args:
        benchmark (`CIRBenchmark`): What was scored.
        rows (`Mapping`): By method its metrics in percent.
        kind (`str`): `latex` or `markdown`.
        note (`str`, *optional*): Put behind every method's name, where figures must not be compared.
    """
    name, first = benchmark.name, next(iter(rows.values()))
    own = [c for c in PUBLISHED.get(name, benchmark.metrics) if f"{name}_{c}" in first]
    groups = [group for group in benchmark.groups if group]
    columns = [*(f"{group}_{column}" for group in groups for column in own), *own]
    heads = [*(f"{group} {short(column)}" for group in groups for column in own)]
    heads += [f"mean {short(column)}" if groups else short(column) for column in own]
    body = [[label + note, *(f"{metrics[f'{name}_{c}']:.2f}" for c in columns)] for label, metrics in rows.items()]
    if kind == "markdown":
        return markdown([["method", *heads], *body])
    lines = [" & ".join(map(_escaped, ["method", *heads])) + r" \\", r"\midrule"]
    return "\n".join([*lines, *(" & ".join(map(_escaped, line)) + r" \\" for line in body)])


def _escaped(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, "\\" + sign)
    return text


def draws_table(spread: Mapping[str, Mapping[str, float]], keys: Sequence[str]) -> str:
    """Mean and spread over several draws of a benchmark."""
    body = [["over the draws", "mean", "std", "least", "greatest"]]
    body += [[key, *(f"{spread[key][name]:.2f}" for name in ("mean", "std", "low", "high"))] for key in keys]
    return aligned(body)
