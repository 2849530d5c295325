"""Memory whose size is known when it is first used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class GrowingBuffers(nn.Module):
    """A module whose buffers take the shape and the dtype of what a checkpoint holds."""

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is None or (saved.shape, saved.dtype) == (buffer.shape, buffer.dtype):
                continue
            setattr(self, name, torch.empty_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
