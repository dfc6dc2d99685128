"""Arrays in NPU memory, and their products."""
