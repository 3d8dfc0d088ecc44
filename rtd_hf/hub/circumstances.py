"""Under what circumstances a run was made: its data, its machine, and what it cost."""

import hashlib
import importlib.metadata
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# Those whose numbers, texts, pictures or order of rows end in the weights and in the figures.
LIBRARIES = (
    *("rtd_hf", "torch", "transformers", "accelerate", "datasets", "huggingface_hub", "peft", "tokenizers"),
    *("numpy", "pyarrow", "pillow", "safetensors"),
)
POWERCAP = Path("/sys/class/powercap")
CPU_INFO = Path("/proc/cpuinfo")
_ROWS_AT_ONCE = 8192  # so that captions of any length stay below Arrow's 2 GB
_JOULES_PER_WATT_HOUR = 3600
# A package that draws 300 W overflows its counter after about 4 minutes at the earliest.
_SECONDS_BETWEEN_READINGS = 20


def fingerprint_triplets(dataset: Any) -> dict[str, Any]:
    """What tells a set of text triplets from any other, whatever file it came from.

    Args:
        dataset (`datasets.Dataset`): The triplets, in the order in which they were used.

    Returns:
        `dict`: `rows`, and `sha256` of all captions: of every row reference, conditioning and target, each with the
        sign U+001F behind it, in UTF-8.

    Raises:
        ValueError: A column is missing, or holds something else than texts.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    from ..triplets import resolve_triplet_columns
    from ..triplets.columns import string_column

    columns = resolve_triplet_columns(dataset.column_names)
    order = [columns[name] for name in ("reference_caption", "conditioning_caption", "target_caption")]
    rows, digest = dataset.with_format("arrow").select_columns(order), hashlib.sha256()
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        captions = [compute.fill_null(string_column(part, column), "").combine_chunks() for column in order]
        # The empty text at the end makes the last caption too be followed by the sign.
        joined = compute.binary_join_element_wise(*captions, pa.scalar(""), pa.scalar("\x1f"))
        _, places, texts = joined.buffers()
        first, last = (memoryview(places).cast("i")[joined.offset + row] for row in (0, len(joined)))
        digest.update(memoryview(texts)[first:last])
    return {"rows": len(dataset), "sha256": digest.hexdigest()}


def describe_environment(*, processes: int = 1) -> dict[str, Any]:
    """The machine and the versions of a run.

    Args:
        processes (`int`): How many processes take part.

    Returns:
        `dict`: `machine`, `processor`, `gpus`, `processes`, `threads`, `arithmetic` (what sums are rounded by: the
        processor's instructions torch uses, the precision of float32 products, CUDA and cuDNN, whether only
        deterministic algorithms are allowed), `python` and `versions` (of the libraries that are installed). Nothing
        in it names the computer or its user.
    """
    import torch

    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "gpus": [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())],
        "processes": processes,
        "threads": torch.get_num_threads(),
        "arithmetic": _arithmetic(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _arithmetic() -> list[str]:
    import torch

    told = [torch.backends.cpu.get_cpu_capability(), f"float32 products {torch.get_float32_matmul_precision()}"]
    if torch.cuda.is_available():
        told += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
    return told + (["deterministic algorithms"] if torch.are_deterministic_algorithms_enabled() else [])


def _processor() -> str:
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_gib(*, device_type: str = "cpu") -> float | None:
    """The most memory this process has held so far: of its GPU where it uses one, else of the machine.

    Args:
        device_type (`str`): `"cuda"` or another.

    Returns:
        `float`: GiB; None where the system does not say.
    """
    if device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@dataclass
class EnergyCounter:
    """A counter of the machine that only rises, until it starts again at zero.

    Attributes:
        read (`Callable[[], float]`): Its value now, in joules.
        joules_to_overflow (`float`): After how many joules it starts again at zero.
    """

    read: Callable[[], float]
    joules_to_overflow: float = float("inf")


class EnergyMeter:
    """Measures the energy a machine takes while something runs, where it has counters that this user may read.

    Counted are CPU packages by RAPL (`/sys/class/powercap`, which most systems let only root read) and the visible
    NVIDIA GPUs by NVML (with `nvidia-ml-py`). That is what the chips draw: idle draw and other programs are in it;
    memory, disks, fans and the power supply are not.

    ```python
    with EnergyMeter() as meter:
        trainer.train()
    meter.watt_hours, meter.scope  # None where there is no counter
    ```

    Args:
        gpus (`bool`): Whether to count GPUs.
        powercap (`Path`): Where Linux keeps RAPL's counters.
    """

    def __init__(self, *, gpus: bool = True, powercap: Path = POWERCAP):
        packages, boards = rapl_counters(powercap), nvml_counters() if gpus else []
        kinds = (("CPU package", "RAPL", packages), ("GPU", "NVML", boards))
        named = [f"{len(found)} {what}{'s' * (len(found) > 1)} ({how})" for what, how, found in kinds if found]
        self.scope = ", ".join(named)
        self.joules = 0.0
        self._counters = [*packages, *boards]
        self._last: list[float] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()

    @property
    def watt_hours(self) -> float | None:
        """The energy between start and end, or so far; None where there is no counter."""
        return self.joules / _JOULES_PER_WATT_HOUR if self._counters else None

    def __enter__(self) -> "EnergyMeter":
        return self.start()

    def __exit__(self, *error) -> None:
        self.stop()

    def start(self) -> "EnergyMeter":
        """Begins to count, once; a thread reads the counters from time to time, before they overflow."""
        self._last = [counter.read() for counter in self._counters]
        if self._counters:
            threading.Thread(target=self._watch, name="energy meter", daemon=True).start()
        return self

    def stop(self) -> None:
        """Ends the counting."""
        self._stop.set()
        self.update()

    def update(self) -> None:
        """Adds what the counters have risen since the last reading; one overflow in between is noticed."""
        with self._lock:
            for place, counter in enumerate(self._counters):
                now = counter.read()
                risen = now - self._last[place]
                self.joules += risen if risen >= 0 else risen + counter.joules_to_overflow
                self._last[place] = now

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_READINGS):
            self.update()


def rapl_counters(powercap: Path) -> list[EnergyCounter]:
    """The counters of a machine's CPU packages, each once; none where this user may not read them."""
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD's processors are called so too
        try:
            if not (zone / "name").read_text().startswith("package"):
                continue  # cores and memory are parts of a package, and `psys` holds it
            (zone / "energy_uj").read_text()
            most = int((zone / "max_energy_range_uj").read_text()) / 1e6
        except OSError:
            continue
        counters.append(EnergyCounter(lambda file=zone / "energy_uj": int(file.read_text()) / 1e6, most))
    return counters


def nvml_counters() -> list[EnergyCounter]:
    """The counters of the GPUs that torch sees; none without `nvidia-ml-py`, or where a board has none."""
    import torch

    if not torch.cuda.is_available():
        return []
    try:
        import pynvml
    except ImportError:
        return []
    counters = []
    try:
        pynvml.nvmlInit()
        for place in range(torch.cuda.device_count()):
            board = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(place).uuid}")
            read = lambda board=board: pynvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1e3  # noqa: E731
            read()
            counters.append(EnergyCounter(read))
    except pynvml.NVMLError:
        return []
    return counters
