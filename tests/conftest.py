"""What every test shares: no network, fixed seeds, few threads, and which markers run."""

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


# Before anything of Hugging Face is imported: these are read at import.
_HF_HOME = tempfile.mkdtemp(prefix="rtd_hf_tests_")
os.environ.update(
    HF_HOME=_HF_HOME,  # neither the caches nor the accelerate configuration of whoever runs the tests
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)

import random  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from no_network import refuse_other_hosts  # noqa: E402


refuse_other_hosts()


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--run-huge", action="store_true", help="also run the tests marked huge: minutes and 14 GB each")
    parser.addoption("--share", metavar="FOLDER", help="only files of tests that no process has taken by this folder")


def pytest_configure(config):
    os.environ.pop("PYTEST_ADDOPTS", None)  # is read by now, and not meant for what the tests start
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(config, items):
    slow = pytest.mark.skip(reason="slow: give --run-slow")
    gpu = pytest.mark.skip(reason="gpu: no CUDA device")
    huge = pytest.mark.skip(reason="huge: give --run-huge")
    for item in items:
        if "huge" in item.keywords and not config.getoption("--run-huge"):
            item.add_marker(huge)
        if "slow" in item.keywords and not config.getoption("--run-slow"):
            item.add_marker(slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(gpu)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Leaves the tests of a file that another process with the same `--share` has begun."""
    folder = item.config.getoption("--share")
    return True if folder and not _takes(Path(folder), item.path) else None


@cache
def _takes(folder: Path, file: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / file.name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def pytest_unconfigure(config):
    shutil.rmtree(_HF_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """The folder trees of the five benchmarks with drawn pictures, 30 queries each. Never write into them."""
    from benchmark_files import make_trees

    return make_trees(tmp_path_factory.mktemp("trees"))


@pytest.fixture(scope="module")
def hub():
    """A Hub on this machine."""
    from hub_server import ACCOUNTS, hub_server

    with hub_server(ACCOUNTS) as server:
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """A process that uses it."""
    from hub_client import HubClient

    client = HubClient(hub.url, tmp_path_factory.mktemp("client"))
    yield client
    client.close()
