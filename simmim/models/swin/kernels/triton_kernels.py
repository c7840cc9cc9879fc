# mypy: ignore-errors
# fmt: off
"""The Triton kernels of window attention; `triton_launch.py` launches them.

Each iterates over tiles of a window's (query token: row, key token: column) pairs. Tokens beyond
the window and channels beyond the head are loaded as zeros and never stored. Sizes in capitals are
compile-time constants. Imported only where the kernels run, as Triton is optional.
"""

import os

import triton
import triton.language as tl

# The logit of masked pairs; with minus infinity, differences of logits could become NaN.
_NEVER = tl.constexpr(-1.0e30)
_LOG2_E = tl.constexpr(1.4426950408889634)
# As in F.normalize: the lower bound of a norm in a division.
_SHORTEST = tl.constexpr(1.0e-12)
# Triton's interpreter multiplies the bits of bfloat16 values as if they were integers.
_IS_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _load_rows(
    first, tokens, stride, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr
):
    """Loads the channels of some tokens of one head; consecutive tokens are `stride` elements apart."""
    channels = tl.arange(0, WIDTH)
    places = first + tokens[:, None] * stride + channels[None, :]
    inside = (tokens < TOKENS)[:, None] & (channels < HEAD_DIM)[None, :]
    return tl.load(places, mask=inside, other=0.0)


@triton.jit
def _store_rows(
    first, tokens, stride, rows, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr
):
    """Stores `rows` where `_load_rows` would load them, rounded to the dtype of the memory."""
    channels = tl.arange(0, WIDTH)
    places = first + tokens[:, None] * stride + channels[None, :]
    inside = (tokens < TOKENS)[:, None] & (channels < HEAD_DIM)[None, :]
    tl.store(places, rows.to(first.dtype.element_ty), mask=inside)


@triton.jit
def _load_factor(factor, head, HEAD_DIM: tl.constexpr, IS_COSINE: tl.constexpr):
    """The scale of the head's similarities."""
    return tl.load(factor + head) if IS_COSINE else HEAD_DIM**-0.5


@triton.jit
def _lengths(rows):
    rows = rows.to(tl.float32)
    return tl.sqrt(tl.sum(rows * rows, axis=1))


@triton.jit
def _directions(rows, IS_COSINE: tl.constexpr):
    """Queries or keys as the dot product takes them, in float32; unit vectors for the cosine."""
    directions = rows.to(tl.float32)
    if IS_COSINE:
        directions /= tl.maximum(_lengths(rows), _SHORTEST)[:, None]
    return directions


@triton.jit
def _direction_gradient(gradient, rows, IS_COSINE: tl.constexpr):
    """The gradient of `rows`, given that of `_directions(rows)`."""
    if IS_COSINE:
        lengths = _lengths(rows)
        directions = _directions(rows, IS_COSINE)
        along = tl.sum(gradient * directions, axis=1)
        # A vector shorter than the bound is divided by a constant, which removes no component.
        along = tl.where(lengths > _SHORTEST, along, 0.0)
        gradient = (gradient - along[:, None] * directions) / tl.maximum(lengths, _SHORTEST)[:, None]
    return gradient


@triton.jit
def _load_bias(bias, head, rows, columns, TOKENS: tl.constexpr):
    inside = (rows < TOKENS)[:, None] & (columns < TOKENS)[None, :]
    places = bias + head * TOKENS * TOKENS + rows[:, None] * TOKENS + columns[None, :]
    return tl.load(places, mask=inside, other=0.0)


@triton.jit
def _load_regions(
    regions, window, region_windows, tokens, TOKENS: tl.constexpr, HAS_REGIONS: tl.constexpr
):
    """The region of some tokens within their window; 0 for all if there are no regions."""
    if HAS_REGIONS:
        first = regions + (window % region_windows) * TOKENS
        found = tl.load(first + tokens, mask=tokens < TOKENS, other=0).to(tl.int32)
    else:
        found = tl.zeros_like(tokens)
    return found


@triton.jit
def _product(left, right, PRECISION: tl.constexpr):
    """The matrix product, accumulated in float32."""
    if _IS_INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def _logits(
    query, key, factor, bias, row_regions, column_regions, columns,
    TOKENS: tl.constexpr, PRECISION: tl.constexpr,
):
    """The logits of a tile in base-2 units; `query` and `key` are directions in the input's dtype."""
    similarity = _product(query, tl.trans(key), PRECISION)
    sees = (columns < TOKENS)[None, :] & (row_regions[:, None] == column_regions[None, :])
    return tl.where(sees, (similarity * factor + bias) * _LOG2_E, _NEVER)


@triton.jit
def _logit_gradients(
    query, key, value, gradient, log_sums, overlaps, factor, bias,
    row_regions, column_regions, columns, TOKENS: tl.constexpr, PRECISION: tl.constexpr,
):
    """The attention weights of a tile, and the gradients of its logits."""
    logits = _logits(
        query, key, factor, bias, row_regions, column_regions, columns, TOKENS, PRECISION
    )
    weights = tl.exp2(logits - log_sums[:, None])
    weight_gradients = _product(gradient, tl.trans(value), PRECISION)
    return weights, weights * (weight_gradients - overlaps[:, None])


@triton.jit
def forward(
    qkv, bias, factor, regions, attended, log_sums, region_windows, heads,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    IS_COSINE: tl.constexpr, HAS_REGIONS: tl.constexpr, PRECISION: tl.constexpr,
):
    """Attention of some queries of one window and head, with online softmax over the keys."""
    window = tl.program_id(0).to(tl.int64)  # a large batch has more elements than int32 can index
    head = tl.program_id(1)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    channels = heads * HEAD_DIM
    queries = qkv + window * TOKENS * 3 * channels + head * HEAD_DIM
    keys, values = queries + channels, queries + 2 * channels
    row_factor = _load_factor(factor, head, HEAD_DIM, IS_COSINE)
    row_regions = _load_regions(regions, window, region_windows, rows, TOKENS, HAS_REGIONS)
    query = _load_rows(queries, rows, 3 * channels, TOKENS, HEAD_DIM, WIDTH)
    query = _directions(query, IS_COSINE).to(query.dtype)

    largest = tl.full([ROWS], _NEVER, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, TOKENS, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        column_regions = _load_regions(
            regions, window, region_windows, columns, TOKENS, HAS_REGIONS
        )
        key = _load_rows(keys, columns, 3 * channels, TOKENS, HEAD_DIM, WIDTH)
        key = _directions(key, IS_COSINE).to(key.dtype)
        value = _load_rows(values, columns, 3 * channels, TOKENS, HEAD_DIM, WIDTH)
        bias_tile = _load_bias(bias, head, rows, columns, TOKENS)
        logits = _logits(
            query, key, row_factor, bias_tile, row_regions, column_regions, columns,
            TOKENS, PRECISION,
        )
        # If all keys so far are masked for a query, their weights are 1. They are scaled to 0 at
        # the first key that is not masked, at the latest the query's own token.
        larger = tl.maximum(largest, tl.max(logits, axis=1))
        weights = tl.exp2(logits - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        result = result * shrink[:, None] + _product(weights.to(value.dtype), value, PRECISION)
        largest = larger

    result = result / total[:, None]
    written = attended + window * TOKENS * channels + head * HEAD_DIM
    _store_rows(written, rows, channels, result, TOKENS, HEAD_DIM, WIDTH)
    places = log_sums + (window * heads + head) * TOKENS + rows
    tl.store(places, largest + tl.log2(total), mask=rows < TOKENS)


@triton.jit
def backward_queries(
    qkv, bias, factor, regions, gradient, log_sums,
    attended, overlaps, qkv_gradient, factor_parts, region_windows, heads,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    IS_COSINE: tl.constexpr, HAS_REGIONS: tl.constexpr, PRECISION: tl.constexpr,
):
    """The gradient of some queries of one window and head, and their part of the factor's gradient.

    Stores each query's overlap (the dot product of its output and its gradient) for other kernels.
    """
    window = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    channels = heads * HEAD_DIM
    of_head = window * TOKENS * 3 * channels + head * HEAD_DIM
    keys, values = qkv + of_head + channels, qkv + of_head + 2 * channels
    of_output = window * TOKENS * channels + head * HEAD_DIM
    of_rows = (window * heads + head) * TOKENS + rows
    row_factor = _load_factor(factor, head, HEAD_DIM, IS_COSINE)
    row_regions = _load_regions(regions, window, region_windows, rows, TOKENS, HAS_REGIONS)
    loaded_query = _load_rows(qkv + of_head, rows, 3 * channels, TOKENS, HEAD_DIM, WIDTH)
    query = _directions(loaded_query, IS_COSINE).to(loaded_query.dtype)
    row_gradient = _load_rows(gradient + of_output, rows, channels, TOKENS, HEAD_DIM, WIDTH)
    result = _load_rows(attended + of_output, rows, channels, TOKENS, HEAD_DIM, WIDTH)
    row_overlaps = tl.sum(row_gradient.to(tl.float32) * result.to(tl.float32), axis=1)
    tl.store(overlaps + of_rows, row_overlaps, mask=rows < TOKENS)
    # Beyond the window, this makes the weights 0 (2 to the power of minus infinity).
    row_log_sums = tl.load(log_sums + of_rows, mask=rows < TOKENS, other=float("inf"))

    # The gradient of the similarities times the keys; the factor is applied at the end.
    towards = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, TOKENS, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        column_regions = _load_regions(
            regions, window, region_windows, columns, TOKENS, HAS_REGIONS
        )
        key = _load_rows(keys, columns, 3 * channels, TOKENS, HEAD_DIM, WIDTH)
        key = _directions(key, IS_COSINE).to(key.dtype)
        value = _load_rows(values, columns, 3 * channels, TOKENS, HEAD_DIM, WIDTH)
        bias_tile = _load_bias(bias, head, rows, columns, TOKENS)
        _, logit_gradients = _logit_gradients(
            query, key, value, row_gradient, row_log_sums, row_overlaps, row_factor, bias_tile,
            row_regions, column_regions, columns, TOKENS, PRECISION,
        )
        towards += _product(logit_gradients.to(key.dtype), key, PRECISION)

    if IS_COSINE:
        share = tl.sum(tl.sum(towards * _directions(loaded_query, IS_COSINE), axis=1), axis=0)
        of_part = (window * heads + head) * tl.num_programs(2) + tl.program_id(2)
        tl.store(factor_parts + of_part, share)
    towards = _direction_gradient(towards * row_factor, loaded_query, IS_COSINE)
    _store_rows(qkv_gradient + of_head, rows, 3 * channels, towards, TOKENS, HEAD_DIM, WIDTH)


@triton.jit
def backward_keys(
    qkv, bias, factor, regions, gradient, log_sums,
    overlaps, qkv_gradient, region_windows, heads,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    IS_COSINE: tl.constexpr, HAS_REGIONS: tl.constexpr, PRECISION: tl.constexpr,
):
    """The gradients of some keys and values of one window and head."""
    window = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    channels = heads * HEAD_DIM
    of_keys = window * TOKENS * 3 * channels + head * HEAD_DIM + channels
    of_values = of_keys + channels
    of_output = window * TOKENS * channels + head * HEAD_DIM
    of_window = (window * heads + head) * TOKENS
    row_factor = _load_factor(factor, head, HEAD_DIM, IS_COSINE)
    column_regions = _load_regions(regions, window, region_windows, columns, TOKENS, HAS_REGIONS)
    loaded_key = _load_rows(qkv + of_keys, columns, 3 * channels, TOKENS, HEAD_DIM, WIDTH)
    key = _directions(loaded_key, IS_COSINE).to(loaded_key.dtype)
    value = _load_rows(qkv + of_values, columns, 3 * channels, TOKENS, HEAD_DIM, WIDTH)

    key_gradient = tl.zeros([COLUMNS, WIDTH], tl.float32)
    value_gradient = tl.zeros([COLUMNS, WIDTH], tl.float32)
    for first in range(0, TOKENS, ROWS):
        rows = first + tl.arange(0, ROWS)
        row_regions = _load_regions(regions, window, region_windows, rows, TOKENS, HAS_REGIONS)
        query = _load_rows(
            qkv + of_keys - channels, rows, 3 * channels, TOKENS, HEAD_DIM, WIDTH
        )
        query = _directions(query, IS_COSINE).to(query.dtype)
        row_gradient = _load_rows(gradient + of_output, rows, channels, TOKENS, HEAD_DIM, WIDTH)
        inside = rows < TOKENS
        row_log_sums = tl.load(log_sums + of_window + rows, mask=inside, other=float("inf"))
        row_overlaps = tl.load(overlaps + of_window + rows, mask=inside, other=0.0)
        bias_tile = _load_bias(bias, head, rows, columns, TOKENS)
        weights, logit_gradients = _logit_gradients(
            query, key, value, row_gradient, row_log_sums, row_overlaps, row_factor, bias_tile,
            row_regions, column_regions, columns, TOKENS, PRECISION,
        )
        value_gradient += _product(tl.trans(weights.to(value.dtype)), row_gradient, PRECISION)
        key_gradient += _product(tl.trans(logit_gradients.to(query.dtype)), query, PRECISION)

    key_gradient = _direction_gradient(key_gradient * row_factor, loaded_key, IS_COSINE)
    _store_rows(
        qkv_gradient + of_keys, columns, 3 * channels, key_gradient, TOKENS, HEAD_DIM, WIDTH
    )
    _store_rows(
        qkv_gradient + of_values, columns, 3 * channels, value_gradient, TOKENS, HEAD_DIM, WIDTH
    )


@triton.jit
def backward_bias(
    qkv, bias, factor, regions, gradient, log_sums,
    overlaps, bias_parts, windows, shares, region_windows, heads,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    IS_COSINE: tl.constexpr, HAS_REGIONS: tl.constexpr, PRECISION: tl.constexpr,
):
    """The gradient of one tile of one head's bias, summed over every `shares`-th window."""
    column_tiles = tl.cdiv(TOKENS, COLUMNS)
    rows = tl.program_id(0) // column_tiles * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    head = tl.program_id(1)
    share = tl.program_id(2)
    channels = heads * HEAD_DIM
    row_factor = _load_factor(factor, head, HEAD_DIM, IS_COSINE)
    bias_tile = _load_bias(bias, head, rows, columns, TOKENS)
    inside = rows < TOKENS

    summed = tl.zeros([ROWS, COLUMNS], tl.float32)
    for number in range(share, windows, shares):
        window = tl.cast(number, tl.int64)
        queries = qkv + window * TOKENS * 3 * channels + head * HEAD_DIM
        outputs = gradient + window * TOKENS * channels + head * HEAD_DIM
        of_rows = (window * heads + head) * TOKENS + rows
        row_regions = _load_regions(regions, window, region_windows, rows, TOKENS, HAS_REGIONS)
        column_regions = _load_regions(
            regions, window, region_windows, columns, TOKENS, HAS_REGIONS
        )
        query = _load_rows(queries, rows, 3 * channels, TOKENS, HEAD_DIM, WIDTH)
        query = _directions(query, IS_COSINE).to(query.dtype)
        key = _load_rows(queries + channels, columns, 3 * channels, TOKENS, HEAD_DIM, WIDTH)
        key = _directions(key, IS_COSINE).to(key.dtype)
        value = _load_rows(queries + 2 * channels, columns, 3 * channels, TOKENS, HEAD_DIM, WIDTH)
        row_gradient = _load_rows(outputs, rows, channels, TOKENS, HEAD_DIM, WIDTH)
        row_log_sums = tl.load(log_sums + of_rows, mask=inside, other=float("inf"))
        row_overlaps = tl.load(overlaps + of_rows, mask=inside, other=0.0)
        _, logit_gradients = _logit_gradients(
            query, key, value, row_gradient, row_log_sums, row_overlaps, row_factor, bias_tile,
            row_regions, column_regions, columns, TOKENS, PRECISION,
        )
        summed += logit_gradients

    first = bias_parts + (tl.cast(share, tl.int64) * heads + head) * TOKENS * TOKENS
    places = first + rows[:, None] * TOKENS + columns[None, :]
    tl.store(places, summed, mask=inside[:, None] & (columns < TOKENS)[None, :])
