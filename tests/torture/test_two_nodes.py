"""Two machines, each a network namespace of its own, of which one is lost and comes back."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from utils.checkpoint import load_checkpoint

ADDRESSES = ("10.77.0.1", "10.77.0.2")
TINY = Path(__file__).parents[1] / "reliability/tiny.py"
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
    *("--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29400"),
]
JOIN_TIMEOUT = 30
TCP_RETRIES = 6  # 25 seconds; with Linux's own 15 a cut connection lasts a quarter of an hour
FLAGS = [
    *("--default", "--no_pretrained", "--crop_size", "48", "--epochs", "60", "--batch_size", "1"),
    *(
        "--timeout",
        "10",
        "--val_interval",
        "60",
        "--ckpt_interval",
        "5",
        "--num_workers",
        "0",
        "--sample_num",
        "0",
    ),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[list[str]]:
    """Two of them, joined by a cable; each end is called `cable`."""
    names = [f"pans{os.getpid()}{letter}" for letter in "ab"]
    if shutil.which("ip") is None:
        pytest.skip("making network namespaces needs the program ip (iproute2)")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable",
           "netns", names[1])  # fmt: skip
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
            retries = f"echo {TCP_RETRIES} > /proc/sys/net/ipv4/tcp_retries2"
            ip("netns", "exec", name, "sh", "-c", retries)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    else:
        yield names
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


class Nodes:
    """Two nodes with one process each, and the checkpoint folder on a disk that they share."""

    def __init__(self, namespaces: list[str], folder: Path, name: str) -> None:
        self.namespaces, self.folder, self.name = namespaces, folder, name
        self.path = folder / f"checkpoints/streethazards/{name}.pth"

    def start(self, node: int) -> subprocess.Popen[str]:
        """The same command on each node, but for the node's own address."""
        own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "cable"}
        # The machine's name, by which torchrun would find the host, has no address in here.
        host = f"--rdzv-conf=is_host={int(node == 0)},join_timeout={JOIN_TIMEOUT}"
        own |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        command = ["ip", "netns", "exec", self.namespaces[node], *TORCHRUN, host]
        command += [f"--rdzv-id={self.name}", f"--local-addr={ADDRESSES[node]}", str(TINY), *FLAGS]
        command += ["--name", self.name, "--data_root", str(self.folder)]
        command += ["--logdir", f"{self.folder}/logs"]
        command += ["--checkpoints", f"{self.folder}/checkpoints"]
        # A file takes more than a pipe does, so that a node that nobody reads does not hang.
        return subprocess.Popen(
            command,
            env={**os.environ, **own},
            stdout=self.output(node).open("w"),
            stderr=subprocess.STDOUT,
            text=True,
        )

    def output(self, node: int) -> Path:
        return self.folder / f"{self.name}{node}.txt"

    def end(self, *processes: subprocess.Popen[str]) -> None:
        """Wait for both; both end well."""
        codes = [process.wait(timeout=240) for process in processes]
        assert codes == [0, 0], [self.output(node).read_text() for node in (0, 1)]


def test_a_lost_node_is_restarted_and_nothing_is_lost(folder: Path, namespaces: list[str]) -> None:
    whole = Nodes(namespaces, folder, "whole_nodes")
    whole.end(whole.start(0), whole.start(1))
    broken = Nodes(namespaces, folder, "broken_nodes")
    stays, lost = broken.start(0), broken.start(1)
    while not broken.path.exists():
        assert stays.poll() is None, broken.output(0).read_text()
        time.sleep(0.01)
    worker = Path(f"/proc/{lost.pid}/task/{lost.pid}/children").read_text()
    for pid in (lost.pid, int(worker)):
        os.kill(pid, signal.SIGKILL)
    lost.wait()
    assert load_checkpoint(broken.path)["iteration"] < 240
    broken.end(stays, broken.start(1))
    assert "broken_nodes.pth: epoch " in broken.output(0).read_text()
    found, expected = load_checkpoint(broken.path), load_checkpoint(whole.path)
    assert found["iteration"] == expected["iteration"] == 240
    assert found["world_size"] == 2
    for name, value in expected["model_state"].items():
        assert torch.equal(found["model_state"][name], value), name


def end_of(process: subprocess.Popen[str], nodes: Nodes, node: int) -> int:
    """The exit code of a launcher that nobody answers any more; it ends in bounded time."""
    try:
        return process.wait(timeout=180)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(nodes.output(node).read_text()) from None


def wait_for_checkpoint(nodes: Nodes, *processes: subprocess.Popen[str]) -> None:
    while not nodes.path.exists():
        for node, process in enumerate(processes):
            assert process.poll() is None, nodes.output(node).read_text()
        time.sleep(0.01)


def test_a_permanently_lost_connection_ends_all_processes_on_both_nodes(
    folder: Path, namespaces: list[str]
) -> None:
    """Processes and launchers alike, in bounded time."""
    nodes = Nodes(namespaces, folder, "cut_nodes")
    processes = nodes.start(0), nodes.start(1)
    wait_for_checkpoint(nodes, *processes)
    ip("-n", namespaces[1], "link", "set", "cable", "down")
    try:
        for node, process in enumerate(processes):
            assert end_of(process, nodes, node) != 0
            assert "error: a process has " in nodes.output(node).read_text()
    finally:
        ip("-n", namespaces[1], "link", "set", "cable", "up")
    assert load_checkpoint(nodes.path)["iteration"] < 240
    nodes.end(nodes.start(0), nodes.start(1))
    assert load_checkpoint(nodes.path)["iteration"] == 240


def test_the_first_node_is_lost_and_all_are_restarted(folder: Path, namespaces: list[str]) -> None:
    """It holds the rendezvous, so that the other one ends too."""
    nodes = Nodes(namespaces, folder, "first_nodes")
    lost, other = nodes.start(0), nodes.start(1)
    wait_for_checkpoint(nodes, lost, other)
    worker = Path(f"/proc/{lost.pid}/task/{lost.pid}/children").read_text()
    for pid in (lost.pid, int(worker)):
        os.kill(pid, signal.SIGKILL)
    lost.wait()
    assert end_of(other, nodes, 1) != 0
    nodes.end(nodes.start(0), nodes.start(1))
    assert load_checkpoint(nodes.path)["iteration"] == 240
