"""Objects with a lifetime: devices, buffers, contexts, and what a process holds of the NPU."""
