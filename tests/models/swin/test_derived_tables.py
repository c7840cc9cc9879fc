"""Tables that follow from sizes are right, however an encoder comes by its memory and its weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from simmim.models.swin import SwinTransformer
from simmim.models.swin.derived_tables import TableModule

V1 = {"norm": "pre", "similarity": "dot", "position_bias": "table"}


def create(**changes: Any) -> SwinTransformer:
    """Shifted windows, a map that they do not divide, and drop path."""
    torch.manual_seed(0)
    encoder = SwinTransformer(
        embed_dim=changes.pop("embed_dim", 16),
        depths=(2, 1),
        num_heads=(2, 2),
        image_size=20,
        window_size=4,
        patch_size=2,
        drop_path_rate=0.1,
        **changes,
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return encoder.eval()


def on_meta(encoder: SwinTransformer) -> SwinTransformer:
    with torch.device("meta"):
        return SwinTransformer(**encoder.arguments).eval()


def fill(encoder: SwinTransformer) -> None:
    """What fresh memory may hold."""
    for buffer in encoder.buffers():
        buffer.fill_(1)


def give_memory(encoder: SwinTransformer) -> SwinTransformer:
    other = on_meta(encoder).to_empty(device="cpu")
    other.load_state_dict(encoder.state_dict())
    return other


def give_memory_that_is_filled(encoder: SwinTransformer) -> SwinTransformer:
    other = on_meta(encoder).to_empty(device="cpu")
    fill(other)
    other.load_state_dict(encoder.state_dict())
    return other


def empty_what_was_there(encoder: SwinTransformer) -> SwinTransformer:
    other = SwinTransformer(**encoder.arguments).eval().to_empty(device="cpu")
    with torch.no_grad():
        for own, weight in zip(other.parameters(), encoder.parameters(), strict=True):
            own.copy_(weight)
    return other


def give_memory_part_by_part(encoder: SwinTransformer) -> SwinTransformer:
    """As FSDP does it."""
    other = on_meta(encoder)
    for module in other.modules():
        module.to_empty(device="cpu", recurse=False)
    other.load_state_dict(encoder.state_dict())
    return other


def assign(encoder: SwinTransformer) -> SwinTransformer:
    other = on_meta(encoder)
    other.load_state_dict(encoder.state_dict(), assign=True)
    return other


def copy_from_meta(encoder: SwinTransformer) -> SwinTransformer:
    other = copy.deepcopy(on_meta(encoder))
    other.load_state_dict(encoder.state_dict(), assign=True)
    return copy.deepcopy(other)


def there_and_back(encoder: SwinTransformer) -> SwinTransformer:
    """Weights in half precision and wide again; those of `encoder` have room in bfloat16."""
    return copy.deepcopy(encoder).to(torch.bfloat16).half().double().float()


WAYS = [
    give_memory,
    give_memory_that_is_filled,
    empty_what_was_there,
    give_memory_part_by_part,
    assign,
    copy_from_meta,
    there_and_back,
]


@pytest.mark.parametrize("changes", [{}, V1], ids=["V2", "V1"])
@pytest.mark.parametrize("way", WAYS)
def test_an_encoder_is_what_it_would_be_if_it_were_built_at_once(
    way: Callable[[SwinTransformer], SwinTransformer], changes: dict[str, Any]
) -> None:
    encoder = create(**changes)
    with torch.no_grad():
        # Values that any of the types holds.
        for parameter in encoder.parameters():
            parameter.copy_(parameter.half().bfloat16().half())
    names = list(encoder.state_dict())
    other = way(encoder)
    assert list(other.state_dict()) == names
    images = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(other(images), encoder(images))
    for (name, buffer), (_, expected) in zip(
        other.named_buffers(), encoder.named_buffers(), strict=True
    ):
        assert buffer.dtype == expected.dtype, name
        assert torch.equal(buffer, expected), name


def test_every_buffer_is_a_table_that_is_made_again() -> None:
    encoder = create(attention_backend="triton", embed_dim=32)
    tables: dict[str, Tensor] = {}
    for name, module in encoder.named_modules():
        if isinstance(module, TableModule):
            made = module.create_tables()
            tables |= {f"{name}.{key}".lstrip("."): t for key, t in made.items() if t is not None}
    assert tables.keys() == dict(encoder.named_buffers()).keys()
    assert any(name.endswith("regions") for name in tables)
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, tables[name]), name


def test_a_type_of_less_precision_rounds_no_offset() -> None:
    encoder = create().to(torch.bfloat16)
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, dict(create().named_buffers())[name]), name


def test_tables_stay_where_they_are_when_nothing_is_known_of_the_weights() -> None:
    encoder = on_meta(create())
    encoder.to(torch.bfloat16)
    assert all(buffer.is_meta for buffer in encoder.buffers())
