"""The options: defaults, ranges, the command line, and that reading their help costs nothing."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import HfArgumentParser, TrainingArguments

from rtd_hf import losses
from rtd_hf.options import LOSS_TYPES, NOISE_TYPES, RTDOptions
from rtd_hf.training_args import RTDTrainingArguments


# The published recipe, and what a contrastive loss over text triplets needs.
CHANGED = {
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.01,
    "max_steps": 2000,
    "per_device_train_batch_size": 128,
    "per_device_eval_batch_size": 128,
    "remove_unused_columns": False,
    "dataloader_drop_last": True,
    "logging_nan_inf_filter": False,
    "logging_steps": 50,
}
ADDED = {
    "temperature": 0.07,
    "loss_type": "nt_xent",
    "mask_duplicates": False,
    "gather_across_devices": True,
    "anchored": True,
    "refined_batch": True,
    "refined_concatenation": True,
    "noise_scale": 0.5,
    "noise_type": "scaled_gaussian",
    "max_length": None,
    "packing": True,
    "force_projection": False,
    "mini_batch_size": None,
    "hub_license": None,
    "stop_when": None,
}


def defaults_of(cls):
    return {field.name: field.default for field in dataclasses.fields(cls)}


def test_defaults_are_the_published_ones(tmp_path):
    assert defaults_of(RTDOptions) == {**CHANGED, **ADDED}
    arguments = RTDTrainingArguments(output_dir=str(tmp_path))
    assert {name: getattr(arguments, name) for name in {**CHANGED, **ADDED}} == {**CHANGED, **ADDED}
    # AdamW with the published betas, without warm-up, accumulation or a larger batch by stealth.
    assert arguments.optim.value.startswith("adamw_torch") and (arguments.adam_beta1, arguments.adam_beta2) == (
        0.9,
        0.999,
    )
    assert (arguments.adam_epsilon, arguments.warmup_steps, arguments.gradient_accumulation_steps) == (1e-8, 0, 1)


def test_nothing_of_hugging_face_changes_unannounced():
    theirs, ours = defaults_of(TrainingArguments), defaults_of(RTDTrainingArguments)
    assert set(ours) == set(theirs) | set(ADDED) and not set(theirs) & set(ADDED)
    differ = {name for name in theirs if repr(ours[name]) != repr(theirs[name])}
    assert differ == set(CHANGED)
    assert [name for name in CHANGED if f"`{name}`" not in RTDTrainingArguments.__doc__] == []


def test_every_option_has_a_help_string_of_its_own():
    helps = [field.metadata.get("help", "") for field in dataclasses.fields(RTDOptions)]
    assert all(text.endswith(".") and len(text) > 15 for text in helps)
    assert len(set(helps)) == len(helps)


def test_options_are_a_strict_subset_with_the_same_facts():
    ours = {field.name: field for field in dataclasses.fields(RTDOptions)}
    full = {field.name: field for field in dataclasses.fields(RTDTrainingArguments)}
    assert ours.keys() < full.keys()
    for name, field in ours.items():
        assert (field.default, field.metadata) == (full[name].default, full[name].metadata)


def test_options_import_neither_torch_nor_transformers():
    code = "import rtd_hf.options, sys; print(*{name.split('.')[0] for name in sys.modules})"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    loaded = set(done.stdout.split())
    assert "rtd_hf" in loaded and not loaded & {"torch", "transformers", "numpy", "accelerate", "datasets"}


def test_choices_are_those_of_the_code():
    assert LOSS_TYPES == losses.LOSS_TYPES
    for name, choices in (("loss_type", LOSS_TYPES), ("noise_type", NOISE_TYPES)):
        annotation = RTDOptions.__dataclass_fields__[name].type
        assert annotation.__args__ == choices  # what the command line offers


@pytest.mark.parametrize("cls", [RTDOptions, RTDTrainingArguments])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("temperature", 0, r"`temperature` must be above 0 and finite, got 0\.0"),
        ("temperature", -0.07, "`temperature` must be above 0"),
        ("temperature", float("nan"), "`temperature` must be above 0"),
        ("temperature", float("inf"), "`temperature` must be above 0 and finite"),
        ("temperature", "warm", "`temperature` must be a number, got 'warm'"),
        ("temperature", None, "`temperature` must be a number, got None"),
        ("noise_scale", -0.5, r"`noise_scale` must not be negative.*got -0\.5"),
        ("noise_scale", float("nan"), "`noise_scale` must not be negative"),
        ("noise_type", "uniform", "`noise_type` must be one of scaled_gaussian, gaussian, none, got 'uniform'"),
        ("loss_type", "triplet", "`loss_type` must be one of nt_xent, info_nce, got 'triplet'"),
        ("per_device_train_batch_size", 1, "`per_device_train_batch_size` must be at least 2.*negatives, got 1"),
    ],
)
def test_values_out_of_range_are_named(cls, option, value, message):
    with pytest.raises(ValueError, match=message):
        cls(**{option: value})


@pytest.mark.parametrize("option", ["temperature", "noise_scale"])
def test_numbers_may_come_as_text_as_yaml_reads_5e_1(option, tmp_path):
    arguments = RTDTrainingArguments(output_dir=str(tmp_path), **{option: "5e-1"})
    assert getattr(arguments, option) == 0.5


def test_command_line(tmp_path):
    line = "--temperature 0.02 --loss_type info_nce --no_refined_batch --anchored false --max_length 40 --max_steps 5"
    (arguments,) = HfArgumentParser(RTDTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), *line.split()]
    )
    assert (arguments.temperature, arguments.loss_type, arguments.refined_batch) == (0.02, "info_nce", False)
    assert (arguments.anchored, arguments.max_length, arguments.max_steps) == (False, 40, 5)
    assert arguments.refined_concatenation and arguments.dataloader_drop_last
    with pytest.raises(SystemExit):
        HfArgumentParser(RTDTrainingArguments).parse_args_into_dataclasses(["--loss_type", "triplet"])


def test_options_survive_being_saved(tmp_path):
    arguments = RTDTrainingArguments(output_dir=str(tmp_path), temperature=0.02, noise_type="none", max_steps=7)
    again = RTDTrainingArguments(**{name: arguments.to_dict()[name] for name in ADDED}, max_steps=7)
    assert {name: getattr(again, name) for name in ADDED} == {name: getattr(arguments, name) for name in ADDED}
    assert arguments.to_dict()["temperature"] == 0.02
