"""Rules that end a training early: a metric beyond a bound, or one that no longer gets better."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from .distributed import any_process, gather_objects


logger = logging.get_logger(__name__)

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RULE = re.compile(
    rf"(?P<metric>[^\s<>=:]+)\s*(?:(?P<sign>[<>])\s*(?P<bound>{_NUMBER})"
    rf"|:\s*(?P<trend>no_gain|no_drop)\s*(?:=\s*(?P<margin>{_NUMBER}))?)\s*(?::\s*(?P<patience>\d+))?"
)
_FORMS = (
    "`METRIC<BOUND`, `METRIC>BOUND`, `METRIC:no_gain` or `METRIC:no_drop` (`no_gain=0.5`: what gains no more than 0.5 "
    "counts as none), each with `:N` behind it for N times in a row, such as `query_similarity>0.95:3`"
)
# Logged only where there is something to say.
_LATE = ("truncated_texts",)
_EVALUATED = "eval_"


@dataclass(frozen=True)
class StopRule:
    """One rule, as `--stop_when` takes it.

    Args:
        text (`str`): The rule as it was written, without blanks.
        metric (`str`): The metric's name in the log; one of an evaluation begins with `eval_`.
        sign (`str`): `<` or `>`: it stops below or above `bound`; `no_gain` or `no_drop`: where the metric has not
            risen above, or fallen below, its best value.
        bound (`float`): The bound; for a trend, by how much the best value has to be passed.
        patience (`int`): How many times in a row that has to be so.
    """

    text: str
    metric: str
    sign: str
    bound: float
    patience: int = 1

    @classmethod
    def parse(cls, text: str) -> "StopRule":
        """Reads a rule.

        Args:
            text (`str`): `METRIC<BOUND[:N]`, `METRIC>BOUND[:N]`, `METRIC:no_gain[=MARGIN][:N]` or
                `METRIC:no_drop[=MARGIN][:N]`.

        Raises:
            ValueError: If it is none of these, `N` is not positive, or the margin is negative.
        """
        found = _RULE.fullmatch(str(text).strip())
        if found is None:
            raise ValueError(f"`stop_when` must hold rules such as {_FORMS}; got {text!r}.")
        patience, margin = int(found["patience"] or 1), float(found["margin"] or 0)
        if patience < 1 or margin < 0:
            raise ValueError(f"`stop_when` {text!r}: N must be at least 1, and no margin may be negative.")
        bound = margin if found["trend"] else float(found["bound"])
        return cls("".join(str(text).split()), found["metric"], found["trend"] or found["sign"], bound, patience)

    def holds(self, value: float, best: float | None) -> bool:
        """Whether a value speaks for stopping, given the best one before it."""
        if self.sign == "<":
            return value < self.bound
        if self.sign == ">":
            return value > self.bound
        return best is not None and not self.gain(value, best) > self.bound

    def gain(self, value: float, best: float) -> float:
        """By how much a value is better than the best one before it; of trends only."""
        return value - best if self.sign == "no_gain" else best - value

    def reason(self, value: float, best: float | None) -> str:
        """Why it stopped, for people."""
        times = f", {self.patience} times in a row" if self.patience > 1 else ""
        if self.sign in "<>":
            side = "below" if self.sign == "<" else "above"
            return f"`{self.metric}` is {value:.6g}, {side} {self.bound:g}{times}"
        wanted = "risen above" if self.sign == "no_gain" else "fallen below"
        margin = f" by more than {self.bound:g}" if self.bound else ""
        return f"`{self.metric}` is {value:.6g} and has not {wanted} {best:.6g}{margin}{times}"


class StopRules(TrainerCallback):
    """Ends a training as soon as one of several rules holds, and saves a checkpoint.

    [`RTDTrainer`] makes one of its `stop_when`; with another trainer it is a callback as any. Values of the log are
    judged where they are logged, those of an evaluation where it ends, the one before the first step only as what
    others are compared with. All processes stop together. The rules' counts are kept in `trainer_state.json`, so that
    a resumed training counts on; one that goes on after a rule has stopped it counts that rule from the beginning.

    Args:
        rules (`Sequence[str]`): See [`StopRule`].

    Attributes:
        stopped (`dict`, *optional*): After a stop `rule`, `step`, `value` and `reason`.

    Raises:
        ValueError: If a rule cannot be read; in training, if a metric is not where it should have come.
        TypeError: In training, if a metric is not a number.
    """

    def __init__(self, rules: Sequence[str] = ()):
        self.rules = tuple(map(StopRule.parse, [rules] if isinstance(rules, str) else rules))
        self.stopped: dict[str, Any] | None = None
        self._training = False
        self._counts: dict[str, dict[str, Any]] = {}
        self._logged: set[str] = set()
        self._evaluated: set[str] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        """Takes up what the checkpoint holds."""
        self.stopped, self._training = None, True
        saved = (state.stateful_callbacks or {}).get(type(self).__name__, {}).get("attributes", {})
        self._counts = {name: dict(count) for name, count in saved.get("counts", {}).items()}
        before = saved.get("stopped")
        if before:
            self._counts.get(before["rule"], {})["times"] = 0
            logger.warning(
                f"This training was stopped after step {before['step']}: {before['reason']}. It goes on, and "
                f"`stop_when` counts {before['rule']!r} from the beginning."
            )
        if self.rules:
            self._keep(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Judges what was logged, on all processes alike."""
        evaluated = {name for name in logs or () if name.startswith(_EVALUATED)}
        if not (self._training and self.rules and (evaluated or "loss" in logs)):
            return
        if not evaluated and not self._logged:
            self._logged = set(logs)
            self._check((rule for rule in self.rules if not rule.metric.startswith(_EVALUATED)), self._logged)
        self._evaluated |= evaluated
        found = None
        for rule in self.rules:
            if rule.metric in logs:
                found = self._judged(rule, logs[rule.metric], state.global_step) or found
        if any_process(found is not None, device=args.device):  # times and rounding may differ between processes
            found = next(one for one in gather_objects(found) if one is not None)
            if self.stopped is None:
                logger.warning(f"The training stops after step {state.global_step}: {found['reason']}.")
            self.stopped = self.stopped or found
            control.should_training_stop = control.should_save = True
        self._keep(state)

    def on_step_begin(self, args, state, control, **kwargs):
        """After an evaluation, whose sets and evaluators log on their own, all its metrics are known."""
        if self._evaluated:
            self._check((rule for rule in self.rules if rule.metric.startswith(_EVALUATED)), self._evaluated)
            self._evaluated = set()

    def on_train_end(self, args, state, control, **kwargs):
        """Judges no more: what comes now is no training."""
        self._training = False

    def _judged(self, rule: StopRule, value: Any, step: int) -> dict[str, Any] | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"`stop_when` {rule.text!r}: `{rule.metric}` must be a number, got {value!r}.")
        count = self._counts.setdefault(rule.text, {"times": 0, "best": None, "step": -1})
        if step <= count["step"]:  # `eval_on_start` of a resumed run evaluates a step again
            return None
        best, count["step"] = count["best"], step
        if math.isnan(value):
            reason = f"`{rule.metric}` is not a number"
            return {"rule": rule.text, "step": step, "value": str(value), "reason": reason}
        held = step > 0 and rule.holds(value, best)
        count["times"] = count["times"] + 1 if held else 0
        if rule.sign not in "<>" and not held and (best is None or rule.gain(value, best) > 0):
            count["best"] = value
        if count["times"] < rule.patience:
            return None
        return {"rule": rule.text, "step": step, "value": value, "reason": rule.reason(value, best)}

    def _keep(self, state) -> None:
        # Not by HF's `ExportableState`: of that, a callback is restored as another object, and only if asked for.
        attributes = {"counts": self._counts, "stopped": self.stopped}
        state.stateful_callbacks[type(self).__name__] = {"args": {"rules": [r.text for r in self.rules]},
                                                         "attributes": attributes}  # fmt: skip

    @staticmethod
    def _check(rules: Iterable[StopRule], there: set[str]) -> None:
        for rule in rules:
            if rule.metric not in there and rule.metric not in _LATE:
                raise ValueError(unknown_metric(rule, there))


def unknown_metric(rule: StopRule, there: Iterable[str]) -> str:
    """What to say of a rule whose metric is not among those there are."""
    there = sorted(there)
    near = difflib.get_close_matches(rule.metric, there, n=3, cutoff=0.5)
    near += [name for name in there if name.removeprefix(_EVALUATED) == rule.metric and name not in near]
    hint = f" Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else ""
    return (
        f"`stop_when` {rule.text!r} asks for the metric `{rule.metric}`, which is not among those of the "
        f"{'evaluation' if rule.metric.startswith(_EVALUATED) else 'log'}.{hint} There are: {', '.join(there)}."
    )


def check_rules(rules: Sequence[str], *, evaluates: bool, logs: bool) -> None:
    """Refuses rules that cannot be read or would never be judged.

    Args:
        rules (`Sequence[str]`): See [`StopRule`].
        evaluates (`bool`): Whether the training evaluates.
        logs (`bool`): Whether it logs.

    Raises:
        ValueError: If a rule is of no known form, or about an evaluation or a log that there will not be.
    """
    for rule in map(StopRule.parse, rules):
        evaluated = rule.metric.startswith(_EVALUATED)
        if not (evaluates if evaluated else logs):
            option = "eval_strategy" if evaluated else "logging_strategy"
            raise ValueError(
                f"`stop_when` {rule.text!r} would never be judged: `{option}` is `no`. Set it to `steps`."
            )


def learning_curve(log_history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    """The numbers of a training over its steps, as columns.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.

    Returns:
        `dict`: `"training"` and `"evaluation"`, each with `step` and a list as long for every metric, in which `None`
        stands where there is none. Times, which say nothing of the model, are left out.
    """
    curve = {}
    for name, belongs in (("training", lambda key: key == "loss"), ("evaluation", lambda key: key[:5] == _EVALUATED)):
        rows: dict[int, dict[str, Any]] = {}
        for row in log_history:
            if any(map(belongs, row)):  # several evaluation sets log on their own
                rows.setdefault(row["step"], {}).update(row)
        keys = dict.fromkeys(key for row in rows.values() for key in row if key not in ("step", "epoch"))
        kept = [key for key in keys if not key.endswith(("_runtime", "_per_second", "_preparation_time"))]
        curve[name] = {"step": list(rows), **{key: [row.get(key) for row in rows.values()] for key in kept}}
    return curve
