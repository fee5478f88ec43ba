"""What an epoch took of its machine."""

from __future__ import annotations

import time

import torch

from trainers.training.standing import Usage


def test_a_busy_process_takes_cpu_and_an_idle_one_none():
    usage = Usage(torch.device("cpu"))
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    busy = usage.take()
    time.sleep(0.3)
    idle = usage.take()
    assert busy["cpu_percent"] > 2 * idle["cpu_percent"]  # counted anew by every take
    assert idle["cpu_percent"] < 60


def test_memory_is_the_peak_of_this_process_in_gigabytes():
    usage = Usage(torch.device("cpu"))
    before = usage.take()["memory_gb"]
    held = torch.ones(100_000_000)  # 0.4 GB
    after = usage.take()
    assert 0.05 < before < 50
    assert after["memory_gb"] >= before
    assert after["memory_gb"] > 0.4
    assert 0 < after["node_memory_percent"] < 100
    assert not any(name.startswith("gpu") for name in after)
    del held
