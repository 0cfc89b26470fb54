"""Array annotations such as Float[Tensor, "T V"]: jaxtyping's, or plain Tensor without jaxtyping.

The kernels need torch alone. Where jaxtyping is installed its import hook can check the shapes.
`Group` is a process group, or None where nothing is sharded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed import ProcessGroup

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class Float:
            """Float[Tensor, "T"] is Tensor."""

            def __class_getitem__(cls, item):
                return item[0]

        Bool = Int = Float

Group = ProcessGroup | None

__all__ = ["Bool", "Float", "Group", "Int"]
