"""What the CPU does, in C: kernels that convert and lay out, the executor, and the values that they take."""
