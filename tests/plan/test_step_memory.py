"""What a step takes, traced on the meta device: against hand formulas and real runs."""

import json
import os
import subprocess
import sys

import pytest
import torch

from simmim import create_encoder
from simmim.models.classifier import Classifier
from simmim.models.simmim import SimMIM
from simmim.plan.step_memory import StepNeeds, StepTracer, segments
from simmim.plan.tracer import Arithmetic, Passed, Segment, trace_segment

CPU, CUDA = Arithmetic("cpu"), Arithmetic("cuda", autocast=torch.bfloat16)


def small(**changes) -> SimMIM:
    with torch.device("meta"):
        return SimMIM(
            create_encoder("swinv2_t", image_size=64, window_size=8, depths=(2, 2, 4, 2), **changes)
        )


def trace(model, batch_size: int, arithmetic: Arithmetic = CPU) -> StepNeeds:
    return StepTracer(model, arithmetic).trace(batch_size)


def test_a_linear_layer_keeps_its_input_and_does_two_flops_a_weight():
    layer = torch.nn.Linear(32, 64, device="meta")
    taken = Passed(torch.Size((8, 32)), torch.float32, has_gradient=True)
    trace = trace_segment(Segment(layer, tuple(layer.parameters())), taken, CPU)
    # Four bytes more: the loss.
    assert trace.kept == 8 * 32 * 4 + 4
    assert trace.forward_peak == (8 * 32 + 8 * 64) * 4
    assert trace.gradients == (32 * 64 + 64) * 4
    assert trace.forward_flops == 2 * 8 * 32 * 64
    assert trace.backward_flops == 2 * trace.forward_flops


def test_autocast_keeps_inputs_and_weights_in_bf16():
    layer = torch.nn.Linear(32, 64, device="meta")
    taken = Passed(torch.Size((8, 32)), torch.float32, has_gradient=True)
    trace = trace_segment(Segment(layer, tuple(layer.parameters())), taken, CUDA)
    assert trace.output.dtype == torch.bfloat16
    assert trace.kept == (8 * 32 + 32 * 64) * 2 + 2


def block_flops(tokens: int, channels: int, window: int, offsets: int) -> int:
    """Of one image: qkv, projection and MLP, attention's two products, the bias network."""
    heads = channels // 32
    return (
        2 * tokens * channels**2 * (3 + 1 + 8)
        + 2 * 2 * tokens * window * channels
        + 2 * offsets * 512 * (2 + heads)
    )


@pytest.mark.parametrize("arithmetic", [CPU, CUDA])
def test_flops_of_a_block_agree_with_the_formula(arithmetic):
    model = small()
    segment, _ = list(segments(model, (0, 0, 0, 0)))[1]
    taken = Passed(torch.Size((1, 16, 16, 96)), torch.float32, has_gradient=True)
    trace = trace_segment(segment, taken, arithmetic)
    assert trace.forward_flops == block_flops(256, 96, 64, 15 * 15)


@pytest.mark.parametrize("arithmetic", [CPU, CUDA])
def test_recomputation_takes_one_more_forward_pass_and_less_memory(arithmetic):
    plain, recomputed = (
        trace(small(checkpoint_blocks=blocks), 4, arithmetic) for blocks in ("none", "all")
    )
    assert plain.recomputed_flops == 0
    assert recomputed.forward_flops == plain.forward_flops
    assert recomputed.backward_flops == plain.backward_flops
    # Neither what stands between blocks nor the last layer of a block is computed again.
    assert 0.7 < recomputed.recomputed_flops / plain.forward_flops < 1
    assert recomputed.activations < 0.75 * plain.activations


def test_a_head_that_mirrors_the_encoder_is_counted():
    needs = {}
    for head in ("linear", "mlp", "inverse_swin"):
        encoder = small().encoder
        with torch.device("meta"):
            needs[head] = trace(SimMIM(encoder, head), 2)
    tokens, channels = 2 * 2, 768
    more = needs["mlp"].forward_flops - needs["linear"].forward_flops
    assert more == 2 * tokens * channels**2
    assert needs["inverse_swin"].forward_flops > 1.5 * needs["linear"].forward_flops
    assert needs["inverse_swin"].activations > 1.5 * needs["linear"].activations


def test_one_tracer_serves_every_batch_and_recomputation():
    shared = StepTracer(small(), CPU)
    for batch_size, blocks in ((4, (0, 0, 0, 0)), (4, (2, 0, 4, 0)), (2, (2, 0, 4, 0)), (4, None)):
        asked = small(checkpoint_blocks="none" if blocks is None else list(blocks))
        assert shared.trace(batch_size, blocks) == trace(asked, batch_size)


@pytest.mark.parametrize("arithmetic", [CPU, CUDA])
def test_a_trace_does_not_depend_on_those_before(arithmetic):
    """Results of operators are remembered: of equal shapes, strides and types, and of nothing else."""
    results = []
    for number in (3, 3.0, True, 3):
        segment = Segment(lambda rows, by=number: (rows.round().long().mT * by).float(), ())
        taken = Passed(torch.Size((4, 6)), torch.float32, has_gradient=False)
        results.append(trace_segment(segment, taken, arithmetic))
    assert results[0].forward_peak == results[2].forward_peak == results[3].forward_peak
    # The product is in float32 already: not one tensor of eight bytes a number beside another.
    assert results[1].forward_peak < results[0].forward_peak
    assert trace(small(), 4, arithmetic) == trace(small(), 4, arithmetic)


def test_attention_keeps_more_spelled_out_than_in_chunks_and_less_on_a_gpu():
    kept = {}
    for backend in ("sdpa", "auto"):
        with torch.device("meta"):
            model = SimMIM(
                create_encoder("swinv2_t", depths=(1, 1, 1, 1), attention_backend=backend)
            )
        segment, _ = list(segments(model, (0, 0, 0, 0)))[1]
        taken = Passed(torch.Size((2, 48, 48, 96)), torch.float32, has_gradient=True)
        for arithmetic in (Arithmetic("cpu"), Arithmetic("cuda")):
            kept[backend, arithmetic.backend] = trace_segment(segment, taken, arithmetic).kept
    of_pairs = 2 * 16 * 3 * 144 * 144 * 4  # images, windows, heads, tokens, tokens, float32
    assert kept["sdpa", "cpu"] - kept["auto", "cpu"] > 0.8 * of_pairs
    assert kept["sdpa", "cpu"] - kept["auto", "cuda"] > 0.9 * of_pairs
    assert kept["auto", "cpu"] - kept["auto", "cuda"] > 0.2 * of_pairs


def test_a_frozen_encoder_keeps_nothing():
    encoder = small().encoder.requires_grad_(False).eval()
    with torch.device("meta"):
        frozen = Classifier(encoder, 10)
    needs = trace(frozen, 4)
    assert needs.backward_flops < needs.forward_flops / 100
    assert needs.activations < trace(small(), 4).activations / 4


MEASURE = """
import json, sys, torch
from simmim import create_encoder
from simmim.models.losses import masked_l1
from simmim.models.masking import enlarge
from simmim.models.simmim import SimMIM

def status(name):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))

torch.set_num_threads(1)
peaks = []
for blocks in ("none", "all"):
    model = SimMIM(create_encoder("swinv2_t", image_size=64, window_size=8, depths=(2, 2, 4, 2),
                                  checkpoint_blocks=blocks))
    for step in range(2):
        images, mask = torch.randn(32, 3, 64, 64), torch.rand(32, 16, 16) > 0.4
        model.zero_grad()
        before = status("VmRSS")
        open("/proc/self/clear_refs", "w").write("5")
        masked_l1(model(images, mask), images, enlarge(mask, 4)).backward()
    peaks.append(status("VmHWM") - before)
print(json.dumps(peaks))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_real_step_takes_what_was_planned():
    # Freed memory is given back at once, so that the process holds what its tensors do.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    for blocks, measured in zip(("none", "all"), json.loads(done.stdout), strict=True):
        model = small(checkpoint_blocks=blocks)
        gradients = sum(parameter.numel() * 4 for parameter in model.parameters())
        needs = trace(model, 32)
        # The step began without gradients: some are made by the time of the peak.
        assert needs.activations <= measured * 1.15
        assert measured <= (needs.activations + gradients) * 1.15
