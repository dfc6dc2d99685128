"""Check an installed npumatmul as a user has it: import it, multiply, and find every simulated runtime."""

from __future__ import annotations

import numpy as np

import npumatmul as npu
from npumatmul import sim


def main() -> None:
    """Compare products with numpy's; `AssertionError` where they differ."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((5, 90), (90, 61)))
    with npu.Device("sim:rk3588") as device:
        np.testing.assert_array_equal(npu.matmul(a, b, device=device), a.astype(np.int32) @ b.astype(np.int32))
        packed = npu.pack(b, "int8", device=device)
        np.testing.assert_array_equal(npu.matmul(a, packed, device=device), a.astype(np.int32) @ b.astype(np.int32))
    assert "2.3.2" in sim.runtimes(), sim.runtimes()
    print(f"npumatmul {npu.__version__} in {npu.__path__[0]} multiplies; simulates {', '.join(sim.runtimes())}")


if __name__ == "__main__":
    main()
