"""Check an installed npumatmul as a user has it: import it, multiply in every type of each chip and by every scheme."""

from __future__ import annotations

import numpy as np

import npumatmul as npu
from npumatmul import sim
from npumatmul.errors import DeviceError

SCHEMES = ("w16a16", "w8a8", "w8a8_g128", "w4a8", "w4a8_g32", "w4a4", "w8a16", "w4a16_g128")


def product_of_type(device: npu.Device, mm_type: npu.MatmulType) -> None:
    """Run one matmul context; sums of so small integers are exact in every type."""
    rng = np.random.default_rng(1)
    with device.context(mm_type, 4, 96, 64, b_layout=npu.MatmulLayout.NATIVE) as context:
        a, b = (rng.integers(-1, 2, attr.shape).astype(attr.dtype) for attr in (context.a, context.b))
        buffers = [device.buffer(attr.size) for attr in (context.a, context.b, context.c)]
        buffers[0].put(context.a, a)
        buffers[1].put(context.b, b)
        context.bind(a=buffers[0], b=buffers[1], c=buffers[2])
        context.run()
        got = buffers[2].get(context.c)
        for buffer in buffers:
            buffer.close()
    np.testing.assert_array_equal(got.astype(np.int32), a.astype(np.int32) @ b.astype(np.int32), str(mm_type))


def products_by_scheme(device: npu.Device) -> list[str]:
    """Multiply by all schemes that the chip has; those, by name.

    Each operand is off by half a level at most: a level is 1/127 or 1/7 of the largest magnitude, so the relative error
    of sums of products that go either way is some fractions of that; one level bounds it.
    """
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((5, 256)).astype(np.float32), rng.standard_normal((256, 70)).astype(np.float32)
    wanted, done = x.astype(np.float64) @ w.astype(np.float64), []
    for scheme in SCHEMES:
        try:
            packed = npu.pack(w, scheme, device=device)
        except DeviceError:
            continue  # not for this chip
        with packed:
            error = np.linalg.norm(npu.matmul(x, packed, device=device) - wanted) / np.linalg.norm(wanted)
        bound = {"16": 2**-10, "8": 2**-5, "4": 2**-1}[min(scheme[1:].partition("_")[0].split("a"), key=int)]
        assert error < bound, (device.name, scheme, error)
        done.append(scheme)
    return done


def main() -> None:
    """Compare products with numpy's; `AssertionError` where they differ."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((5, 90), (90, 61)))
    exact = a.astype(np.int32) @ b.astype(np.int32)
    for soc in sim.SOCS:
        with npu.Device(f"sim:{soc}") as device:
            np.testing.assert_array_equal(npu.matmul(a, b, device=device), exact)
            with npu.pack(b, "int8", device=device) as packed:
                np.testing.assert_array_equal(npu.matmul(a, packed, device=device), exact)
            types = list(device.chip.limits)
            for mm_type in types:
                product_of_type(device, mm_type)
            schemes = products_by_scheme(device)
        print(f"{soc}: {len(types)} types and {', '.join(schemes)} multiply as numpy does")
    assert "2.3.2" in sim.runtimes(), sim.runtimes()
    print(f"npumatmul {npu.__version__} in {npu.__path__[0]} multiplies; simulates {', '.join(sim.runtimes())}")


if __name__ == "__main__":
    main()
