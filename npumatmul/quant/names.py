"""Names, for type checkers, of schemes and precisions.

Of schemes these are the usual ones; `Scheme.parse` knows them all.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["Precision", "SchemeName"]

Precision = Literal["high"]

# fmt: off
SchemeName = Literal[
    "w16a16", "w16a16_high", "w8a8", "w8a8o8", "w4a8", "w4a4", "w8a16", "w4a16", "int8", "int4", "w8a8_layer",
    "w8a8_g32", "w8a8_g64", "w8a8_g128", "w8a8_wasym", "w8a8_aasym", "w8a8_static", "w8a8_g32_wasym",
    "w8a8_g64_wasym", "w8a8_g128_wasym", "w8a8_g32_agroup", "w8a8_g64_agroup", "w8a8_g128_agroup", "w4a8_layer",
    "w4a8_g32", "w4a8_g64", "w4a8_g128", "w4a8_wasym", "w4a8_aasym", "w4a8_static", "w4a8_g32_wasym",
    "w4a8_g64_wasym", "w4a8_g128_wasym", "w4a8_g32_agroup", "w4a8_g64_agroup", "w4a8_g128_agroup", "w4a4_layer",
    "w4a4_g32", "w4a4_g64", "w4a4_g128", "w4a4_wasym", "w4a4_aasym", "w4a4_static", "w4a4_g32_wasym",
    "w4a4_g64_wasym", "w4a4_g128_wasym", "w4a4_g32_agroup", "w4a4_g64_agroup", "w4a4_g128_agroup", "w8a16_layer",
    "w8a16_g32", "w8a16_g64", "w8a16_g128", "w4a16_layer", "w4a16_g32", "w4a16_g64", "w4a16_g128",
]
# fmt: on
