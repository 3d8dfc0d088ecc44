"""Rules that end a training: their grammar, when they hold, what is left behind, several processes, and going on."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_trainer
from processes import leave, run_on_processes
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from rtd_hf.stopping import StopRule, StopRules, learning_curve
from rtd_hf.training_args import RTDTrainingArguments


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Scripted:
    """An evaluator that gives one value after the other."""

    def __init__(self, values, name="score"):
        self.values, self.name = iter(values), name

    def __call__(self, model):
        return {self.name: next(self.values)}


def scripted_trainer(folder, values, rules, **options):
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no", "max_steps": 9}
    return tiny_trainer(
        folder, eval_rows=4, evaluators=[Scripted(values)], stop_when=rules, **{**evaluating, **options}
    )


# ------------------------------------------------------------------------------------------------------------- grammar
@pytest.mark.parametrize(
    ("text", "metric", "sign", "bound", "patience"),
    [
        ("eval_loss>3", "eval_loss", ">", 3.0, 1),
        ("query_similarity > 0.95 : 3", "query_similarity", ">", 0.95, 3),
        ("eval_x_image_alignment_change<-1e-1:2", "eval_x_image_alignment_change", "<", -0.1, 2),
        ("eval_shapes_recall@10:no_gain:5", "eval_shapes_recall@10", "no_gain", 0.0, 5),
        ("eval_loss:no_drop=.01:4", "eval_loss", "no_drop", 0.01, 4),
        ("eval_cirr_recall_subset@1:no_gain", "eval_cirr_recall_subset@1", "no_gain", 0.0, 1),
    ],
)
def test_rules_are_read(text, metric, sign, bound, patience):
    rule = StopRule.parse(text)
    assert (rule.metric, rule.sign, rule.bound, rule.patience) == (metric, sign, bound, patience)
    assert StopRule.parse(rule.text) == rule


@pytest.mark.parametrize(
    "text",
    ["", "loss", "loss>", "loss>x", ">3", "loss=3", "loss>3:", "loss>3:0", "loss>3:-1", "loss>3:1.5", "loss:no_gains",
     "loss:no_gain=-1", "loss>3 grad_norm>2", "loss>nan"],
)  # fmt: skip
def test_what_is_no_rule_is_refused_with_the_forms(text, tmp_path):
    with pytest.raises(ValueError, match="`stop_when`"):
        RTDTrainingArguments(output_dir=str(tmp_path), use_cpu=True, stop_when=["loss>9", text])


def test_rules_that_are_never_judged_are_refused(tmp_path):
    plain = {"output_dir": str(tmp_path), "use_cpu": True}
    with pytest.raises(ValueError, match=r"`stop_when` 'eval_loss>3' would never be judged: `eval_strategy` is"):
        RTDTrainingArguments(**plain, stop_when=["eval_loss>3"])
    with pytest.raises(ValueError, match=r"'loss>3' would never be judged: `logging_strategy` is `no`"):
        RTDTrainingArguments(**plain, stop_when="loss>3", logging_strategy="no")
    assert RTDTrainingArguments(**plain, stop_when="loss>3").stop_when == ["loss>3"]


# ------------------------------------------------------------------------------------------------------- when it stops
@pytest.mark.parametrize(
    ("rule", "values", "step"),
    [
        ("eval_score>2:2", [1, 3, 1, 3, 3, 9], 5),  # in a row
        ("eval_score<2", [2, 2, 1.99], 3),  # below, not at it
        ("eval_score>2", [2, 2, 2.01], 3),
        ("eval_score:no_gain:2", [1, 2, 2, 3, 3, 2.5, 9], 6),
        ("eval_score:no_gain=0.5:2", [1, 1.4, 1.5, 9], 3),  # neither passes 1 by more than 0.5
        ("eval_score:no_gain=0.5:2", [1, 1.4, 1.6, 1.5, 2.0, 9], 5),
        ("eval_score:no_drop:2", [3, 2, 4, 1, 1, 1], 6),
        ("eval_score:no_drop=0.5", [3, 2, 1.6], 3),
        ("eval_score>99", [1] * 9, None),
        ("eval_score:no_gain", list(range(9)), None),
    ],
)
def test_a_rule_stops_where_it_holds(tmp_path, rule, values, step):
    trainer = scripted_trainer(tmp_path, values, [rule])
    trainer.train()
    assert trainer.state.global_step == (step or 9)
    assert (trainer.stopped or {}).get("step") == step
    if step:
        assert trainer.stopped["rule"] == rule and "`eval_score`" in trainer.stopped["reason"]
        told = [row for row in trainer.state.log_history if "stop_reason" in row]
        assert [(row["step"], row["stop_reason"]) for row in told] == [(step, rule)]
        assert str(told[0]["stop_value"]) == str(float(values[step - 1]))


def test_what_is_logged_in_training_is_judged_too(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=6, eval_rows=4, stop_when=["query_similarity>-1:4"])
    trainer.train()
    assert trainer.stopped["step"] == trainer.state.global_step == 4
    judged = [row["query_similarity"] for row in trainer.state.log_history if "loss" in row]
    assert trainer.stopped["value"] == judged[3]


def test_the_evaluation_before_the_first_step_is_the_start_and_no_reason(tmp_path):
    beyond = scripted_trainer(tmp_path / "a", [9, 1, 1], ["eval_score>5"], eval_on_start=True, max_steps=2)
    beyond.train()
    assert beyond.stopped is None
    trend = scripted_trainer(tmp_path / "b", [9, 1, 2, 3], ["eval_score:no_gain:2"], eval_on_start=True)
    trend.train()
    assert trend.stopped["step"] == 2 and "has not risen above 9" in trend.stopped["reason"]


class StopAt(TrainerCallback):
    """Ends the training after a step, for no reason."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_evaluations_outside_of_the_training_count_nothing(tmp_path):
    options = {"eval_steps": 2, "callbacks": [StopAt(3)]}
    trainer = scripted_trainer(tmp_path, [9, 9, 1, 9], ["eval_score>5"], **options)
    trainer.evaluate()
    trainer.evaluate()
    trainer.train()
    assert trainer.stopped is None and trainer.state.global_step == 3
    assert trainer.evaluate()["eval_score"] == 9 and trainer.stopped is None


def test_several_rules_and_the_first_that_holds(tmp_path):
    rules = ["eval_score<0", "eval_loss:no_drop:7", "eval_score>2:2"]
    trainer = scripted_trainer(tmp_path, [1, 3, 3, 3], rules)
    trainer.train()
    assert trainer.stopped["rule"] == "eval_score>2:2" and trainer.state.global_step == 3


# ----------------------------------------------------------------------------------------------------- unknown metrics
def test_an_unknown_metric_of_the_log_is_refused_at_the_first_log(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=6, eval_rows=4, stop_when=["query_similarty>0.9"])
    with pytest.raises(ValueError, match=r"`query_similarty`.*Did you mean `query_similarity`"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_an_unknown_metric_of_an_evaluation_is_refused_after_the_first(tmp_path):
    trainer = scripted_trainer(tmp_path, [1] * 9, ["eval_scores:no_gain:3", "truncated_texts>5"])
    with pytest.raises(
        ValueError, match=r"`eval_scores`.*those of the evaluation.*`eval_score`.*There are: .*eval_loss"
    ):
        trainer.train()
    assert trainer.state.global_step == 1


def test_the_missing_prefix_is_proposed(tmp_path):
    trainer = scripted_trainer(tmp_path, [1] * 9, ["score>5"])
    with pytest.raises(ValueError, match="`score`.*those of the log"):
        trainer.train()


def test_a_metric_of_one_of_several_evaluation_sets_is_known(tmp_path):
    from datasets import Dataset, DatasetDict
    from helpers import tiny_triplets

    trainer = scripted_trainer(tmp_path, range(99), ["eval_far_loss>0:2"])
    trainer.eval_dataset = DatasetDict({name: Dataset.from_list(tiny_triplets(4)) for name in ("near", "far")})
    trainer.train()
    assert trainer.stopped["step"] == 2


def test_a_metric_that_is_no_number_is_refused_and_one_that_is_nan_stops():
    rules, control = StopRules(["eval_x>1"]), TrainerControl()
    arguments = (SimpleNamespace(device="cpu"), TrainerState(global_step=3), control)
    rules.on_train_begin(*arguments)
    rules.on_log(*arguments, logs={"eval_x": float("nan")})  # which compares with nothing
    assert control.should_training_stop and rules.stopped["reason"] == "`eval_x` is not a number"
    arguments[1].global_step = 4
    with pytest.raises(TypeError, match="`eval_x` must be a number, got 'high'"):
        rules.on_log(*arguments, logs={"eval_x": "high"})


# ------------------------------------------------------------------------------------------------- what is left behind
@pytest.mark.parametrize("strategy", ["no", "steps", "best"])
def test_a_stop_leaves_a_checkpoint_that_says_why(tmp_path, strategy):
    saving = {"no": {}, "steps": {"save_steps": 100}, "best": {"metric_for_best_model": "score"}}[strategy]
    values, rules = [5, 4, 3, 2, 1], ["eval_score<4:2"]
    trainer = scripted_trainer(tmp_path, values, rules, save_strategy=strategy, **saving)
    trainer.train()
    assert trainer.state.global_step == 4
    saved = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    kept = saved["stateful_callbacks"]["StopRules"]["attributes"]
    assert kept["stopped"] == trainer.stopped and kept["stopped"]["reason"].startswith("`eval_score` is 2, below 4")
    assert saved["log_history"][-1]["stop_reason"] == "eval_score<4:2"
    assert (tmp_path / "checkpoint-4" / "optimizer.pt").exists()


def test_the_best_model_is_loaded_after_a_stop(tmp_path):
    kept = []

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            kept.append({name: weight.detach().clone() for name, weight in model.state_dict().items()})

    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "save_total_limit": 2}
    saving = {"save_strategy": "steps", "save_steps": 1, "callbacks": [Keep()]}
    trainer = scripted_trainer(tmp_path, [1, 7, 2, 3, 4], ["eval_score:no_gain:2"], **best, **saving)
    trainer.train()
    assert trainer.stopped["step"] == 4 and trainer.state.best_global_step == 2
    assert same(weights_of(trainer), kept[1]) and not same(kept[1], kept[3])
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


# ------------------------------------------------------------------------------------------------------------ going on
def test_a_training_goes_on_after_a_stop_as_if_there_had_been_none(tmp_path, caplog):
    whole = scripted_trainer(tmp_path / "whole", [1] * 9, [])
    whole.train()
    stopped = scripted_trainer(tmp_path / "run", [5, 1, 1, 1, 1], ["eval_score:no_gain:2"])
    stopped.train()
    assert stopped.state.global_step == 3
    resumed = scripted_trainer(tmp_path / "run", [6, 7, 8, 9, 10, 11], ["eval_score:no_gain:2"])
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert resumed.stopped is None and resumed.state.global_step == 9
    assert same(weights_of(resumed), weights_of(whole))
    assert "was stopped after step 3" in caplog.text
    # The rule counts from its beginning, and still against the best value: 5, two times more.
    again = scripted_trainer(tmp_path / "run", [4, 4, 4], ["eval_score:no_gain:2"])
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert again.stopped["step"] == 5


def test_counts_go_on_in_a_resumed_run(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}

    rules = ["eval_score:no_gain:3", "eval_score>99"]
    first = scripted_trainer(tmp_path, [5, 4], rules, callbacks=[StopAt(2)], **saving)
    first.train()
    # `eval_on_start` evaluates step 2 again, which counts once; a rule that is new starts from nothing.
    second = scripted_trainer(tmp_path, [4, 4, 4, 4], [*rules, "eval_score<4:2"], eval_on_start=True, **saving)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert first.stopped is None and second.stopped["step"] == 4
    assert second.stopped["reason"] == "`eval_score` is 4 and has not risen above 5, 3 times in a row"


# ----------------------------------------------------------------------------------------------- others, and processes
def test_another_trainer_takes_the_rules_as_a_callback(tmp_path):
    from transformers import Trainer

    rows = [{"x": torch.randn(3), "labels": torch.randn(1)} for _ in range(12)]

    class Line(torch.nn.Linear):
        def forward(self, x, labels):
            return {"loss": (super().forward(x) - labels).square().mean()}

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, logging_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    rules = StopRules(["loss>-1:3"])
    trainer = Trainer(Line(3, 1), arguments, train_dataset=rows, callbacks=[rules])
    trainer.train()
    assert trainer.state.global_step == 3 and rules.stopped["rule"] == "loss>-1:3"
    assert (tmp_path / "checkpoint-3").is_dir()


@pytest.mark.slow
def test_all_processes_stop_where_one_finds_a_reason(tmp_path):
    run_on_processes(2, Path(__file__), str(tmp_path))
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [one["step"] for one in found] == [2, 2]
    assert found[0]["stopped"] == found[1]["stopped"] != None  # noqa: E711
    assert found[0]["stopped"]["value"] == 9.0


def main(folder):
    """What each process of the test above runs: only the second one's evaluator finds a reason."""

    class Own:
        def __call__(self, model):
            return {"score": {0: 1.0, 1: 9.0}[torch.distributed.get_rank()]}

    trainer = tiny_trainer(
        Path(folder) / "run", max_steps=6, eval_rows=4, evaluators=[Own()], eval_strategy="steps", eval_steps=2,
        stop_when=["eval_score>5"], save_strategy="no",
    )  # fmt: skip
    trainer.train()
    rank = torch.distributed.get_rank()
    said = {"step": trainer.state.global_step, "stopped": trainer.stopped}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(said))
    leave()


# ------------------------------------------------------------------------------------------------------ learning curve
def test_the_learning_curve_is_the_log_in_columns(tmp_path):
    trainer = scripted_trainer(
        tmp_path, [1, 3, 2, 5], ["eval_score>99"], eval_steps=2, max_steps=5, eval_on_start=True
    )
    trainer.train()
    curve = learning_curve(trainer.state.log_history)
    assert set(curve) == {"training", "evaluation"}
    assert curve["training"]["step"] == [1, 2, 3, 4, 5] and curve["evaluation"]["step"] == [0, 2, 4, 5]
    assert curve["evaluation"]["eval_score"] == [1, 3, 2, 5]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert curve["training"]["loss"] == losses and len(set(losses)) == 5
    assert {"query_similarity", "target_similarity", "grad_norm", "negatives"} <= curve["training"].keys()
    assert {"eval_loss", "eval_query_similarity"} <= curve["evaluation"].keys()
    assert not any("runtime" in key or "per_second" in key for part in curve.values() for key in part)
    assert all(len(column) == len(part["step"]) for part in curve.values() for column in part.values())


def test_a_metric_that_is_not_always_there_leaves_holes():
    log = [
        {"step": 1, "epoch": 0.1, "loss": 2.0},
        {"step": 2, "epoch": 0.2, "loss": 1.0, "truncated_texts": 3},
        {"step": 2, "epoch": 0.2, "eval_near_loss": 5.0, "eval_near_runtime": 9.0},
        {"step": 2, "epoch": 0.2, "eval_far_loss": 6.0},
        {"step": 2, "train_loss": 1.5},
    ]
    assert learning_curve(log) == {
        "training": {"step": [1, 2], "loss": [2.0, 1.0], "truncated_texts": [None, 3]},
        "evaluation": {"step": [2], "eval_near_loss": [5.0], "eval_far_loss": [6.0]},
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
