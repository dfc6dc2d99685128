"""Running a model: chat templates, sampling, generation, several sequences in lockstep."""
