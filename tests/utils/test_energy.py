"""The power of GPUs by their counters, with a driver that is made up."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from rld.utils import energy


class NVMLError(Exception):
    pass


def test_the_power_is_what_the_counters_of_all_visible_gpus_rose_by(monkeypatch):
    counters, clock = {"GPU-a": 1000.0, "GPU-b": 5000.0}, [10.0]
    driver = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: counters[handle],
    )
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: driver)
    monkeypatch.setattr(energy.time, "monotonic", lambda: clock[0])
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: types.SimpleNamespace(uuid="ab"[i]))
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # its teacher is on the second GPU
    meter = energy.PowerMeter()
    counters.update({"GPU-a": 3000.0, "GPU-b": 9000.0})
    clock[0] = 14.0
    assert meter.watts == pytest.approx((2 + 4) / 4), "6 joules in 4 seconds"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert meter.watts is None, "another machine's GPUs are not counted"
    monkeypatch.setenv("WORLD_SIZE", "1")
    counters.update({"GPU-a": 0.0, "GPU-b": 0.0})
    assert meter.watts is None, "the driver was loaded anew"

    def refuse(handle):
        raise NVMLError

    driver.nvmlDeviceGetTotalEnergyConsumption = refuse
    assert meter.watts is None


def test_without_gpus_no_power_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert energy.PowerMeter().watts is None


def test_only_nvidia_s_gpus_lack_a_package(monkeypatch):
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for version, lacks in (("12.8", True), (None, False)):
        monkeypatch.setattr(torch.version, "cuda", version)
        assert energy.lacks_counters() is lacks
