"""The table a run prints: one benchmark, every way to compose the query, and the gain with its interval."""

from collections.abc import Mapping


def result_table(metrics: Mapping, benchmark: str, columns: tuple[str, ...]) -> str:
    """Before, after, gain and the baselines of one benchmark.

    Args:
        metrics (`Mapping`): The content of `metrics.json`.
        benchmark (`str`): Prefix of the metric keys.
        columns (`tuple[str, ...]`): Metrics without prefix, such as `recall@10`.

    Returns:
        `str`: Lines of equal width, values in percent.
    """
    keys = [f"{benchmark}_{column}" for column in columns]
    rows = [(name, values) for name, values in metrics["baselines"].items() if "caption" not in name]
    rows += [("projection (before)", metrics["before"]), ("projection + RTD (after)", metrics["after"])]
    bounds = [(name, values) for name, values in metrics["baselines"].items() if "caption" in name]
    head = ["query", *(column.replace("recall@", "R@").replace("map@", "mAP@") for column in columns)]
    body = [[name, *(f"{values[key]:.1f}" for key in keys)] for name, values in rows]
    gains = [metrics["gain"][key] for key in keys]
    body.append(["gain", *(f"{gain['gain']:+.1f}" for gain in gains)])
    body.append(["  95 % interval", *(f"[{gain['low']:+.1f}, {gain['high']:+.1f}]" for gain in gains)])
    body += [[name, *(f"{values[key]:.1f}" for key in keys)] for name, values in bounds]
    return aligned([head, *body])


def gain_table(metrics: Mapping) -> str:
    """One line per metric, of all benchmarks: before, after, gain and interval."""

    def order(key: str) -> tuple[str, int]:
        stem, _, k = key.partition("@")
        return stem, int(k or 0)

    rows = [["metric", "before", "after", "gain", "95 % interval"]]
    for key in sorted(metrics["gain"], key=order):
        gain = metrics["gain"][key]
        interval = f"[{gain['low']:+.1f}, {gain['high']:+.1f}]"
        values = [f"{metrics['before'][key]:.1f}", f"{metrics['after'][key]:.1f}", f"{gain['gain']:+.1f}"]
        rows.append([key, *values, interval])
    return aligned(rows)


def markdown(rows: list[list[str]]) -> str:
    """Rows of cells, the heading first, as a Markdown table with numbers to the right."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" + "|---:" * (len(rows[0]) - 1) + "|")
    return "\n".join(lines)


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells, the heading first, in columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
