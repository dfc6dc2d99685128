"""Files of models: GGUF, Hugging Face folders, and the small model of the demo."""
