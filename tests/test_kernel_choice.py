"""Which kernels run is decided once, by the flag, the device and what is installed; never after a failure."""

import pytest
import torch
from conftest import build_options

from precompute.build.build import build
from precompute.numerics import numerics
from shards.cli.device import choose_kernels, resolve_kernels
from shards.errors import OptionError
from student.loss.sparse import gradient_by_

HERE = {"triton": "3.9.0", "interpreted": False}


def test_auto_takes_triton_on_a_cuda_device_with_triton_and_else_torch():
    assert choose_kernels("auto", "cuda", **HERE) == "triton"
    for version, kernels in ((None, "torch"), ("3.3.1", "torch"), ("3.4.0", "triton"), ("3.10.1+git1", "triton")):
        assert choose_kernels("auto", "cuda", triton=version, interpreted=False) == kernels
    for device in ("cpu", "mps", "xpu"):
        assert choose_kernels("auto", device, **HERE) == "torch"
    for device in ("cpu", "cuda"):  # the interpreter is for tests that ask for it
        assert choose_kernels("auto", device, triton="3.9.0", interpreted=True) == "torch"


def test_the_flag_decides():
    for device in ("cpu", "cuda"):
        assert choose_kernels("torch", device, **HERE) == "torch"
    assert choose_kernels("triton", "cuda", **HERE) == "triton"
    assert choose_kernels("triton", "cpu", triton="3.9.0", interpreted=True) == "triton"


def test_triton_where_it_cannot_run_is_refused():
    for version, found in ((None, "none"), ("3.3.1", "3.3.1"), ("2.3", "2.3")):
        with pytest.raises(OptionError, match=rf"^kernels: expected triton 3.4 or later .*, found {found}$"):
            choose_kernels("triton", "cuda", triton=version, interpreted=False)
    with pytest.raises(OptionError, match=r"^kernels: expected a CUDA device .*, got a device of type cpu$"):
        choose_kernels("triton", "cpu", **HERE)
    with pytest.raises(OptionError, match=r"^kernels: expected the processor with TRITON_INTERPRET=1 .* type cuda$"):
        choose_kernels("triton", "cuda", triton="3.9.0", interpreted=True)


def test_a_build_refuses_triton_on_a_processor_before_it_writes(trio_folders, pairs_file, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(OptionError, match="kernels: expected a CUDA device"):
        build(build_options(trio_folders, pairs_file, tmp_path / "cache", kernels="triton", device="cpu", top_k=5))
    assert not list((tmp_path / "cache").glob("*"))
    assert resolve_kernels("auto", "cpu") == "torch"


def test_numerics_name_the_kernels_only_if_they_are_not_plain_torch():
    cpu = torch.device("cpu")
    plain = numerics("float32", None, None, cpu)
    assert "kernels" not in plain
    assert numerics("float32", None, None, cpu, kernels="triton") == plain | {"kernels": f"triton {triton_version()}"}


def triton_version():
    return pytest.importorskip("triton", reason="needs triton").__version__


def test_a_kernel_that_fails_does_not_fall_back(monkeypatch):
    kernels = pytest.importorskip("student.loss.kernels", reason="needs triton")

    def fail(*_, **__):
        raise RuntimeError("no such device")

    monkeypatch.setattr(kernels, "with_gradient_", fail)
    with pytest.raises(RuntimeError, match="no such device"):
        gradient_by_("triton", None, torch.zeros(1, 2), None)
