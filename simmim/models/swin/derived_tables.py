"""Tables that follow from a module's sizes alone: right whatever becomes of the module."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class TableModule(nn.Module):
    """A module with tables: buffers that no state dict holds, for `create_tables` makes them again.

    They are made anew where memory was given without content (`to_empty`, also of the meta device),
    where weights were loaded in place of it (`load_state_dict(assign=True)`), and where a change of
    type would have rounded them.
    """

    def create_tables(self) -> dict[str, Tensor | None]:
        """Each table by its name, on PyTorch's default device; None: no such table is needed."""
        raise NotImplementedError

    def register_tables(self) -> None:
        """Makes the tables, once the sizes that they follow from are known."""
        for name, table in self._create(torch.empty(0).device).items():
            self.register_buffer(name, table, persistent=False)
        self.register_load_state_dict_post_hook(_restore_after_loading)  # type: ignore[no-untyped-call]

    def restore_tables(self) -> None:
        """Makes the tables again where they are; with the weights, where they are nowhere."""
        tables = [self._buffers[name] for name in self._non_persistent_buffers_set]
        # A module that needs none of its tables has none to make, wherever it is.
        device = next((table.device for table in tables if table is not None), None)
        if device is None:
            return
        if device.type == "meta":
            device = next((weight.device for weight in self.parameters()), device)
        self._buffers.update(self._create(device))

    def _create(self, device: torch.device) -> dict[str, Tensor | None]:
        # Computed on the CPU: another device's logarithms may be rounded otherwise.
        is_meta = device.type == "meta"
        with torch.inference_mode(False), torch.device("meta" if is_meta else "cpu"):
            tables = self.create_tables()
        return {name: None if table is None else table.to(device) for name, table in tables.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TableModule":
        # All that moves a module, changes its type or gives it memory comes through here.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.restore_tables()
        return self


def _restore_after_loading(module: nn.Module, _: Any) -> None:
    assert isinstance(module, TableModule)
    module.restore_tables()
