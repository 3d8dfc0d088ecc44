"""Configurations for `accelerate launch`: how many processes, and how they share the weights."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """How a training is started.

    Args:
        processes (`int`): How many there are, on all machines.
        engine (`str`): `ddp`, `fsdp2`, `zero2` or `zero3`.
        precision (`str`, *optional*): `fp32`, `bf16` or `fp16`, where it is said.
    """

    processes: int = 1
    engine: str = "ddp"
    precision: str | None = None


def read_launch(path: str | Path) -> Launch:
    """
    Reads the file that `accelerate launch --config_file` takes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such configuration, or its engine is not known here.
    """
    from rtd_hf.parsing import parse_yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`--estimate_launch` {path} does not exist. Examples lie in accelerate_configs.")
    config = parse_yaml(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or "distributed_type" not in config:
        raise ValueError(f"`--estimate_launch` {path} is no configuration of accelerate: no `distributed_type`.")
    kind = str(config["distributed_type"])
    engines = {"NO": "ddp", "MULTI_GPU": "ddp", "MULTI_CPU": "ddp"}
    if kind == "DEEPSPEED":
        engines[kind] = f"zero{config.get('deepspeed_config', {}).get('zero_stage')}"
    elif kind == "FSDP":
        engines[kind] = f"fsdp{config.get('fsdp_config', {}).get('fsdp_version', 1)}"
    if engines.get(kind) not in ("ddp", "fsdp2", "zero2", "zero3"):
        raise ValueError(f"`--estimate_launch` {path}: {engines.get(kind, kind)} is not counted here.")
    precision = str(config.get("mixed_precision", "no"))
    return Launch(
        processes=int(config.get("num_processes", 1)),
        engine=engines[kind],
        precision={"bf16": "bf16", "fp16": "fp16"}.get(precision),
    )
