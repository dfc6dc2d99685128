"""Files of models: GGUF, and the small model of the demo."""
