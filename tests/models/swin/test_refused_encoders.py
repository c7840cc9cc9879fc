"""Encoders that cannot be built, and images that they cannot take, are refused with what would fit."""

import re
from typing import Any

import pytest
import torch
from tiny_encoders import TINY, tiny
from torch import nn

from simmim.models.swin import ARCHITECTURES, SwinTransformer, create_encoder
from simmim.utils.errors import UserError


def check_message(error: str, **changes: Any) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(error)}$"):
        SwinTransformer(**(TINY | changes))


@pytest.mark.parametrize(
    ("image_size", "message"),
    [
        (
            200,
            "image size 200 is not a multiple of 32 (patch 4 × 3 downsamplings); use 192 or 224",
        ),
        (
            (192, 200),
            "image size 192×200 is not a multiple of 32 (patch 4 × 3 downsamplings); "
            "use 192 or 224",
        ),
        (20, "image size 20 is not a multiple of 32 (patch 4 × 3 downsamplings); use 32"),
    ],
)
def test_an_image_size_that_does_not_divide_names_its_neighbours_that_do(
    image_size: int | tuple[int, int], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        create_encoder("swinv2_t", image_size=image_size)


def test_images_that_do_not_divide_are_refused_with_the_sizes_that_do() -> None:
    message = "image size 18×16 is not a multiple of 4 (patch 2 × 1 downsamplings); use 16 or 20"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        tiny()(torch.zeros(1, 3, 18, 16))


def test_images_of_other_channels_are_refused_with_the_setting_that_takes_them() -> None:
    message = "images have 4 channels but the encoder takes 3; set model.in_channels=4"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        tiny()(torch.zeros(1, 4, 16, 16))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    message = f"model name 'swinv3_b' is unknown; use one of {', '.join(ARCHITECTURES)}"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        create_encoder("swinv3_b")
    assert "swinv2_b" in message


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("norm", "res_post or pre"),
        ("similarity", "cosine or dot"),
        ("position_bias", "log_cpb or linear_cpb or table"),
        ("attention_backend", "auto or chunked or sdpa or triton or reference"),
    ],
)
@pytest.mark.unchecked
def test_an_unknown_choice_is_answered_with_the_known_ones(name: str, choices: str) -> None:
    with pytest.raises(UserError, match=f"^model.{name}=best is unknown; use {choices}$"):
        SwinTransformer(**(TINY | {name: "best"}))


@pytest.mark.parametrize(
    ("depths", "num_heads"), [((), ()), ((2, 0), (2, 2)), ((2, 2), (2, 2, 2)), ((2, 2), (2,))]
)
def test_depths_and_heads_that_do_not_pair_up_are_refused(
    depths: tuple[int, ...], num_heads: tuple[int, ...]
) -> None:
    check_message(
        f"depths {list(depths)} and num_heads {list(num_heads)} must list one positive number "
        "for each stage",
        depths=depths,
        num_heads=num_heads,
    )


@pytest.mark.parametrize(
    ("embed_dim", "num_heads", "message"),
    [
        (64, (2, 3), "3 heads do not divide the 128 channels of stage 2; use num_heads of 4 (32"),
        (64, (0, 4), "0 heads do not divide the 64 channels of stage 1; use num_heads of 2 (32"),
        (112, (3, 6), "3 heads do not divide the 112 channels of stage 1; use num_heads of 2 (56"),
        (8, (3, 2), "3 heads do not divide the 8 channels of stage 1; use num_heads of 1 (8"),
    ],
)
def test_heads_that_do_not_divide_the_channels_name_a_number_that_does(
    embed_dim: int, num_heads: tuple[int, ...], message: str
) -> None:
    check_message(f"{message} channels a head)", embed_dim=embed_dim, num_heads=num_heads)


@pytest.mark.parametrize("name", ["embed_dim", "patch_size", "in_channels"])
def test_sizes_below_one_are_refused(name: str) -> None:
    check_message(f"model.{name}=0 is not positive; use 1 or more", **{name: 0})


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_drop_path_rate_outside_its_range_is_refused(rate: float) -> None:
    check_message(f"drop_path_rate {rate} is not in [0, 1); use 0.1", drop_path_rate=rate)


@pytest.mark.parametrize(("window_size", "shown"), [(1, "1"), ((1, 8), "1×8")])
def test_a_window_of_one_token_is_refused(window_size: int | tuple[int, int], shown: str) -> None:
    check_message(
        f"window size {shown} leaves a token alone with itself and no relative offsets; "
        "use a window of 2 or more, e.g. 8",
        window_size=window_size,
    )


@pytest.mark.parametrize("name", ["image_size", "window_size"])
@pytest.mark.parametrize("size", [0, -8, (8, 8, 8), (0, 8)])
def test_sizes_that_are_no_size_are_refused(name: str, size: int | tuple[int, ...]) -> None:
    check_message(
        f"model.{name} {size} is not a positive int or a (height, width); use 192 or [192, 256]",
        **{name: size},
    )


def test_pretrained_windows_are_asked_for_one_a_stage() -> None:
    check_message(
        "pretrained_window_sizes [2, 2, 2] has 3 entries for 2 stages; "
        "give one a stage, e.g. [(2, 2), (2, 2)]",
        pretrained_window_sizes=(2, 2, 2),
    )


def test_a_size_that_does_not_fit_is_refused_before_any_weight_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def allocate(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight was allocated")

    monkeypatch.setattr(nn.Conv2d, "__init__", allocate)
    monkeypatch.setattr(nn.Linear, "__init__", allocate)
    with pytest.raises(UserError, match="image size 200"):
        create_encoder("swinv2_t", image_size=200)
