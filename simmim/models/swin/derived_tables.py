"""Non-persistent buffers computed from a module's sizes, kept valid when it is moved or loaded."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class TableModule(nn.Module):
    """A module with tables: non-persistent buffers that `create_tables` can always recompute.

    They are recomputed after `to_empty` (also from the meta device), after
    `load_state_dict(assign=True)`, and after a change of dtype, which would have rounded them.
    """

    def create_tables(self) -> dict[str, Tensor | None]:
        """The tables by name, on PyTorch's default device; None where a table is not needed."""
        raise NotImplementedError

    def register_tables(self) -> None:
        """Creates the tables; call it once the sizes that they depend on are set."""
        for name, table in self._create(torch.empty(0).device).items():
            self.register_buffer(name, table, persistent=False)
        self.register_load_state_dict_post_hook(_restore_after_loading)  # type: ignore[no-untyped-call]

    def restore_tables(self) -> None:
        """Recomputes the tables on their device, or on the weights' device if they are on meta."""
        tables = [self._buffers[name] for name in self._non_persistent_buffers_set]
        # All tables are None: there is nothing to recompute.
        device = next((table.device for table in tables if table is not None), None)
        if device is None:
            return
        if device.type == "meta":
            device = next((weight.device for weight in self.parameters()), device)
        self._buffers.update(self._create(device))

    def _create(self, device: torch.device) -> dict[str, Tensor | None]:
        # Computed on the CPU: logarithms may round differently on another device.
        is_meta = device.type == "meta"
        with torch.inference_mode(False), torch.device("meta" if is_meta else "cpu"):
            tables = self.create_tables()
        return {name: None if table is None else table.to(device) for name, table in tables.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TableModule":
        # Everything that moves a module, changes its dtype or allocates its memory calls `_apply`.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.restore_tables()
        return self


def _restore_after_loading(module: nn.Module, _: Any) -> None:
    assert isinstance(module, TableModule)
    module.restore_tables()
