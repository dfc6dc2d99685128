"""From shapes to tiles, cores and rows: pure functions of a chip's facts, which load no library."""
