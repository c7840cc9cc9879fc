"""The fused kernel as the rest of simmim meets it; what it computes, Triton's interpreter tells."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY

from simmim.models.swin import SwinTransformer, create_encoder
from simmim.models.swin.attention import WindowAttention
from simmim.models.swin.kernels.triton_attention import regions_of, require_device
from simmim.models.swin.windows import attention_mask, fit_window
from simmim.plan.tracer import Arithmetic, Passed, Segment, trace_segment
from simmim.utils.errors import UserError

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[2] / "scripts"
has_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.mark.slow
@has_triton
def test_the_kernels_equal_attention_spelled_out() -> None:
    """All of interpreted_triton_attention.py, in a process of its own."""
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    # Without the options of this process: type checks would wrap the kernels.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"),
            *("--noconftest", str(HERE / "interpreted_triton_attention.py")),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@has_triton
def test_the_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPTS / "compile_attention.py")),
            *("--architectures", "80", "--windows", "4", "--head-dims", "16"),
        ],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for kernel in ("forward", "backward_queries", "backward_keys", "backward_bias"):
        assert re.search(rf"\b{kernel} .* \d+ +\d+ +0$", done.stdout, re.MULTILINE), done.stdout


def test_regions_are_equal_where_the_mask_lets_through() -> None:
    for feature_size, window_size in (((6, 8), (4, 4)), ((5, 7), (3, 4))):
        mask = attention_mask(fit_window(feature_size, window_size, shifted=True))
        assert mask is not None
        regions = regions_of(mask)
        assert torch.equal(regions[:, :, None] != regions[:, None, :], mask)


def test_heads_that_are_too_wide_are_refused_before_weights_are_made() -> None:
    message = (
        "model.attention_backend=triton takes heads of at most 128 channels, not of 256; use more "
        "heads, or model.attention_backend=sdpa"
    )
    with torch.device("meta"), pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        SwinTransformer(
            embed_dim=256,
            depths=(1,),
            num_heads=(1,),
            image_size=8,
            window_size=2,
            attention_backend="triton",
        )


@has_triton
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter runs on the CPU")
def test_a_run_on_a_cpu_is_refused_before_data_is_read(run: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="runs on CUDA GPUs, not on cpu"):
        run(
            "pretrain", *TINY, "model.attention_backend=triton", "data=imagefolder", "data.root=/no"
        )


@has_triton
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter runs on the CPU")
def test_a_cpu_is_refused_by_name() -> None:
    message = (
        "model.attention_backend=triton runs on CUDA GPUs, not on cpu; use "
        "model.attention_backend=sdpa"
    )
    layer = WindowAttention(16, 1, (2, 2), (2, 2), backend="triton")
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        layer(torch.randn(1, 1, 4, 16))


def test_without_triton_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_device.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape('pip install "simmim[triton]"')):
        require_device(torch.device("cuda"))


def test_a_gpu_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_device.cache_clear()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match=r"compute capability 8\.0 \(Ampere\) or more, not 7\.5"):
        require_device(torch.device("cuda"))


def test_a_type_without_kernels_is_refused() -> None:
    layer = WindowAttention(16, 1, (2, 2), (2, 2), backend="triton").double()
    with pytest.raises(
        UserError, match=r"not in torch\.float64; use model\.attention_backend=sdpa"
    ):
        layer(torch.randn(1, 1, 4, 16, dtype=torch.float64))


def test_a_plan_counts_what_the_kernels_keep_and_compute() -> None:
    """Traced on the meta device, without Triton: no tensor of all pairs, products counted."""
    traces = {}
    for backend in ("triton", "reference"):
        with torch.device("meta"):
            encoder = create_encoder("swinv2_t", image_size=64, attention_backend=backend)
        block = encoder.stages[0].blocks[0]
        segment = Segment(block, tuple(block.parameters()))
        taken = Passed(torch.Size((2, 16, 16, 96)), torch.float32, has_gradient=True)
        traces[backend] = trace_segment(segment, taken, Arithmetic("cuda", torch.float32, None))
    fused, spelled_out = traces["triton"], traces["reference"]
    assert fused.output == spelled_out.output
    assert fused.forward_flops == spelled_out.forward_flops
    # The two products of the forward pass again, and those of the logits.
    tokens, windows, heads, head_dim = 144, 2 * 4, 3, 32
    product = 2 * windows * heads * tokens * tokens * head_dim
    assert fused.backward_flops == spelled_out.backward_flops + product
    # The reference keeps logits or weights of every pair, in float32.
    assert spelled_out.kept - fused.kept > windows * heads * tokens * tokens * 4
